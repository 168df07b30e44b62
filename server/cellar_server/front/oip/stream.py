"""One ModelStreamInfer: many requests in flight, and no more responses waiting than the limit."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.front.asking import CALLER
from cellar_server.front.oip import schema
from cellar_server.front.oip.answers import Answers, abort_in_words, in_words
from cellar_server.front.rations import number_of
from cellar_server.front.reading import check
from cellar_server.front.registry import Registry

# In place of a response: the stream ends with the error beside it.
END = object()


class InferStream:
    """An OpenStream of this protocol. out: responses, their errors, and whether a request is answered with it, None at
    the end; tasks: requests in flight that wait for more than their run.
    Of responses no more wait in `out` than the stream may have frames in flight: a reader that is slow holds up its own
    generations. CellarError UNAUTHENTICATED."""

    def __init__(self, context: grpc.aio.ServicerContext, registry: Registry) -> None:
        self._context, self._callers = context, registry.callers
        self.caller = registry.callers.of(context)
        self.out: asyncio.Queue[Any] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()
        self.num_waiting = 0  # responses in `out`
        self._most = registry.config.max_frames_in_flight
        self._is_ending = False
        self._has_room = asyncio.Event()
        self._room = asyncio.Semaphore(self._most)  # for requests
        # answers are written without a wait for each, where the transport counts what is not written yet
        self._is_read_ahead = hasattr(context, "read_ahead")
        self._num_chunks = 0  # requests under way that are no task
        self._last_chunk: asyncio.Future[None] | None = None  # somebody waits for the last of them

    async def put(self, response: Any, error: CellarError | None = None) -> None:
        """Puts a response into `out` when there is room."""
        while self.num_waiting >= self._most and not self._is_ending:
            self._has_room.clear()
            await self._has_room.wait()
        self.num_waiting += 1
        self.out.put_nowait((response, error, False))

    def take(self) -> None:
        """A response was taken out."""
        self.num_waiting -= 1
        self._has_room.set()

    def end_waiting(self) -> None:
        """What is still made is written in the end: nobody waits for room."""
        self._is_ending = True
        self._has_room.set()

    def end(self, error: CellarError) -> None:
        self.out.put_nowait((END, error, False))

    def check(self) -> None:
        scope = self.caller.scope
        self.caller = self._callers.of(self._context, has_begun=True)
        if self.caller.scope != scope:
            raise CellarError(Reason.UNAUTHENTICATED, "the stream's credentials are another caller's now")

    async def run(self, answers: Answers, *, is_real: bool) -> None:
        """Answers requests until their end. is_real: an error ends the call, and is no message on it."""
        out, context = self.out, self._context
        CALLER.set(number_of(self.caller.scope, context))
        if self._is_read_ahead:
            context.read_ahead(self._most)  # type: ignore[attr-defined]
        reader = asyncio.ensure_future(self._read(answers))
        try:
            while (item := await out.get()) is not None:
                response, error, is_last = item
                if response is END:
                    await self._end(error)
                if error is not None and is_real:
                    await abort_in_words(context, error)
                if response is None:
                    self._settle()
                    continue
                self.take()
                if is_last and self._is_read_ahead:
                    self._room.release()
                    context.answer(response)  # type: ignore[attr-defined]
                    continue
                await context.write(response)
                if is_last:
                    self._settle()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _end(self, error: CellarError) -> NoReturn:
        """Writes what is still made, and ends the call with an error."""
        self.end_waiting()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._chunks_answered()
        while not self.out.empty() and (item := self.out.get_nowait()) is not None:
            if item[0] is not None:
                await self._context.write(item[0])
        await abort_in_words(self._context, error)

    def _settle(self) -> None:
        """A request is answered: its place is free."""
        self._room.release()
        if self._is_read_ahead:
            self._context.settle(1)  # type: ignore[attr-defined]

    async def _read(self, answers: Answers) -> None:
        """Starts each request as it comes, while there is room; None in `out` when all are answered."""
        out, tasks, read = self.out, self.tasks, self._context.read
        try:
            while (request := await read()) is not grpc.aio.EOF:
                await self._room.acquire()
                if request is not None and self._begin(request, answers):
                    continue
                task = asyncio.ensure_future(self._answer(request, answers))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                del request  # a quiet stream would hold its last message
            if tasks:
                await asyncio.gather(*tasks)
            await self._chunks_answered()
        finally:
            for task in tasks:
                task.cancel()
            out.put_nowait(None)

    def _begin(self, request: Any, answers: Answers) -> bool:
        """Begins with a request that needs no task; False for any other."""

        def receive(answer: Any) -> None:
            self._num_chunks -= 1
            if self._last_chunk is not None and not self._num_chunks:
                self._last_chunk.set_result(None)
                self._last_chunk = None
            error = answer if isinstance(answer, CellarError) else None
            message = _message(answer) if error is None else _failure(request, error)
            # there is one for each request that has a place, so this bounds them
            self.num_waiting += 1
            self.out.put_nowait((message, error, True))

        if not answers.begin(request, self.caller, receive):
            return False
        self._num_chunks += 1
        return True

    async def _chunks_answered(self) -> None:
        if self._num_chunks:
            self._last_chunk = self._last_chunk or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._last_chunk)

    async def _answer(self, request: Any, answers: Answers) -> None:
        """Puts the answers of one request into the stream's `out`, then that its place is free."""
        caller = self.caller
        try:
            check(request)
            engine, given = answers.read(request, caller)
            wants_empty_final, is_decoupled = given.wants_empty_final, answers.requests.signature(engine).is_decoupled
            held = None
            async for response in answers.of(request, engine, given, 0.0, caller.scope):
                if not is_decoupled:
                    held = response
                    continue
                if wants_empty_final:
                    if response.outputs:
                        _flag_final(response, False)
                        await self.put(schema.ModelStreamInferResponse(infer_response=response))
                    held = response if "finish_reason" in response.parameters else None
                    if held is not None:
                        del held.outputs[:], held.raw_output_contents[:]
                    continue
                # the flag stands on the last response that is not empty: known once the next one is there
                if held is not None and response.outputs:
                    _flag_final(held, False)
                    await self.put(schema.ModelStreamInferResponse(infer_response=held))
                if held is not None and not response.outputs:
                    for key, param in response.parameters.items():
                        held.parameters[key].CopyFrom(param)
                else:
                    held = response
            if held is not None:
                await self.put(_message(held))
        except CellarError as error:
            await self.put(_failure(request, error), error)
        finally:
            self.out.put_nowait((None, None, True))


def _message(response: Any) -> Any:
    """The last response to a request."""
    _flag_final(response, True)
    return schema.ModelStreamInferResponse(infer_response=response)


def _failure(request: Any, error: CellarError) -> Any:
    """The response to a request that failed; None: one that could not be read."""
    response = schema.ModelInferResponse()
    if request is not None:
        response.model_name, response.id = request.model_name, request.id
    response.parameters["reason"].string_param = Reason.Name(error.reason)
    _flag_final(response, True)
    return schema.ModelStreamInferResponse(error_message=in_words(error), infer_response=response)


def _flag_final(response: Any, is_final: bool) -> None:
    response.parameters["triton_final_response"].bool_param = is_final
