"""Generations that are forked, told their next emission, and asked for one step more: what a search is made of."""

from __future__ import annotations

import numpy as np
import pytest
from cellar_proto.v1.sampling_pb2 import FINISH_END, FINISH_MAX_STEPS
from cellar_server.sampling.sampler import Options, most_likely
from cellar_server.sessions.messages import GenerateReply, GenerateRequest

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import CounterGenerator, generator_model


class Ranked(CounterGenerator):
    """After id the likeliest is id + 1, then id + 2 and so on, modulo 10; 9 ends."""

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distance = (np.arange(10) - x[..., None] - 1) % 10
        return -distance.astype(np.float32), state + x.sum(axis=1, keepdims=True)


@pytest.fixture
def bench() -> Bench:
    return Bench(generator_model(Ranked()))


def ask(bench: Bench, max_steps: int, **fields: object) -> GenerateReply:
    """The last reply of a generation from the condition 0; `ids` are those of all its replies."""
    data = np.zeros(1, np.float32).tobytes()
    fields = {"session_id": "g", "num_alternatives": 3, **fields}
    bench.sessions.admit([GenerateRequest(object(), b"", data, Options(0.0, 0, 0.0, 1, max_steps), **fields)])
    bench.run()
    replies = bench.sessions.take_replies()
    last = replies[-1]
    last.ids = [id for reply in replies for id in reply.ids]
    return last


def test_each_step_tells_its_alternatives(bench: Bench) -> None:
    reply = ask(bench, 2)
    assert (reply.ids, reply.finish) == ([1, 2], FINISH_MAX_STEPS)
    assert list(reply.alternatives.ids) == [2, 3, 4]
    assert np.diff(reply.alternatives.log_probabilities) == pytest.approx([-1, -1])
    assert ask(bench, 2, session_id="other", num_alternatives=0).alternatives is None


def test_a_greater_limit_lets_a_generation_go_on(bench: Bench) -> None:
    ask(bench, 2)
    assert ask(bench, 2, position=2).ids == []
    reply = ask(bench, 4, position=2)
    assert (reply.ids, reply.finish) == ([3, 4], FINISH_MAX_STEPS)
    assert ask(bench, 50, position=4).finish == FINISH_END
    assert bench.sessions.get("g").position == 8


def test_a_fork_takes_another_emission_and_its_source_goes_on(bench: Bench) -> None:
    ask(bench, 2)
    bench.sessions.fork("g", "f")
    chosen = ask(bench, 3, session_id="f", position=1, next_id=4)
    assert chosen.ids == [4, 5]
    # the same request again, as after a broken call
    assert ask(bench, 3, session_id="f", position=1, next_id=4).ids == [4, 5]
    assert ask(bench, 3, position=2).ids == [3]
    state = bench.sessions.export("f")
    assert list(state.generation.ids) == [1, 4, 5]
    assert np.frombuffer(state.row, "<f4").tolist() == [0 + 1 + 4]
    assert np.isfinite(state.generation.log_probabilities).all()
    assert state.generation.is_chosen
    assert bench.sessions.import_state(state, "i").position == 3
    assert ask(bench, 50, session_id="i", position=3).ids == [6, 7, 8]


def test_a_choice_may_be_the_last_emission(bench: Bench) -> None:
    ask(bench, 2)
    bench.sessions.fork("g", "f")
    reply = ask(bench, 2, session_id="f", position=1, next_id=4)
    assert (reply.ids, reply.finish) == ([4], FINISH_MAX_STEPS)


def test_what_was_drawn_may_be_chosen_without_a_fork(bench: Bench) -> None:
    ask(bench, 2)
    assert ask(bench, 3, position=1, next_id=2).ids == [2, 3]


def test_an_end_may_give_way_to_another_emission(bench: Bench) -> None:
    reply = ask(bench, 50)
    assert (reply.ids, reply.finish) == ([1, 2, 3, 4, 5, 6, 7, 8], FINISH_END)
    assert list(reply.alternatives.ids) == [9, 0, 1]
    bench.sessions.fork("g", "f")
    assert ask(bench, 10, session_id="f", position=8, next_id=0).ids == [0, 1]
    assert ask(bench, 50).finish == FINISH_END


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"session_id": "f", "position": 1, "next_id": 9}, "INVALID_REQUEST"),  # never told
        ({"session_id": "f", "position": 0, "next_id": 2}, "POSITION_CONFLICT"),  # not the last step
        ({"session_id": "f", "position": 2, "next_id": 3}, "POSITION_CONFLICT"),  # not yet a step
        ({"session_id": "g", "position": 1, "next_id": 3}, "POSITION_CONFLICT"),  # no fork
        ({"session_id": "", "position": 0, "next_id": 3}, "INVALID_REQUEST"),
        ({"session_id": "new", "position": 0, "next_id": 3}, "SESSION_NOT_FOUND"),
        ({"session_id": "f", "position": 2, "num_alternatives": 65}, "INVALID_REQUEST"),
    ],
)
def test_what_cannot_be_chosen_is_refused(bench: Bench, fields: dict[str, object], reason: str) -> None:
    ask(bench, 2)
    bench.sessions.fork("g", "f")
    assert reason_of(ask(bench, 5, **fields).error) == reason
    assert ask(bench, 4, session_id="f", position=2).ids == [3, 4]


def test_the_end_is_not_chosen(bench: Bench) -> None:
    ask(bench, 7)
    bench.sessions.fork("g", "f")
    assert list(ask(bench, 7, session_id="f").alternatives.ids) == [7, 8, 9]
    bench.sessions.fork("g", "f2")
    assert reason_of(ask(bench, 9, session_id="f2", position=6, next_id=9).error) == "INVALID_REQUEST"


def test_the_most_likely_are_ordered_and_equal_ones_by_id() -> None:
    ids, values = most_likely(np.array([1.0, 3.0, 2.0, 3.0], np.float32), 3)
    assert ids == [1, 3, 2]
    assert values == sorted(values, reverse=True)
    assert np.exp(most_likely(np.zeros(5, np.float32), 9)[1]).sum() == pytest.approx(1.0)
