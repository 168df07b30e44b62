"""Answers to frames: rows that ended together, sorted by the stream that they go to."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

import numpy as np

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.messages import OUTLETS, AnswerReply, FrameRequest, Rows, RowsRefused, RowsReply


class Outbox:
    """Makes the replies, and knows who else waits for a row because it was sent again while it ran."""

    def __init__(self, core: Core, requests: dict[int, FrameRequest | Rows]) -> None:
        self.core = core
        self._requests = requests
        self._also: dict[int, list[tuple[FrameRequest | Rows, int]]] = {}

    def add_asker(self, w: int, request: FrameRequest | Rows, row: int) -> None:
        """Row `row` of a frame asks for what row of work `w` computes already."""
        self._also.setdefault(w, []).append((request, row))

    def take_askers(self, w: int) -> list[tuple[FrameRequest | Rows, int]]:
        """Who else waits for a row of work; forgotten with this call."""
        return self._also.pop(w, []) if self._also else []

    def answer(self, rows: np.ndarray, positions: np.ndarray, emissions: np.ndarray, outputs: np.ndarray) -> None:
        """One answer for each stream that has rows [n] among these, and one for all rows that came one a message.

        positions: after the chunks [n]; emissions: of each [n]; outputs: float32 [sum(emissions), ...].
        """
        work = self.core.work
        outlets = work.outlet[rows]
        n = len(rows)
        if n > 1 and (outlets != outlets[0]).any():
            if (np.diff(outlets) < 0).any():
                order = np.argsort(outlets, kind="stable")
                ends = np.cumsum(emissions)
                if (emissions == emissions[0]).all():
                    packed = outputs.reshape(n, -1, *outputs.shape[1:])[order].reshape(outputs.shape)
                else:
                    packed = np.concatenate([outputs[ends[i] - emissions[i] : ends[i]] for i in order.tolist()])
                self.core.counts.copy("pack", packed.nbytes)
                rows, positions, emissions, outputs = rows[order], positions[order], emissions[order], packed
                outlets = outlets[order]
            bounds = [0, *(np.flatnonzero(np.diff(outlets)) + 1).tolist(), n]
        else:
            bounds = [0, n]
            if outlets[0] in OUTLETS and not self._also:
                self._answer_shared(rows, positions, emissions, outputs)
                return
        owners = work.owner[rows].tolist()
        handles, starts = work.handle[rows].tolist(), work.start[rows].tolist()
        position, counts = positions.tolist(), emissions.tolist()
        at = [0, *np.cumsum(emissions).tolist()]
        requests, replies = self._requests, self.core.replies
        for low, high in pairwise(bounds):
            if outlets[low] in OUTLETS:
                part = slice(low, high)
                self._answer_shared(rows[part], positions[part], emissions[part], outputs[at[low] : at[high]])
                continue
            first = requests[owners[low]]
            assert isinstance(first, FrameRequest)
            frame_ids: list[Any]
            if high - low == 1 or owners[low:high].count(owners[low]) == high - low:
                frame_ids = [first.frame_id]
            else:
                frame_ids = [requests[number].frame_id for number in owners[low:high]]
            replies.append(
                AnswerReply(
                    first.to,
                    frame_ids,
                    handles[low:high],
                    starts[low:high],
                    position[low:high],
                    counts[low:high],
                    outputs[at[low] : at[high]],
                )
            )
        if self._also:
            for i, w in enumerate(rows.tolist()):
                for request, row in self.take_askers(w):
                    self.core.counts.chunks_replayed += 1
                    self.core.counts.chunks_joined += 1
                    self.repeat(request, row, starts[i], position[i], outputs[at[i] : at[i + 1]])

    def _answer_shared(
        self, rows: np.ndarray, positions: np.ndarray, emissions: np.ndarray, outputs: np.ndarray
    ) -> None:
        work = self.core.work
        self.core.replies.append(
            RowsReply(
                self._requests[int(work.owner[rows[0]])].to,
                work.frame_id[rows],
                work.handle[rows],
                work.start[rows],
                positions,  # type: ignore[arg-type]
                emissions,  # type: ignore[arg-type]
                outputs,
                call=work.call[rows],
            )
        )

    def repeat(self, request: FrameRequest | Rows, row: int, start: int, position: int, outputs: np.ndarray) -> None:
        """The answer of one row once more. outputs: float32 [emissions, ...]."""
        to, frame_id = request.asker(row)
        self.core.replies.append(
            AnswerReply(
                to,
                [frame_id],
                [request.chunk(row)[0]],
                [start],
                [position],
                [len(outputs)],
                outputs,
            )
        )

    def refuse(self, request: FrameRequest | Rows, rows: list[int], errors: list[CellarError]) -> None:
        """Answers of errors only: the given rows of one frame in one, rows that came one a message by their errors."""
        if isinstance(request, Rows):
            for _, alike in groupby(range(len(rows)), key=lambda i: id(errors[i])):
                places = list(alike)
                self.refuse_rows(request, np.array(rows)[places], errors[places[0]])
            return
        table = self.core.table
        for error in errors:
            self.core.counts.refuse(error.reason)
        handles, streams, starts = zip(*(request.chunk(row) for row in rows), strict=True)
        slots, valid = table.resolve(np.array(handles, np.uint64), np.array(streams, np.int64))
        positions = np.where(valid, table.position[slots], 0).tolist()
        to, frame_id = request.asker(rows[0])
        self.core.replies.append(
            AnswerReply(
                to,
                [frame_id],
                list(handles),
                list(starts),
                positions,
                [0] * len(rows),
                self.core.no_outputs(),
                list(enumerate(errors)),
            )
        )

    def refuse_rows(self, request: Rows, places: np.ndarray, error: CellarError) -> None:
        """One error for the rows at `places` [n], however many they are."""
        self.core.counts.refuse(error.reason, len(places))
        table, handle = self.core.table, request.handle[places]
        slots, valid = table.resolve(handle, request.stream[places])
        positions = np.where(valid, table.position[slots], 0)
        self.core.replies.append(
            RowsRefused(
                request.to,
                request.call[places],
                request.frame_id[places],
                handle,
                request.position[places],
                positions,
                self.core.output_shape,
                error,
                request.ids is not None,
            )
        )
