"""Requests in the midst of a sequence are answered byte for byte as by the way that takes all, on each transport."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.front.callers import ANYBODY
from cellar_server.front.oip import schema, wire
from cellar_server.front.oip.answers import Answers
from cellar_server.front.oip.midst import Midst
from cellar_server.limits import Limits
from cellar_server.transport import is_native_built
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter

SERVICE = "/inference.GRPCInferenceService"
TRANSPORTS = ["aio", "native"] if is_native_built() else ["aio"]
SEQUENCES: list[Any] = [5, "5", 1 << 40]


def servers_of(zoo: Any, **options: Any) -> Iterator[list[Running]]:
    """A server of each transport, and one that is asked only while protobuf reads all: they have one history."""
    write_counter(zoo)
    write_counter(zoo, "other")
    write_counter(zoo, "other", version=2)
    running = [
        Running(Config(listen="127.0.0.1:0", transport=name, models=zoo, drain_s=5, **options))
        for name in [*TRANSPORTS, "aio"]
    ]
    yield running
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    yield from servers_of(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """The same, whose callers are limited."""
    limits = {"*": Limits(max_steps_per_s=1e-6, burst_steps=12, max_message_bytes=200)}
    yield from servers_of(tmp_path_factory.mktemp("limited"), caller_limits=limits)


def put(made: Any, key: str, value: Any) -> None:
    """A parameter of a value's own type."""
    field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
    setattr(made.parameters[key], field, value)


@st.composite
def scripts(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests of a few sequences: sound ones in the midst mostly, and every kind of odd one."""
    made = []
    for number in range(draw(st.integers(1, 12))):
        made.append(
            {
                "model": draw(st.sampled_from(["counter"] * 4 + ["other", "other", "nothing"])),
                "version": draw(st.sampled_from([""] * 5 + ["1", "2", "x"])),
                "id": draw(st.sampled_from([str(number)] * 4 + ["", "é"])),
                "sequence": draw(st.sampled_from(SEQUENCES)),
                "flags": draw(st.sampled_from([{}] * 8 + [{"sequence_start": True}] * 4 + [{"sequence_end": True}])),
                "quiet": draw(st.booleans()),  # flags that are false are given too, as tritonclient does
                "steps": draw(st.sampled_from([1, 1, 1, 3, 0])),
                "value": draw(st.sampled_from([1.0, 2.0, -3.0, float("nan")] + [0.5] * 4)),
                "shape": draw(st.sampled_from(["right"] * 8 + ["rows", "axes", "wide"])),
                "contents": draw(st.sampled_from(["raw"] * 6 + ["typed", "both", "short"])),
                "datatype": draw(st.sampled_from(["FP32"] * 8 + ["INT64"])),
                "outputs": draw(st.sampled_from([[]] * 6 + [["y"], ["y"], ["z"]])),
                "more": draw(
                    st.sampled_from(
                        [{}] * 8
                        + [
                            {"position": 0},
                            {"position": 1},
                            {"position": 3},
                            {"timeout": 50_000_000},
                            {"priority": 2},
                            {"all_emissions": False},
                            {"sequence_id": 0},
                            {"sequence_id": True},
                            {"unknown": "x"},
                        ]
                    )
                ),
            }
        )
    return made


def message(each: dict[str, Any]) -> bytes:
    made = schema.ModelInferRequest(model_name=each["model"], model_version=each["version"], id=each["id"])
    put(made, "sequence_id", each["sequence"])
    flags = {"sequence_start": False, "sequence_end": False} if each["quiet"] else {}
    for key, value in {**flags, **each["flags"], **each["more"]}.items():
        put(made, key, value)
    steps = each["steps"]
    shape = {"right": [1, steps, 2], "rows": [2, steps, 2], "axes": [steps, 2], "wide": [1, steps, 3]}[each["shape"]]
    values = np.full(shape, each["value"], "<f4")
    tensor = made.inputs.add(name="x", datatype=each["datatype"], shape=shape)
    if each["contents"] in ("typed", "both"):
        tensor.contents.fp32_contents.extend(values.ravel().tolist())
    if each["contents"] != "typed":
        made.raw_input_contents.append(values.tobytes()[: -4 if each["contents"] == "short" else None])
    for name in each["outputs"]:
        made.outputs.add(name=name)
    return made.SerializeToString()


def ends() -> list[bytes]:
    """What ends every sequence that a script can have left open."""
    about = {"id": "", "quiet": False, "steps": 1, "value": 0.0, "shape": "right", "contents": "raw", "outputs": []}
    return [
        message(about | {"model": model, "version": version, "sequence": sequence, "datatype": "FP32", **more})
        for model, version in (("counter", ""), ("other", "1"), ("other", "2"))
        for sequence in SEQUENCES
        for more in ({"flags": {"sequence_end": True}, "more": {}},)
    ]


def comparable(raw: bytes) -> bytes:
    """An answer; one that has failed in one order of its parameters."""
    read = schema.ModelStreamInferResponse.FromString(raw)
    return read.SerializeToString(deterministic=True) if read.error_message else raw


def on_stream(address: str, script: list[bytes], *, at_once: bool = False) -> list[bytes]:
    """The answers to requests on one stream, each sent when the one before is answered, or all at once."""
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
        if at_once:
            return sorted(map(comparable, call(iter(script), timeout=20)))
        sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answered, answers = call(iter(sent.get, None), timeout=20), []
        for each in script:
            sent.put(each)
            answers.append(comparable(next(answered)))
        sent.put(None)
        assert list(answered) == []
        return answers


def by_calls(address: str, script: list[bytes]) -> list[Any]:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"{SERVICE}/ModelInfer")
        answers: list[Any] = []
        for each in script:
            try:
                answers.append(call(each, timeout=20))
            except grpc.RpcError as error:
                trailing = sorted((key, value) for key, value in error.trailing_metadata())
                answers.append((error.code(), error.details(), trailing))
        return answers


def play(server: Running, script: list[dict[str, Any]], *, is_stream: bool, is_plain: bool) -> list[Any]:
    """The answers to a script. is_plain: protobuf reads all of it."""
    messages = [message(each) for each in script]
    rations = server.server.registry.rations

    def fill() -> None:
        """The callers' buckets."""
        assert all(meter.in_flight == 0 for meter in rations._callers.values())
        rations._callers.clear()
        rations._rations.clear()

    fill()
    with pytest.MonkeyPatch.context() as patch:
        if is_plain:
            patch.setattr(wire, "find", lambda message: None)
        try:
            return on_stream(server.address, messages) if is_stream else by_calls(server.address, messages)
        finally:
            fill()
            by_calls(server.address, ends())


def both_ways(servers: list[Running], script: list[dict[str, Any]], *, is_stream: bool) -> None:
    *others, plain = servers
    wanted = play(plain, script, is_stream=is_stream, is_plain=True)
    for answers in [play(server, script, is_stream=is_stream, is_plain=False) for server in others]:
        assert answers == wanted


@settings(max_examples=60)
@given(scripts(), st.booleans())
def test_both_ways_answer_the_same(servers: list[Running], script: list[dict[str, Any]], is_stream: bool) -> None:
    both_ways(servers, script, is_stream=is_stream)


@settings(max_examples=30)
@given(scripts(), st.booleans())
def test_both_ways_refuse_the_same_of_a_limited_caller(
    limited: list[Running], script: list[dict[str, Any]], is_stream: bool
) -> None:
    both_ways(limited, script, is_stream=is_stream)


def test_requests_that_are_sent_at_once_keep_the_order_of_their_sequence(servers: list[Running]) -> None:
    about = {"version": "", "id": "", "quiet": True, "shape": "right", "contents": "raw", "datatype": "FP32"}
    about |= {"model": "counter", "more": {}, "outputs": []}
    script = []
    for sequence in SEQUENCES:
        for _ in range(2):  # the same sequence again behind its end
            for step in range(6):
                flags = {0: {"sequence_start": True}, 5: {"sequence_end": True}}.get(step, {})
                script.append(about | {"sequence": sequence, "flags": flags, "steps": 1, "value": 1.0})
    for i, each in enumerate(script):
        each["id"] = f"{i:02}"
    for server in servers:
        answers = on_stream(server.address, [message(each) for each in script], at_once=True)
        read = [schema.ModelStreamInferResponse.FromString(raw).infer_response for raw in answers]
        assert [response.id for response in read] == sorted(each["id"] for each in script)
        sums = [np.frombuffer(response.raw_output_contents[0], "<f4")[0] for response in read]
        assert sums == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0] * (2 * len(SEQUENCES))


class Asker:
    """Somebody in this process."""

    turn, deadline_s, loop = 0, 0.0, None

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def answer(self, response: bytes) -> None:
        self.answers.put(response)

    def fail(self, model: str, id: bytes, error: CellarError) -> None:
        self.answers.put((model, id, error.reason))


def test_what_is_taken_and_what_is_not(servers: list[Running]) -> None:
    about = {"model": "counter", "version": "", "id": "ab", "quiet": True, "steps": 1, "value": 1.0, "shape": "right"}
    about |= {"contents": "raw", "datatype": "FP32", "outputs": [], "sequence": 5, "flags": {}, "more": {}}
    midst, asker = Midst(Answers(servers[0].server.registry), is_last=False), Asker()

    def take(**more: Any) -> bool:
        return midst.take(message(about | more), ANYBODY, asker)

    assert not take()  # there is no such sequence
    by_calls(servers[0].address, [message(about | {"flags": {"sequence_start": True}})])
    try:
        assert take()
        read = schema.ModelInferResponse.FromString(asker.answers.get(timeout=10))
        assert (read.id, np.frombuffer(read.raw_output_contents[0], "<f4")[0]) == ("ab", 2.0)
        assert take(more={"position": 2})
        assert asker.answers.get(timeout=10)
        assert take(value=float("nan"))
        assert asker.answers.get(timeout=10) == ("counter", b"\x1a\x02ab", Reason.NON_FINITE_INPUT)
        assert take(flags={"sequence_start": True})
        assert asker.answers.get(timeout=10) == ("counter", b"\x1a\x02ab", Reason.SESSION_EXISTS)
        for odd in (
            {"flags": {"sequence_start": True, "sequence_end": True}},
            {"flags": {"sequence_end": True}, "more": {"position": 3}},
            {"more": {"priority": 2}},
            {"contents": "typed"},
            {"contents": "short"},
            {"outputs": ["z"]},
            {"id": "é"},
            {"model": "nothing"},
        ):
            assert not take(**odd), odd
        assert take(flags={"sequence_end": True})
        assert asker.answers.get(timeout=10)
        assert not take()
        assert take(flags={"sequence_start": True})
        assert asker.answers.get(timeout=10)
    finally:
        by_calls(servers[0].address, ends())
    assert not take()
