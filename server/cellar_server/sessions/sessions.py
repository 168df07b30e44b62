"""One model's sessions: the step of the engine that turns requests and runs into replies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, Priority
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import Tensor

from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.scheduler.policy import Cost
from cellar_server.scheduler.pressure import Pressure
from cellar_server.scheduler.scheduler import Scheduler
from cellar_server.scheduler.work import Work
from cellar_server.sessions.answers import Answers
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import Directory, check_id, key_of
from cellar_server.sessions.durability import Durability, Level
from cellar_server.sessions.ends import closed
from cellar_server.sessions.express import Express
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.generations import Generations
from cellar_server.sessions.intake import Intake
from cellar_server.sessions.lone_sequences import LoneSequences
from cellar_server.sessions.messages import (
    UNARY_STREAM,
    Call,
    CallReply,
    Cancel,
    Credit,
    FrameReply,
    FrameRequest,
    GenerateRequest,
    PredictRequest,
    PredictRows,
    Reply,
    Request,
    Rows,
    RowsCancel,
    StepRequest,
    StreamClosed,
)
from cellar_server.sessions.predicts import Predicts
from cellar_server.sessions.rows import RowsIn
from cellar_server.sessions.runs import Runs
from cellar_server.sessions.states import States
from cellar_server.sessions.table import Table
from cellar_server.sessions.verbs import Verbs
from cellar_server.store.base import Store
from cellar_server.zoo import Model

# Requests that look at no stored answer before those of rows that went the short way are stored.
_SETTLES_ITSELF = (Rows, PredictRows, PredictRequest)


class Sessions(Verbs):
    """Everything of one model that lives between requests. Only its engine's thread may call it."""

    def __init__(
        self,
        model: Model,
        config: Config,
        directory: Directory,
        number: int,
        *,
        clock: Callable[[], float],
        cost: Cost,
        first_ticket: int,
        store: Store | None = None,
    ) -> None:
        runtime = model.runtime
        work = Work(config.max_queue_rows, runtime.state_size)
        scheduler = Scheduler(
            work,
            runtime,
            cost,
            max_rows=config.max_rows_per_run,
            budget_s=config.run_budget_ms / 1000,
            is_exact=model.manifest.is_whole_only,
            is_priming=model.manifest.prime.is_recurrent,
        )
        core = Core(
            model,
            config,
            directory,
            number,
            clock,
            work,
            scheduler,
            Table(config.max_sessions, runtime.state_size, first_ticket, number),
            Answers(config.max_sessions, config.max_chunks_in_flight, runtime.output_shape, config.answer_bytes),
            Pressure(scheduler),
        )
        frames, generations = Frames(core), Generations(core)
        states = States(core, generations)
        durability = Durability(core, states, store, Level(config.durability), config.store_interval_s)
        core.durability = durability
        super().__init__(core, frames, generations, states, durability)
        frames.departing = self.custody.departing
        self.intake = Intake(core, frames)
        self.predicts = Predicts(core)
        self.runs = Runs(core, frames, self.predicts, generations)
        self.express = Express(core, frames, self.runs)
        self.lone = LoneSequences(core, self.predicts, self.runs)
        self.rows = RowsIn(core, frames, self.express, self._chunk_slot)
        # of the requests that `admit` is taking in: those before it are in, or answered
        self.num_admitted = 0

    # -- the engine's step ---------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        return self.core.scheduler.has_ready

    @property
    def is_deep(self) -> bool:
        """See Scheduler: what comes now is not in the next run."""
        return self.core.scheduler.is_deep

    @property
    def is_idle(self) -> bool:
        """Nothing waits or runs."""
        return self.core.work.num_used == 0 and not self.express.has_rest

    @property
    def has_rest(self) -> bool:
        """See Express: `admit` goes on with it."""
        return self.express.has_rest

    def read_large(self, request: FrameRequest) -> None:
        """Reads a frame of many rows before it is admitted; the one call that any thread may make."""
        self.intake.read_large(request)

    @property
    def has_replies(self) -> bool:
        """Something is to be delivered."""
        return bool(self.core.replies)

    def take_replies(self) -> list[Reply]:
        """What is to be delivered since the last call."""
        replies, self.core.replies = self.core.replies, []
        return replies

    def admit(self, requests: list[Request]) -> None:
        """Takes requests in, in order; those of one kind that stand together go in together. While a run is under way
        only frames may come, and rows where others are ready."""
        self.settle()
        if not all(type(request) in _SETTLES_ITSELF for request in requests):
            self.express.settle()
        now = self.core.clock()
        at = 0
        if not requests:
            self.rows.admit((), now)
        while at < len(requests):
            kind = type(requests[at])
            end = at + 1
            while end < len(requests) and type(requests[end]) is kind:
                end += 1
            batch = requests[at:end]
            # rows are in as one; of others a fault may leave some out, and who is told twice heeds the first
            self.num_admitted = end if kind in (Rows, PredictRows) else at
            at = end
            if kind is not Rows:
                self.rows.finish(now)
            if kind is FrameRequest:
                self.intake.admit(batch, now)  # type: ignore[arg-type]
            elif kind is Rows:
                self.rows.admit(batch, now)  # type: ignore[arg-type]
            elif kind is PredictRequest:
                self.predicts.admit(batch, now)  # type: ignore[arg-type]
            elif kind is PredictRows:
                if not self.lone.run(batch, now):  # type: ignore[arg-type]
                    self.predicts.admit_rows(batch, now)  # type: ignore[arg-type]
            elif kind is StepRequest:
                self._admit_steps(batch, now)  # type: ignore[arg-type]
            elif kind is GenerateRequest:
                self._admit_generations(batch, now)  # type: ignore[arg-type]
            else:
                for request in batch:
                    self._admit_one(request, now)
        self.num_admitted = 0

    def _admit_one(self, request: Request, now: float) -> None:
        match request:
            case Credit():
                self.generations.rows.credit(request.to, request.count)
            case Cancel():
                if not self.generations.rows.cancel(request.to, now):
                    self.predicts.cancel(request.to)
            case RowsCancel(call=calls):
                self.predicts.cancel_rows(calls)
            case StreamClosed():
                self.core.table.void_stream(request.stream, now)
                if request.is_cancelled:
                    self.frames.drop_stream(request.stream, now)
            case Call():
                self.core.replies.append(self._call(request))

    def _admit_steps(self, requests: list[StepRequest], now: float) -> None:
        """Chunks by session id: each becomes a frame of one row on a stream that is nobody's."""
        table = self.core.table
        frames: dict[int, FrameRequest] = {}  # by slot
        opened: list[tuple[StepRequest, int]] = []

        def admit() -> None:
            self.intake.admit(list(frames.values()), now)
            frames.clear()
            for request, slot in opened:
                if table.accepted[slot] == 0 and table.head[slot] < 0:
                    # nothing of it was taken in: a sequence that never began
                    self._end(slot, closed(request.id), now)
            opened.clear()

        for request in requests:
            try:
                if request.deadline_s:
                    self.core.check_time(request.deadline_s - now, request.caller, before=len(frames))
                slot, is_new = self._slot_for(request)
            except CellarError as error:
                self.core.counts.refuse(error.reason)
                self.core.replies.append(FrameReply(request.to, 0, error))
                continue
            if slot in frames:
                admit()  # the first chunk moves the position that the second one starts at
            if int(table.stream[slot]) != UNARY_STREAM:
                table.issue(slot, UNARY_STREAM)
            frame = Frame(
                handles=[table.handle(slot)],
                positions=[int(table.accepted[slot]) if request.position is None else request.position],
                lengths=[request.length],
                inputs=Tensor(dtype=request.dtype, shape=request.shape),  # type: ignore[arg-type]
                ends=[True] if request.ends else None,
                timeouts_ms=[max(1, int(1000 * (request.deadline_s - now)))] if request.deadline_s else None,
                priorities=[Priority.BULK] if request.is_bulk else None,
            )
            frames[slot] = FrameRequest(
                request.to, UNARY_STREAM, frame, 0, request.caller, timing=request.timing, data=request.data
            )
            if is_new:
                opened.append((request, slot))
        admit()

    def _slot_for(self, request: StepRequest) -> tuple[int, bool]:
        """The session of a chunk by id, and whether it was opened for it."""
        core = self.core
        if not request.opens:
            return self._chunk_slot(request.id), False
        if not core.can_hold_sessions:
            raise CellarError(Reason.UNSUPPORTED, "this model keeps no sessions")
        core.check_open()
        self.durability.check_held()
        check_id(request.id)
        if request.position == 0 and core.directory.has(request.id):
            return self._chunk_slot(request.id), False
        core.check_new(request.caller)
        slot = core.open_slot(key_of(request.id), 0.0, 0.0)
        self._begin(slot, b"")
        return slot, True

    def _call(self, request: Call) -> CallReply:
        try:
            return CallReply(request.to, request.function(self))
        except CellarError as error:
            self.core.counts.refuse(error.reason)
            return CallReply(request.to, error=error)
        except Exception:
            self.core.counts.refuse(Reason.INTERNAL)
            return CallReply(request.to, error=self.runs.fault("a call on the sessions failed", Reason.INTERNAL))

    def _admit_generations(self, requests: list[GenerateRequest], now: float) -> None:
        try:
            self.generations.admit(requests, now)
        except Exception:
            error = self.runs.fault("priming failed", Reason.RUN_FAILED)
            for request in requests:
                self.generations.abandon(request, error, now)

    def persist(self) -> None:
        """Stores what is due, before the replies that wait are taken."""
        if self.durability.is_on:
            self.express.settle()
        self.durability.persist()

    @property
    def is_unsettled(self) -> bool:
        """See Express."""
        return self.express.is_unsettled

    def settle_late(self) -> None:
        """What is left to do for answers that are on their way: before anything looks for stored answers."""
        self.express.settle()

    def settle(self) -> None:
        """What is left to do for finished runs, and can be done beside the next one: storing and sending answers."""
        self.frames.settle()

    def run(self) -> None:
        """One whole run. Something must be ready."""
        run = self.runs.begin()
        if run is not None and run.under_way is not None:
            while self.runs.advance(run):
                self.settle()
        elif run is not None:
            self.runs.finish(run, self.runs.compute(run))
        self.settle()

    def fail_all(self, error: CellarError) -> None:
        """Ends everything that waits: the engine stops."""
        self.settle()
        self.express.fail(error)
        self.lone.fail(error)
        scheduler = self.core.scheduler
        rows = np.concatenate([scheduler.ready, self.generations.rows.parked()])
        scheduler.remove(rows)
        self.runs.fail(rows, error, self.core.clock())
