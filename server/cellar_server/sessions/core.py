"""What the parts of one model's sessions share."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.log import about
from cellar_server.scheduler.scheduler import Scheduler
from cellar_server.scheduler.work import Work
from cellar_server.sessions.answers import Answers
from cellar_server.sessions.directory import Directory, owner, shown
from cellar_server.sessions.histogram import Histogram
from cellar_server.sessions.messages import Reply
from cellar_server.sessions.table import Table
from cellar_server.sessions.timing import Timing
from cellar_server.zoo import Model

# What a refused caller is told to wait where nothing better is known.
RETRY_AFTER_MS = 50


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

    @property
    def queue_s(self) -> float:
        """Seconds that rows waited for their first run, added up."""
        return self.queue.total

    def end(self, reason: Reason) -> None:
        """A session ended."""
        self.sessions_ended[reason] = self.sessions_ended.get(reason, 0) + 1
        self.sessions_expired += reason == Reason.SESSION_EXPIRED

    def refuse(self, reason: Reason, count: int = 1) -> None:
        """So many rows, calls or sessions were refused or failed."""
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
    def max_chunk(self) -> int:
        """Steps (bytes, for text) in one chunk."""
        return min(self.config.max_chunk, self.model.manifest.max_chunk or self.config.max_chunk)

    @property
    def can_hold_sessions(self) -> bool:
        manifest = self.model.manifest
        return not manifest.is_whole_only and manifest.mode != Mode.ONE_TO_MANY

    def time(self, kind: int, owner: int, timing: Timing | None) -> None:
        """A request was admitted; its runs are timed where somebody traces it."""
        if timing is not None:
            timing.taken_s = self.clock()
            self.timings[kind, owner] = timing

    def no_outputs(self) -> np.ndarray:
        """float32 [0, ...]"""
        return np.zeros((0, *self.output_shape), np.float32)

    def check_open(self) -> None:
        """CellarError SHUTTING_DOWN once the engine drains."""
        if self.is_draining:
            raise CellarError(Reason.SHUTTING_DOWN, "the server is stopping", retry_after_ms=1000)

    def check_room(self, rows: int, num_bytes: int) -> None:
        """CellarError OVERLOADED where the queue has no place for so many rows of work and input bytes."""
        if rows > self.work.num_free or self.work.num_lot_bytes + num_bytes > self.config.max_queue_bytes:
            raise self.overloaded()

    def overloaded(self) -> CellarError:
        """OVERLOADED with the time that the queued work is expected to take."""
        waiting = self.work.num_used
        cost = self.scheduler.cost
        delay_ms = int(1000 * waiting * (cost.per_cell + cost.base / self.config.max_rows_per_run)) + RETRY_AFTER_MS
        return CellarError(
            Reason.OVERLOADED, f"{waiting} rows are waiting for this model", retry_after_ms=min(delay_ms, 10_000)
        )

    def open_slot(self, key: str | int, max_idle_s: float, max_age_s: float, *, keep: int = -1) -> int:
        """A new session's slot from the start state; the session in slot `keep` stays in the table.
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
        if not self.directory.claim(key, self.number, self.table.next_slot()):
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
