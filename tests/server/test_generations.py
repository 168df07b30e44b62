"""Generations: fed back, credited, kept, gone on with."""

from __future__ import annotations

import numpy as np
import pytest
from cellar_proto.v1.sampling_pb2 import FINISH_END, FINISH_MAX_STEPS
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import Cancel, Credit, GenerateRequest, StepRequest

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import CounterGenerator, generator_model


class Asker:
    """Someone who asks; compared by identity."""


def ask(bench: Bench, to: object, condition: float = 0.0, **fields: object) -> None:
    options = Options(0.0, 0, 0.0, 1, int(fields.pop("max_steps", 50)))
    data = np.array([condition], np.float32).tobytes()
    bench.sessions.admit([GenerateRequest(to, b"", data, options, **fields)])


def emitted(bench: Bench) -> dict[object, list[int]]:
    ids: dict[object, list[int]] = {}
    for reply in bench.sessions.take_replies():
        ids.setdefault(reply.to, []).extend(reply.ids)
        bench.replies.append(reply)
    return ids


@pytest.fixture
def bench() -> Bench:
    return Bench(generator_model())


def test_emissions_are_fed_back_until_the_end(bench: Bench) -> None:
    a, b = Asker(), Asker()
    ask(bench, a)
    ask(bench, b, condition=4.0)
    bench.run()
    assert emitted(bench) == {a: [1, 2, 3, 4, 5, 6, 7, 8], b: [5, 6, 7, 8]}
    assert bench.replies[-1].finish == FINISH_END
    assert bench.sessions.core.counts.prime_runs == 2
    assert bench.sessions.is_idle


def test_max_steps_ends_it(bench: Bench) -> None:
    ask(bench, a := Asker(), max_steps=3)
    bench.run()
    assert emitted(bench) == {a: [1, 2, 3]}
    assert bench.replies[-1].finish == FINISH_MAX_STEPS


def test_a_slow_reader_stops_its_own_generation_only(bench: Bench) -> None:
    slow, quick = Asker(), Asker()
    ask(bench, slow, credits=2)
    ask(bench, quick)
    bench.run()
    assert emitted(bench) == {slow: [1, 2], quick: [1, 2, 3, 4, 5, 6, 7, 8]}
    bench.sessions.admit([Credit(slow, 1)])
    bench.run()
    assert emitted(bench) == {slow: [3]}
    bench.sessions.admit([Cancel(slow)])
    assert bench.sessions.is_idle


def test_a_kept_generation_goes_on_where_the_caller_stands(bench: Bench) -> None:
    first, second, third = Asker(), Asker(), Asker()
    ask(bench, first, session_id="g", credits=5)
    bench.run()
    assert emitted(bench) == {first: [1, 2, 3, 4, 5]}
    bench.sessions.admit([Cancel(first)])
    assert bench.sessions.get("g").position == 5
    ask(bench, second, session_id="g", position=3)
    bench.run()
    assert emitted(bench) == {second: [4, 5, 6, 7, 8]}
    ask(bench, third, session_id="g", position=0)
    bench.run()
    assert emitted(bench) == {third: [1, 2, 3, 4, 5, 6, 7, 8]}
    assert bench.replies[-1].finish == FINISH_END


def test_another_call_takes_a_running_generation_over(bench: Bench) -> None:
    ask(bench, first := Asker(), session_id="g")
    bench.run(2)
    assert emitted(bench) == {first: [1, 2]}
    ask(bench, second := Asker(), session_id="g", position=1)
    bench.run()
    assert emitted(bench) == {first: [], second: [2, 3, 4, 5, 6, 7, 8]}
    assert bench.sessions.is_idle


@pytest.mark.parametrize(("position", "condition", "reason"), [(9, 0.0, "POSITION_GAP"), (0, 1.0, "POSITION_CONFLICT")])
def test_a_kept_generation_refuses_what_does_not_fit(
    bench: Bench, position: int, condition: float, reason: str
) -> None:
    ask(bench, Asker(), session_id="g", max_steps=3)
    bench.run()
    emitted(bench)
    ask(bench, Asker(), condition, session_id="g", position=position)
    emitted(bench)
    assert reason_of(bench.replies[-1].error) == reason


def test_a_failed_run_ends_the_call_and_keeps_the_session() -> None:
    bench = Bench(generator_model(CounterGenerator(fail_on=frozenset({2}))))
    ask(bench, a := Asker(), session_id="g")
    bench.run()
    assert emitted(bench) == {a: [1, 2]}
    assert reason_of(bench.replies[-1].error) == "RUN_FAILED"
    ask(bench, b := Asker(), session_id="g", position=2)
    bench.run()
    assert emitted(bench)[b] == [3, 4, 5, 6, 7, 8]


def test_a_kept_generation_takes_no_chunks(bench: Bench) -> None:
    ask(bench, first := Asker(), session_id="g", credits=2)
    bench.run()
    bench.sessions.admit([Cancel(first)])
    assert emitted(bench) == {first: [1, 2]}
    bench.sessions.admit([StepRequest("me", "g", 0, [], np.array([7], np.int64).tobytes(), 1)])
    (reply,) = bench.sessions.take_replies()
    assert reason_of(reply.error) == "UNSUPPORTED"
    ask(bench, second := Asker(), session_id="g", position=2)
    bench.run()
    assert emitted(bench) == {second: [3, 4, 5, 6, 7, 8]}


def test_a_wrong_condition_is_refused(bench: Bench) -> None:
    options = Options(0.0, 0, 0.0, 1, 5)
    bench.sessions.admit([GenerateRequest("me", b"", b"123", options)])
    (reply,) = bench.sessions.take_replies()
    assert reason_of(reply.error) == "SHAPE_MISMATCH"
    assert bench.sessions.is_idle
