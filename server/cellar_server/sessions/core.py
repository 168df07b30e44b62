"""What the parts of one model's sessions share."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.log import about
from cellar_server.scheduler.pressure import Pressure
from cellar_server.scheduler.scheduler import Scheduler
from cellar_server.scheduler.work import Work
from cellar_server.sessions.answers import Answers
from cellar_server.sessions.directory import Directory, owner, shown
from cellar_server.sessions.histogram import Histogram
from cellar_server.sessions.messages import Reply
from cellar_server.sessions.table import Table
from cellar_server.sessions.timing import Timing
from cellar_server.zoo import Model

# The least that a refused caller is told to wait, and the most.
RETRY_AFTER_MS, MAX_RETRY_MS = 20, 10_000
# Part of the queue that is left to chunks of live sessions: new sessions, sequences and bulk work are refused before.
LIVE_PART = 0.25

# Part of its time after which work may be expected to have run: the rest is for the way there and back.
WAIT_PART = 0.6
LATE = "its time was over before it was computed"


@dataclass(slots=True)
class Counts:
    """Exact counts since the model was loaded (see Counters in the contract)."""

    runs: int = 0
    prime_runs: int = 0
    steps: int = 0
    padded_steps: int = 0
    rows: int = 0
    chunks: int = 0
    chunks_replayed: int = 0
    chunks_failed: int = 0
    chunks_joined: int = 0  # of the replayed ones, those asked for again while they waited or ran
    sessions_opened: int = 0
    sessions_expired: int = 0
    sessions_spilled: int = 0
    sessions_taken_up: int = 0
    sessions_handed_over: int = 0
    sessions_ended: dict[int, int] = field(default_factory=dict)  # by Reason
    stored_sessions: int = 0
    store_failures: int = 0
    # rows that began their first run; seconds that runs took, counted once for each row
    queue_rows: int = 0
    compute_s: float = 0.0
    runs_by_rows: dict[int, int] = field(default_factory=dict)
    seconds_by_rows: dict[int, float] = field(default_factory=dict)
    # seconds: that rows waited for their first run, that runs took, and from a generation's call to its first emission
    queue: Histogram = field(default_factory=Histogram)
    run: Histogram = field(default_factory=Histogram)
    first_emission: Histogram = field(default_factory=Histogram)
    generations: int = 0
    refusals: dict[int, int] = field(default_factory=dict)  # rows, calls and sessions by Reason
    copied_bytes: dict[str, int] = field(default_factory=dict)  # by place
    waits: int = 0
    vain_waits: int = 0
    rows_passed: int = 0
    _refusing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def queue_s(self) -> float:
        """Seconds that rows waited for their first run, added up."""
        return self.queue.total

    def end(self, reason: Reason) -> None:
        """A session ended."""
        self.sessions_ended[reason] = self.sessions_ended.get(reason, 0) + 1
        self.sessions_expired += reason == Reason.SESSION_EXPIRED

    def copy(self, place: str, num_bytes: int) -> None:
        """So many bytes of inputs, outputs or states were copied at a place (see Counters in the contract)."""
        self.copied_bytes[place] = self.copied_bytes.get(place, 0) + num_bytes

    def refuse(self, reason: Reason, count: int = 1) -> None:
        """So many rows, calls or sessions were refused or failed; any thread may say so."""
        with self._refusing:
            self.refusals[reason] = self.refusals.get(reason, 0) + count


@dataclass(slots=True)
class Core:
    """One model's table, work and stored answers; only its engine's thread touches them."""

    model: Model
    config: Config
    directory: Directory
    number: int
    clock: Callable[[], float]
    work: Work
    scheduler: Scheduler
    table: Table
    answers: Answers
    pressure: Pressure
    counts: Counts = field(default_factory=Counts)
    replies: list[Reply] = field(default_factory=list)
    is_draining: bool = False
    # of requests in work that somebody traces, by kind and by owner (of a generation: row of work)
    timings: dict[tuple[int, int], Timing] = field(default_factory=dict)
    durability: Any = None  # the Durability of these sessions
    # where the table is full: whether it is so no more; the session in the given slot stays
    make_room: Callable[[int], bool] = lambda keep: False

    def about(self, id: str = "", **fields: Any) -> dict[str, Any]:
        """Fields of a log line on this model, and on the session of this id."""
        manifest = self.model.manifest
        return about(model=manifest.name, version=manifest.version, session=shown(id), caller=owner(id), **fields)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.model.runtime.output_shape

    @property
    def copied_bytes(self) -> dict[str, int]:
        """Bytes copied between messages and runs, by place (see Counters in the contract); any thread may ask."""
        others = {"store": self.answers.copied_bytes, "twin": getattr(self.model.runtime, "twin_bytes", 0)}
        return {place: count for place, count in (self.counts.copied_bytes.copy() | others).items() if count}

    @property
    def max_chunk(self) -> int:
        """Steps (bytes, for text) in one chunk."""
        return min(self.config.max_chunk, self.model.manifest.max_chunk or self.config.max_chunk)

    @property
    def can_hold_sessions(self) -> bool:
        """Sessions of chunks; those of generations are another thing."""
        manifest = self.model.manifest
        return not manifest.is_whole_only and not self.only_generates

    @property
    def only_generates(self) -> bool:
        """Its outputs are wanted as the next inputs alone: it takes no chunks and no whole sequences."""
        return self.model.manifest.mode in (Mode.ONE_TO_MANY, Mode.MANY_TO_MANY_ENCODER_DECODER)

    def time(self, kind: int, owner: int, timing: Timing | None) -> None:
        """A request was admitted; its runs are timed where somebody traces it."""
        if timing is not None:
            timing.taken_s = self.clock()
            self.timings[kind, owner] = timing

    def no_outputs(self) -> np.ndarray:
        """float32 [0, ...]"""
        return np.zeros((0, *self.output_shape), np.float32)

    def pack(self, pieces: list[np.ndarray]) -> np.ndarray:
        """Outputs float32 [emissions, ...] behind one another."""
        if len(pieces) == 1:
            return pieces[0]
        if not pieces:
            return self.no_outputs()
        packed = np.concatenate(pieces)
        self.counts.copy("pack", packed.nbytes)
        return packed

    def check_open(self) -> None:
        """CellarError SHUTTING_DOWN once the engine drains."""
        if self.is_draining:
            raise CellarError(Reason.SHUTTING_DOWN, "the server is stopping", retry_after_ms=1000)

    def check_room(self, rows: int, num_bytes: int) -> None:
        """CellarError OVERLOADED where the queue has no place for so many rows of work and input bytes."""
        if rows > self.work.num_free or self.work.num_lot_bytes + num_bytes > self.config.max_queue_bytes:
            raise self.overloaded()

    def check_new(self, caller: int = 0, rows: int = 1) -> None:
        """CellarError OVERLOADED where what is live waits long enough already: for new sessions, sequences and
        generations, and for bulk work. caller: who asks, by its number."""
        work, most_s = self.work, self.config.max_wait_s
        most_rows = int((1 - LIVE_PART) * work.capacity)
        if work.num_used + rows > most_rows and work.num_used:
            over = work.num_used + rows - most_rows
            raise self.overloaded(min(over, work.num_used) * self.pressure.s_per_row)
        if self.pressure.is_low():
            return
        backlog_s = self.pressure.backlog_s(caller)
        if backlog_s > most_s:
            raise self.overloaded(backlog_s - most_s)

    @property
    def load(self) -> float:
        """What waits, as part of what makes `check_new` refuse a caller with nothing here yet; any thread may ask."""
        by_rows = self.work.num_used / max(1.0, (1 - LIVE_PART) * self.work.capacity)
        return max(by_rows, self.pressure.backlog_s(-1) / self.config.max_wait_s)

    def check_time(self, left_s: float, caller: int, steps: int = 1, before: int = 0) -> None:
        """CellarError DEADLINE_EXCEEDED for work whose time is over, OVERLOADED where it would probably be over before
        its answer. left_s: seconds that are left, inf for no deadline; steps: of its row, as far as is known; before:
        rows like it that are about to be queued ahead of it."""
        if left_s <= 0:
            raise CellarError(Reason.DEADLINE_EXCEEDED, LATE)
        if left_s < float("inf"):
            now = self.clock()
            self.check_wait(left_s, self.pressure.wait_s(caller, now + left_s, now, steps, before))

    def check_wait(self, left_s: float, wait_s: float) -> None:
        """The same for work that is expected to be over in so many seconds."""
        if left_s <= 0:
            raise CellarError(Reason.DEADLINE_EXCEEDED, LATE)
        if wait_s > WAIT_PART * left_s:
            # at the latest when half of what waits has run, so that the queue is never empty meanwhile
            raise self.overloaded(min(wait_s - WAIT_PART * left_s, wait_s / 2))

    def overloaded(self, wait_s: float | None = None) -> CellarError:
        """OVERLOADED, to be tried again after so many seconds (None: when what waits now has run)."""
        waiting = self.work.num_used
        delay_ms = 1000 * (waiting * self.pressure.s_per_row if wait_s is None else wait_s)
        return CellarError(
            Reason.OVERLOADED,
            f"{waiting} rows are waiting for this model",
            retry_after_ms=min(RETRY_AFTER_MS + int(delay_ms), MAX_RETRY_MS),
        )

    def open_slot(
        self, key: str | int, max_idle_s: float, max_age_s: float, *, keep: int = -1, is_new: bool = True
    ) -> int:
        """A new session's slot from the start state; the session in slot `keep` stays in the table; is_new: else it
        was open before, here or elsewhere.
        CellarError SESSION_EXISTS, OVERLOADED, INVALID_REQUEST."""
        for limit in (max_idle_s, max_age_s):
            if not 0 <= limit < 1e9:
                raise CellarError(Reason.INVALID_REQUEST, "a session's limits are seconds, 0 or more")
        if not self.table.has_room and not self.make_room(keep):
            raise CellarError(
                Reason.OVERLOADED,
                f"the model has its limit of {self.table.capacity} sessions",
                retry_after_ms=1000,
            )
        if not self.directory.claim(key, self.number, self.table.next_slot(), is_new=is_new):
            raise CellarError(Reason.SESSION_EXISTS, "a session of this id is open")
        slot = self.table.open(
            key,
            self.model.runtime.start,
            self.clock(),
            max_idle_s or self.config.max_idle_s,
            max_age_s or self.config.max_age_s,
        )
        self.answers.reset(slot)
        self.counts.sessions_opened += 1
        return slot


def new_error_id() -> str:
    """Under which a fault stands in the log."""
    return secrets.token_hex(6)
