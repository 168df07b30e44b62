"""Generations of one model: how they begin, and those that a session keeps between its calls."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sampling_pb2 import FinishReason
from cellar_proto.v1.state_pb2 import GenerationState, SessionState

from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.conditions import Conditions
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import check_id, key_of
from cellar_server.sessions.generation import Generation
from cellar_server.sessions.generation_rows import GenerationRows
from cellar_server.sessions.messages import GenerateReply, GenerateRequest

# Of one step, that a caller may ask for.
MAX_ALTERNATIVES = 64


class Generations:
    """Takes generations in and goes on with kept ones; `rows` are those under way."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.rows = GenerationRows(core)
        self._conditions = Conditions(core.model, core.config.max_chunk)
        self._kept: dict[int, Generation] = {}

    # -- in ------------------------------------------------------------------------------------------------------

    def admit(self, requests: list[GenerateRequest], now: float) -> None:
        """Begins generations, or goes on with kept ones; those that begin together are primed in one run."""
        begun: list[Generation] = []
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
                condition, values, begin_id = self._conditions.read(request)
                self.core.check_room(1, condition.nbytes)
                slot = -1
                if request.session_id:
                    slot = self.core.open_slot(key_of(request.session_id), 0.0, 0.0)
            except CellarError as error:
                self._refuse(request, error)
                continue
            generation = Generation(request, self.core.model.vocabulary, values, begin_id, slot=slot)
            if slot >= 0:
                self._kept[slot] = generation
                self.core.durability.change(np.array([slot]))
            self.rows.attach(generation, request, now)
            self.core.counts.generations += 1
            begun.append(generation)
            conditions.append(condition)
        if begun:
            self.rows.prime(begun, conditions)

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

    def _find(self, request: GenerateRequest) -> Generation | None:
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
        kept.check_asked(request, core.model.manifest.generation.end_id)
        return kept

    def _resume(self, kept: Generation, request: GenerateRequest, now: float) -> None:
        """Sends what was made from the asked position on, then lets the generation go on."""
        core = self.core
        if kept.work >= 0:  # an earlier asker, which may not know yet that it is gone
            core.scheduler.remove(np.array([kept.work]))
            self.rows.detach(kept, now)
            self.rows.end_call(kept, CellarError(Reason.CANCELLED, "another call goes on with this session"))
        if not kept.is_over(request.options) or request.next_id is not None:
            core.check_room(1, 0)
        if request.next_id is not None and kept.choose(request.position, request.next_id, request.options):
            core.table.position[kept.slot] = core.table.accepted[kept.slot] = len(kept.ids)
            core.durability.change(np.array([kept.slot]))
        if not kept.is_over(request.options):
            kept.finish = FinishReason.FINISH_REASON_UNSPECIFIED
        if not (kept.is_fork or request.options.is_seeded):
            request.options = replace(request.options, seed=kept.request.options.seed)
        kept.asked, kept.is_fork = request.position, False
        replayed = max(0, len(kept.ids) - request.position)
        kept.request = request
        core.table.last_use[kept.slot] = now
        if replayed or kept.finish:
            core.counts.chunks_replayed += 1
            core.replies.append(kept.reply(request.position, finish=kept.finish))
        if not kept.finish:
            self.rows.attach(kept, request, now)
            if replayed:
                kept.waits_since = None
            kept.credits = request.credits - replayed
            if not kept.is_primed:
                self.rows.queue(kept, self._conditions.read(request)[0])
                return
            w = np.array([kept.work])
            core.work.state[w] = core.table.state[kept.slot]
            if kept.credits > 0:
                core.scheduler.add(w)
            else:
                kept.is_parked = True

    # -- out -----------------------------------------------------------------------------------------------------

    def abandon(self, request: GenerateRequest, error: CellarError, now: float) -> None:
        """Ends what became of a request when taking it in failed half-way."""
        generation = self.rows.of(request.to)
        if generation is None:
            self._refuse(request, error)
            return
        self.core.scheduler.remove(np.array([generation.work]))
        self.rows.fail(np.array([generation.work]), error, now)

    def close(self, slot: int, error: CellarError, now: float) -> None:
        """Ends a kept generation with its session."""
        self.rest(slot, error, now)
        self._kept.pop(slot, None)

    def rest(self, slot: int, error: CellarError, now: float) -> None:
        """Ends the call that a kept generation answers; the generation stays as it is."""
        generation = self._kept.get(slot)
        if generation is not None and generation.work >= 0:
            self.core.scheduler.remove(np.array([generation.work]))
            self.rows.end_call(generation, error)
            self.rows.detach(generation, now)

    # -- as one piece --------------------------------------------------------------------------------------------

    def write(self, slot: int) -> GenerationState | None:
        """A session's generation as it stands; None for a session of chunks. Brings the session's row and position to
        where it stands."""
        generation = self._kept.get(slot)
        if generation is None:
            return None
        table = self.core.table
        if generation.work >= 0:
            table.state[slot] = self.rows.state_of(generation)
            table.position[slot] = table.accepted[slot] = len(generation.ids)
        return generation.to_state()

    def check(self, state: SessionState) -> None:
        """CellarError STATE_INCOMPATIBLE where a generation could not have been written by this model."""
        ids, manifest = state.generation.ids, self.core.model.manifest
        try:
            self._conditions.read(_request(state.generation, manifest))
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
        _, values, begin_id = self._conditions.read(request)
        made = Generation(request, self.core.model.vocabulary, values, begin_id, slot=slot)
        made.take_up(state)
        # without an emission nobody can tell, and to prime it again gives the same
        made.is_primed = bool(state.ids) or not self.core.model.manifest.prime.is_recurrent
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
