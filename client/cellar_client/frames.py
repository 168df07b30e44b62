"""What a frame stream knows of its sessions and frames, whatever carries them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import (
    BULK,
    Answer,
    CloseSessions,
    Frame,
    OpenedSessions,
    OpenSessions,
    StreamRequest,
)
from cellar_proto.v1.sessions_pb2 import SessionOptions

from cellar_client.book import column, rows_of
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, SessionLost, SessionNotFound, from_error
from cellar_client.messages import Codec, mint_id, mint_token
from cellar_client.replay import is_passing

# Bytes of one stream's chunks that are kept to be sent again.
MAX_BYTES = 16 << 20
# What a kept frame counts for beside its chunks.
FRAME_BYTES = 1024


@dataclass
class FrameAnswer:
    """The answer to one frame, its rows in the order of the frame.

    outputs: float32 [sum(lengths), ...]; lengths: emissions of each row [N]; positions: of each session after its
    chunk [N]; errors: by row, whose length is 0.
    """

    frame_id: int
    outputs: Emissions
    lengths: np.ndarray
    positions: np.ndarray
    errors: dict[int, CellarError] = field(default_factory=dict)

    def rows(self) -> list[Emissions]:
        """The emissions of each row."""
        ends = np.cumsum(self.lengths)
        return [self.outputs[end - n : end] for end, n in zip(ends.tolist(), self.lengths.tolist(), strict=True)]

    def check(self) -> FrameAnswer:
        """Itself, or the first row's error."""
        for error in self.errors.values():
            raise error
        return self


class _Sent:
    """A frame as it was sent, and what came back of it.

    number: what the caller knows it by; rows: places of its sessions in the stream [n]; starts, lengths: of the chunks
    [n]; wire_ids: which message may still answer a row [n], 0 for an answered one; pieces, errors: by row.
    """

    __slots__ = (
        "aliases",
        "data",
        "ends",
        "errors",
        "is_answered",
        "is_bulk",
        "left",
        "lengths",
        "num_bytes",
        "number",
        "pieces",
        "positions",
        "rows",
        "starts",
        "timeout_ms",
        "wire_ids",
    )

    def __init__(
        self,
        number: int,
        rows: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        data: bytes,
        *,
        ends: bool,
        is_bulk: bool,
        timeout_ms: int,
    ) -> None:
        self.number = number
        self.rows, self.starts, self.lengths, self.data = rows, starts, lengths, data
        self.ends, self.is_bulk, self.timeout_ms = ends, is_bulk, timeout_ms
        self.wire_ids = np.full(len(rows), number, np.int64)
        self.left = len(rows)
        self.pieces: dict[int, Emissions] = {}
        self.errors: dict[int, CellarError] = {}
        self.positions = starts.copy()
        self.num_bytes = len(data) + FRAME_BYTES
        self.is_answered = False
        self.aliases = {number}  # every message that it went out in

    def chunks(self, chosen: np.ndarray) -> bytes:
        """The chunks of some rows behind one another."""
        total = int(self.lengths.sum())
        if len(chosen) == len(self.rows) or not total:
            return self.data
        unit = len(self.data) // total
        ends = np.cumsum(self.lengths) * unit
        starts = ends - self.lengths * unit
        return b"".join(self.data[starts[i] : ends[i]] for i in chosen.tolist())


class FrameBook:
    """Sessions as rows, their positions, and the frames that are not both answered and durable.

    ids; handles uint64 [N], positions int64 [N] (of the next chunk).
    """

    def __init__(self, codec: Codec, *, max_bytes: int = MAX_BYTES) -> None:
        self._codec = codec
        self._max_bytes = max_bytes
        self._options = SessionOptions()
        self._sent: deque[_Sent] = deque()
        self._by_wire: dict[int, _Sent] = {}
        self.ids: list[str] = []
        self.handles = np.zeros(0, np.uint64)
        self._place: dict[int, int] = {}  # of each handle
        self.positions = np.zeros(0, np.int64)
        self._durable = np.zeros(0, np.int64)
        self._first = np.zeros(0, np.int64)  # from which on everything is held here
        self._gone: dict[int, CellarError] = {}  # why a row's session is no more
        self._num_bytes = 0
        self._num_unanswered = 0
        self._whole_here: list[_Sent] = []  # frames whose last rows were answered on this side
        self._number = 0
        self._torn: set[int] = set()  # rows that must be taken up again before anything more is sent

    # -- sessions ------------------------------------------------------------------------------------------------

    def _open_request(
        self, frame_id: int, sessions: int | Sequence[str], resume: bool, max_idle_s: float
    ) -> StreamRequest:
        ids = [mint_id() for _ in range(sessions)] if isinstance(sessions, int) else list(sessions)
        if not resume:
            self._options = SessionOptions(max_idle_s=max_idle_s)
        return self._open_message(frame_id, ids, resume=resume)

    def _open_message(self, frame_id: int, ids: Sequence[str], *, resume: bool) -> StreamRequest:
        info = self._codec.info
        return StreamRequest(
            open=OpenSessions(
                frame_id=frame_id,
                model=info.name,
                version=info.version,
                ids=ids,
                resume=resume,
                options=self._options,
                request_token=mint_token(),
            )
        )

    def _take_opened(self, opened: OpenedSessions) -> list[str]:
        for error in opened.errors:
            raise from_error(error.error)
        for i, handle in enumerate(opened.handles):
            self._place[handle] = len(self.ids) + i
        self.ids += opened.ids
        positions = np.array(opened.positions, np.int64)
        self.handles = np.concatenate([self.handles, np.array(opened.handles, np.uint64)])
        self.positions = np.concatenate([self.positions, positions])
        self._first = np.concatenate([self._first, positions])
        self._durable = np.concatenate([self._durable, np.zeros(len(positions), np.int64)])
        return list(opened.ids)

    def _close_request(self, frame_id: int) -> StreamRequest:
        return StreamRequest(close=CloseSessions(frame_id=frame_id, handles=self.handles[self.handles > 0].tolist()))

    def _next_id(self) -> int:
        self._number += 1
        return self._number

    def _forget_sessions(self) -> None:
        """The stream has no rows any more; what was not answered is not waited for."""
        self.ids, self._place, self._gone = [], {}, {}
        self.handles = np.zeros(0, np.uint64)
        self.positions, self._durable, self._first = (np.zeros(0, np.int64) for _ in range(3))
        self._sent.clear()
        self._by_wire.clear()
        self._torn.clear()
        self._whole_here.clear()
        self._num_bytes = self._num_unanswered = 0

    # -- frames --------------------------------------------------------------------------------------------------

    def _frame_request(
        self,
        number: int,
        inputs: Any,
        lengths: int | Sequence[int] | None,
        rows: Sequence[int] | None,
        timeout_ms: int,
        bulk: bool,
        ends: bool,
    ) -> StreamRequest | None:
        """A new frame as a message; None where none of its sessions is left."""
        chosen = np.arange(len(self.ids)) if rows is None else np.asarray(rows, np.int64)
        if self._codec.info.is_text:
            texts = [text.encode() if isinstance(text, str) else text for text in inputs]
            data, lengths = b"".join(texts), [len(text) for text in texts]
        else:
            data, _ = self._codec.encode(inputs)
        each = [1] if lengths is None else [lengths] if isinstance(lengths, int) else list(lengths)
        steps = np.resize(np.array(each, np.int64), len(chosen))
        sent = _Sent(
            number,
            chosen,
            self.positions[chosen].copy(),
            steps,
            data,
            ends=ends,
            is_bulk=bulk,
            timeout_ms=timeout_ms,
        )
        self._sent.append(sent)
        self._by_wire[number] = sent
        self._num_bytes += sent.num_bytes
        self._num_unanswered += 1
        self.positions[chosen] += steps
        left = np.arange(len(chosen))
        if self._gone:
            self._refuse_gone(sent)
            left = np.flatnonzero(sent.wire_ids)
        return self._message(number, sent, left) if len(left) else None

    def _refuse_gone(self, sent: _Sent) -> None:
        """Rows whose session is no more are answered here."""
        was_open = sent.left > 0
        for i, place in enumerate(sent.rows.tolist()):
            if place in self._gone and sent.wire_ids[i]:
                sent.errors[i] = self._gone[place]
                sent.wire_ids[i] = 0
                sent.left -= 1
                self.positions[place] = sent.positions[i] = min(self.positions[place], sent.starts[i])
        if was_open and not sent.left:
            self._whole_here.append(sent)

    def _message(self, wire_id: int, sent: _Sent, chosen: np.ndarray) -> StreamRequest:
        """Some rows of a frame as a message."""
        lengths = sent.lengths[chosen]
        is_even = len(lengths) > 0 and bool((lengths == lengths[0]).all())
        frame = Frame(
            frame_id=wire_id,
            handles=self.handles[sent.rows[chosen]].tolist(),
            positions=sent.starts[chosen].tolist(),
            lengths=lengths[:1].tolist() if is_even else lengths.tolist(),
            inputs=self._codec.tensor(sent.chunks(chosen)),
            timeouts_ms=[sent.timeout_ms] if sent.timeout_ms else [],
            priorities=[BULK] if sent.is_bulk else [],
            ends=[True] if sent.ends else [],
        )
        return StreamRequest(frame=frame)

    def _take(self, kind: str, wire_id: int, message: Any) -> FrameAnswer | None:
        """What a message makes whole: a frame's answer, once its last row is there. A frame refused as a whole is
        raised, and its sessions' positions are set back."""
        sent = self._by_wire.get(wire_id)
        if sent is None:
            return None
        if kind == "frame_error":
            error = from_error(message.error)
            if is_passing(error):
                self._torn.update(sent.rows[sent.wire_ids == wire_id].tolist())
            else:
                self._drop(sent)
                np.subtract.at(self.positions, sent.rows, sent.lengths)
            raise error
        answer = self._whole(sent, wire_id, message)
        if answer is None:
            self._take_rows(sent, wire_id, message)
            if sent.left:
                return None
            answer = self._gathered(sent)
        self._answered(sent)
        return answer

    def _answered(self, sent: _Sent) -> None:
        sent.is_answered = True
        self._num_unanswered -= 1
        self._settle()

    def _whole(self, sent: _Sent, wire_id: int, message: Answer) -> FrameAnswer | None:
        """The answer where one message holds all of it, in order and without an error."""
        n = len(sent.rows)
        if sent.left != n or message.errors or len(message.frame_ids) != 1 or len(message.handles) != n:
            return None
        if sent.number != wire_id or not np.array_equal(np.array(message.handles, np.uint64), self.handles[sent.rows]):
            return None
        sent.left = 0
        sent.wire_ids[:] = 0
        positions = np.array(message.positions, np.int64)
        self._note(sent.rows, message)
        lengths = np.resize(np.array(message.lengths, np.int64), n)
        return FrameAnswer(sent.number, self._codec.decode(message.outputs), lengths, positions)

    def _note(self, rows: np.ndarray, message: Answer) -> None:
        if message.durable_positions:
            self._durable[rows] = np.resize(np.array(message.durable_positions, np.int64), len(rows))

    def _take_rows(self, sent: _Sent, wire_id: int, message: Answer) -> None:
        outputs = self._codec.decode(message.outputs)
        count = len(message.handles)
        ids, lengths = column(message.frame_ids, count), column(message.lengths, count)
        durable = column(message.durable_positions, count) if message.durable_positions else []
        failed = {error.row: from_error(error.error) for error in message.errors}
        at_place = {place: i for i, place in enumerate(sent.rows.tolist())}
        at = 0
        for row, (handle, each, length) in enumerate(zip(message.handles, ids, lengths, strict=True)):
            piece = outputs[at : at + length]
            at += length
            place = self._place.get(handle)
            if each != wire_id or place is None or place not in at_place:
                continue
            i = at_place[place]
            if sent.wire_ids[i] != wire_id:
                continue  # it was sent again since, or is answered
            error = failed.get(row)
            if error is not None and is_passing(error):
                self._torn.add(place)
                if not sent.timeout_ms:
                    continue
            sent.wire_ids[i] = 0
            sent.left -= 1
            sent.positions[i] = message.positions[row]
            if error is not None:
                sent.errors[i] = error
                self.positions[place] = message.positions[row]
            else:
                sent.pieces[i] = piece
            if durable:
                self._durable[place] = durable[row]

    def _gathered(self, sent: _Sent) -> FrameAnswer:
        codec = self._codec
        n = len(sent.rows)
        counts = np.array([len(sent.pieces[i]) if i in sent.pieces else 0 for i in range(n)], np.int64)
        good = [sent.pieces[i] for i in range(n) if i in sent.pieces]
        outputs = Emissions(np.concatenate(good), codec.info.labels) if good else codec.nothing()
        return FrameAnswer(sent.number, outputs, counts, sent.positions, sent.errors)

    # -- what is kept --------------------------------------------------------------------------------------------

    def _drop(self, sent: _Sent) -> None:
        self._sent.remove(sent)
        self._num_bytes -= sent.num_bytes
        self._num_unanswered -= 1
        self._forget_messages(sent)

    def _forget_messages(self, sent: _Sent) -> None:
        for wire_id in sent.aliases:
            self._by_wire.pop(wire_id, None)

    def _settle(self) -> None:
        """Forgets the oldest frames that are answered and durable; where nothing is stored, those beyond the bound."""
        while self._sent and self._sent[0].is_answered:
            first = self._sent[0]
            is_safe = bool((first.starts + first.lengths <= self._durable[first.rows]).all())
            if not is_safe and (self._codec.info.durability or self._num_bytes <= self._max_bytes):
                return
            self._sent.popleft()
            self._num_bytes -= first.num_bytes
            self._forget_messages(first)
            self._first[first.rows] = first.starts + first.lengths

    @property
    def _is_full(self) -> bool:
        """Nothing more can be kept until more is durable: the sender must wait."""
        return self._num_bytes > self._max_bytes and bool(self._codec.info.durability)

    def _undurable(self) -> list[int]:
        """Rows of the oldest frame that are not durable."""
        first = self._sent[0]
        return first.rows[first.starts + first.lengths > self._durable[first.rows]].tolist()

    # -- coming back ---------------------------------------------------------------------------------------------

    def _reattached(self, rows: Sequence[int], opened: OpenedSessions) -> tuple[list[int], dict[int, int]]:
        """Sessions were taken up again: those that the server does not have, which must be opened anew from their
        first chunk on, and where the others stand. An error that passes is raised, others stay with their rows."""
        failed = {error.row: from_error(error.error) for error in opened.errors}
        missing, standing = [], {}
        for error in failed.values():
            if is_passing(error):
                raise error
        for i, place in enumerate(rows):
            if isinstance(failed.get(i), SessionNotFound):
                if self._first[place] > 0:
                    raise SessionLost(
                        f"the server has no session {self.ids[place]!r}, and only what came from "
                        f"{self._first[place]} on is kept here"
                    )
                missing.append(place)
            elif i in failed:
                self._gone[place] = failed[i]
                self._place.pop(int(self.handles[place]), None)
            else:
                standing[place] = opened.positions[i]
                self._place.pop(int(self.handles[place]), None)
                self.handles[place] = opened.handles[i]
                self._place[opened.handles[i]] = place
        self._torn.difference_update(rows)
        return missing, standing

    def _reattached_to_close(self, rows: Sequence[int], opened: OpenedSessions) -> None:
        """Sessions were taken up again to be closed: those that are no more need not be."""
        for error in opened.errors:
            found = from_error(error.error)
            if is_passing(found):
                raise found
        self.handles[list(rows)] = np.array(opened.handles, np.uint64)
        self._torn.difference_update(rows)

    def _lost_chunks(self, standing: dict[int, int]) -> Iterator[tuple[_Sent, np.ndarray]]:
        """Answered chunks that the server does not have any more, in order: the frame and which of its rows."""
        for place, position in standing.items():
            if position < self._first[place] and position < self.positions[place]:
                raise SessionLost(
                    f"the server has session {self.ids[place]!r} at {position}, and only what came from "
                    f"{self._first[place]} on is kept here",
                    expected_position=position,
                )
        for sent in list(self._sent):
            behind = [
                i
                for i, place in enumerate(sent.rows.tolist())
                if place in standing and sent.wire_ids[i] == 0 and sent.starts[i] >= standing[place]
            ]
            chosen = [i for i in behind if i not in sent.errors]
            if chosen:
                yield sent, np.array(chosen)

    def _unanswered(self, rows: Iterable[int]) -> Iterator[tuple[_Sent, np.ndarray]]:
        """Chunks of these rows that nobody has answered, in order."""
        wanted = set(rows)
        for sent in list(self._sent):
            if sent.is_answered:
                continue
            self._refuse_gone(sent)
            chosen = [i for i, place in enumerate(sent.rows.tolist()) if place in wanted and sent.wire_ids[i] != 0]
            if chosen:
                yield sent, np.array(chosen)

    def _again(self, wire_id: int, sent: _Sent, chosen: np.ndarray) -> StreamRequest:
        """Unanswered rows once more, under a number of their own: what still comes for the old one is not theirs."""
        sent.wire_ids[chosen] = wire_id
        sent.aliases.add(wire_id)
        self._by_wire[wire_id] = sent
        return self._message(wire_id, sent, chosen)

    def _complete(self) -> FrameAnswer | None:
        """A frame whose last rows were answered on this side."""
        if not self._whole_here:
            return None
        sent = self._whole_here.pop(0)
        self._answered(sent)
        return self._gathered(sent)


def rows_repeated(found: tuple[str, int, Any]) -> int:
    """How many rows of a frame of answered chunks, sent again, a message answers; the first error is raised."""
    kind, wire_id, message = found
    if kind == "frame_error":
        raise from_error(message.error)
    return len(rows_of(message, wire_id))
