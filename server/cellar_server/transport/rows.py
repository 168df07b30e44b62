"""Rows on grpc.aio: what the event loop reads in one pass goes to an engine at once, and comes back so."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from cellar_proto.v1.inference_pb2 import PredictResponse, RowError, StreamResponse
from cellar_proto.v1.reason_pb2 import Error
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.transport import wire
from cellar_server.transport.base import PREDICT, STEP, STREAM

NEVER = float("inf")


class End(NamedTuple):
    """How a call ends."""

    code: int
    details: str
    trailing: list[tuple[str, bytes]]


class Source(Protocol):
    """A call that rows come by."""

    number: int
    style: int
    lane: int
    stream: int
    caller: bytes

    def send(self, raw: Any, rows: int) -> None: ...

    def settle(self, messages: int, rows: int = 0) -> None: ...


class Rung(Protocol):
    """What is told of a row that waits."""

    def ring(self) -> None: ...


class _Rows:
    """Rows whose messages differ in nothing but what the columns hold, see Rows in incoming.h."""

    __slots__ = ("data", "deadlines", "ids", "key", "numbers", "place")

    def __init__(self, key: tuple[int, bytes, bytes], place: int) -> None:
        self.key, self.place = key, place
        self.numbers = array("q")
        self.deadlines: list[float] = []
        self.ids: list[bytes] = []
        self.data: list[bytes] = []

    def columns(self) -> tuple[Any, ...]:
        """As _native.Transport.take_rows gives them."""
        numbers = np.frombuffer(self.numbers, np.int64).reshape(-1, 8)
        deadlines = np.array(self.deadlines) if min(self.deadlines) < NEVER else None
        data = np.frombuffer(b"".join(self.data), np.uint8)
        return *self.key, numbers, deadlines, self.ids if self.key[0] == STEP else [], data


class _Lane:
    """What waits for an engine: rows as they came."""

    def __init__(self) -> None:
        self.bell: Rung | None = None
        self.take: Callable[[], object] = lambda: None
        self.rows: deque[tuple[Any, ...]] = deque()
        self.is_told = False  # that rows wait, where there is no bell

    def told(self) -> None:
        """Has the rows taken, where nobody else does."""
        self.is_told = False
        self.take()

    def drain(self) -> list[_Rows]:
        """The rows that wait, by what they have in common; those of a call keep their order."""
        groups: list[_Rows] = []
        known: dict[tuple[int, bytes, bytes], _Rows] = {}
        last: dict[int, int] = {}
        rows, group, key = self.rows, None, None
        while rows:
            its, numbers, deadline_s, id, data = rows.popleft()
            if its != key or group is None:
                key, group = its, known.get(its)
                if group is None or last.get(numbers[0], 0) > group.place:
                    group = known[its] = _Rows(its, len(groups))
                    groups.append(group)
            if len(groups) > 1:
                last[numbers[0]] = group.place
            group.numbers.extend(numbers)
            group.deadlines.append(deadline_s)
            group.ids.append(id)
            group.data.append(data)
        return groups


class RowTransport:
    """The part of _native.Transport that lanes of rows need. `send`, `write`, `take_rows` and `set_bell` are for any
    thread, the others for the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.caller_header = ""
        self._calls: dict[int, Any] = {}
        self._lanes: dict[int, _Lane] = {}
        self._number = 0
        self.num_messages = self._num_rows = 0  # of streams with a lane

    def open(self, call: Source) -> int:
        """The number of a new call."""
        self._number += 1
        self._calls[self._number] = call
        return self._number

    def close(self, number: int) -> None:
        """The call is over."""
        self._calls.pop(number, None)

    def counters(self) -> dict[str, int]:
        return {"live_calls": len(self._calls), "messages": self.num_messages, "rows": self._num_rows}

    # -- in ------------------------------------------------------------------------------------------------------

    def add_lane(self, number: int, take: Callable[[], object]) -> None:
        self._lane(number).take = take

    def set_bell(self, number: int, bell: Rung | None) -> None:
        """What rings when rows wait; none: the lane's `take` is called."""
        self._lane(number).bell = bell

    def set_caller_header(self, name: str) -> None:
        """The metadata that says who makes a unary call; streams know it themselves."""
        self.caller_header = name

    def _lane(self, number: int) -> _Lane:
        return self._lanes.setdefault(number, _Lane())

    def post(self, call: Source, message: bytes) -> bool:
        """Takes a stream's message as a row; False where it is none."""
        row = wire.read_frame(message)
        if row is not None:
            self._post(call, STREAM, row, NEVER)
        return row is not None

    def post_call(self, call: Source, message: bytes, deadline_s: float) -> bool:
        """Takes the message of a unary call as a row; False where it is none."""
        if call.style == STEP:
            found = wire.read_step(message)
            if found is not None:
                self._post(call, STEP, found[0], deadline_s, found[1])
            return found is not None
        row = wire.read_predict(message)
        if row is not None:
            self._post(call, PREDICT, row, deadline_s)
        return row is not None

    def _post(self, call: Source, style: int, row: wire.Row, deadline_s: float, id: bytes = b"") -> None:
        frame_id, handle, position, length, first_axis, timeout_ms, rest, data = row
        lane = self._lanes[call.lane]
        if timeout_ms:
            deadline_s = min(deadline_s, time.monotonic() + timeout_ms / 1000)
        numbers = call.number, call.stream, frame_id, handle, position, length, first_axis, len(data)
        lane.rows.append(((style, rest, call.caller), numbers, deadline_s, id, data))
        self._num_rows += 1
        # after the row is there: whoever takes a bell away takes the rows
        if lane.bell is not None:
            lane.bell.ring()
        elif not lane.is_told:
            lane.is_told = True
            self._loop.call_soon(lane.told)

    def take_rows(self, number: int) -> list[tuple[Any, ...]]:
        """The rows that wait in a lane; see _native.Transport."""
        return [rows.columns() for rows in self._lane(number).drain()]

    # -- out -----------------------------------------------------------------------------------------------------

    def settle(self, number: int, messages: int, rows: int = 0) -> None:
        call = self._calls.get(number)
        if call is not None:
            call.settle(messages, rows)

    def write(self, number: int, raw: bytes, rows: int) -> None:
        """A message with the answers to so many rows of a stream."""
        self._loop.call_soon_threadsafe(self.deliver, [(number, raw, rows)])

    def send(self, columns: Sequence[np.ndarray], outputs: np.ndarray, error: bytes, end: End | None) -> None:
        """Answers of many calls; see _native.Transport."""
        calls = columns[0].tolist()
        known = [self._calls.get(call) for call in calls]
        styles = [call.style if call is not None else STREAM for call in known]
        if end is not None:
            made: list[tuple[int, Any, int]] = [(call, end, 1) for call in calls]
        elif error or len(set(calls)) < len(calls):
            made = _answers_by_call(dict(zip(calls, styles, strict=True)), columns, outputs, error)
        else:
            made = _answers(calls, styles, columns, outputs)
        self._loop.call_soon_threadsafe(self.deliver, made)

    def finish(self, number: int, raw: bytes | None, end: End) -> None:
        """How a unary call ends."""
        self._loop.call_soon_threadsafe(self.deliver, [(number, end if raw is None else raw, 1)])

    def hand_back(self, number: int, message: bytes) -> None:
        """A unary call is for its method's own handler."""
        self._loop.call_soon_threadsafe(self.deliver, [(number, None, 1)])

    def deliver(self, made: list[tuple[int, Any, int]]) -> None:
        """Sends what was made for calls, on the event loop."""
        calls = self._calls
        for number, raw, rows in made:
            call = calls.get(number)
            if call is not None:
                call.send(raw, rows)


def _answers(
    calls: list[int], styles: list[int], columns: Sequence[np.ndarray], outputs: np.ndarray
) -> list[tuple[int, Any, int]]:
    """The message to each call, one row of each."""
    _, frame_ids, handles, starts, positions, lengths, *durable = columns
    axes = outputs.shape[1:]
    size = 4 * prod(axes)
    raw, names = outputs.tobytes(), handles.tobytes()
    given = [frame_ids.tolist(), starts.tolist(), positions.tolist(), lengths.tolist()]
    stored = durable[0].tolist() if durable else []
    made: list[tuple[int, Any, int]] = []
    at = 0
    for i, (call, style, frame_id, start, position, length) in enumerate(zip(calls, styles, *given, strict=True)):
        end = at + length * size
        values = raw[at:end]
        if style == STREAM:
            handle, behind = names[8 * i : 8 * i + 8], b"\x42" + wire.packed(stored[i]) if stored else b""
            message = wire.answer(frame_id, handle, start, position, wire.outputs(length, axes), values, behind)
        elif style == STEP:
            message = wire.step(position, stored[i] if stored else 0, wire.tensor(length, axes), values)
        else:
            message = wire.prediction(position, length, wire.tensor(length, axes), values)
        made.append((call, message, 1))
        at = end
    return made


def _answers_by_call(
    styles: dict[int, int], columns: Sequence[np.ndarray], outputs: np.ndarray, error: bytes
) -> list[tuple[int, Any, int]]:
    """The same where a call has several rows, or each row the same error."""
    places: dict[int, list[int]] = {}
    for i, call in enumerate(columns[0].tolist()):
        places.setdefault(call, []).append(i)
    lengths = columns[5]
    ends = np.cumsum(lengths)
    made: list[tuple[int, Any, int]] = []
    for call, rows in places.items():
        if styles[call] == PREDICT:  # an error: sequences that were answered come one a call
            prediction = PredictResponse(version=int(columns[4][rows[0]]), lengths=[0])
            prediction.outputs.dtype = DataType.FLOAT32
            prediction.outputs.shape.extend([0, *outputs.shape[1:]])
            prediction.errors.add(error=Error.FromString(error))
            made.append((call, prediction.SerializeToString(), 1))
            continue
        response = StreamResponse()
        answer = response.answer
        frame_ids, handles, starts, positions, counts, *durable = (column[rows].tolist() for column in columns[1:])
        answer.frame_ids.extend(frame_ids[:1] if len(set(frame_ids)) == 1 else frame_ids)
        answer.handles.extend(handles)
        answer.starts.extend(starts)
        answer.positions.extend(positions)
        answer.lengths.extend(counts[:1] if len(set(counts)) == 1 else counts)
        answer.outputs.dtype = DataType.FLOAT32
        answer.outputs.shape.extend([sum(counts), *outputs.shape[1:]])
        answer.outputs.data = b"".join(outputs[ends[i] - lengths[i] : ends[i]].tobytes() for i in rows)
        if durable:
            answer.durable_positions.extend(durable[0])
        if error:
            read = Error.FromString(error)
            answer.errors.extend(RowError(row=row, error=read) for row in range(len(rows)))
        made.append((call, response.SerializeToString(), len(rows)))
    return made
