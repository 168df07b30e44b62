"""Ways to batch rows of mixed length, judged in simulated time: `python -m benchmarks.simulation`.

What a run takes comes from a table that was measured (`costs.json`; `--measure` measures it anew). The same seeds give
the same arrivals to all, and Cellar's own scheduler decides as it does in the server: the same figures each time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from cellar_server import zoo
from cellar_server.scheduler.policy import TELL_S, Cost, calls, is_worth_telling, rests_s
from cellar_server.scheduler.scheduler import LEAST_RUN_S, Scheduler
from cellar_server.scheduler.work import Work

from benchmarks import network, schedules

# Seconds that a server spends on each run beside the runtime, whatever it batches.
BOOKS_S = 1e-4
MAX_ROWS = 256
BUCKETS = (8, 16, 32, 64, 128, 330)
COSTS = Path(__file__).with_name("costs.json")
# rows, steps -> seconds of a run
Price = Callable[[int, int], float]
# seconds from a run's begin -> whether somebody has come by then
Comes = Callable[[float], bool]
# rows that a run answers, each with the seconds from its begin
Answers = list[tuple[int, float]]


class Costs:
    """Seconds of runs of the benchmark's network as they were measured on a grid, and straight lines between."""

    def __init__(self, path: Path = COSTS) -> None:
        read = json.loads(path.read_text())
        self.rows, self.steps = read["rows"], read["steps"]
        self.seconds = np.array(read["microseconds"]) * 1e-6

    def __call__(self, rows: int, steps: int) -> float:
        by_rows = [float(np.interp(steps, self.steps, each)) for each in self.seconds]
        return float(np.interp(rows, self.rows, by_rows))

    @staticmethod
    def measure(path: Path) -> None:
        """Writes the table of this machine: the least of nine runs of each shape."""
        rows, steps = [1, 2, 4, 8, 16, 32, 64, 128, 256], [1, 2, 4, 8, 16, 32, 64, 128, 330]
        with tempfile.TemporaryDirectory() as made:
            network.write_entry(Path(made))
            (entry,) = zoo.find(Path(made))
            runtime = zoo.load(entry).runtime
        found = np.full((len(rows), len(steps)), np.inf)
        for _ in range(9):
            for i, j in np.ndindex(*found.shape):
                x = np.zeros((rows[i], steps[j], *runtime.input_shape), np.float32)
                state = np.zeros((rows[i], runtime.state_size), np.float32)
                begun = time.perf_counter()
                runtime.step(x, state)
                found[i, j] = min(found[i, j], time.perf_counter() - begun)
        # noise only ever adds: a run is never dearer than one that holds it
        found = np.minimum.accumulate(np.minimum.accumulate(found[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
        table = {"rows": rows, "steps": steps, "microseconds": (found * 1e6).round().astype(int).tolist()}
        path.write_text(json.dumps(table) + "\n")


class Queue:
    """What waits. `add` rows as they arrive; `run` computes once: the rows that are done, and the seconds in all.

    books_s: seconds that the server spends on each run beside the runtime.
    """

    books_s = BOOKS_S

    def __init__(self, lengths: np.ndarray, price: Price) -> None:
        self.lengths, self.price = lengths, price
        self.waiting: deque[int] = deque()

    def add(self, row: int) -> None:
        self.waiting.append(row)

    @property
    def is_idle(self) -> bool:
        return not self.waiting

    def run(self, comes: Comes) -> tuple[Answers, float]:
        rows, seconds = self.run_whole()
        return [(row, seconds) for row in rows], seconds

    def run_whole(self) -> tuple[list[int], float]:
        """Of a queue that answers all rows of a run at its end."""
        raise NotImplementedError


class BatchOfOne(Queue):
    """Each sequence by itself, in order of arrival."""

    def run_whole(self) -> tuple[list[int], float]:
        row = self.waiting.popleft()
        return [row], self.price(1, int(self.lengths[row]))


class Padded(Queue):
    """All that waits, up to 64 at once, padded to the longest."""

    max_rows = 64

    def run_whole(self) -> tuple[list[int], float]:
        rows = [self.waiting.popleft() for _ in range(min(self.max_rows, len(self.waiting)))]
        return rows, self.price(len(rows), int(self.lengths[rows].max()))


class Buckets(Queue):
    """Those of the oldest one's bucket of lengths, up to 64 at once, padded to the longest of them."""

    max_rows = 64

    def __init__(self, lengths: np.ndarray, price: Price) -> None:
        super().__init__(lengths, price)
        self.bucket = np.searchsorted(BUCKETS, lengths)
        self.queues: list[deque[int]] = [deque() for _ in BUCKETS]

    def add(self, row: int) -> None:
        self.queues[int(self.bucket[row])].append(row)

    @property
    def is_idle(self) -> bool:
        return not any(self.queues)

    def run_whole(self) -> tuple[list[int], float]:
        queue = min((each for each in self.queues if each), key=lambda each: each[0])
        rows = [queue.popleft() for _ in range(min(self.max_rows, len(queue)))]
        return rows, self.price(len(rows), int(self.lengths[rows].max()))


class Cells(Queue):
    """Cellar's scheduler, which knows of the costs what it learns at a model's load. Rows are answered when they leave
    a run, and few make way for who comes, as in `sessions.runs`."""

    # as measured on the native transport with 4 to 28 rows ready
    books_s = 5e-4

    def __init__(self, lengths: np.ndarray, price: Price, budget_s: float = 0.01) -> None:
        super().__init__(lengths, price)
        self.work = Work(len(lengths), 1)
        cost = Cost.of([(rows, steps, price(rows, steps)) for rows, steps in Cost.SHAPES])
        self.scheduler = Scheduler(self.work, None, cost, max_rows=MAX_ROWS, budget_s=budget_s)  # type: ignore[arg-type]
        self.runs = 0

    def add(self, row: int) -> None:
        rows = self.work.take(1)
        self.work.steps[rows], self.work.row[rows] = self.lengths[row], row
        self.work.kind[rows] = 1
        self.scheduler.add(rows)

    @property
    def is_idle(self) -> bool:
        return not self.scheduler.has_ready

    def run(self, comes: Comes) -> tuple[Answers, float]:
        work, scheduler = self.work, self.scheduler
        rows, steps = scheduler.next()
        self.runs += 1
        look_s, seconds, told = scheduler.look_s, 0.0, len(rows)
        answers: Answers = []
        made = calls(steps, scheduler.cost, look_s)
        rests = rests_s(made, scheduler.cost)
        for at, (n, begin, end) in enumerate(made):
            seconds += self.price(n, end - begin)
            going = made[at + 1][0] if rests[at] else 0
            others = going + len(scheduler.ready)
            is_over = not going or (look_s < np.inf and rests[at] > LEAST_RUN_S and comes(seconds))
            if is_over or is_worth_telling(told - going, others, rests[at]):
                left = np.arange(going, told)
                work.done[rows[left]] += steps[left]
                ended = work.done[rows[left]] == work.steps[rows[left]]
                seconds += 0.0 if is_over else TELL_S
                answers += [(row, seconds) for row in work.row[rows[left[ended]]].tolist()]
                if ended.any():
                    work.give_back(rows[left[ended]])
                if not ended.all():
                    scheduler.add(rows[left[~ended]])
                told = going
            if is_over:
                work.done[rows[:going]] += end
                if going:
                    scheduler.add(rows[:going])
                break
        return answers, seconds


def simulate(queue: Queue, arrivals: np.ndarray) -> np.ndarray:
    """Seconds from arrival to answer of each row [n]; one run after the other, each begun when the last is over."""
    now, at, n = 0.0, 0, len(arrivals)
    ended = np.zeros(n)
    while at < n or not queue.is_idle:
        if queue.is_idle:
            now = max(now, float(arrivals[at]))
        while at < n and arrivals[at] <= now:
            queue.add(at)
            at += 1
        comes_after = float(arrivals[at]) - now if at < n else np.inf
        answers, seconds = queue.run(lambda after, least=comes_after: after >= least)  # type: ignore[misc]
        for row, after in answers:
            ended[row] = now + after + queue.books_s
        now += seconds + queue.books_s
    return ended - arrivals


def highest_load(arm: Callable[[np.ndarray], Queue], lengths: np.ndarray, p99_s: float = 0.05) -> float:
    """The most sequences a second, arriving at random, with p99 below p99_s; to 3%."""

    def holds(rate: float) -> bool:
        arrivals = np.cumsum(np.random.default_rng(2).exponential(1 / rate, len(lengths)))
        return bool(np.quantile(simulate(arm(lengths), arrivals), 0.99) < p99_s)

    most = len(lengths) / float(simulate(arm(lengths), np.zeros(len(lengths))).max())
    return schedules.highest(holds, 0.3 * most, 1.2 * most, 5)


def mixed_lengths(count: int, seed: int = 1) -> np.ndarray:
    """Lognormal(2.897, 0.75), from 1 to 330."""
    return np.clip(np.random.default_rng(seed).lognormal(2.897, 0.75, count).round(), 1, 330).astype(np.int64)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=6000, help="sequences of each simulation")
    parser.add_argument("--measure", action="store_true", help="first measure the table (half a minute)")
    options = parser.parse_args(arguments)
    if options.measure:
        Costs.measure(COSTS)
    price = Costs(COSTS)
    arms: dict[str, Callable[[np.ndarray], Queue]] = {
        "batch of one": lambda lengths: BatchOfOne(lengths, price),
        "padded": lambda lengths: Padded(lengths, price),
        "buckets": lambda lengths: Buckets(lengths, price),
        "cells": lambda lengths: Cells(lengths, price),
    }
    lengths = mixed_lengths(options.count)
    base = 0.0
    print("mixed lengths, saturated: sequences a second, times batch of one")
    for name, arm in arms.items():
        rate = len(lengths) / simulate(arm(lengths), np.zeros(len(lengths))).max()
        base = base or rate
        print(f"  {name:24} {rate:8.0f} {rate / base:6.2f}")
    for load in (0.5, 0.8, 1.2, 1.5):
        arrivals = np.cumsum(np.random.default_rng(2).exponential(1 / (load * base), len(lengths)))
        print(f"mixed lengths at {load} of batch of one: p50, p99 in ms")
        for name, arm in arms.items():
            p50, p99 = np.quantile(simulate(arm(lengths), arrivals), [0.5, 0.99]) * 1e3
            print(f"  {name:24} {p50:8.2f} {p99:8.2f}")
    print("mixed lengths: the most a second with p99 below 50 ms, times batch of one")
    base_load = 0.0
    for name, arm in arms.items():
        load_per_s = highest_load(arm, lengths)
        base_load = base_load or load_per_s
        print(f"  {name:24} {load_per_s:8.0f} {load_per_s / base_load:6.2f}")
    rng = np.random.default_rng(3)
    lengths = np.where(rng.random(options.count) < 0.1, 330, 1)
    capacity = len(lengths) / simulate(BatchOfOne(lengths, price), np.zeros(len(lengths))).max()
    arrivals = np.cumsum(rng.exponential(1 / (0.8 * capacity), len(lengths)))
    print("nine rows of 1 step to one of 330, at 0.8 of batch of one: p99 in ms of the short and of the long ones")
    for name, arm in arms.items():
        took = simulate(arm(lengths), arrivals)
        p99 = [np.quantile(took[lengths == each], 0.99) * 1e3 for each in (1, 330)]
        print(f"  {name:24} {p99[0]:8.2f} {p99[1]:8.2f}")


if __name__ == "__main__":
    main()
