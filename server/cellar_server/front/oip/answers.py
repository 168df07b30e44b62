"""Requests of the protocol, read, answered and counted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.callers import Caller
from cellar_server.front.oip import statistics
from cellar_server.front.oip.inference import Requests
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort, unforeseen


class Answers:
    """What requests are answered with, and how often each version of a model was asked."""

    def __init__(self, registry: Registry) -> None:
        self.requests = Requests(registry)
        self._registry = registry
        self._tallies: dict[tuple[str, int], statistics.Tally] = {}

    def find(self, name: str, version: str, caller: Caller) -> Engine:
        """A model's engine, of a version or the newest. NOT_ALLOWED, INVALID_REQUEST, MODEL_NOT_FOUND and others."""
        caller.must_know(name)
        if version and not version.isdecimal():
            raise CellarError(Reason.INVALID_REQUEST, f"a version is a number, not {version!r}")
        return self._registry.find(name, int(version) if version else 0)

    def tally(self, engine: Engine) -> statistics.Tally:
        """The counts of a version."""
        return self._tallies.setdefault((engine.name, engine.version), statistics.Tally())

    def read(self, request: Any, caller: Caller) -> tuple[Engine, Parameters]:
        """The engine and the parameters of a request. CellarError; one in the parameters counts as a failed request."""
        begun_ns = time.perf_counter_ns()
        caller.must_call(request.model_name)
        engine = self.find(request.model_name, request.model_version, caller)
        try:
            given = Parameters.of(request)
            if given.sequence is not None and not request.model_version:
                engine = self.requests.sequences.engine_of(engine, given, caller.scope)
            return engine, given
        except CellarError:
            self.tally(engine).fail_one(begun_ns)
            raise

    async def of(
        self, request: Any, engine: Engine, given: Parameters, deadline_s: float, scope: str
    ) -> AsyncIterator[Any]:
        """The responses of a request, counted. CellarError, INTERNAL for what nobody foresaw."""
        begun_ns = time.perf_counter_ns()
        tally = self.tally(engine)
        try:
            async for response in self.requests.answers(request, given, engine, deadline_s, scope):
                yield response
        except CellarError:
            tally.fail_one(begun_ns)
            raise
        except Exception:
            tally.fail_one(begun_ns)
            raise unforeseen("an inference request failed") from None
        rows = request.inputs[0].shape[0] if self.requests.signature(engine).max_batch_size else 1
        tally.succeed(begun_ns, rows)


def in_words(error: CellarError) -> str:
    """What a client shows: our reason's name, then the message."""
    return f"{Reason.Name(error.reason)}: {error.message}"


async def abort_in_words(context: grpc.aio.ServicerContext, error: CellarError) -> NoReturn:
    """Ends a call with an error, as clients of this protocol show it."""
    await abort(context, error, in_words(error))
