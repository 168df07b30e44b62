"""What clients tell of generations, and what they do where a call breaks, against a server that breaks it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import cellar_client
import grpc
import pytest
from cellar_client import AsyncClient, Client, Token
from cellar_client.errors import SessionNotFound, Unavailable
from cellar_client.generation import GenerationBook, generate_request
from cellar_proto.v1 import inference_pb2_grpc
from cellar_proto.v1.inference_pb2 import GenerateRequest, GenerateResponse
from cellar_proto.v1.sampling_pb2 import FINISH_END, Sampling
from hypothesis import given
from hypothesis import strategies as st

SAID = "a\u00e9\u20ac" * 4


def message(low: int, high: int, said: str = "abc") -> GenerateResponse:
    """Emissions from `low` to `high`; id i says the i-th character."""
    response = GenerateResponse(ids=range(low, high), text=said[low:high].encode(), position=low, seed=77)
    response.log_probabilities.extend([-1.0] * (high - low))
    if high == len(said):
        response.finish = FINISH_END
    return response


class Joining(inference_pb2_grpc.InferenceServicer):
    """Says "a", "b", "c" in one message, but breaks the first call behind "a"."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []

    def Generate(self, request: GenerateRequest, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
        self.requests.append(request)
        is_first = len(self.requests) == 1
        yield message(0, 1 if is_first else 3)
        if is_first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken")


class Breaking(inference_pb2_grpc.InferenceServicer):
    """Says "a", "b", "c", and breaks each call behind as many emissions as it was told."""

    def __init__(self) -> None:
        self.breaks = [0]
        self.requests: list[GenerateRequest] = []

    def Generate(self, request: GenerateRequest, context: grpc.ServicerContext) -> Iterator[GenerateResponse]:
        self.requests.append(request)
        until = self.breaks.pop(0)
        for position in range(request.position, until):
            yield message(position, position + 1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "broken")


@pytest.fixture
def breaking() -> Iterator[tuple[str, Breaking]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = Breaking()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(0).wait()


def told(generation: cellar_client.Generation | cellar_client.AsyncGeneration) -> tuple[object, ...]:
    return generation.id, generation.text, generation.seed, generation.position, generation.finish, generation.is_ended


def is_all(tokens: list[Token], generation: cellar_client.Generation | cellar_client.AsyncGeneration) -> None:
    assert "".join(token.text for token in tokens) == "abc"
    assert told(generation) == ("g", "abc", 77, 3, "end", True)
    assert repr(generation) == f"{type(generation).__name__}('g' of m, position 3, end: 'abc')"


def test_a_generation_goes_on_where_its_call_broke_and_not_behind_its_end(breaking: tuple[str, Breaking]) -> None:
    address, servicer = breaking
    servicer.breaks = [2, 3]
    with Client(address) as client:
        generation = client.generate("m", session_id="g")
        first = next(generation)
        assert told(generation) == ("g", "a", 77, 1, "", False)
        is_all([first, *generation], generation)
        assert next(generation, None) is None
    assert [(each.position, each.sampling.seed) for each in servicer.requests] == [(0, 0), (2, 77)]


async def test_an_awaited_one_too(breaking: tuple[str, Breaking]) -> None:
    address, servicer = breaking
    servicer.breaks = [2, 3]
    async with AsyncClient(address) as client:
        generation = client.generate("m", session_id="g")
        first = await anext(generation)
        assert told(generation) == ("g", "a", 77, 1, "", False)
        is_all([first, *[token async for token in generation]], generation)
        assert await anext(generation, None) is None
    assert [(each.position, each.sampling.seed) for each in servicer.requests] == [(0, 0), (2, 77)]


def test_a_closed_generation_says_so(breaking: tuple[str, Breaking]) -> None:
    address, servicer = breaking
    servicer.breaks = [1]
    with Client(address) as client, client.generate("m") as generation:
        generation.close()
        with pytest.raises(cellar_client.errors.Cancelled):
            list(generation)
    assert (generation.id, generation.is_ended) == ("", False)


async def test_a_closed_one_that_is_awaited_says_so(breaking: tuple[str, Breaking]) -> None:
    address, servicer = breaking
    servicer.breaks = [1]
    async with AsyncClient(address) as client, client.generate("m") as generation:
        await generation.close()
        with pytest.raises(cellar_client.errors.Cancelled):
            await anext(generation)
    assert (generation.id, generation.is_ended) == ("", False)


def test_what_is_held_is_not_told_again_where_messages_join_emissions() -> None:
    server, servicer = grpc.server(futures.ThreadPoolExecutor(2)), Joining()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            generation = client.generate("m", "x")
            assert [token.id for token in generation] == [0, 1, 2]
            assert (generation.text, generation.finish, generation.alternatives) == ("abc", "end", [])
    finally:
        server.stop(0).wait()
    assert len(servicer.requests) == 2


@given(st.lists(st.lists(st.integers(1, len(SAID) - 1), max_size=6), max_size=5), st.booleans(), st.booleans())
def test_emissions_are_told_once_however_messages_join_them(
    calls: list[list[int]], is_kept: bool, is_lost: bool
) -> None:
    """Calls that break behind some messages, cut anywhere, and a last one that does not. is_lost: servers forget."""
    request = generate_request("m", "x", Sampling(), "story" if is_kept else "", 0, 0)
    book = GenerationBook(request, 1e9)
    tokens: list[Token] = []
    for i, cuts in enumerate([*calls, [len(SAID)]]):
        low = request.position
        for high in sorted({cut for cut in cuts if cut > low}):
            tokens += book._tokens(message(low, high, SAID))
            low = high
        if i < len(calls):
            book._pause_s(Unavailable("broken"))
            if is_kept and is_lost:
                book._pause_s(SessionNotFound("lost"))
                assert request.position == 0
    assert [(token.id, token.position) for token in tokens] == [(i, i) for i in range(len(SAID))]
    assert "".join(token.text for token in tokens) == book.text == SAID
    assert book.finish == "end"
