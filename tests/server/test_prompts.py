"""A model of characters that goes on with a prompt, its prime being its step, and takes chunks too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, Generation, Manifest, Prime, StatePart, StepSpec
from cellar_proto.v1.manifest_pb2 import TextCodec as TextSpec
from cellar_proto.v1.sampling_pb2 import FINISH_END
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from cellar_server.codecs.text import TextCodec
from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import Cancel, GenerateRequest, StepRequest
from cellar_server.zoo import Model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import CounterGenerator


class Adder(CounterGenerator):
    """The state is the sum of all ids so far, the emission that sum + 1, modulo 10; 9 ends."""

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.runs.append(x.shape[:2])
        if len(self.runs) - 1 in self.fail_on:
            raise RuntimeError("a secret of the runtime")
        sums = state + np.cumsum(x, axis=1)
        y = np.where(np.arange(10) == ((sums + 1) % 10)[..., None], 2.0, 0.0).astype(np.float32)
        return y, sums[:, -1:].astype(np.float32)

    def prime(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        return self.step(condition, state)[1]


def expected(prompt: str) -> list[int]:
    total, ids = 2 + sum(map(int, prompt)), []  # begin_id is 2
    while (id := (total + 1) % 10) != 9 and len(ids) < 30:
        ids.append(id)
        total += id
    return ids


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(10)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    file = tmp_path_factory.mktemp("digits") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def bench_of(tokenizer_file: Path) -> Bench:
    manifest = Manifest(
        format=1,
        name="adder",
        version=1,
        mode=MANY_TO_MANY_ALIGNED,
        state_size=1,
        input=StepSpec(dtype=INT64, vocabulary=10),
        output=StepSpec(dtype=FLOAT32, shape=[10]),
        parts=[StatePart(name="sum", offset=0, shape=[1])],
        generation=Generation(begin_id=2, end_id=9, default_max_steps=30, max_steps=100),
    )
    manifest.prime.CopyFrom(
        Prime(is_recurrent=True, is_prompt=True, condition=manifest.input, text=TextSpec(is_by_character=True))
    )
    codec = TextCodec(tokenizer_file, is_by_character=True)
    return Bench(Model(manifest, Adder(), text=codec, source=codec), max_chunk=64)


@pytest.fixture
def bench(tokenizer_file: Path) -> Bench:
    return bench_of(tokenizer_file)


def ask(bench: Bench, to: object, prompt: str | bytes, **fields: object) -> None:
    text = prompt.encode() if isinstance(prompt, str) else prompt
    bench.sessions.admit([GenerateRequest(to, text, b"", Options(0.0, 0, 0.0, 1, 30), **fields)])


def step(bench: Bench, to: object, id: str, text: bytes, **fields: object) -> None:
    bench.sessions.admit([StepRequest(to, id, 0, [], text, len(text), **fields)])


def emitted(bench: Bench) -> dict[object, list[int]]:
    ids: dict[object, list[int]] = {}
    for reply in bench.sessions.take_replies():
        ids.setdefault(reply.to, []).extend(reply.ids)
        bench.replies.append(reply)
    return ids


def reason(bench: Bench) -> str:
    (reply,) = bench.sessions.take_replies()
    errors = [e for _, e in reply.errors] if hasattr(reply, "errors") else [reply.error]
    return reason_of(errors[0])


def test_prompts_of_any_length_are_read_side_by_side(bench: Bench) -> None:
    prompts = ["", "1", "31", "6", "4444", "0123456789" * 6]
    for prompt in prompts:
        ask(bench, prompt, prompt)
    bench.run()
    assert emitted(bench) == {prompt: expected(prompt) for prompt in prompts}
    assert {reply.finish for reply in bench.replies if not reply.ids} == {FINISH_END}  # that of "6", at once
    assert bench.sessions.is_idle


@given(st.integers(0, 12), st.integers(0, 3))
def test_a_kept_generation_may_be_left_inside_its_prompt(tokenizer_file: Path, runs: int, credits: int) -> None:
    bench = bench_of(tokenizer_file)
    ask(bench, "first", "31071", session_id="g", credits=credits)
    for _ in range(runs):
        if bench.sessions.has_ready:
            bench.sessions.run()
    bench.sessions.admit([Cancel("first")])
    held = emitted(bench).get("first", [])
    state = bench.sessions.export("g")
    assert (state.position, list(state.generation.ids)) == (len(held), held)
    bench.sessions.import_state(state, "h")
    for id in "gh":
        ask(bench, id, "31071", session_id=id, position=len(held))
        bench.run()
        assert held + emitted(bench)[id] == expected("31071")


def test_a_fork_goes_its_own_way(bench: Bench) -> None:
    ask(bench, "a", "31", session_id="g", credits=2)
    bench.run()
    bench.sessions.fork("g", "h")
    held = emitted(bench)["a"]
    ask(bench, "b", "31", session_id="h", position=len(held))
    bench.run()
    assert held + emitted(bench)["b"] == expected("31")


def test_it_takes_chunks_too_and_keeps_the_two_apart(bench: Bench) -> None:
    step(bench, "me", "s", b"31", opens=True)
    bench.run()
    (reply,) = bench.sessions.take_replies()
    assert reply.outputs.argmax(axis=1).tolist() == [4, 5]
    ask(bench, "you", "31", session_id="s")
    assert reason(bench) == "UNSUPPORTED"
    ask(bench, "you", "31", session_id="g")
    bench.run()
    assert emitted(bench) == {"you": expected("31")}
    for opens in (False, True):
        step(bench, "me", "g", b"1", opens=opens, position=0)
        assert reason(bench) == "UNSUPPORTED"
    (taken,) = bench.sessions.open(["g"], resume=True, stream=1)
    assert isinstance(taken, CellarError)
    assert reason_of(taken) == "UNSUPPORTED"
    step(bench, "me", "s", b"2", position=2)
    bench.run()
    (reply,) = bench.sessions.take_replies()
    assert reply.outputs.argmax(axis=1).tolist() == [7]


@pytest.mark.parametrize(
    ("prompt", "fields", "wanted"),
    [
        (b"\xff", {}, "INVALID_TEXT"),
        (b"\xd0", {}, "INVALID_TEXT"),
        (b"1" * 65, {}, "TOO_LARGE"),
        (b"1", {"condition": b"1234"}, "INVALID_CONDITION"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    bench: Bench, prompt: bytes, fields: dict[str, bytes], wanted: str
) -> None:
    condition = fields.get("condition", b"")
    bench.sessions.admit([GenerateRequest("me", prompt, condition, Options(0.0, 0, 0.0, 1, 5), session_id="g")])
    assert reason(bench) == wanted
    assert bench.sessions.is_idle
    assert not bench.directory.has("g")


def test_a_run_that_fails_inside_the_prompt_ends_the_call(bench: Bench) -> None:
    bench.sessions.core.model.runtime.fail_on = frozenset({0})
    ask(bench, "a", "31", session_id="g")
    bench.run()
    assert emitted(bench)["a"] == []
    assert reason_of(bench.replies[-1].error) == "RUN_FAILED"
    ask(bench, "b", "31", session_id="g")
    bench.run()
    assert emitted(bench)["b"] == expected("31")
