"""What a frame stream knows of its frames, whatever carries them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import BULK, Answer, Frame, StreamRequest

from cellar_client.book import column
from cellar_client.codec import Codec
from cellar_client.emissions import Emissions
from cellar_client.errors import SessionLost, from_error
from cellar_client.frame import FrameAnswer, Sent
from cellar_client.replay import is_passing
from cellar_client.rows import Rows

# Bytes of one stream's chunks that are kept to be sent again.
MAX_BYTES = 16 << 20


class FrameBook(Rows):
    """The frames of a stream that are not both answered and durable."""

    def __init__(self, codec: Codec, *, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(codec)
        self._max_bytes = max_bytes
        self._sent: deque[Sent] = deque()
        self._by_wire: dict[int, Sent] = {}
        self._num_bytes = 0
        self._num_unanswered = 0
        self._whole_here: list[Sent] = []  # frames whose last rows were answered on this side

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
        sent = Sent(
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

    def _refuse_gone(self, sent: Sent) -> None:
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

    def _message(self, wire_id: int, sent: Sent, chosen: np.ndarray) -> StreamRequest:
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

    def _answered(self, sent: Sent) -> None:
        sent.is_answered = True
        self._num_unanswered -= 1
        self._settle()

    def _whole(self, sent: Sent, wire_id: int, message: Answer) -> FrameAnswer | None:
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

    def _take_rows(self, sent: Sent, wire_id: int, message: Answer) -> None:
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

    def _gathered(self, sent: Sent) -> FrameAnswer:
        codec = self._codec
        n = len(sent.rows)
        counts = np.array([len(sent.pieces[i]) if i in sent.pieces else 0 for i in range(n)], np.int64)
        good = [sent.pieces[i] for i in range(n) if i in sent.pieces]
        outputs = Emissions(np.concatenate(good), codec.info.labels) if good else codec.nothing()
        return FrameAnswer(sent.number, outputs, counts, sent.positions, sent.errors)

    def _forget_sessions(self) -> None:
        """The stream has no rows any more; what was not answered is not waited for."""
        super()._forget_sessions()
        self._sent.clear()
        self._by_wire.clear()
        self._whole_here.clear()
        self._num_bytes = self._num_unanswered = 0

    # -- what is kept --------------------------------------------------------------------------------------------

    def _drop(self, sent: Sent) -> None:
        self._sent.remove(sent)
        self._num_bytes -= sent.num_bytes
        self._num_unanswered -= 1
        self._forget_messages(sent)

    def _forget_messages(self, sent: Sent) -> None:
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
        rows: list[int] = first.rows[first.starts + first.lengths > self._durable[first.rows]].tolist()
        return rows

    # -- coming back ---------------------------------------------------------------------------------------------

    def _lost_chunks(self, standing: dict[int, int]) -> Iterator[tuple[Sent, np.ndarray]]:
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

    def _unanswered(self, rows: Iterable[int]) -> Iterator[tuple[Sent, np.ndarray]]:
        """Chunks of these rows that nobody has answered, in order."""
        wanted = set(rows)
        for sent in list(self._sent):
            if sent.is_answered:
                continue
            self._refuse_gone(sent)
            chosen = [i for i, place in enumerate(sent.rows.tolist()) if place in wanted and sent.wire_ids[i] != 0]
            if chosen:
                yield sent, np.array(chosen)

    def _again(self, wire_id: int, sent: Sent, chosen: np.ndarray) -> StreamRequest:
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
