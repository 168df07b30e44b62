"""One ModelStreamInfer: many requests in flight, and no more responses waiting than the limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.front.asking import CALLER
from cellar_server.front.oip import schema
from cellar_server.front.oip.answers import Answers, abort_in_words, in_words
from cellar_server.front.oip.midst import Midst
from cellar_server.front.oip.wire import flag_final
from cellar_server.front.rations import number_of
from cellar_server.front.reading import check
from cellar_server.front.registry import Registry

# In place of a response: the stream ends with the error beside it.
END = object()


class InferStream:
    """An OpenStream of this protocol. out: responses and their errors, no response where a request was answered, None
    at the end; tasks: requests in flight that wait for more than their run.
    Of responses no more wait in `out` than the stream may have frames in flight: a reader that is slow holds up its own
    generations. CellarError UNAUTHENTICATED."""

    def __init__(self, context: grpc.aio.ServicerContext, registry: Registry) -> None:
        self._context: Any = context  # of a transport's own making
        self._callers = registry.callers
        self.caller = registry.callers.of(context)
        self.out: asyncio.Queue[Any] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()
        self.num_waiting = 0  # responses in `out`
        self._most = registry.config.max_frames_in_flight
        self._is_ending = self._is_real = False
        self._has_room = asyncio.Event()
        self._midst: _MidstOfStream | None = None  # takes what needs no task

    async def put(self, response: Any, error: CellarError | None = None) -> None:
        """Puts a response into `out` when there is room."""
        while self.num_waiting >= self._most and not self._is_ending:
            self._has_room.clear()
            await self._has_room.wait()
        self.num_waiting += 1
        self.out.put_nowait((response, error))

    def take(self) -> None:
        """A response was taken out."""
        self.num_waiting -= 1
        self._has_room.set()

    def end_waiting(self) -> None:
        """What is still made is written in the end: nobody waits for room."""
        self._is_ending = True
        self._has_room.set()

    def end(self, error: CellarError) -> None:
        if self._midst is not None:
            self._midst.end()
        self.out.put_nowait((END, error))

    def check(self) -> None:
        scope = self.caller.scope
        self.caller = self._callers.of(self._context, has_begun=True)
        if self.caller.scope != scope:
            raise CellarError(Reason.UNAUTHENTICATED, "the stream's credentials are another caller's now")

    async def run(self, answers: Answers, midst: Midst, *, is_real: bool) -> None:
        """Answers requests until their end. is_real: an error ends the call, and is no message on it; midst: what takes
        requests first."""
        out, context = self.out, self._context
        self._is_real, turn = is_real, number_of(self.caller.scope, context)
        CALLER.set(turn)
        if not is_real:
            self._midst = _MidstOfStream(self, midst, context, turn)
        # messages are read while fewer of them than the limit are not answered
        context.read_ahead(self._most, self._midst.take if self._midst is not None else None)
        reader = asyncio.ensure_future(self._read(answers))
        try:
            while (item := await out.get()) is not None:
                response, error = item
                if response is END:
                    await self._end(error)
                if error is not None and is_real:
                    await abort_in_words(context, error)
                if response is None:
                    context.settle(1)
                    continue
                self.take()
                await context.write(response)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _end(self, error: CellarError) -> NoReturn:
        """Writes what is still made, and ends the call with an error."""
        self.end_waiting()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._midst is not None:
            await self._midst.ended()
        while not self.out.empty() and (item := self.out.get_nowait()) is not None:
            if item[0] is not None:
                await self._context.write(item[0])
        await abort_in_words(self._context, error)

    async def _read(self, answers: Answers) -> None:
        """Starts each request as it comes; None in `out` when all are answered."""
        out, tasks, read = self.out, self.tasks, self._context.read
        try:
            while (request := await read()) is not grpc.aio.EOF:
                task = asyncio.ensure_future(self._answer(request, answers))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                del request  # a quiet stream would hold its last message
                await asyncio.sleep(0)  # it takes its turn before the next request is looked at
            if tasks:
                await asyncio.gather(*tasks)
            if self._midst is not None:
                await self._midst.ended()
        finally:
            for task in tasks:
                task.cancel()
            out.put_nowait(None)

    async def _answer(self, request: Any, answers: Answers) -> None:
        """Answers one request."""
        caller, is_put = self.caller, False  # what is written is settled so
        try:
            check(request)
            engine, given = answers.read(request, caller)
            responses = answers.of(request, engine, given, 0.0, caller.scope)
            if answers.requests.signature(engine).is_decoupled:
                is_put = True
                await self._generate(responses, wants_empty_final=given.wants_empty_final)
            else:
                async for response in responses:  # it has its turn until this is written
                    self._write(_message(response))
        except CellarError as error:
            if is_put or self._is_real:
                is_put = True
                await self.put(_failure(request, error), error)
            else:
                self._write(_failure(request, error))
        finally:
            if is_put:
                self.out.put_nowait((None, None))

    def _write(self, message: Any) -> None:
        """Sends the only response to a request."""
        self._context.settle(1, -1)
        self._context.answer(message.SerializeToString())

    async def _generate(self, responses: AsyncIterator[Any], *, wants_empty_final: bool) -> None:
        """Puts the responses of a generation into `out`. CellarError."""
        held = None
        async for response in responses:
            if wants_empty_final:
                if response.outputs:
                    flag_final(response, False)
                    await self.put(schema.ModelStreamInferResponse(infer_response=response))
                held = response if "finish_reason" in response.parameters else None
                if held is not None:
                    del held.outputs[:], held.raw_output_contents[:]
                continue
            # the flag stands on the last response that is not empty: known once the next one is there
            if held is not None and response.outputs:
                flag_final(held, False)
                await self.put(schema.ModelStreamInferResponse(infer_response=held))
            if held is not None and not response.outputs:
                for key, param in response.parameters.items():
                    held.parameters[key].CopyFrom(param)
            else:
                held = response
        if held is not None:
            await self.put(_message(held))


def _message(response: Any) -> Any:
    """The last response to a request."""
    flag_final(response, True)
    return schema.ModelStreamInferResponse(infer_response=response)


def _failure(request: Any, error: CellarError) -> Any:
    """The response to a request that failed; None: one that could not be read."""
    response = schema.ModelInferResponse()
    if request is not None:
        response.model_name, response.id = request.model_name, request.id
    response.parameters["reason"].string_param = Reason.Name(error.reason)
    flag_final(response, True)
    return schema.ModelStreamInferResponse(error_message=in_words(error), infer_response=response)


class _MidstOfStream:
    """The requests of a stream that need no task. `take` is for the thread that reads it, `answer` and `fail` for any,
    the rest for the event loop."""

    def __init__(self, stream: InferStream, midst: Midst, context: Any, turn: int) -> None:
        self._stream, self._midst, self._context = stream, midst, context
        self._loop = asyncio.get_running_loop()
        self.turn, self.deadline_s = turn, 0.0
        self.loop = None if context.is_threaded else self._loop
        self._taken: deque[None] = deque()  # one for each that is not answered: any thread may count so
        self._is_ending = False
        self._ended: asyncio.Future[None] | None = None

    def take(self, message: bytes) -> bool:
        """See Midst.take."""
        self._taken.append(None)  # before it is seen whether the stream ends
        stream = self._stream
        if not self._is_ending and self._midst.take(message, stream.caller, self):
            return True
        self._taken.pop()
        return False

    def answer(self, response: bytes) -> None:
        self._context.answer(response)
        self._taken.pop()
        if self._is_ending:
            self._loop.call_soon_threadsafe(self._tell)

    def fail(self, model: str, id: bytes, error: CellarError) -> None:
        request = schema.ModelInferRequest.FromString(id)
        request.model_name = model
        self.answer(_failure(request, error).SerializeToString())

    def end(self) -> None:
        """Takes nothing any more."""
        self._is_ending = True

    def _tell(self) -> None:
        if self._ended is not None and not self._ended.done() and not self._taken:
            self._ended.set_result(None)

    async def ended(self) -> None:
        """Takes nothing any more; returns when all that was taken is answered."""
        self._is_ending = True
        if self._ended is None:
            self._ended = self._loop.create_future()
        self._tell()
        await asyncio.shield(self._ended)
