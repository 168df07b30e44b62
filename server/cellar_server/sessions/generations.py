"""Generations: the emission is fed back as the next input, one step a run, beside everybody else's rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sampling_pb2 import Alternatives, FinishReason
from cellar_proto.v1.state_pb2 import GenerationState, SessionState

from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import Options, most_likely, sample
from cellar_server.scheduler.work import Kind
from cellar_server.sessions.content import NAMES
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import check_id, key_of
from cellar_server.sessions.messages import GenerateReply, GenerateRequest

# Of one step, that a caller may ask for.
MAX_ALTERNATIVES = 64
# Text of the last emissions that is kept to find a stop text in.
MAX_STOP_BYTES = 64


@dataclass(slots=True)
class _Generation:
    """One generation. `work` is its row of work while it runs or waits for its reader, `slot` its session's, else -1;
    `ids` and `log_probabilities` are all its emissions, at most the manifest's limit.

    What a generation emits follows from its condition, options and seed. So one that was stored earlier than its caller
    knows it goes on from there, and gives the caller what comes after `asked`.
    """

    request: GenerateRequest
    values: dict[str, str]
    begin_id: int  # what the first step takes in
    work: int = -1
    slot: int = -1
    credits: int = 0
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ending: bytes = b""
    finish: FinishReason = FinishReason.FINISH_REASON_UNSPECIFIED
    is_parked: bool = False
    is_primed: bool = True  # else its row of work is on the way there, and its session stands at the start
    is_fork: bool = False  # it has emitted nothing since it was copied: its options may still change
    was_stored: bool = False  # it was taken up from a store, where it may stand earlier than its caller
    waits_since: float | None = None  # its caller has had no emission of this call yet
    alternatives: Alternatives | None = None  # of its last step
    is_chosen: bool = False  # an emission was not drawn: it does not follow from condition, options and seed
    asked: int = 0  # emissions up to here the asker holds already: they are made again without a word


class Generations:
    """Takes generations in, primes them, and feeds every emission back until one ends it."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._by_work: dict[int, _Generation] = {}
        self._by_to: dict[int, _Generation] = {}
        self._kept: dict[int, _Generation] = {}

    @property
    def num_live(self) -> int:
        """Those that run or wait for their reader."""
        return len(self._by_work)

    # -- in ------------------------------------------------------------------------------------------------------

    def admit(self, requests: list[GenerateRequest], now: float) -> None:
        """Begins generations, or goes on with kept ones; those that begin together are primed in one run."""
        begun: list[_Generation] = []
        conditions: list[np.ndarray] = []
        for request in requests:
            try:
                self.core.check_open()
                self._check_model(request)
                kept = self._find(request)
                if kept is not None:
                    self._resume(kept, request, now)
                    continue
                self.core.check_time((request.deadline_s or math.inf) - now, request.caller)
                self.core.check_new(request.caller)
                condition, values, begin_id = self._read(request)
                self.core.check_room(1, condition.nbytes)
                slot = -1
                if request.session_id:
                    slot = self.core.open_slot(key_of(request.session_id), 0.0, 0.0)
            except CellarError as error:
                self._refuse(request, error)
                continue
            generation = _Generation(request, values, begin_id, slot=slot)
            if slot >= 0:
                self._kept[slot] = generation
                self.core.durability.change(np.array([slot]))
            self._attach(generation, request, now)
            self.core.counts.generations += 1
            begun.append(generation)
            conditions.append(condition)
        if begun:
            self._prime(begun, conditions)

    def _check_model(self, request: GenerateRequest) -> None:
        if not self.core.model.manifest.HasField("generation"):
            raise CellarError(Reason.UNSUPPORTED, "the model does not generate")
        if request.num_alternatives > MAX_ALTERNATIVES:
            raise CellarError(
                Reason.INVALID_REQUEST, f"at most {MAX_ALTERNATIVES} alternatives, not {request.num_alternatives}"
            )

    def has(self, slot: int) -> bool:
        """A session is a generation, not one of chunks."""
        return slot in self._kept

    def _find(self, request: GenerateRequest) -> _Generation | None:
        """The kept generation that a request goes on with; None where it begins one."""
        directory, core = self.core.directory, self.core
        if not request.session_id:
            if request.position or request.next_id is not None:
                raise CellarError(Reason.INVALID_REQUEST, "going on from a position needs a session_id")
            return None
        check_id(request.session_id)
        if not directory.has(request.session_id):
            if request.position or request.next_id is not None:
                directory.engine_of(request.session_id)  # raises with the reason
            return None
        slot = directory.slot_of(request.session_id, core.number)
        core.durability.check_slot(slot)
        if slot not in self._kept:
            raise CellarError(Reason.UNSUPPORTED, "the session is one of chunks, not a generation")
        kept = self._kept[slot]
        is_free = kept.is_fork and request.position in (len(kept.ids), _num_steps(kept) - 1)
        if (request.text, request.condition) != (kept.request.text, kept.request.condition) or not (
            is_free or _same_options(request.options, kept.request.options)
        ):
            raise CellarError(
                Reason.POSITION_CONFLICT,
                "the session was begun with another condition or other options",
                expected_position=len(kept.ids),
            )
        if request.next_id is not None:
            self._check_choice(kept, request.position, request.next_id)
        can_lag = kept.was_stored and not kept.is_chosen and not _is_over(kept, request.options)
        may_lag = can_lag and request.position <= request.options.max_steps
        if request.position > len(kept.ids) and not may_lag:
            raise CellarError(
                Reason.POSITION_GAP,
                f"position {request.position} is beyond the {len(kept.ids)} emissions made",
                expected_position=len(kept.ids),
            )
        return kept

    def _check_choice(self, kept: _Generation, position: int, id: int) -> None:
        """Whether emission number `position` can be this id; INVALID_REQUEST, POSITION_CONFLICT."""
        if kept.ids[position : position + 1] == [id]:
            return  # it was drawn, or chosen by this very request
        if not kept.is_fork or position != _num_steps(kept) - 1:
            raise CellarError(
                Reason.POSITION_CONFLICT,
                "another emission can be chosen for the last step of a fork that has emitted nothing itself",
                expected_position=len(kept.ids),
            )
        known = kept.alternatives.ids if kept.alternatives is not None else ()
        if id not in known or id == self.core.model.manifest.generation.end_id:
            raise CellarError(
                Reason.INVALID_REQUEST, f"{id} is none of the alternatives that the step was answered with"
            )

    def _choose(self, kept: _Generation, position: int, id: int, options: Options) -> None:
        """Makes emission number `position`, the last one, a checked id. The row after its step is the same."""
        if kept.ids[position : position + 1] == [id]:
            return
        assert kept.alternatives is not None
        at = list(kept.alternatives.ids).index(id)
        kept.ids[position:] = [id]
        kept.log_probabilities[position:] = [kept.alternatives.log_probabilities[at]]
        kept.ending = self._text(kept, 0)[-MAX_STOP_BYTES:]
        kept.finish, kept.is_chosen = _finish_of(kept, options), True
        table = self.core.table
        table.position[kept.slot] = table.accepted[kept.slot] = len(kept.ids)
        self.core.durability.change(np.array([kept.slot]))

    def _read(self, request: GenerateRequest) -> tuple[np.ndarray, dict[str, str], int]:
        """The condition's numbers, the values that its placeholders stand for, and the first step's input."""
        manifest = self.core.model.manifest
        begin_id = manifest.generation.begin_id
        if not manifest.prime.is_recurrent:
            return (*self._read_vector(request), begin_id)
        sequence = self._read_sequence(request)
        if manifest.prime.is_prompt:
            return sequence[:-1], {}, int(sequence[-1])
        return sequence, {}, begin_id

    def _read_sequence(self, request: GenerateRequest) -> np.ndarray:
        """Steps of a condition that is a sequence: [time, ...], at least one."""
        model, prime = self.core.model, self.core.model.manifest.prime
        spec, most = prime.condition, min(prime.max_steps or self.core.config.max_chunk, self.core.config.max_chunk)
        if model.source is not None:
            if request.condition:
                raise CellarError(Reason.INVALID_CONDITION, "the model takes its condition as text")
            if len(request.text) > self.core.config.max_chunk:
                raise CellarError(
                    Reason.TOO_LARGE,
                    f"the condition has {len(request.text)} bytes; at most {self.core.config.max_chunk} are taken",
                )
            _check_text(request.text)
            values = model.source.take(b"", request.text, True)[0]
        else:
            dtype = np.dtype(NAMES[spec.dtype])
            size = math.prod(spec.shape) * dtype.itemsize
            if request.text or len(request.condition) % size:
                raise CellarError(
                    Reason.SHAPE_MISMATCH,
                    f"the condition is {len(request.condition)} bytes; a step of {dtype} {list(spec.shape)} is {size}",
                )
            values = np.frombuffer(request.condition, dtype).reshape(-1, *spec.shape)
            _check_values(values, spec.vocabulary)
        if prime.is_prompt:
            values = np.append(np.int64(model.manifest.generation.begin_id), values)
        elif not len(values):
            raise CellarError(Reason.EMPTY_INPUT, "the condition is empty")
        if prime.HasField("end_id"):
            values = np.append(values, prime.end_id)
        if len(values) > most:
            raise CellarError(Reason.TOO_LARGE, f"the condition has {len(values)} steps; at most {most} are taken")
        return values

    def _read_vector(self, request: GenerateRequest) -> tuple[np.ndarray, dict[str, str]]:
        model = self.core.model
        manifest = model.manifest
        if not manifest.HasField("prime"):
            if request.text or request.condition:
                raise CellarError(Reason.INVALID_CONDITION, "the model takes no condition")
            return np.zeros(0, np.float32), {}
        if model.condition is not None:
            if request.condition:
                raise CellarError(Reason.INVALID_CONDITION, "the model takes its condition as text")
            if not request.text:
                raise CellarError(Reason.EMPTY_INPUT, "the condition is empty")
            _check_text(request.text)
            return model.condition.read(request.text)
        spec = manifest.prime.condition
        dtype = np.dtype(NAMES[spec.dtype])
        expected = math.prod(spec.shape) * dtype.itemsize
        if request.text or len(request.condition) != expected:
            raise CellarError(
                Reason.SHAPE_MISMATCH,
                f"the condition is {len(request.condition)} bytes; {dtype} {list(spec.shape)} is {expected}",
            )
        values = np.frombuffer(request.condition, dtype).reshape(tuple(spec.shape))
        _check_values(values, spec.vocabulary)
        return values, {}

    def _attach(self, generation: _Generation, request: GenerateRequest, now: float) -> None:
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

    def _prime(self, begun: list[_Generation], conditions: list[np.ndarray]) -> None:
        core = self.core
        if core.model.manifest.prime.is_recurrent:
            for generation, condition in zip(begun, conditions, strict=True):
                self._queue(generation, condition)
            return
        rows = np.array([generation.work for generation in begun])
        state = np.tile(core.model.runtime.start, (len(rows), 1))
        if core.model.manifest.HasField("prime"):
            state = core.model.runtime.prime(np.stack(conditions), state)
            core.counts.prime_runs += 1
        core.work.state[rows] = state
        core.scheduler.add(rows)

    def _queue(self, generation: _Generation, condition: np.ndarray) -> None:
        """Makes a generation's row of work ready for its priming, cut as a chunk is. condition: [time, ...]."""
        core, work, w = self.core, self.core.work, generation.work
        work.state[w] = core.model.runtime.start
        generation.is_primed = not len(condition)
        if len(condition):
            work.kind[w] = Kind.PRIMING
            work.lot[w] = work.add_lot(condition, 1)
            work.offset[w], work.steps[w] = 0, len(condition)
        core.scheduler.add(np.array([w]))

    def take_in(self, rows: np.ndarray, q: int, state: np.ndarray) -> None:
        """q steps of the conditions of rows [n] were primed with; state: float32 [n, S]."""
        work = self.core.work
        work.state[rows] = state
        work.done[rows] += q
        for w in rows[work.done[rows] == work.steps[rows]].tolist():
            work.drop(int(work.lot[w]), 1)
            work.kind[w], work.lot[w], work.steps[w], work.done[w] = Kind.GENERATION, -1, 1, 0
            self._by_work[w].is_primed = True
        self.core.scheduler.add(rows)

    def _resume(self, kept: _Generation, request: GenerateRequest, now: float) -> None:
        """Sends what was made from the asked position on, then lets the generation go on."""
        core = self.core
        if kept.work >= 0:  # an earlier asker, which may not know yet that it is gone
            core.scheduler.remove(np.array([kept.work]))
            self._detach(kept, now)
            self._end_call(kept, CellarError(Reason.CANCELLED, "another call goes on with this session"))
        if not _is_over(kept, request.options) or request.next_id is not None:
            core.check_room(1, 0)
        if request.next_id is not None:
            self._choose(kept, request.position, request.next_id, request.options)
        if not _is_over(kept, request.options):
            kept.finish = FinishReason.FINISH_REASON_UNSPECIFIED
        if not (kept.is_fork or request.options.is_seeded):
            request.options = replace(request.options, seed=kept.request.options.seed)
        kept.asked, kept.is_fork = request.position, False
        replayed = max(0, len(kept.ids) - request.position)
        kept.request = request
        core.table.last_use[kept.slot] = now
        if replayed or kept.finish:
            core.counts.chunks_replayed += 1
            core.replies.append(self._reply(kept, request.position, finish=kept.finish))
        if not kept.finish:
            self._attach(kept, request, now)
            if replayed:
                kept.waits_since = None
            kept.credits = request.credits - replayed
            if not kept.is_primed:
                self._queue(kept, self._read(request)[0])
                return
            w = np.array([kept.work])
            core.work.state[w] = core.table.state[kept.slot]
            if kept.credits > 0:
                core.scheduler.add(w)
            else:
                kept.is_parked = True

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
                self._detach(generation, now)
            elif generation.credits > 0:
                going.append(generation.work)
            else:
                generation.is_parked = True
        if going:
            core.scheduler.add(np.array(going))

    def _emit(self, generation: _Generation, token: int, log_probability: float, now: float) -> None:
        manifest = self.core.model.manifest.generation
        options = generation.request.options
        position = len(generation.ids)
        if token == manifest.end_id:
            generation.finish = FinishReason.FINISH_END
        else:
            generation.ids.append(token)
            generation.log_probabilities.append(log_probability)
            generation.credits -= position >= generation.asked
            if options.stop:
                piece = self._text(generation, position)
                generation.ending = (generation.ending + piece)[-MAX_STOP_BYTES - len(piece) :]
            generation.finish = _finish_of(generation, options)
        if position >= generation.asked or generation.finish:
            if generation.waits_since is not None:
                self.core.counts.first_emission.add(now - generation.waits_since)
                generation.waits_since = None
            self.core.replies.append(self._reply(generation, position, finish=generation.finish))
        if generation.slot >= 0 and self.core.durability.is_behind:
            self.core.durability.change(np.array([generation.slot]))

    def _text(self, generation: _Generation, position: int) -> bytes:
        vocabulary = self.core.model.vocabulary
        ids = generation.ids[position:]
        if vocabulary is None or not ids:
            return b""
        return vocabulary.text(ids, generation.values, position == 0)

    def _reply(
        self,
        generation: _Generation,
        position: int,
        finish: FinishReason = FinishReason.FINISH_REASON_UNSPECIFIED,
        error: CellarError | None = None,
    ) -> GenerateReply:
        return GenerateReply(
            generation.request.to,
            generation.ids[position:],
            generation.log_probabilities[position:],
            self._text(generation, position),
            position,
            generation.request.options.seed,
            finish,
            error,
            None if error is not None else generation.alternatives,
        )

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
        self._detach(generation, now)
        return True

    def fail(self, rows: np.ndarray, error: CellarError, now: float) -> None:
        """Generations whose call ends with an error: rows [n], not ready any more; kept ones rest as they were."""
        for w in rows.tolist():
            generation = self._by_work[w]
            self._end_call(generation, error)
            self._detach(generation, now)

    def _end_call(self, generation: _Generation, error: CellarError) -> None:
        self.core.counts.refuse(error.reason)
        self.core.replies.append(self._reply(generation, len(generation.ids), error=error))

    def abandon(self, request: GenerateRequest, error: CellarError, now: float) -> None:
        """Ends what became of a request when taking it in failed half-way."""
        generation = self._by_to.get(id(request.to))
        if generation is None:
            self._refuse(request, error)
            return
        self.core.scheduler.remove(np.array([generation.work]))
        self.fail(np.array([generation.work]), error, now)

    def parked(self) -> np.ndarray:
        """Rows of work that wait for their readers: int64 [n]."""
        return np.array([w for w, generation in self._by_work.items() if generation.is_parked], np.int64)

    def close(self, slot: int, error: CellarError, now: float) -> None:
        """Ends a kept generation with its session."""
        self.rest(slot, error, now)
        self._kept.pop(slot, None)

    def rest(self, slot: int, error: CellarError, now: float) -> None:
        """Ends the call that a kept generation answers; the generation stays as it is."""
        generation = self._kept.get(slot)
        if generation is not None and generation.work >= 0:
            self.core.scheduler.remove(np.array([generation.work]))
            self._end_call(generation, error)
            self._detach(generation, now)

    def _detach(self, generation: _Generation, now: float) -> None:
        """Takes a generation's row of work away; a kept one's state goes to its session."""
        core = self.core
        w = generation.work
        if generation.slot >= 0:
            core.table.state[generation.slot] = self._row(generation)
            core.table.position[generation.slot] = core.table.accepted[generation.slot] = len(generation.ids)
            core.table.in_flight[generation.slot] = 0
            core.table.last_use[generation.slot] = now
            core.durability.change(np.array([generation.slot]))
        self._by_to.pop(id(generation.request.to), None)
        del self._by_work[w]
        core.timings.pop((Kind.GENERATION, w), None)
        generation.work = -1
        core.work.give_back(np.array([w]))

    def _row(self, generation: _Generation) -> np.ndarray:
        """The state row of a generation that has a row of work: it is primed as a whole or not at all."""
        return self.core.work.state[generation.work] if generation.is_primed else self.core.model.runtime.start

    # -- as one piece --------------------------------------------------------------------------------------------

    def write(self, slot: int) -> GenerationState | None:
        """A session's generation as it stands; None for a session of chunks. Brings the session's row and position to
        where it stands."""
        generation = self._kept.get(slot)
        if generation is None:
            return None
        table, request = self.core.table, generation.request
        if generation.work >= 0:
            table.state[slot] = self._row(generation)
            table.position[slot] = table.accepted[slot] = len(generation.ids)
        return GenerationState(
            text=request.text,
            condition=request.condition,
            sampling=request.options.to_proto(),
            ids=generation.ids,
            log_probabilities=generation.log_probabilities,
            finish=generation.finish,
            is_fork=generation.is_fork,
            alternatives=generation.alternatives,
            is_chosen=generation.is_chosen,
        )

    def check(self, state: SessionState) -> None:
        """CellarError STATE_INCOMPATIBLE where a generation could not have been written by this model."""
        ids, manifest = state.generation.ids, self.core.model.manifest
        try:
            self._read(_request(state.generation, manifest))
        except CellarError as error:
            raise CellarError(Reason.STATE_INCOMPATIBLE, f"the state's generation: {error.message}") from None
        if len(ids) != state.position or len(ids) != len(state.generation.log_probabilities):
            raise CellarError(Reason.STATE_INCOMPATIBLE, "the state's emissions are not as many as its position")
        vocabulary = self.core.output_shape[-1]
        others = state.generation.alternatives
        if len(others.ids) != len(others.log_probabilities) or len(others.ids) > MAX_ALTERNATIVES:
            raise CellarError(Reason.STATE_INCOMPATIBLE, "the state's alternatives are not as many as they must be")
        if not all(0 <= id < vocabulary for id in others.ids):
            raise CellarError(Reason.STATE_INCOMPATIBLE, "the state's alternatives are not the model's")
        if len(ids) > manifest.generation.max_steps or not all(0 <= id < vocabulary for id in ids):
            raise CellarError(Reason.STATE_INCOMPATIBLE, "the state's emissions are not the model's")

    def read(self, slot: int, state: GenerationState) -> None:
        """Puts a checked generation into a slot whose row and position are its own."""
        request = _request(state, self.core.model.manifest)
        _, values, begin_id = self._read(request)
        made = _Generation(
            request,
            values,
            begin_id,
            slot=slot,
            ids=list(state.ids),
            log_probabilities=list(state.log_probabilities),
            finish=state.finish,
            is_fork=state.is_fork,
            was_stored=True,
            alternatives=state.alternatives if state.HasField("alternatives") else None,
            is_chosen=state.is_chosen,
            # without an emission nobody can tell, and to prime it again gives the same
            is_primed=bool(state.ids) or not self.core.model.manifest.prime.is_recurrent,
        )
        made.ending = self._text(made, 0)[-MAX_STOP_BYTES:]
        self._kept[slot] = made

    def copy(self, source: int, target: int) -> None:
        """The target's slot gets a copy of the source's generation, where it has one."""
        state = self.write(source)
        if state is None:
            return
        table = self.core.table
        table.state[target] = table.state[source]
        table.position[target] = table.accepted[target] = table.position[source]
        self.read(target, state)
        self._kept[target].is_fork, self._kept[target].was_stored = True, False

    def _refuse(self, request: GenerateRequest, error: CellarError) -> None:
        self.core.counts.refuse(error.reason)
        self.core.replies.append(
            GenerateReply(request.to, [], [], b"", request.position, request.options.seed, error=error)
        )


def _request(state: GenerationState, manifest: Manifest) -> GenerateRequest:
    """What began a generation; INVALID_SAMPLING."""
    options = Options.from_proto(state.sampling, manifest.generation, lambda: 0)
    return GenerateRequest(None, state.text, state.condition, options)


def _num_steps(generation: _Generation) -> int:
    """Steps that a generation took: one for each emission, and one for its end."""
    return len(generation.ids) + (generation.finish == FinishReason.FINISH_END)


def _finish_of(generation: _Generation, options: Options) -> FinishReason:
    """Whether an emission that is not the end is the last one."""
    if any(generation.ending.endswith(stop) for stop in options.stop):
        return FinishReason.FINISH_STOP
    if len(generation.ids) >= options.max_steps:
        return FinishReason.FINISH_MAX_STEPS
    return FinishReason.FINISH_REASON_UNSPECIFIED


def _is_over(generation: _Generation, options: Options) -> bool:
    """A generation is over for one who asks with these options: where a greater number of steps is all that it lacked,
    it goes on."""
    if generation.finish == FinishReason.FINISH_MAX_STEPS:
        return options.max_steps <= len(generation.ids)
    return bool(generation.finish)


def _check_text(text: bytes) -> None:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CellarError(Reason.INVALID_TEXT, f"the condition is not UTF-8 at byte {error.start}") from None


def _check_values(values: np.ndarray, vocabulary: int) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise CellarError(Reason.NON_FINITE_INPUT, "the condition holds NaN or an infinity")
    if vocabulary and not ((values >= 0) & (values < vocabulary)).all():
        raise CellarError(Reason.OUT_OF_VOCABULARY, f"the condition has an id outside 0..{vocabulary - 1}")


def _same_options(later: Options, first: Options) -> bool:
    """Whether two requests draw the same emissions; the seed counts where the later one names it."""
    same = (later.temperature, later.top_k, later.top_p, later.stop) == (
        first.temperature,
        first.top_k,
        first.top_p,
        first.stop,
    )
    return same and (not later.is_seeded or later.seed == first.seed)
