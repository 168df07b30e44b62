"""Generations whose condition is a sequence: primed by runs of equal lengths, as a whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED
from cellar_server.codecs.text import TextCodec
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import Cancel, Credit, GenerateRequest, StepRequest
from cellar_server.zoo import Model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import Summer, summer_model


class Asker:
    """Someone who asks; compared by identity."""


def ask(bench: Bench, ids: list[int], to: object = None, text: bytes = b"", **fields: object) -> object:
    to = to or Asker()
    data = b"" if text else np.array(ids, np.int64).tobytes()
    bench.sessions.admit([GenerateRequest(to, text, data, Options(0.0, 0, 0.0, 1, 50), **fields)])
    return to


def emitted(bench: Bench) -> dict[object, list[int]]:
    ids: dict[object, list[int]] = {}
    for reply in bench.sessions.take_replies():
        ids.setdefault(reply.to, []).extend(reply.ids)
        bench.replies.append(reply)
    return ids


def expected(ids: list[int], begin: int = 0) -> list[int]:
    """Emissions behind a condition: one more each time, until 9."""
    first = (begin + 1 + sum(ids)) % 10
    return list(range(first, 9))


def runs(bench: Bench) -> Summer:
    runtime = bench.sessions.core.model.runtime
    assert isinstance(runtime, Summer)
    return runtime


def test_conditions_of_any_lengths_are_primed_together_and_never_padded() -> None:
    bench = Bench(summer_model())
    conditions = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6], [0, 0, 0, 3]]
    askers = [ask(bench, ids) for ids in conditions]
    bench.run()
    assert emitted(bench) == {to: expected(ids) for to, ids in zip(askers, conditions, strict=True)}
    assert sum(rows * steps for rows, steps in runs(bench).primes) == sum(map(len, conditions))
    assert len(runs(bench).primes) == bench.sessions.core.counts.prime_runs
    assert any(rows > 1 for rows, _ in runs(bench).primes)
    assert bench.sessions.is_idle
    assert not bench.sessions.core.work.lots


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.integers(0, 6)), max_size=8))
def test_whatever_comes_when(asked: list[tuple[list[int], int]]) -> None:
    bench = Bench(summer_model(), max_rows_per_run=3)
    wanted = {}
    for ids, runs_before in asked:
        wanted[ask(bench, ids)] = expected(ids)
        bench.run(runs_before)
    bench.run()
    assert {to: ids for to, ids in emitted(bench).items() if ids} == {to: ids for to, ids in wanted.items() if ids}
    assert bench.sessions.is_idle


def test_a_long_condition_is_cut_and_others_emit_meanwhile() -> None:
    bench = Bench(summer_model(), max_chunk=5000)
    long = ask(bench, [1] * 3000)
    short = ask(bench, [0])
    order = []
    while bench.sessions.has_ready:
        bench.run(1)
        order += [to for to, ids in emitted(bench).items() if ids]
    assert len(runs(bench).primes) > 5
    assert order.index(short) < order.index(long)
    # eight emissions of the short one: each waits for one cut of the long one at most
    assert max(i for i, to in enumerate(order) if to is short) < order.index(long)


def test_an_id_may_be_put_behind_every_condition() -> None:
    bench = Bench(summer_model(end_id=2))
    to = ask(bench, [1, 1])
    bench.run()
    assert emitted(bench) == {to: expected([1, 1, 2])}


@pytest.mark.parametrize("ids", [[], [4], [1, 2, 3, 4]])
def test_a_prompts_last_id_is_the_first_input(ids: list[int]) -> None:
    bench = Bench(summer_model(is_prompt=True))
    to = ask(bench, ids, session_id="g", credits=1)
    bench.run()
    first = emitted(bench)[to]
    bench.sessions.fork("g", "f")
    bench.sessions.admit([Credit(to, 9)])
    bench.run()
    wanted = expected(ids[:-1], [0, *ids][-1])  # begin_id is 0, which a sum does not show
    assert first + emitted(bench)[to] == wanted
    again = ask(bench, ids, session_id="f", position=1)
    bench.run()
    assert emitted(bench)[again] == wanted[1:]
    assert sum(rows * steps for rows, steps in runs(bench).primes) == len(ids)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "EMPTY_INPUT"),
        (b"1234567", "SHAPE_MISMATCH"),
        (np.array([1, 10], np.int64).tobytes(), "OUT_OF_VOCABULARY"),
        (np.array([-1], np.int64).tobytes(), "OUT_OF_VOCABULARY"),
        (np.zeros(6, np.int64).tobytes(), "TOO_LARGE"),
    ],
)
def test_conditions_that_cannot_be_are_refused(data: bytes, reason: str) -> None:
    bench = Bench(summer_model(max_steps=5))
    bench.sessions.admit([GenerateRequest("me", b"", data, Options(0.0, 0, 0.0, 1, 5), session_id="g")])
    (reply,) = bench.sessions.take_replies()
    assert reason_of(reply.error) == reason
    assert bench.sessions.is_idle
    assert not bench.directory.has("g")


@pytest.fixture
def texts(tmp_path: Path) -> Model:
    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(10)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return replace(summer_model(max_steps=5, end_id=1), source=TextCodec(tmp_path / "tokenizer.json"))


def test_text_is_read_by_the_models_tokenizer(texts: Model) -> None:
    bench = Bench(texts)
    to = ask(bench, [], text=b" 1 2\n3 ")
    bench.run()
    assert emitted(bench) == {to: expected([1, 2, 3, 1])}


@pytest.mark.parametrize(
    ("text", "condition", "reason"),
    [
        (b"", b"", "EMPTY_INPUT"),
        (b" \n ", b"", "EMPTY_INPUT"),
        (b"1 \xff", b"", "INVALID_TEXT"),
        (b"1 \xd0", b"", "INVALID_TEXT"),
        (b"1 1 1 1 1", b"", "TOO_LARGE"),
        (b"1" + b" " * 20000, b"", "TOO_LARGE"),
        (b"1", b"12345678", "INVALID_CONDITION"),
    ],
)
def test_texts_that_cannot_be_are_refused(texts: Model, text: bytes, condition: bytes, reason: str) -> None:
    bench = Bench(texts)
    bench.sessions.admit([GenerateRequest("me", text, condition, Options(0.0, 0, 0.0, 1, 5))])
    (reply,) = bench.sessions.take_replies()
    assert reason_of(reply.error) == reason
    assert bench.sessions.is_idle


LONG = [1] * 1000 + [3]


def half_primed(bench: Bench, to: object) -> None:
    ask(bench, LONG, to, session_id="g")
    bench.run(2)
    assert 0 < sum(steps for _, steps in runs(bench).primes) < len(LONG)


def goes_on(bench: Bench, id: str) -> None:
    to = ask(bench, LONG, session_id=id)
    bench.run()
    assert emitted(bench)[to] == expected(LONG)


def test_who_goes_while_it_is_primed_finds_it_whole_later() -> None:
    bench = Bench(summer_model())
    half_primed(bench, to := Asker())
    bench.sessions.admit([Cancel(to)])
    assert bench.sessions.is_idle
    assert not bench.sessions.core.work.lots
    goes_on(bench, "g")


def test_another_call_takes_over_while_it_is_primed() -> None:
    bench = Bench(summer_model())
    half_primed(bench, to := Asker())
    goes_on(bench, "g")
    (error,) = [reply.error for reply in bench.replies if reply.to is to]
    assert reason_of(error) == "CANCELLED"


def test_copies_made_while_it_is_primed_are_whole() -> None:
    bench = Bench(summer_model())
    half_primed(bench, to := Asker())
    bench.sessions.fork("g", "forked")
    state = bench.sessions.export("g")
    bench.sessions.import_state(state, "imported")
    bench.run()
    assert emitted(bench)[to] == expected(LONG)
    goes_on(bench, "forked")
    goes_on(bench, "imported")


def test_a_failed_priming_ends_the_call_and_keeps_the_session() -> None:
    bench = Bench(summer_model(Summer(fail_prime_on=frozenset({1}))))
    to = ask(bench, LONG, session_id="g")
    bench.run()
    (reply,) = bench.sessions.take_replies()
    assert reply.to is to
    assert reason_of(reply.error) == "RUN_FAILED"
    goes_on(bench, "g")


def test_a_priming_past_its_time_is_dropped() -> None:
    bench = Bench(summer_model())
    ask(bench, LONG, deadline_s=bench.clock.now + 1.0)
    bench.run(2)
    bench.clock.now += 2.0
    bench.run()
    (reply,) = bench.sessions.take_replies()
    assert reason_of(reply.error) == "DEADLINE_EXCEEDED"
    assert bench.sessions.is_idle


def test_chunks_and_generations_of_one_model_are_sessions_of_two_kinds() -> None:
    model = summer_model()
    model.manifest.mode = MANY_TO_MANY_ALIGNED
    bench = Bench(model)
    bench.sessions.open(["chunks"])
    ask(bench, [1], session_id="g")
    bench.run()
    emitted(bench)
    ask(bench, [1], session_id="chunks")
    (reply,) = bench.sessions.take_replies()
    assert reason_of(reply.error) == "UNSUPPORTED"
    (opened,) = bench.sessions.open(["g"], resume=True)
    assert reason_of(opened) == "UNSUPPORTED"
    data = np.array([1], np.int64).tobytes()
    bench.sessions.admit([StepRequest("me", "g", 0, [], data, 1), StepRequest("you", "chunks", 0, [], data, 1)])
    bench.run()
    refused, answered = bench.sessions.take_replies()
    assert reason_of(refused.error) == "UNSUPPORTED"
    assert answered.outputs.shape == (1, 10)
    assert bench.sessions.import_state(bench.sessions.export("chunks")).position == 1
    assert bench.sessions.import_state(bench.sessions.export("g")).position == 7
