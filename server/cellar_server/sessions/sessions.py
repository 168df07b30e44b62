"""One model's sessions: the verbs on them, and the step of the engine that turns requests and runs into replies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, Priority
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.state_pb2 import SessionState
from cellar_proto.v1.tensor_pb2 import Tensor

from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.scheduler.policy import Cost
from cellar_server.scheduler.scheduler import Scheduler
from cellar_server.scheduler.work import Work
from cellar_server.sessions.answers import Answers
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import Directory, check_id, id_of, key_of, mint
from cellar_server.sessions.durability import Durability, Level
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.generations import Generations
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
    Reply,
    Request,
    StepRequest,
    StreamClosed,
)
from cellar_server.sessions.predicts import Predicts
from cellar_server.sessions.runs import Runs
from cellar_server.sessions.states import States
from cellar_server.sessions.table import Table
from cellar_server.store.base import Store
from cellar_server.zoo import Model

log = logging.getLogger("cellar_server.sessions")


@dataclass(frozen=True, slots=True)
class Opened:
    """A session on a stream: its handle there (0 without a stream) and how much input it has consumed."""

    id: str
    handle: int
    position: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a caller sees of a session; times in seconds, max_age_s 0 for none."""

    id: str
    position: int
    age_s: float
    idle_s: float
    max_idle_s: float
    max_age_s: float
    durable_position: int


class Sessions:
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
        self.core = Core(
            model,
            config,
            directory,
            number,
            clock,
            work,
            Scheduler(
                work,
                runtime,
                cost,
                max_rows=config.max_rows_per_run,
                budget_s=config.run_budget_ms / 1000,
                is_exact=model.manifest.is_whole_only,
            ),
            Table(config.max_sessions, runtime.state_size, first_ticket, number),
            Answers(config.max_sessions, config.max_chunks_in_flight, runtime.output_shape, config.answer_bytes),
        )
        self.frames = Frames(self.core)
        self.predicts = Predicts(self.core)
        self.generations = Generations(self.core)
        self.runs = Runs(self.core, self.frames, self.predicts, self.generations)
        self._states = States(self.core)
        level = Level(config.durability)
        self.is_expiry_due = False  # sooner than was said by `expire`
        self.durability = Durability(self.core, self._states, store, level, config.store_interval_s)
        self.core.durability = self.durability

    # -- the engine's step ---------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        return self.core.scheduler.has_ready

    @property
    def is_idle(self) -> bool:
        """Nothing waits or runs."""
        return self.core.work.num_used == 0

    def read_large(self, request: FrameRequest) -> None:
        """Reads a frame of many rows before it is admitted; the one call that any thread may make."""
        self.frames.read_large(request)

    def take_replies(self) -> list[Reply]:
        """What is to be delivered since the last call."""
        replies, self.core.replies = self.core.replies, []
        return replies

    def admit(self, requests: list[Request]) -> None:
        """Takes requests in, in order; those of one kind that stand together go in together. While a run is under way
        only frames may come."""
        self.settle()
        now = self.core.clock()
        at = 0
        while at < len(requests):
            kind = type(requests[at])
            end = at + 1
            while end < len(requests) and type(requests[end]) is kind:
                end += 1
            batch = requests[at:end]
            at = end
            if kind is FrameRequest:
                self.frames.admit(batch, now)  # type: ignore[arg-type]
            elif kind is StepRequest:
                self._admit_steps(batch, now)  # type: ignore[arg-type]
            elif kind is GenerateRequest:
                self._admit_generations(batch, now)  # type: ignore[arg-type]
            else:
                for request in batch:
                    self._admit_one(request, now)

    def _admit_one(self, request: Request, now: float) -> None:
        match request:
            case PredictRequest():
                self.predicts.admit(request)
            case Credit():
                self.generations.credit(request.to, request.count)
            case Cancel():
                if not self.generations.cancel(request.to, now):
                    self.predicts.cancel(request.to)
            case StreamClosed():
                self.core.table.void_stream(request.stream, now)
                self.is_expiry_due |= bool(self.core.table.leaving)
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
            self.frames.admit(list(frames.values()), now)
            frames.clear()
            for request, slot in opened:
                if table.accepted[slot] == 0 and table.head[slot] < 0:
                    # nothing of it was taken in: a sequence that never began
                    self._end(slot, _closed(request.id), now)
            opened.clear()

        for request in requests:
            try:
                slot, is_new = self._slot_for(request)
            except CellarError as error:
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
                inputs=Tensor(dtype=request.dtype, shape=request.shape, data=request.data),
                ends=[True] if request.ends else None,
                timeouts_ms=[max(1, int(1000 * (request.deadline_s - now)))] if request.deadline_s else None,
                priorities=[Priority.BULK] if request.is_bulk else None,
            )
            frames[slot] = FrameRequest(request.to, UNARY_STREAM, frame, 0)
            if is_new:
                opened.append((request, slot))
        admit()

    def _slot_for(self, request: StepRequest) -> tuple[int, bool]:
        """The session of a chunk by id, and whether it was opened for it."""
        core = self.core
        if not request.opens:
            return core.directory.slot_of(request.id, core.number), False
        if not core.can_hold_sessions:
            raise CellarError(Reason.UNSUPPORTED, "this model keeps no sessions")
        core.check_open()
        check_id(request.id)
        if request.position == 0 and core.directory.has(request.id):
            return core.directory.slot_of(request.id, core.number), False
        slot = core.open_slot(key_of(request.id), 0.0, 0.0)
        self.durability.change(np.array([slot]))
        return slot, True

    def _call(self, request: Call) -> CallReply:
        try:
            return CallReply(request.to, request.function(self))
        except CellarError as error:
            return CallReply(request.to, error=error)
        except Exception:
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
        self.durability.persist()

    def settle(self) -> None:
        """What is left to do for finished runs, and can be done beside the next one: storing and sending answers."""
        self.frames.settle()

    def run(self) -> None:
        """One whole run. Something must be ready."""
        run = self.runs.begin()
        if run is not None:
            self.runs.finish(run, self.runs.compute(run))
        self.settle()

    def fail_all(self, error: CellarError) -> None:
        """Ends everything that waits: the engine stops."""
        self.settle()
        scheduler = self.core.scheduler
        rows = np.concatenate([scheduler.ready, self.generations.parked()])
        scheduler.remove(rows)
        self.runs.fail(rows, error, self.core.clock())

    def expire(self) -> float:
        """Closes the sessions over their limits; when to call again, on the engine's clock."""
        core, table = self.core, self.core.table
        now = core.clock()
        self.is_expiry_due = False
        for slot in table.expired(now).tolist():
            idle, max_idle = now - float(table.last_use[slot]), float(table.max_idle[slot])
            age, max_age = now - float(table.opened[slot]), float(table.max_age[slot])
            if idle >= max_idle:
                what = f"it was idle for {idle:.1f} s, its limit is {max_idle:g} s"
            elif max_age and age >= max_age:
                what = f"it was open for {age:.1f} s, its limit is {max_age:g} s"
            else:
                what = f"its stream ended, and nobody took it up within {table.graces[slot]:g} s"
            id = id_of(table.key[slot])
            error = CellarError(Reason.SESSION_EXPIRED, f"session {id!r} has expired: {what}")
            log.info("session %s of %s expired: %s", id, core.model.manifest.name, what)
            core.counts.sessions_expired += 1
            self._end(slot, error, now)
        return max(table.next_expiry(), now + 0.05)

    # -- verbs ---------------------------------------------------------------------------------------------------

    def open(
        self,
        ids: list[str],
        *,
        count: int = 0,
        resume: bool = False,
        stream: int = 0,
        max_idle_s: float = 0.0,
        max_age_s: float = 0.0,
        grace_s: float | None = None,
        token: bytes = b"",
    ) -> list[Opened | CellarError]:
        """Opens sessions, or with `resume` takes up open ones; with a stream each gets a handle there. One entry for
        each id in order, or for `count` minted ones: a session, or the reason there is none."""
        core = self.core
        core.check_open()
        if not core.can_hold_sessions:
            raise CellarError(Reason.UNSUPPORTED, "the model keeps no sessions: call Predict or Generate")
        if ids and count not in (0, len(ids)):
            raise CellarError(Reason.INVALID_REQUEST, f"{len(ids)} ids, but a count of {count}")
        if not ids and not count:
            raise CellarError(Reason.EMPTY_INPUT, "the request opens no session")
        if max(count, len(ids)) > core.config.max_sessions:
            raise CellarError(Reason.TOO_LARGE, f"at most {core.config.max_sessions} sessions at a time")
        opened: list[Opened | CellarError] = []
        for id in ids or [mint() for _ in range(count)]:
            try:
                check_id(id)
                slot = self._take_up(id) if resume else self._open(id, max_idle_s, max_age_s, token, grace_s)
            except CellarError as error:
                opened.append(error)
                continue
            handle = core.table.issue(slot, stream) if stream else 0
            opened.append(Opened(id, handle, int(core.table.position[slot])))
        return opened

    def _take_up(self, id: str) -> int:
        core = self.core
        slot = core.directory.slot_of(id, core.number)
        core.table.last_use[slot] = core.clock()
        return slot

    def _open(self, id: str, max_idle_s: float, max_age_s: float, token: bytes, grace_s: float | None) -> int:
        core = self.core
        if grace_s is not None and not 0 <= grace_s < 1e9:
            raise CellarError(Reason.INVALID_REQUEST, "a session's grace is seconds, 0 or more")
        if token and core.directory.has(id):
            slot = core.directory.slot_of(id, core.number)
            if core.table.tokens.get(slot) == token:
                return slot
        slot = core.open_slot(key_of(id), max_idle_s, max_age_s)
        if token:
            core.table.tokens[slot] = token
        if grace_s is not None:
            core.table.graces[slot] = grace_s
        self.durability.change(np.array([slot]))
        return slot

    def get(self, id: str) -> SessionInfo:
        """One session; CellarError SESSION_NOT_FOUND, SESSION_EXPIRED, SESSION_CLOSED."""
        return self._info(self.core.directory.slot_of(id, self.core.number))

    def _info(self, slot: int) -> SessionInfo:
        table, now = self.core.table, self.core.clock()
        return SessionInfo(
            id_of(table.key[slot]),
            int(table.position[slot]),
            now - float(table.opened[slot]),
            now - float(table.last_use[slot]),
            float(table.max_idle[slot]),
            float(table.max_age[slot]),
            int(table.durable[slot]),
        )

    def close(self, id: str, token: bytes = b"") -> SessionInfo:
        """Ends a session; with the token of the close that ended it, says the same again."""
        core = self.core
        receipt = core.directory.receipt_of(id)
        if token and receipt is not None and receipt[1] == token:
            return receipt[2]
        slot = core.directory.slot_of(id, core.number)
        info = self._info(slot)
        self._end(slot, _closed(id), core.clock(), (core.number, token, info))
        return info

    def close_handles(self, stream: int, handles: list[int]) -> list[tuple[int, CellarError | None]]:
        """Ends sessions by their handles on a stream: the final position of each, or why not."""
        core = self.core
        results: list[tuple[int, CellarError | None]] = []
        for handle in handles:
            slots, valid = core.table.resolve(np.array([handle], np.uint64), stream)
            if not valid[0]:
                results.append((0, core.table.why_void(handle)))
                continue
            slot = int(slots[0])
            info = self._info(slot)
            self._end(slot, _closed(info.id), core.clock(), (core.number, b"", info))
            results.append((info.position, None))
        return results

    def _end(self, slot: int, error: CellarError, now: float, receipt: object = None) -> None:
        """Closes a slot: what waits for it is answered with `error`, its id is free, its handle void."""
        core, table = self.core, self.core.table
        head = int(table.head[slot])
        if head >= 0:
            rows = np.array([head])
            core.scheduler.remove(rows)
            self.frames.fail(rows, error, now)
        self.generations.close(slot, error, now)
        self.durability.forget(slot)
        core.answers.reset(slot)
        core.directory.release(table.key[slot], error, receipt)
        table.close(slot, error)

    def export(self, id: str) -> SessionState:
        """A session as one piece; it stays as it is. UNSUPPORTED for a generation."""
        slot = self.core.directory.slot_of(id, self.core.number)
        if not self.core.can_hold_sessions:
            raise CellarError(Reason.UNSUPPORTED, "a generation cannot be exported")
        return self._states.write(slot)

    def import_state(self, state: SessionState, id: str = "", *, token: bytes = b"") -> SessionInfo:
        """A new session from an exported state. STATE_INCOMPATIBLE, SESSION_EXISTS, OVERLOADED."""
        core = self.core
        core.check_open()
        if not core.can_hold_sessions:
            raise CellarError(Reason.UNSUPPORTED, "this model keeps no sessions")
        self._states.check(state)
        id = id or mint()
        check_id(id)
        if token and core.directory.has(id):
            slot = core.directory.slot_of(id, core.number)
            if core.table.tokens.get(slot) == token:
                return self._info(slot)
        slot = core.open_slot(key_of(id), state.max_idle_s, state.max_age_s)
        if token:
            core.table.tokens[slot] = token
        self._states.read(state, slot)
        core.table.last_use[slot] = core.clock()  # it is used: now
        self.durability.change(np.array([slot]))
        return self._info(slot)

    def close_all(self, error: CellarError) -> int:
        """Ends every session with one reason: the model is unloaded. How many there were."""
        table, now = self.core.table, self.core.clock()
        slots = np.flatnonzero(table.is_open[: table.num_touched]).tolist()
        for slot in slots:
            self._end(slot, error, now)
        return len(slots)

    def fork(
        self, id: str, new_id: str = "", *, max_idle_s: float = 0.0, max_age_s: float = 0.0, token: bytes = b""
    ) -> SessionInfo:
        """Copies a session as it stands after its last committed chunk: row, tail, position and stored answers."""
        core, table = self.core, self.core.table
        core.check_open()
        source = core.directory.slot_of(id, core.number)
        if not core.can_hold_sessions:
            raise CellarError(Reason.UNSUPPORTED, "a generation cannot be forked")
        new_id = new_id or mint()
        check_id(new_id)
        if token and core.directory.has(new_id):
            slot = core.directory.slot_of(new_id, core.number)
            if table.tokens.get(slot) == token:
                return self._info(slot)
        slot = core.open_slot(
            key_of(new_id), max_idle_s or float(table.max_idle[source]), max_age_s or float(table.max_age[source])
        )
        table.state[slot] = table.state[source]
        table.position[slot] = table.accepted[slot] = table.position[source]
        if source in table.held:
            table.held[slot] = table.held[source]
        if token:
            table.tokens[slot] = token
        core.answers.copy(source, slot)
        self.durability.change(np.array([slot]))
        return self._info(slot)


def _closed(id: str) -> CellarError:
    return CellarError(Reason.SESSION_CLOSED, f"session {id!r} was closed")
