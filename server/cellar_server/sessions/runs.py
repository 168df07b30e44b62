"""Runs: ready rows of work into the runtime, and what comes out back to whom it belongs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.runtime import ragged
from cellar_server.scheduler.policy import TELL_S, calls, is_worth_telling, rests_s
from cellar_server.scheduler.work import Kind
from cellar_server.sessions.core import LATE, Core, new_error_id
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.generations import Generations
from cellar_server.sessions.lots import Lots
from cellar_server.sessions.predicts import Predicts
from cellar_server.sessions.run import OVERLAP_S, Outcome, Run
from cellar_server.sessions.table import span
from cellar_server.sessions.timing import Timing

T = TypeVar("T")

log = logging.getLogger("cellar_server.sessions")

# As TELL_S, with a store that keeps each step before its answer.
STORED_TELL_S = 1e-3


class Runs:
    """Makes runs of chunks, whole sequences and generations alike, and gives each row its outcome."""

    def __init__(self, core: Core, frames: Frames, predicts: Predicts, generations: Generations) -> None:
        self.core = core
        self.lots = Lots(core)
        self.frames = frames
        self.predicts = predicts
        self.generations = generations

    def begin(self) -> Run | None:
        """Takes the rows whose turn it is out of the queue for one run; None where their time was over. Something must
        be ready, and one run is under way at most."""
        core = self.core
        now = core.clock()
        late = core.scheduler.take_late(now, core.pressure.pace_s)
        if len(late):
            self.fail(late, CellarError(Reason.DEADLINE_EXCEEDED, LATE), now)
            if not core.scheduler.has_ready:
                return None
        rows, steps = core.scheduler.next()
        core.counts.rows_passed += len(core.scheduler.ready)
        work = core.work
        returns = (work.steps[rows] - work.done[rows] > steps) | (work.kind[rows] >= Kind.GENERATION)
        goes_on = core.scheduler.has_ready or bool(returns.any())
        core.pressure.begin(int(steps.sum()), int(steps[0]), now, goes_on=goes_on)
        x, state = self.lots.inputs(rows, steps), self._states(rows)
        waited = (now - work.arrived[rows])[(work.done[rows] == 0) & (work.kind[rows] < Kind.GENERATION)]
        core.counts.queue_rows += len(waited)
        core.counts.queue.add_all(waited)
        run = Run(rows, steps, x, state, core.scheduler.cost.of_ragged(steps))
        run.is_prime = bool(work.kind[rows[0]] == Kind.PRIMING)
        if not run.is_prime:
            self._watch(run)
        if core.timings:
            run.timed = self._begin_timed(rows, now)
        return run

    def _watch(self, run: Run) -> None:
        """Makes a run of several calls one whose rows may have their outcome before it is over. It is no long one of
        many chunks, which is computed beside the frames that come meanwhile, nor one that others wait behind: there
        what is left to do for the run before is done beside it."""
        core, cost = self.core, self.core.scheduler.cost
        look_s = core.scheduler.look_s
        if run.steps[0] == run.steps[-1] and (look_s == np.inf or run.cost_s <= look_s):
            return
        is_beside = core.scheduler.has_ready or (core.work.kind[run.rows] == Kind.CHUNK).any()
        if run.cost_s >= OVERLAP_S and look_s == np.inf and is_beside:
            return
        to_make = calls(run.steps, cost, look_s)
        if len(to_make) > 1:
            run.under_way = ragged.Ragged(run.x, run.state, to_make)
            run.look_s, run.rests_s = look_s, rests_s(to_make, cost)

    def _begin_timed(self, rows: np.ndarray, now: float) -> list[Timing]:
        work = self.core.work
        kinds = np.minimum(work.kind[rows], Kind.GENERATION)
        owners = np.where(kinds == Kind.GENERATION, rows, work.owner[rows])
        taking_part = set(zip(kinds.tolist(), owners.tolist(), strict=True))
        timed = [timing for key, timing in self.core.timings.items() if key in taking_part]
        for timing in timed:
            timing.begin(now, len(rows))
        return timed

    def compute(self, run: Run) -> Outcome:
        """What a run gives; any thread may compute it."""
        runtime = self.core.model.runtime
        try:
            if run.is_prime:
                return run.x[:, :0], ragged.prime(partial(self._call, run, runtime.prime), run.x, run.state, run.steps)
            return ragged.step(partial(self._call, run, runtime.step), run.x, run.state, run.steps)
        except Exception:
            return self.fault("a run failed", Reason.RUN_FAILED)

    def _call(self, run: Run, graph: Callable[..., T], x: np.ndarray, state: np.ndarray) -> T:
        """What a graph gives, timed."""
        begun = self.core.clock()
        computed = graph(x, state)
        run.calls.append((len(x), x.shape[1], self.core.clock() - begun))
        return computed

    def advance(self, run: Run) -> bool:
        """Computes a run that is under way until rows that have left it are worth an answer of their own, which they
        have then, or it is time to look around; else to its end, with the outcome of all. Whether it goes on."""
        under_way = run.under_way
        assert under_way is not None
        step = partial(self._call, run, self.core.model.runtime.step)
        while True:
            try:
                under_way.advance(step)
            except Exception:
                self.finish(run, self.fault("a run failed", Reason.RUN_FAILED))
                return False
            if under_way.is_over:
                break
            if has_told := self._is_worth_telling(run):
                self._give_left(run)
            if has_told or run.is_worth_cutting:
                return True
        n = len(run.rows)
        self.finish(run, (under_way.y[:n], under_way.state[:n]))
        return False

    def _is_worth_telling(self, run: Run) -> bool:
        """Those that have left it are worth an answer of their own."""
        assert run.under_way is not None
        going = run.under_way.num_going
        durability = self.core.durability
        tell_s = STORED_TELL_S if durability.is_on and not durability.is_behind else TELL_S
        others = going + len(self.core.scheduler.ready)
        return is_worth_telling(len(run.rows) - going, others, run.rest_s, tell_s)

    def _give_left(self, run: Run) -> None:
        """Gives rows that have left a run their outcome."""
        under_way = run.under_way
        assert under_way is not None
        self._end_timed(run)
        self.count(run)
        going, n = under_way.num_going, len(run.rows)
        self._scatter(run.rows[going:], run.steps[going:], under_way.y[going:n], under_way.state[going:n])
        run.rows, run.steps = run.rows[:going], run.steps[:going]

    def cut(self, run: Run) -> None:
        """Ends a run that is under way: rows that have steps left are ready again."""
        under_way, n = run.under_way, len(run.rows)
        assert under_way is not None
        run.steps = np.minimum(run.steps, under_way.num_done)
        calls_made = under_way.calls[: under_way.at]
        self.core.pressure.cut(sum(rows * (end - begin) for rows, begin, end in calls_made), under_way.num_done)
        self.finish(run, (under_way.y[:n], under_way.state[:n]))

    def finish(self, run: Run, outcome: Outcome) -> None:
        """Gives a run's outcome to its rows."""
        core = self.core
        self._end_timed(run)
        self.count(run)
        if isinstance(outcome, CellarError):
            self.fail(run.rows, outcome, core.clock())
            return
        y, state = outcome
        if run.is_prime:
            self.generations.rows.take_in(run.rows, run.steps, state)
            return
        self._scatter(run.rows, run.steps, y, state)

    def _end_timed(self, run: Run) -> None:
        if run.timed:
            now = self.core.clock()
            for timing in run.timed:
                timing.ended_s = now

    def count(self, run: Run) -> None:
        """Each call of a run that went well, once."""
        counts, run.calls, made = self.core.counts, [], run.calls
        if run.is_prime:
            counts.prime_runs += len(made)
            return
        for n, steps, took_s in made:
            counts.runs += 1
            counts.run.add(took_s)
            counts.rows += n
            counts.steps += n * steps
            counts.compute_s += n * took_s
            counts.runs_by_rows[n] = counts.runs_by_rows.get(n, 0) + 1
            counts.seconds_by_rows[n] = counts.seconds_by_rows.get(n, 0.0) + took_s

    def _states(self, rows: np.ndarray) -> np.ndarray:
        """States of a run float32 [batch, S]."""
        core, work = self.core, self.core.work
        slots = work.slot[rows]
        stored = (slots >= 0) & (work.done[rows] == 0)
        # a run reads them and writes elsewhere, so neighbouring rows need no copy
        place: np.ndarray | slice = rows
        if stored.all():
            place = span(slots)
            state = core.table.state[place]
        elif not stored.any():
            place = span(rows)
            state = work.state[place]
        else:
            state = work.state[rows]
            state[stored] = core.table.state[slots[stored]]
            core.counts.copy("state", int(stored.sum()) * state[0].nbytes)
        if not isinstance(place, slice):
            core.counts.copy("state", state.nbytes)
        return state

    def _scatter(self, rows: np.ndarray, steps: np.ndarray, y: np.ndarray, state: np.ndarray) -> None:
        """Gives a run's results to its rows. y: float32 [batch, time, ...]; state: float32 [batch, S]."""
        core, work = self.core, self.core.work
        now = core.clock()
        kind = work.kind[rows]
        fed_back = kind == Kind.GENERATION
        if fed_back.all():
            core.counts.copy("state", state.nbytes)
            self.generations.rows.advance(rows, y[:, 0], state, now)
            return
        if fed_back.any():
            core.counts.copy("part", y.nbytes + state.nbytes)
            core.counts.copy("state", int(fed_back.sum()) * state[0].nbytes)
            self.generations.rows.advance(rows[fed_back], y[fed_back, 0], state[fed_back], now)
            others = ~fed_back
            rows, steps, y, state, kind = rows[others], steps[others], y[others], state[others], kind[others]
        begun = work.done[rows] > 0
        work.done[rows] += steps
        ended = work.done[rows] == work.steps[rows]
        if not (ended & ~begun).all():
            self.lots.keep(rows, steps, y, (begun | ~ended) & work.keeps[rows])
        if not ended.all():
            going = rows[~ended]
            core.counts.copy("state", len(going) * state[0].nbytes)
            if not ended.any():
                work.state[span(going)] = state
                core.scheduler.add(going)
                return
            core.counts.copy("part", state.nbytes + int(ended.sum()) * y[0].nbytes)
            work.state[span(going)] = state[~ended]
            core.scheduler.add(going)
            rows, steps, y, state = rows[ended], steps[ended], y[ended], state[ended]
            kind, begun = kind[ended], begun[ended]
        for each, finish in ((Kind.CHUNK, self._finish_chunks), (Kind.SEQUENCE, self._finish_sequences)):
            chosen = kind == each
            if chosen.all():
                finish(rows, steps, y, state, begun, now)
                return
            if chosen.any():
                core.counts.copy("part", int(chosen.sum()) * (y[0].nbytes + state[0].nbytes))
                finish(rows[chosen], steps[chosen], y[chosen], state[chosen], begun[chosen], now)

    def _finish_chunks(
        self, rows: np.ndarray, steps: np.ndarray, y: np.ndarray, state: np.ndarray, begun: np.ndarray, now: float
    ) -> None:
        self.frames.commit(rows, state, self.lots.outputs(rows, steps, y, begun), now)

    def _finish_sequences(
        self, rows: np.ndarray, steps: np.ndarray, y: np.ndarray, state: np.ndarray, begun: np.ndarray, now: float
    ) -> None:
        keeps = self.core.work.keeps[rows]
        if keeps.all():
            outputs = self.lots.outputs(rows, steps, y, begun)
        elif not keeps.any():
            outputs = self.core.no_outputs()
        else:
            self.core.counts.copy("part", int(keeps.sum()) * y[0].nbytes)
            outputs = self.lots.outputs(rows[keeps], steps[keeps], y[keeps], begun[keeps])
        self.predicts.finish(rows, y[np.arange(len(rows)), steps - 1], outputs)

    def fail(self, rows: np.ndarray, error: CellarError, now: float) -> None:
        """Ends rows of any kind, none of them ready any more, with one error."""
        kind = self.core.work.kind[rows]
        if (kind == Kind.CHUNK).any():
            self.frames.fail(rows[kind == Kind.CHUNK], error, now)
        if (kind == Kind.SEQUENCE).any():
            self.predicts.fail(rows[kind == Kind.SEQUENCE], error)
        if (kind >= Kind.GENERATION).any():
            self.generations.rows.fail(rows[kind >= Kind.GENERATION], error, now)

    def fault(self, what: str, reason: Reason) -> CellarError:
        """Logs the exception being handled; the error that names it."""
        error_id = new_error_id()
        name = self.core.model.manifest.name
        log.exception("%s [%s] (model %s)", what, error_id, name, extra=self.core.about(error_id=error_id))
        return CellarError(reason, f"the server failed; its log has the fault as {error_id}", error_id=error_id)
