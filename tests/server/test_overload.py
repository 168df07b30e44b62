"""More than a model can carry, in simulated time: what is answered within its deadline stays near the capacity."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.inference_pb2 import PredictRequest as Request
from cellar_server.scheduler.policy import Cost
from cellar_server.sessions.messages import PredictReply, PredictRequest, PredictRows, Rows, RowsRefused, RowsReply

from benchmarks.simulation import BOOKS_S, mixed_lengths
from tests.fakes.bench import Bench, Clock
from tests.fakes.runtime import CounterRuntime, counter_model

SECONDS, TIMEOUT_S = 2.0, 1.0
# an LSTM of 2 x 256 on one core, and one that is fifteen times as dear
LSTM = Cost(1e-4, 3e-5, 1.1e-5)
DEAR = Cost(1.5e-3, 4.5e-4, 1.6e-4)


class Timed(CounterRuntime):
    """A counter each of whose runs moves the clock by what it costs."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost
        self.clock = Clock()
        self.steps = 0

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock.now += float(self.cost(*x.shape[:2])) + BOOKS_S
        self.steps += x.shape[0] * x.shape[1]
        return super().step(x, state)


class Load:
    """A model under a load of its own, and what became of each row."""

    def __init__(self, cost: Cost, lengths: np.ndarray, **config: Any) -> None:
        self.runtime = Timed(cost)
        self.bench = Bench(counter_model(self.runtime), max_queue_rows=16_384, **config)
        self.clock = self.runtime.clock = self.bench.clock
        self.bench.sessions.core.scheduler.cost = cost
        self.lengths = lengths
        self.is_in_time = np.zeros(len(lengths), np.bool_)
        self.deadlines = np.full(len(lengths), np.inf)
        self.answered = self.late = 0

    def request(self, rows: np.ndarray) -> list[Any]:
        """What asks for these rows [n]."""
        raise NotImplementedError

    def take(self) -> int:
        """Takes the replies in; how many rows they end."""
        count = 0
        for reply in self.bench.sessions.take_replies():
            rows, is_error = self.rows_of(reply)
            count += len(rows)
            if not is_error:
                good = self.deadlines[rows] >= self.clock.now
                self.is_in_time[rows[good]] = True
                self.answered += len(rows)
                self.late += int((~good).sum())
        return count

    def rows_of(self, reply: Any) -> tuple[np.ndarray, bool]:
        assert isinstance(reply, RowsReply | RowsRefused)
        return reply.call.astype(np.int64) - 1, isinstance(reply, RowsRefused)

    def saturate(self, in_flight: int = 256) -> tuple[float, float]:
        """Rows and steps a second where so many are always in flight."""
        at = ended = 0
        begun = self.clock.now
        while self.clock.now < begun + SECONDS:
            more = in_flight - (at - ended)
            self.bench.sessions.admit(self.request(np.arange(at, at + more)))
            at += more
            self.bench.run(1)
            ended += self.take()
        took_s = self.clock.now - begun
        return self.answered / took_s, self.lengths[: self.answered].sum() / took_s

    def offer(self, rate: float) -> float:
        """All rows, that come by chance at this rate; in how many seconds."""
        arrivals = self.clock.now + np.cumsum(np.random.default_rng(3).exponential(1 / rate, len(self.lengths)))
        self.deadlines = arrivals + TIMEOUT_S
        at, n, begun, sessions = 0, len(arrivals), self.clock.now, self.bench.sessions
        while at < n or sessions.has_ready:
            until = int(np.searchsorted(arrivals, self.clock.now, side="right"))
            if until > at:
                sessions.admit(self.request(np.arange(at, until)))
                at = until
            elif not sessions.has_ready:
                self.clock.now = float(arrivals[at])
                continue
            self.bench.run(1)
            self.take()
        assert self.bench.sessions.is_idle
        return float(arrivals[-1]) - begun


def _columns(n: int, value: int) -> np.ndarray:
    return np.full(n, value, np.int64)


class Sequences(Load):
    """Whole sequences that came one a call, by a few connections."""

    num_callers = 16

    def request(self, rows: np.ndarray) -> list[Any]:
        n, length = len(rows), self.lengths[rows]
        if not n:
            return []
        none = np.zeros(n, np.uint64)
        columns = _columns(n, -1), none, none, _columns(n, 0), _columns(n, -1), _columns(n, -1), 4 * length
        data = np.ones(int(length.sum()), np.float32).view(np.uint8)
        request = PredictRows(None, b"", Request(), (rows + 1).astype(np.uint64), *columns, data)
        request.deadline, request.caller = self.deadlines[rows], rows % self.num_callers
        request.all_emissions = False
        return [request]


class ManyCallers(Sequences):
    """The same, each call on a connection of its own."""

    num_callers = 1 << 40


class Calls(Load):
    """Whole sequences as grpc.aio hands them over."""

    def request(self, rows: np.ndarray) -> list[Any]:
        return [
            PredictRequest(
                row, [n], 0, [], bytes(4 * n), False, deadline_s=0.0 if until == np.inf else until, caller=row % 16
            )
            for row, n, until in zip(
                rows.tolist(), self.lengths[rows].tolist(), self.deadlines[rows].tolist(), strict=True
            )
        ]

    def rows_of(self, reply: Any) -> tuple[np.ndarray, bool]:
        assert isinstance(reply, PredictReply)
        return np.array([reply.to]), reply.error is not None or bool(reply.errors)


class Chunks(Load):
    """One-step chunks of sessions, one a message, on a few streams."""

    num_streams, num_sessions = 16, 8192

    def __init__(self, cost: Cost, lengths: np.ndarray) -> None:
        super().__init__(cost, lengths, max_sessions=self.num_sessions)
        each = self.num_sessions // self.num_streams
        self.handles = np.array(
            [handle for stream in range(1, self.num_streams + 1) for handle in self.bench.open(each, stream)], np.uint64
        ).reshape(self.num_streams, each)

    def request(self, rows: np.ndarray) -> list[Any]:
        n, stream = len(rows), rows % self.num_streams
        handle = self.handles[stream, rows // self.num_streams % self.handles.shape[1]]
        none, given = np.zeros(n, np.uint64), _columns(n, -1)
        columns = stream + 1, none, handle, given, given, given, _columns(n, 4)
        data = np.ones(n, np.float32).view(np.uint8)
        request = Rows(None, b"", Frame(), (rows + 1).astype(np.uint64), *columns, data)
        request.deadline = self.deadlines[rows]
        return [request] if n else []


# kinds of load, how dear the model is, and how long its sequences are
KINDS: dict[str, tuple[Callable[..., Load], Cost, Callable[[int], np.ndarray]]] = {
    "sequences": (Sequences, LSTM, mixed_lengths),
    "sequences, a connection each": (ManyCallers, LSTM, mixed_lengths),
    "sequences of a slow model, fewer than a run takes": (Sequences, DEAR, mixed_lengths),
    "one-step chunks": (Chunks, DEAR, lambda count: np.ones(count, np.int64)),
    "calls of sequences": (Calls, LSTM, mixed_lengths),
}


def offered(kind: str, factor: float) -> tuple[Load, float, float, float]:
    """A load of so many times the capacity, the seconds in which it came, and the capacity: rows and steps a second."""
    make, cost, lengths_of = KINDS[kind]
    rows_per_s, steps_per_s = make(cost, lengths_of(60_000)).saturate()
    load = make(cost, lengths_of(int(factor * rows_per_s * SECONDS)))
    return load, load.offer(factor * rows_per_s), rows_per_s, steps_per_s


@pytest.mark.parametrize(
    ("kind", "factor"), [*itertools.product(list(KINDS)[:-1], (1.5, 2.0, 3.5)), (list(KINDS)[-1], 2.0)]
)
def test_goodput_stays_near_the_capacity(kind: str, factor: float) -> None:
    load, took_s, rows_per_s, steps_per_s = offered(kind, factor)
    good = load.is_in_time
    assert good.sum() / took_s >= 0.9 * rows_per_s
    # in steps too, so it is not only the short ones that are answered; and little is computed for nothing
    assert load.lengths[good].sum() / took_s >= 0.9 * steps_per_s
    assert load.runtime.steps <= 1.4 * load.lengths[good].sum()
    assert load.late <= 0.01 * good.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_below_the_capacity_all_but_the_longest_is_answered(kind: str) -> None:
    load, *_ = offered(kind, 0.8)
    assert load.is_in_time.mean() >= 0.97
    assert load.is_in_time[load.lengths < 60].all()
