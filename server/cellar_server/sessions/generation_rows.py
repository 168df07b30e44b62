"""Generations that go on: each has a row of work, whose emission is fed back as its next input, one step a run."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.sampling_pb2 import Alternatives

from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import most_likely, sample
from cellar_server.scheduler.work import Kind
from cellar_server.sessions.core import Core
from cellar_server.sessions.generation import Generation
from cellar_server.sessions.messages import GenerateRequest


class GenerationRows:
    """Rows of work that generate, beside everybody else's; each answers one call."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._by_work: dict[int, Generation] = {}
        self._by_to: dict[int, Generation] = {}

    @property
    def num_live(self) -> int:
        """Those that run or wait for their reader."""
        return len(self._by_work)

    def of(self, to: object) -> Generation | None:
        """The generation that answers a call."""
        return self._by_to.get(id(to))

    # -- in ------------------------------------------------------------------------------------------------------

    def attach(self, generation: Generation, request: GenerateRequest, now: float) -> None:
        """Gives a generation its asker and a row of work."""
        work = self.core.work
        w = int(work.take(1)[0])
        generation.request = request
        generation.work = w
        generation.credits = request.credits
        generation.waits_since = now
        generation.is_parked = False
        work.kind[w] = Kind.GENERATION
        work.steps[w] = 1
        work.slot[w] = -1
        work.stream[w] = -1
        work.caller[w], work.arrived[w] = request.caller, now
        work.limit(np.array([w]), request.deadline_s or np.inf, False)
        work.last[w] = generation.ids[-1] if generation.ids else generation.begin_id
        self._by_work[w] = generation
        self.core.time(Kind.GENERATION, w, request.timing)
        self._by_to[id(request.to)] = generation
        if generation.slot >= 0:
            self.core.table.in_flight[generation.slot] = 1

    def prime(self, begun: list[Generation], conditions: list[np.ndarray]) -> None:
        """Brings new generations to their first step, together in one run where their conditions are no sequences."""
        core = self.core
        if core.model.manifest.prime.is_recurrent:
            for generation, condition in zip(begun, conditions, strict=True):
                self.queue(generation, condition)
            return
        rows = np.array([generation.work for generation in begun])
        state = np.tile(core.model.runtime.start, (len(rows), 1))
        if core.model.manifest.HasField("prime"):
            state = core.model.runtime.prime(np.stack(conditions), state)
            core.counts.prime_runs += 1
        core.work.state[rows] = state
        core.scheduler.add(rows)

    def queue(self, generation: Generation, condition: np.ndarray) -> None:
        """Makes a generation's row of work ready for its priming, cut as a chunk is. condition: [time, ...]."""
        core, work, w = self.core, self.core.work, generation.work
        work.state[w] = core.model.runtime.start
        generation.is_primed = not len(condition)
        if len(condition):
            work.kind[w] = Kind.PRIMING
            work.lot[w] = work.add_lot(condition, 1)
            work.offset[w], work.steps[w] = 0, len(condition)
        core.scheduler.add(np.array([w]))

    def take_in(self, rows: np.ndarray, steps: np.ndarray, state: np.ndarray) -> None:
        """So many steps of the conditions of rows [n] were primed with; state: float32 [n, S]."""
        work = self.core.work
        work.state[rows] = state
        work.done[rows] += steps
        for w in rows[work.done[rows] == work.steps[rows]].tolist():
            work.drop(int(work.lot[w]), 1)
            work.kind[w], work.lot[w], work.steps[w], work.done[w] = Kind.GENERATION, -1, 1, 0
            self._by_work[w].is_primed = True
        self.core.scheduler.add(rows)

    # -- out -----------------------------------------------------------------------------------------------------

    def advance(self, rows: np.ndarray, logits: np.ndarray, state: np.ndarray, now: float) -> None:
        """One step of each: rows [n]; logits: float32 [n, V]; state: float32 [n, S]."""
        core, work = self.core, self.core.work
        work.state[rows] = state
        chosen = [self._by_work[w] for w in rows.tolist()]
        options = [generation.request.options for generation in chosen]
        ids, log_probabilities = sample(
            logits,
            np.array([o.temperature for o in options], np.float32),
            np.array([o.top_k for o in options], np.int64),
            np.array([o.top_p for o in options], np.float32),
            np.array([o.seed for o in options], np.uint64),
            np.array([len(generation.ids) for generation in chosen], np.uint64),
        )
        work.last[rows] = ids
        going: list[int] = []
        for i, (generation, token, log_probability) in enumerate(
            zip(chosen, ids.tolist(), log_probabilities.tolist(), strict=True)
        ):
            count = generation.request.num_alternatives
            generation.alternatives = None
            if count:
                likely, their = most_likely(logits[i], count)
                generation.alternatives = Alternatives(ids=likely, log_probabilities=their)
            self._emit(generation, token, log_probability, now)
            if generation.finish:
                self.detach(generation, now)
            elif generation.credits > 0:
                going.append(generation.work)
            else:
                generation.is_parked = True
        if going:
            core.scheduler.add(np.array(going))

    def _emit(self, generation: Generation, token: int, log_probability: float, now: float) -> None:
        position = len(generation.ids)
        generation.emit(token, log_probability, self.core.model.manifest.generation.end_id)
        if position >= generation.asked or generation.finish:
            if generation.waits_since is not None:
                self.core.counts.first_emission.add(now - generation.waits_since)
                generation.waits_since = None
            self.core.replies.append(generation.reply(position, finish=generation.finish))
        if generation.slot >= 0 and self.core.durability.is_behind:
            self.core.durability.change(np.array([generation.slot]))

    # -- its caller ----------------------------------------------------------------------------------------------

    def credit(self, to: object, count: int) -> None:
        """The asker took in `count` emissions."""
        generation = self._by_to.get(id(to))
        if generation is None:
            return
        generation.credits += count
        if generation.is_parked and generation.credits > 0:
            generation.is_parked = False
            self.core.scheduler.add(np.array([generation.work]))

    def cancel(self, to: object, now: float) -> bool:
        """The asker is gone: a kept generation rests, any other ends; False where there is none."""
        generation = self._by_to.get(id(to))
        if generation is None:
            return False
        self.core.scheduler.remove(np.array([generation.work]))
        self.detach(generation, now)
        return True

    def parked(self) -> np.ndarray:
        """Rows of work that wait for their readers: int64 [n]."""
        return np.array([w for w, generation in self._by_work.items() if generation.is_parked], np.int64)

    def fail(self, rows: np.ndarray, error: CellarError, now: float) -> None:
        """Generations whose call ends with an error: rows [n], not ready any more; kept ones rest as they were."""
        for w in rows.tolist():
            generation = self._by_work[w]
            self.end_call(generation, error)
            self.detach(generation, now)

    def end_call(self, generation: Generation, error: CellarError) -> None:
        self.core.counts.refuse(error.reason)
        self.core.replies.append(generation.reply(len(generation.ids), error=error))

    def detach(self, generation: Generation, now: float) -> None:
        """Takes a generation's row of work away; a kept one's state goes to its session."""
        core = self.core
        w = generation.work
        if generation.slot >= 0:
            core.table.state[generation.slot] = self.state_of(generation)
            core.table.position[generation.slot] = core.table.accepted[generation.slot] = len(generation.ids)
            core.table.in_flight[generation.slot] = 0
            core.table.last_use[generation.slot] = now
            core.durability.change(np.array([generation.slot]))
        self._by_to.pop(id(generation.request.to), None)
        del self._by_work[w]
        core.timings.pop((Kind.GENERATION, w), None)
        generation.work = -1
        core.work.give_back(np.array([w]))

    def state_of(self, generation: Generation) -> np.ndarray:
        """The state row of a generation that has a row of work: it is primed as a whole or not at all."""
        return self.core.work.state[generation.work] if generation.is_primed else self.core.model.runtime.start
