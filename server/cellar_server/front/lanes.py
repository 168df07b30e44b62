"""Rows between a transport and the engines: one chunk a message outside, many in one batch here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, StepResponse

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.messages import answer_message, tensor
from cellar_server.front.registry import Registry
from cellar_server.front.row_messages import common_frame, frames, rows_of
from cellar_server.front.status import CODES, count_failure, error_metadata
from cellar_server.front.unary_rows import UnaryRows
from cellar_server.front.watched_rows import WatchedRows
from cellar_server.sessions.messages import AnswerReply, PredictRows, Rows, RowsRefused, RowsReply


class EngineLane:
    """The rows of the streams of one engine, which takes them itself. See engine.Lane."""

    def __init__(self, lanes: Lanes, engine: Engine) -> None:
        self._lanes, self._engine, self._number = lanes, engine, engine.number + 1
        self._bell = lanes.new_bell()
        self.ring = self._bell.ring
        self._is_lone = False  # the row that ended the last wait
        lanes.transport.set_bell(self._number, self._bell)

    def wait(self, timeout_s: float) -> None:
        # a caller that is alone sends again when it is answered; of many, some are there when a sleeper wakes
        is_lone, self._is_lone = self._is_lone, False
        self._bell.wait(timeout_s, is_lone)

    def take(self) -> list[Rows]:
        taken, chunks = self._lanes.take(self._number), self._lanes.registry.chunks.take(self._engine)
        if taken or chunks:
            self._is_lone = sum(len(rows.call) for rows in (*taken, *chunks)) == 1
        admit = self._lanes.watched.admit
        return [*(admitted for rows in taken if (admitted := admit(rows, self._engine)) is not None), *chunks]

    def close(self) -> None:
        # their streams know whether they are for a version of the model that was loaded meanwhile
        self._lanes.transport.set_bell(self._number, None)
        self._lanes.take_over(self._number)
        self._lanes.registry.chunks.close(self._engine)


class Lanes:
    """Takes rows out of the transport's lanes and puts their answers in.

    A lane is an engine's: what waits in it is taken by the engine itself, when it begins its next run. Rows of unary
    calls wait in a lane of their own; who their engines are is found out on the transport's thread.
    """

    def __init__(self, registry: Registry, server: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.registry = registry
        self._server = server
        self.transport = server.transport
        self.new_bell = server.bell
        self._loop = loop
        self._callers: dict[int, int] = {}  # who takes turns for a stream, where it is a caller with a name
        # what takes a frame of a stream that is no row, by number
        self._streams: dict[int, Callable[[Frame], None]] = {}
        self.watched = WatchedRows(registry.rations, self.take_back, self.transport.write)
        # where who calls is no header, or calls are traced, each step is a call of its own
        if not registry.callers.are_certified and registry.traces is None:
            self._unary = UnaryRows(registry, server, self)
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
        return EngineLane(self, engine)

    def close(self, number: int, call: int) -> None:
        """A stream is gone."""
        self.watched.close(call)
        self._streams.pop(number, None)
        self._callers.pop(number, None)

    def take_over(self, lane: int) -> None:
        """Rows of an engine that is gone go the way of frames."""
        for rows in self.take(lane):
            self.take_back(rows)

    def take(self, lane: int) -> list[Rows]:
        """What waits in a lane; on its engine's thread."""
        taken: list[Rows] = [
            rows_of(self, rest, common_frame(rest), numbers, deadline, data)
            for _, rest, _, numbers, deadline, _, data in self.transport.take_rows(lane)
        ]
        if self._callers:
            callers = self._callers
            for rows in taken:
                rows.caller = np.array([callers.get(number, number) for number in rows.stream.tolist()])
        return taken

    def take_back(self, rows: Rows) -> None:
        """Rows of sessions of another model than the first of their stream: each goes as the frame that it came in.
        Sequences about which something is odd go to the method's handler."""
        if isinstance(rows, PredictRows):
            self._unary.hand_back(rows)
            return
        for stream, call, frame in zip(rows.stream.tolist(), rows.call.tolist(), frames(rows), strict=True):
            self._loop.call_soon_threadsafe(self._hand_over_one, stream, call, frame)

    def _hand_over_one(self, stream: int, call: int, frame: Frame) -> None:
        post = self._streams.get(stream)
        if post is not None:
            self.transport.settle(call, -1, 1)  # it is a message now, which the stream settles
            post(frame)

    # -- out -----------------------------------------------------------------------------------------------------

    def send(self, reply: RowsReply) -> None:
        """Answers of many calls, at once; from any thread."""
        if reply.errors:
            self._send_errors(reply)
        else:
            self.watched.answer(reply.call.tolist(), list(reply.frame_ids))
            self.transport.send(_columns(reply, reply.lengths), reply.outputs, "", None)

    def refuse(self, reply: RowsRefused) -> None:
        """One error to many calls, at once; from any thread."""
        error, n = reply.error, len(reply.call)
        self.watched.answer(reply.call.tolist(), reply.frame_ids.tolist(), has_failed=True)
        end = None
        if reply.ends_calls:
            count_failure(error, n)
            end = self.end(error)
        outputs = np.zeros((0, *reply.shape), np.float32)
        columns = _columns(reply, np.zeros(n, np.int64))
        self.transport.send(columns, outputs, error.to_proto().SerializeToString(), end)

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
        return _Asker(self, call, is_step)

    def end(self, error: CellarError | None) -> Any:
        """How a call ends, with an error or without."""
        if error is None:
            return self._server.end(0, "", [])
        return self._server.end(CODES[error.reason].value[0], error.message, list(error_metadata(error)))


class _Asker:
    """The call of one row."""

    def __init__(self, lanes: Lanes, call: int, is_step: bool) -> None:
        self._lanes, self._call, self._is_step = lanes, call, is_step

    def receive(self, reply: AnswerReply) -> None:
        transport = self._lanes.transport
        if not self._is_step:
            self._lanes.watched.answer([self._call], reply.frame_ids[:1], has_failed=bool(reply.errors))
            transport.write(self._call, answer_message(reply).SerializeToString(), 1)
            return
        error = reply.errors[0][1] if reply.errors else None
        if error is not None:
            count_failure(error)
            transport.finish(self._call, None, self._lanes.end(error))
            return
        response = StepResponse(
            position=reply.positions[0],
            durable_position=reply.durable[0] if reply.durable else 0,
            outputs=tensor(reply.outputs),
        )
        transport.finish(self._call, response.SerializeToString(), self._lanes.end(None))


def _columns(reply: RowsReply | RowsRefused, lengths: Any) -> list[Any]:
    """As the transport takes them."""
    columns = [reply.call, reply.frame_ids, reply.handles, reply.starts, reply.positions, lengths]
    if len(reply.durable):
        columns.append(np.asarray(reply.durable, np.int64))
    return columns
