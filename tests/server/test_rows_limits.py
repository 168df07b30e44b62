"""Chunks that came one a message: they take turns by their callers, and are refused in time like frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame
from cellar_server.sessions.messages import AnswerReply, Rows, RowsRefused, RowsReply

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import counter_model


class Calls:
    """Whom rows are answered to."""

    def asker(self, call: int, is_step: bool) -> Any:
        return call


def rows(handles: list[int], stream: int, deadline: float | None = None, caller: int | None = None) -> Rows:
    """One step of each session, at position 0; the handle is the number of the call."""
    n = len(handles)

    def full(value: int) -> np.ndarray:
        return np.full(n, value, np.int64)

    frame = Frame()
    return Rows(
        Calls(),
        frame.SerializeToString(),
        frame,
        np.array(handles, np.uint64),
        full(stream),
        np.arange(n, dtype=np.uint64),
        np.array(handles, np.uint64),
        full(0),
        full(-1),
        full(-1),
        full(4),
        np.ones(n, np.float32).view(np.uint8),
        deadline=None if deadline is None else np.full(n, deadline),
        caller=None if caller is None else full(caller),
    )


def outcomes(bench: Bench) -> dict[int, str]:
    """By handle: "" where it was answered, else the reason."""
    found: dict[int, str] = {}
    for reply in bench.sessions.take_replies():
        assert isinstance(reply, AnswerReply | RowsReply | RowsRefused)
        errors = dict(reply.errors)
        for i, handle in enumerate(reply.handles):
            found[int(handle)] = reason_of(errors[i]) if i in errors else ""
    return found


def test_rows_take_turns_by_stream_or_by_the_name_of_their_caller() -> None:
    bench = Bench(counter_model(), max_rows_per_run=4)
    greedy, other, third = bench.open(40, stream=1), bench.open(2, stream=2), bench.open(1, stream=3)
    # stream 3 is another stream of the caller of stream 2: they share a turn
    bench.sessions.admit([rows(greedy, 1), rows(other, 2, caller=77), rows(third, 3, caller=77)])
    bench.run(1)
    first = outcomes(bench)
    assert set(other) <= set(first)
    assert len(set(greedy) & set(first)) == 2
    bench.run()
    assert set(outcomes(bench).values()) == {""}


def test_rows_that_would_wait_beyond_their_time_are_refused_at_once() -> None:
    bench = Bench(counter_model(), max_rows_per_run=10, max_sessions=512)
    queued, late = bench.open(300, stream=1), bench.open(5, stream=1)
    (light,) = bench.open(1, stream=2)
    bench.sessions.admit([rows(queued, 1)])
    soon = bench.clock.now + 310 * bench.sessions.core.pressure.s_per_row / 4
    bench.sessions.admit([rows(late, 1, soon), rows([light], 2, soon)])
    assert outcomes(bench) == dict.fromkeys(late, "OVERLOADED")
    bench.run()
    assert outcomes(bench) == dict.fromkeys([*queued, light], "")
