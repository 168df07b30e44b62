"""Rows between the native transport and the engines: one chunk a message outside, many in one batch here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, PredictRequest, StepRequest, StepResponse
from cellar_proto.v1.manifest_pb2 import Mode
from google.protobuf.message import DecodeError

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.callers import Caller
from cellar_server.front.messages import answer_message, tensor
from cellar_server.front.rations import number_of
from cellar_server.front.registry import Registry
from cellar_server.front.status import CODES, count_failure, error_metadata
from cellar_server.sessions.messages import (
    AnswerReply,
    FrameReply,
    PredictRows,
    Rows,
    RowsCancel,
    RowsRefused,
    RowsReply,
)
from cellar_server.sessions.selection import chosen
from cellar_server.transport.native import PREDICT, STEP, UNARY, Bell, NativeServer

METHODS = {"/cellar.v1.Inference/Step": STEP, "/cellar.v1.Inference/Predict": PREDICT}


class EngineLane:
    """The rows of the streams of one engine, which takes them itself. See engine.Lane."""

    def __init__(self, lanes: Lanes, number: int) -> None:
        self._lanes, self._number = lanes, number
        bell = Bell()
        self.ring, self.wait = bell.ring, bell.wait
        lanes.transport.set_bell(number, bell)

    def take(self) -> list[Rows]:
        return self._lanes.take(self._number)

    def close(self) -> None:
        # their streams know whether they are for a version of the model that was loaded meanwhile
        self._lanes.transport.set_bell(self._number, None)
        self._lanes.take_over(self._number)


class Lanes:
    """Takes rows out of the transport's lanes and puts their answers in.

    A lane is an engine's: what waits in it is taken by the engine itself, when it begins its next run. Rows of unary
    calls wait in a lane of their own; who their engines are is found out on the transport's thread.
    """

    def __init__(self, registry: Registry, server: NativeServer, loop: asyncio.AbstractEventLoop) -> None:
        self.registry = registry
        self._server = server
        self.transport = server.transport
        self._loop = loop
        self._callers: dict[int, int] = {}  # who takes turns for a stream, where it is a caller with a name
        # what takes a frame of a stream that is no row, by number
        self._streams: dict[int, Callable[[Frame], None]] = {}
        if not registry.callers.are_certified:  # else who calls is no header, and each step is a call of its own
            server.add_unary(METHODS, self._take_unary, self._cancel)
        if registry.callers.is_on:
            self.transport.set_caller_header("authorization")

    # -- in ------------------------------------------------------------------------------------------------------

    def open(self, engine: Engine, number: int, post: Callable[[Frame], None], caller: int = 0) -> int:
        """The lane for a stream that opened sessions of an engine. post: takes those of its frames that must go the
        way of all others."""
        self._streams[number] = post
        if caller not in (0, number):
            self._callers[number] = caller
        return engine.number + 1

    def lane(self, engine: Engine) -> EngineLane:
        """What an engine takes its rows from."""
        number = engine.number + 1
        self._server.add_lane(number, lambda: self.take_over(number))
        return EngineLane(self, number)

    def close(self, number: int) -> None:
        """A stream is gone."""
        self._streams.pop(number, None)
        self._callers.pop(number, None)

    def take_over(self, lane: int) -> None:
        """Rows of an engine that is gone go the way of frames."""
        for rows in self.take(lane):
            self.take_back(rows)

    def take(self, lane: int) -> list[Rows]:
        """What waits in a lane; on its engine's thread."""
        taken = [
            self._rows(rest, _frame(rest), numbers, data, deadline)
            for _, rest, _, numbers, data, _, deadline in self.transport.take_rows(lane)
        ]
        if self._callers:
            callers = self._callers
            for rows in taken:
                rows.caller = np.array([callers.get(number, number) for number in rows.stream.tolist()])
        return taken

    def _rows(
        self,
        rest: bytes,
        common: Any,
        numbers: np.ndarray,
        data: np.ndarray,
        deadline: np.ndarray | None,
        kind: type[Rows] = Rows,
    ) -> Any:
        call, stream, frame_id, handle, position, length, first_axis, size = numbers
        named = call.view(np.uint64), stream, frame_id.view(np.uint64), handle.view(np.uint64)
        return kind(self, rest, common, *named, position, length, first_axis, size, data, deadline=deadline)

    def take_back(self, rows: Rows) -> None:
        """Rows of sessions of another model than the first of their stream: each goes as the frame that it came in.
        Sequences about which something is odd go to the method's handler."""
        if isinstance(rows, PredictRows):
            self._serve_predicts(rows)
            return
        for i in range(len(rows.call)):
            one = chosen(rows, np.array([i]))
            frame = Frame()
            frame.CopyFrom(rows.frame)
            frame.frame_id = int(one.frame_id[0])
            frame.handles.append(int(one.handle[0]))
            frame.positions.append(int(one.position[0]))
            if one.length[0] >= 0:
                frame.lengths.append(int(one.length[0]))
            _fill(frame, one)
            self._loop.call_soon_threadsafe(self._hand_over_one, int(one.stream[0]), int(one.call[0]), frame)

    def _hand_over_one(self, stream: int, call: int, frame: Frame) -> None:
        post = self._streams.get(stream)
        if post is not None:
            self.transport.settle(call, -1, 1)  # it is a message now, which the stream settles
            post(frame)

    # -- unary calls ---------------------------------------------------------------------------------------------

    def _take_unary(self) -> None:
        """Unary calls to the engines that hold their sessions or models; on the transport's thread."""
        for style, rest, caller, numbers, data, ids, deadline in self.transport.take_rows(UNARY):
            if style == STEP:
                rows = self._rows(b"step" + rest, _step(rest), numbers, data, deadline)
                self._take_steps(rows, rest, caller, ids)
            else:
                self._take_predicts(rest, caller, numbers, data, deadline)

    def _take_steps(self, rows: Rows, rest: bytes, caller: bytes, ids: list[bytes]) -> None:
        engines: dict[Engine | None, list[int]] = {}
        rows.ids = []
        who = self._caller(caller)
        self._name(rows, who)
        for i, raw in enumerate(ids):
            id = raw.decode("utf-8", "replace")
            rows.ids.append(id if who is None else who.id_of(id))
            engines.setdefault(None if who is None else self._engine_of(rows.ids[i], who), []).append(i)
        for engine, places in engines.items():
            those = rows if len(places) == len(ids) else chosen(rows, np.array(places))
            if engine is None:
                self._serve_steps(those, StepRequest.FromString(rest), [ids[i] for i in places])
            else:
                engine.post(those)

    def _take_predicts(
        self, rest: bytes, caller: bytes, numbers: np.ndarray, data: np.ndarray, deadline: np.ndarray | None
    ) -> None:
        request, who = _predict(rest), self._caller(caller)
        rows = self._rows(rest, request, numbers, data, deadline, PredictRows)
        engine = None
        if request is not None and who is not None and not request.is_bulk:
            try:
                who.must_call(request.model)
                found = self.registry.find(request.model, request.version)
                if not self.registry.rations.limits(who.scope, found.name) and found.model.codec is None:
                    engine = found
            except (CellarError, RuntimeError):
                pass  # the handler says so; RuntimeError: the models change just now, on the event loop
        if engine is None or request is None:
            self._serve_predicts(rows)
            return
        is_one = engine.manifest.mode in (Mode.ONE_TO_ONE, Mode.MANY_TO_ONE)
        rows.all_emissions = request.all_emissions if request.HasField("all_emissions") else not is_one
        self._name(rows, who)
        engine.post(rows)

    def _name(self, rows: Rows, who: Caller | None) -> None:
        """Who takes turns for rows of unary calls: the caller, without a name its connection."""
        if who is not None and who.scope:
            rows.caller = np.full(len(rows.call), number_of(who.scope))
        else:
            rows.caller = rows.stream

    def _cancel(self, numbers: list[int]) -> None:
        """Calls that are gone: what waits of them is dropped."""
        for engine in self.registry.engines.values():
            engine.post(RowsCancel(np.array(numbers, np.uint64)))

    def _caller(self, caller: bytes) -> Caller | None:
        """Who calls; None where nobody may as that."""
        try:
            return self.registry.callers.named((("authorization", caller.decode("latin-1")),) if caller else ())
        except CellarError:
            return None

    def _engine_of(self, id: str, who: Caller) -> Engine | None:
        """The engine that holds a session; None where it is not here, or is none for this caller, and where limits have
        to be looked at first."""
        try:
            engine: Engine = self.registry.directory.engine_of(id)
        except CellarError:
            return None
        is_open = who.rights.may_call(engine.name) and not self.registry.rations.limits(who.scope, engine.name)
        return engine if is_open else None

    def _serve_steps(self, rows: Rows, step: StepRequest, ids: list[bytes]) -> None:
        """Steps of callers or sessions that are not known here: the method's own handler deals with each."""
        for i, id in enumerate(ids):
            one = chosen(rows, np.array([i]))
            request = StepRequest()
            request.CopyFrom(step)
            if one.position[0] >= 0:
                request.position = int(one.position[0])
            request.length = max(0, int(one.length[0]))
            _fill(request, one)
            # the id as it came: it may not be UTF-8, which the handler's parser says
            message = request.SerializeToString() + b"\x0a" + _varint(len(id)) + id
            self.transport.hand_back(int(one.call[0]), message)

    def _serve_predicts(self, rows: PredictRows) -> None:
        for i in range(len(rows.call)):
            one = chosen(rows, np.array([i]))
            message = rows.rest
            if rows.frame is not None:
                request = PredictRequest()
                request.CopyFrom(rows.frame)
                if one.length[0] >= 0:
                    request.lengths.append(int(one.length[0]))
                _fill(request, one)
                message = request.SerializeToString()
            self.transport.hand_back(int(one.call[0]), message)

    # -- out -----------------------------------------------------------------------------------------------------

    def send(self, reply: RowsReply) -> None:
        """Answers of many calls, at once; from any thread."""
        if reply.errors:
            self._send_errors(reply)
            return
        self.transport.send(
            *(reply.call, reply.frame_ids, reply.handles, reply.starts, reply.positions, reply.lengths),
            np.ascontiguousarray(reply.outputs),
            reply.outputs.shape[1:],
            np.array(reply.durable, np.int64) if len(reply.durable) else None,
        )

    def refuse(self, reply: RowsRefused) -> None:
        """One error to many calls, at once; from any thread."""
        error, n = reply.error, len(reply.call)
        end: tuple[Any, ...] = ()
        if reply.ends_calls:
            count_failure(error, n)
            end = CODES[error.reason].value[0], error.message, list(error_metadata(error))
        self.transport.send(
            *(reply.call, reply.frame_ids, reply.handles, reply.starts, reply.positions),
            np.zeros(n, np.int64),
            _NOTHING,
            reply.shape,
            np.asarray(reply.durable, np.int64) if len(reply.durable) else None,
            error.to_proto().SerializeToString(),
            *end,
        )

    def _send_errors(self, reply: RowsReply) -> None:
        """A reply some of whose rows failed after their run."""
        errors = dict(reply.errors)
        ends = np.cumsum(reply.lengths)
        for i in range(len(reply.call)):
            outputs = reply.outputs[ends[i] - reply.lengths[i] : ends[i]]
            one = AnswerReply(
                self.asker(int(reply.call[i]), False),
                [int(reply.frame_ids[i])],
                [int(reply.handles[i])],
                [int(reply.starts[i])],
                [int(reply.positions[i])],
                [int(reply.lengths[i])],
                outputs,
                [(0, errors[i])] if i in errors else [],
                [reply.durable[i]] if len(reply.durable) else [],
            )
            self._loop.call_soon_threadsafe(one.to.receive, one)

    def asker(self, call: int, is_step: bool) -> _Asker:
        """Whom a single row's answer goes to."""
        return _Asker(self.transport, call, is_step)


class _Asker:
    """The call of one row."""

    def __init__(self, transport: Any, call: int, is_step: bool) -> None:
        self._transport, self._call, self._is_step = transport, call, is_step

    def receive(self, reply: AnswerReply | FrameReply) -> None:
        if not self._is_step:
            self._transport.write(self._call, answer_message(reply).SerializeToString(), 1, False)
            return
        error = reply.errors[0][1] if isinstance(reply, AnswerReply) and reply.errors else None
        if error is not None:
            count_failure(error)
            self._transport.finish(
                self._call, None, CODES[error.reason].value[0], error.message, list(error_metadata(error))
            )
            return
        response = StepResponse(
            position=reply.positions[0],
            durable_position=reply.durable[0] if reply.durable else 0,
            outputs=tensor(reply.outputs),
        )
        self._transport.finish(self._call, response.SerializeToString(), 0, "", [])


_NOTHING = np.zeros(0, np.float32)


@lru_cache(256)
def _frame(rest: bytes) -> Frame:
    """What rows have in common. Not to be changed."""
    return Frame.FromString(rest)


@lru_cache(256)
def _step(rest: bytes) -> Frame:
    """The same of unary steps."""
    step = StepRequest.FromString(rest)
    return Frame(
        inputs=step.inputs,
        priorities=[step.priority] if step.priority else None,
        ends=[True] if step.ends else None,
    )


@lru_cache(256)
def _predict(rest: bytes) -> PredictRequest | None:
    """The same of whole sequences; None where it is no request."""
    try:
        return PredictRequest.FromString(rest)
    except DecodeError:
        return None


def _fill(request: Frame | StepRequest | PredictRequest, one: Rows) -> None:
    """The tensor and the time-out of a single row."""
    if one.deadline is not None and np.isfinite(one.deadline[0]):
        left_ms = max(1, int(1000 * (one.deadline[0] - time.monotonic())))
        if isinstance(request, Frame):
            request.timeouts_ms.append(left_ms)
        else:
            request.timeout_ms = left_ms
    inputs = request.inputs
    tail = list(inputs.shape)
    del inputs.shape[:]
    if one.first_axis[0] >= 0:
        inputs.shape.extend([int(one.first_axis[0]), *tail])
    inputs.data = one.data.tobytes()


def _varint(value: int) -> bytes:
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
