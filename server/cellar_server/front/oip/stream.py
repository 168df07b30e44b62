"""One ModelStreamInfer: many requests in flight, and no more responses waiting than the limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

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
    """An OpenStream of this protocol. out: responses with their errors, None at the end; tasks: requests in flight.
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
        self.out.put_nowait((END, error))

    def check(self) -> None:
        scope = self.caller.scope
        self.caller = self._callers.of(self._context, has_begun=True)
        if self.caller.scope != scope:
            raise CellarError(Reason.UNAUTHENTICATED, "the stream's credentials are another caller's now")

    async def run(self, requests: AsyncIterator[Any], answers: Answers, *, is_real: bool) -> AsyncIterator[Any]:
        """The responses to requests, as they are made. is_real: an error ends the call, and is no message on it."""
        out, context = self.out, self._context
        room = asyncio.Semaphore(self._most)
        CALLER.set(number_of(self.caller.scope, context))
        reader = asyncio.ensure_future(self._read(requests, answers, room))
        try:
            while (item := await out.get()) is not None:
                response, error = item
                if response is END:
                    self.end_waiting()
                    await asyncio.gather(*self.tasks, return_exceptions=True)
                    while not out.empty() and (item := out.get_nowait()) is not None:
                        if item[0] is not None:
                            yield item[0]
                    await abort_in_words(context, error)
                if error is not None and is_real:
                    await abort_in_words(context, error)
                if response is None:
                    room.release()
                    continue
                self.take()
                yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[Any], answers: Answers, room: asyncio.Semaphore) -> None:
        """Starts each request as it comes, while there is room; None in `out` when all are answered."""
        out, tasks = self.out, self.tasks
        try:
            async for request in requests:
                await room.acquire()
                task = asyncio.ensure_future(self._answer(request, answers))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            out.put_nowait(None)

    async def _answer(self, request: Any, answers: Answers) -> None:
        """Puts the answers of one request into the stream's `out`, then (None, None): its place is free."""
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
                _flag_final(held, True)
                await self.put(schema.ModelStreamInferResponse(infer_response=held))
        except CellarError as error:
            response = schema.ModelInferResponse()
            if request is not None:
                response.model_name, response.id = request.model_name, request.id
            response.parameters["reason"].string_param = Reason.Name(error.reason)
            _flag_final(response, True)
            message = schema.ModelStreamInferResponse(error_message=in_words(error), infer_response=response)
            await self.put(message, error)
        finally:
            self.out.put_nowait((None, None))


def _flag_final(response: Any, is_final: bool) -> None:
    response.parameters["triton_final_response"].bool_param = is_final
