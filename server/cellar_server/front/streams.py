"""One caller's stream: frames in, answers out, and no more of either held than the limit."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
from cellar_proto.v1.inference_pb2 import (
    Answer,
    CloseSessions,
    Frame,
    FrameError,
    OpenSessions,
    StreamResponse,
)
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.handles import Handles
from cellar_server.front.messages import answer_message, row_errors
from cellar_server.front.rations import Charged, Ration, number_of
from cellar_server.front.reading import check
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort, unforeseen
from cellar_server.sessions.messages import AnswerReply, FrameReply, FrameRequest, StreamClosed
from cellar_server.sessions.table import engine_of

if TYPE_CHECKING:
    from cellar_server.front.lanes import Lanes

_numbers = itertools.count(1)


class StreamSession:
    """Reads a stream while there is room, writes what comes back, and ends when everything is answered.

    A message counts against the room from its reading until its answers are written, so a caller who does not read
    its answers is read no further; other streams go on.
    """

    def __init__(self, context: grpc.aio.ServicerContext, registry: Registry, lanes: Lanes | None = None) -> None:
        self.context = context
        self._lanes = lanes  # of a native transport
        self._lane: Engine | None = None  # whose rows come without this object
        self._is_watched = False  # these rows are limited or traced
        self.registry = registry
        self.number = next(_numbers) % 0xFFFFFFFE + 1
        self.caller = registry.callers.of(context)
        self.scope = self.caller.scope
        # who takes turns with others: the caller, where it has a name
        self.turn = number_of(self.scope, context) if self.scope else self.number
        self._handles = Handles(registry, self.number, self.scope, self.turn)
        self._engines = self._handles.engines
        self._rations: dict[int, Ration] = {}  # of those engines that are limited for this caller
        # rows left of each unanswered frame, by its id; and how many messages those were, where callers repeat ids
        self._frames: dict[int, tuple[int, int]] = {}
        self._outbox: deque[StreamResponse] = deque()
        self._writer_waits: asyncio.Future[None] | None = None  # for something to write, or the end
        self._reader_waits: asyncio.Future[None] | None = None  # until something was answered and written
        self._is_half_closed = False
        self._end: CellarError | None = None  # with which the call fails once all is answered
        self._trace = registry.traces.stream(context) if registry.traces is not None else None

    async def run(self) -> None:
        """The whole life of the stream; INVALID_REQUEST after a message that cannot be read."""
        writer = asyncio.ensure_future(self._write())
        is_cancelled = True
        self.registry.streams_open += 1
        self.registry.streams_opened += 1
        try:
            torn = await self._read_all()
            self._is_half_closed = True
            _wake(self._writer_waits)
            await writer
            is_cancelled = False
            if torn is not None:  # what came before it is answered first
                raise torn
        finally:
            self.registry.streams_open -= 1
            writer.cancel()
            if self._lane is not None and self._lanes is not None:
                self._lanes.close(self.number, self.context.number)  # type: ignore[attr-defined]
            if self._trace is not None:
                self._trace.close()
            for engine in self._engines.values():
                engine.post(StreamClosed(self.number, is_cancelled))

    async def _read_all(self) -> CellarError | None:
        """Reads to the end, or to a message that cannot be read."""
        try:
            await self._read()
        except CellarError as error:
            return error
        return None

    def end(self, error: CellarError) -> None:
        """See OpenStream."""
        self._end = self._end or error
        _wake(self._writer_waits)

    def check(self) -> None:
        """See OpenStream."""
        self.caller = self.registry.callers.of(self.context, has_begun=True)
        if self.caller.scope != self.scope:
            raise CellarError(Reason.UNAUTHENTICATED, "the stream's credentials are another caller's now")
        for engine in self._engines.values():
            self.caller.must_call(engine.name)

    async def _read(self) -> None:
        limit = self.registry.config.max_frames_in_flight
        while True:
            while len(self._frames) + len(self._outbox) >= limit:
                self._reader_waits = asyncio.get_running_loop().create_future()
                await self._reader_waits
            request: Any = await self.context.read()
            if request is grpc.aio.EOF:
                return
            check(request)
            if self._end is not None:
                continue  # the caller sends it again elsewhere
            kind = request.WhichOneof("kind")
            if kind == "frame":
                self._post(request.frame)
            elif kind == "open":
                await self._open(request.open)
            elif kind == "close":
                await self._close(request.close)
            else:
                self._fail(0, CellarError(Reason.INVALID_REQUEST, "the message holds neither open, frame nor close"))
            if kind != "frame":
                self._settle_messages()
            del request  # a quiet stream would hold its last message

    def _post(self, frame: Frame) -> None:
        handles = frame.handles
        rows, frame_id = len(handles), frame.frame_id
        engine = self._engines.get(engine_of(handles[0])) if rows else None
        if engine is None:
            # no handle of this frame's first model was issued here: any engine of the stream says so, row by row
            engine = next(iter(self._engines.values()), None)
            if engine is None:
                self._send_errors(frame, CellarError(Reason.STALE_HANDLE, "no session was opened on this stream"))
                self._settle_messages()
                return
        error = engine.refusal(frame, self.turn)
        if error is not None:
            self._fail(frame_id, error)
            self._settle_messages()
            return
        to: Any = self
        ration = self._rations.get(engine.number)
        if ration is not None:
            error = ration.take(rows, sum(frame.lengths) if len(frame.lengths) == rows else rows, frame.ByteSize())
            if error is not None:
                engine.count_refused(error, rows)
                self._fail(frame_id, error)
                self._settle_messages()
                return
            to = Charged(self, ration, rows)
        # a frame's rows are answered by several messages; its place is free when the last one is
        left, messages = self._frames.get(frame_id, (0, 0))
        self._frames[frame_id] = left + max(rows, 1), messages + 1
        timing = self._trace.begin(frame_id, engine.name, rows) if self._trace is not None else None
        engine.post(FrameRequest(to, self.number, frame, frame_id, self.turn, timing=timing))

    def _send_errors(self, frame: Frame, error: CellarError) -> None:
        """Refuses every row of a frame that no engine saw."""
        n = len(frame.handles)
        if not n or len(frame.positions) != n:
            self._fail(frame.frame_id, error)
            return
        answer = Answer(
            frame_ids=[frame.frame_id],
            handles=frame.handles,
            starts=frame.positions,
            positions=[0] * n,
            lengths=[0],
            errors=row_errors([(i, error) for i in range(n)]),
        )
        self._put(StreamResponse(answer=answer))

    async def _open(self, message: OpenSessions) -> None:
        try:
            engine, reply = await self._handles.open(message, self.caller)
            self.caller.must_call(engine.name)  # the right may have been taken away meanwhile
        except CellarError as error:
            ends = self._handles.ends(message, error)
            if ends is not None:
                self._put(StreamResponse(opened=ends))
            else:
                self._fail(message.frame_id, error)
            return
        self._engines[engine.number] = engine
        ration = self.registry.rations.of(self.scope, engine.name)
        if ration is not None:
            self._rations[engine.number] = ration
        self._open_lane(engine)
        self._put(StreamResponse(opened=reply))

    def _open_lane(self, engine: Engine) -> None:
        """From now on frames of one row may go to the engine without this object."""
        if self._lanes is None:
            return
        ration = self._rations.get(engine.number)
        is_watched = ration is not None or self._trace is not None
        # what rows of a lane count against is one ration: a second lane is for streams without limits alone
        is_free = not is_watched and not self._is_watched
        if self._lane is None or (self._lane.is_over and self._lane is not engine and is_free):
            self._lane, self._is_watched = engine, is_watched
            if is_watched:
                self._lanes.watched.open(self.context.number, ration, self._trace)  # type: ignore[attr-defined]
            lane = self._lanes.open(engine, self.number, self._post, self.turn)
            self.context.open_lane(lane, self.number, self.registry.config.max_frames_in_flight)  # type: ignore[attr-defined]

    def _settle_messages(self, count: int = 1) -> None:
        """So many messages are answered or dealt with: rows that go by themselves wait for that."""
        if self._lane is not None:
            self.context.settle(count)  # type: ignore[attr-defined]

    async def _close(self, message: CloseSessions) -> None:
        try:
            self._put(StreamResponse(closed=await self._handles.close(message)))
        except CellarError as error:
            self._fail(message.frame_id, error)

    def _fail(self, frame_id: int, error: CellarError) -> None:
        self._put(StreamResponse(frame_error=FrameError(frame_id=frame_id, error=error.to_proto())))

    # -- out -----------------------------------------------------------------------------------------------------

    def receive(self, reply: AnswerReply | FrameReply | Any) -> None:
        """An engine's reply, on the event loop."""
        if isinstance(reply, FrameReply):
            self._settle(reply.frame_id, 1 << 62)
            self._fail(reply.frame_id, reply.error)
            return
        frame_ids, rows = reply.frame_ids, len(reply.handles)
        if len(frame_ids) == 1:
            self._settle(frame_ids[0], rows)
        else:
            for frame_id in frame_ids:
                self._settle(frame_id, 1)
        self._put(answer_message(reply))

    def _settle(self, frame_id: int, rows: int) -> None:
        """So many rows of a frame are answered."""
        left, messages = self._frames.get(frame_id, (0, 0))
        if left > rows:
            self._frames[frame_id] = left - rows, messages
        elif messages:
            del self._frames[frame_id]
            self._settle_messages(messages)

    def _put(self, response: StreamResponse) -> None:
        self._outbox.append(response)
        _wake(self._writer_waits)

    async def _write(self) -> None:
        outbox, write = self._outbox, self.context.write
        try:
            while True:
                if not outbox:
                    if self._end is not None and not self._frames:
                        await abort(self.context, self._end)  # the pending read ends with the call
                    if self._is_half_closed and not self._frames:
                        return
                    self._writer_waits = asyncio.get_running_loop().create_future()
                    await self._writer_waits
                    self._writer_waits = None
                    continue
                await write(outbox[0])
                response = outbox.popleft()
                if self._trace is not None:
                    self._trace.write(response, self._frames)
                del response  # a quiet stream would hold its last message
                _wake(self._reader_waits)
        except asyncio.CancelledError:
            raise
        except Exception:
            # the caller is gone in the middle of a write; its read ends the stream
            if self._end is None and not self.context.cancelled():
                unforeseen("writing to a stream failed", self.context)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
