"""Answers to frames: rows that ended together, sorted by the stream that they go to."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.messages import AnswerReply, FrameRequest


class Outbox:
    """Makes the replies, and knows who else waits for a row because it was sent again while it ran."""

    def __init__(self, core: Core, requests: dict[int, FrameRequest]) -> None:
        self.core = core
        self._requests = requests
        self._also: dict[int, list[tuple[FrameRequest, int]]] = {}

    def add_asker(self, w: int, request: FrameRequest, row: int) -> None:
        """Row `row` of a frame asks for what row of work `w` computes already."""
        self._also.setdefault(w, []).append((request, row))

    def take_askers(self, w: int) -> list[tuple[FrameRequest, int]]:
        """Who else waits for a row of work; forgotten with this call."""
        return self._also.pop(w, []) if self._also else []

    def answer(self, rows: np.ndarray, positions: np.ndarray, emissions: np.ndarray, outputs: np.ndarray) -> None:
        """One answer for each stream that has rows [n] among these.

        positions: after the chunks [n]; emissions: of each [n]; outputs: float32 [sum(emissions), ...].
        """
        work = self.core.work
        streams = work.stream[rows]
        n = len(rows)
        if n > 1 and (streams != streams[0]).any():
            order = np.argsort(streams, kind="stable")
            cuts = np.flatnonzero(np.diff(streams[order])) + 1
            ends = np.cumsum(emissions)
            if (emissions == emissions[0]).all():
                packed = outputs.reshape(n, -1, *outputs.shape[1:])[order].reshape(outputs.shape)
            else:
                packed = np.concatenate([outputs[ends[i] - emissions[i] : ends[i]] for i in order.tolist()])
            rows, positions, emissions, outputs = rows[order], positions[order], emissions[order], packed
            bounds = [0, *cuts.tolist(), n]
        else:
            bounds = [0, n]
        owners = work.owner[rows].tolist()
        handles, starts = work.handle[rows].tolist(), work.start[rows].tolist()
        position, counts = positions.tolist(), emissions.tolist()
        at = [0, *np.cumsum(emissions).tolist()]
        requests, replies = self._requests, self.core.replies
        for low, high in pairwise(bounds):
            first = requests[owners[low]]
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
                    self.repeat(request, row, starts[i], position[i], outputs[at[i] : at[i + 1]])

    def repeat(self, request: FrameRequest, row: int, start: int, position: int, outputs: np.ndarray) -> None:
        """The answer of one row once more. outputs: float32 [emissions, ...]."""
        self.core.replies.append(
            AnswerReply(
                request.to,
                [request.frame_id],
                [request.frame.handles[row]],
                [start],
                [position],
                [len(outputs)],
                outputs,
            )
        )

    def refuse(self, request: FrameRequest, rows: list[int], errors: list[CellarError]) -> None:
        """An answer of errors only: the given rows of one frame."""
        frame, table = request.frame, self.core.table
        handles = [frame.handles[row] for row in rows]
        slots, valid = table.resolve(np.array(handles, np.uint64), request.stream)
        positions = np.where(valid, table.position[slots], 0).tolist()
        self.core.replies.append(
            AnswerReply(
                request.to,
                [request.frame_id],
                handles,
                [frame.positions[row] for row in rows],
                positions,
                [0] * len(rows),
                self.core.no_outputs(),
                list(enumerate(errors)),
            )
        )
