"""The engine's thread: takes requests, runs, delivers replies. Woken, never polling."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import Config
from cellar_server.engine.figures import Figures
from cellar_server.engine.inbox import Inbox, Lane
from cellar_server.engine.requests import num_bytes, replies_of_refused
from cellar_server.engine.runner import Runner
from cellar_server.errors import CellarError
from cellar_server.scheduler.policy import Cost
from cellar_server.sessions.columns import LARGE
from cellar_server.sessions.core import new_error_id
from cellar_server.sessions.directory import Directory
from cellar_server.sessions.messages import (
    FrameRequest,
    Reply,
    Request,
    RowsBack,
    RowsRefused,
)
from cellar_server.sessions.run import OVERLAP_S, Outcome, Run
from cellar_server.sessions.sessions import Sessions
from cellar_server.store.base import Store
from cellar_server.zoo import Model

log = logging.getLogger("cellar_server.engine")

# Requests taken in before the next run at most, so that a flood of them cannot hold up the runs.
MAX_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Ran:
    """A run on the runner is over."""

    outcome: Outcome


class Engine(Figures):
    """One served model version. `post` from any thread; replies come through `deliver`, on the engine's thread, all
    of one cycle at once."""

    def __init__(
        self,
        model: Model,
        config: Config,
        directory: Directory,
        *,
        clock: Callable[[], float] = time.monotonic,
        cost: Cost | None = None,
        store: Store | None = None,
    ) -> None:
        self.manifest = model.manifest
        self.name: str = model.manifest.name
        self.version: int = model.manifest.version
        self.number = directory.add_engine(self)
        self._clock = clock
        try:
            sessions = Sessions(
                model,
                config,
                directory,
                self.number,
                clock=clock,
                cost=cost or Cost.measure(model.runtime),
                first_ticket=secrets.randbits(32),
                store=store,
            )
        except Exception:
            directory.remove_engine(self.number)  # its memory cannot be had
            raise
        super().__init__(model, sessions)
        self.num_restored = self._sessions.custody.restore()
        self._inbox = Inbox()
        self._deliver: Callable[[list[Reply]], None] = lambda replies: None
        self._runner = Runner(f"run-{self.name}")
        self._sessions.express.compute = self._compute
        self._run: Run | None = None  # under way: its rows are answered by `finish`
        self._outcome: Outcome | None = None  # of that run, taken from the inbox
        self._taken: list[Request] = []  # out of the inbox, and not all taken in yet
        self._looked: list[Request] = []  # out of the lane while a run was under way, before `_taken`
        # the last run was a long one on the short way: its replies may wait until the next has begun
        self._is_behind = False
        # the rows of the lane are taken beside the next run, which others fill
        self._leaves_rows = False
        self._thread = threading.Thread(target=self._main, name=f"engine-{self.name}", daemon=True)
        self._stop_at: float | None = None
        self._stall_s = config.stall_s
        self._busy_since: float | None = None  # None: it waits for requests
        self._dead: CellarError | None = None
        self._has_ended = False
        # of requests that came and that left the inbox: each is counted by one thread
        self._max_inbox_bytes = config.max_queue_bytes + config.max_message_bytes
        self._posted_bytes = self._taken_bytes = 0

    @property
    def is_healthy(self) -> bool:
        """False once the thread died of a fault, and while one run or write takes longer than it ever should."""
        since = self._busy_since
        return self._dead is None and (since is None or self._clock() - since < self._stall_s)

    @property
    def is_over(self) -> bool:
        """Its thread takes nothing in any more."""
        return self._has_ended

    def refusal(self, frame: Frame, caller: int) -> CellarError | None:
        """Why a frame is not worth to be handed over: all its chunks' time would be over before their turn."""
        timeouts = frame.timeouts_ms
        if not timeouts or not min(timeouts):
            return None
        error = self.refusal_in(max(timeouts) / 1000, caller)
        if error is not None:
            self.count_refused(error, len(frame.handles))
        return error

    def refusal_in(self, left_s: float, caller: int) -> CellarError | None:
        """The same for a row that has so many seconds left; it is not counted."""
        try:
            self._core.check_time(left_s, caller)
        except CellarError as error:
            return error
        return None

    def now(self) -> float:
        """Seconds on the engine's clock."""
        return self._clock()

    def count_refused(self, error: CellarError, count: int) -> None:
        """So many rows were refused before they were posted."""
        self._core.counts.refuse(error.reason, count)

    def start(self, deliver: Callable[[list[Reply]], None], lane: Lane | None = None) -> None:
        """Starts the thread. lane: rows are taken from there too."""
        self._deliver = deliver
        self._inbox.lane = lane or self._inbox.lane
        self._runner.open()
        self._thread.start()

    def post(self, request: Request) -> None:
        """Hands a request over; never blocks. After the thread's end it is answered with an error at once."""
        size = num_bytes(request)
        if size and self._posted_bytes - self._taken_bytes + size > self._max_inbox_bytes:
            self._refuse(request, self._core.overloaded())
            return
        self._posted_bytes += size
        if isinstance(request, FrameRequest):
            if request.frame.timeouts_ms:
                request.arrived_s = self._clock()
            if len(request.frame.handles) >= LARGE:
                self._sessions.read_large(request)
        self._inbox.put(request)
        if self.is_over:
            self._refuse_inbox()

    def ring(self) -> None:
        """Rows wait in the lane; from any thread."""
        self._inbox.lane.ring()

    def stop(self, drain_s: float) -> None:
        """Refuses new work, finishes what was accepted for up to `drain_s` seconds, and ends the thread."""
        if not self._thread.is_alive():
            return
        self._stop_at = self._clock() + drain_s
        self._inbox.put(None)
        self._thread.join(drain_s + 5)

    def release(self, error: CellarError) -> int:
        """Ends the sessions of an engine that has stopped, with one reason, and frees its number; how many."""
        if self._thread.is_alive():
            raise RuntimeError("the engine runs")
        ended = self._sessions.close_all(error)
        self._sessions.durability.persist(is_last=True)
        self._core.directory.remove_engine(self.number)
        return ended

    # -- the thread ----------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._loop()
        except Exception:
            self._die()
        finally:
            self._runner.stop()
            self._sessions.durability.close()
            self._has_ended = True  # whoever posts from here on looks at the inbox after that
            self._refuse_inbox()
            self._inbox.lane.close()

    def _loop(self) -> None:
        sessions = self._sessions
        while True:
            if self._run is None:
                self._busy_since = None
            requests = self._taken = self._take()
            self._is_behind = False
            if self._busy_since is None:
                self._busy_since = self._clock()
            is_between = False
            if self._outcome is not None:
                assert self._run is not None
                sessions.runs.finish(self._run, self._outcome)
                self._run = self._outcome = None
                is_between = sessions.is_tending_due  # where runs follow one another there is no other time for it
            if requests or sessions.has_rest:
                sessions.admit(requests)
            self._taken = []
            if not is_between:
                self._begin()
            sessions.settle()
            if self._is_behind and self._stop_at is None and not sessions.is_tending_due:
                continue
            sessions.persist()
            if self._run is None:
                sessions.tend()
                if self._clock() >= sessions.expire_at:
                    sessions.settle_late()
                    sessions.expire()
                    sessions.persist()
            self._send(sessions.take_replies())
            if self._stop_at is not None and self._run is None:
                sessions.core.is_draining = True
                sessions.settle_late()
                if sessions.is_idle and self._inbox.is_empty:
                    return
                if self._clock() >= self._stop_at:
                    sessions.fail_all(CellarError(Reason.SHUTTING_DOWN, "the server is stopping", retry_after_ms=1000))
                    self._send(sessions.take_replies())
                    return

    def _begin(self) -> None:
        """Starts a run where none is under way and rows are ready. A short one is over on return, as is one whose rows
        are answered when they leave it; another long one is computed beside what this thread does next."""
        sessions = self._sessions
        if self._run is not None or not sessions.has_ready:
            return
        run = sessions.runs.begin()
        if run is None:
            return
        self._run, self._is_behind = run, False
        if run.under_way is not None:
            self._advance(run)
            self._run = None
            return
        if run.cost_s < OVERLAP_S:
            sessions.runs.finish(run, sessions.runs.compute(run))
            self._run = None
            return
        self._runner.start(lambda: self._inbox.put(Ran(sessions.runs.compute(run))))

    def _advance(self, run: Run) -> None:
        """Computes a run, answers rows that leave it, and cuts it short for who comes meanwhile."""
        sessions = self._sessions
        while sessions.runs.advance(run):
            sessions.settle()
            self._tell()
            if run.is_worth_cutting and self._has_come():
                sessions.runs.cut(run)
                return

    def _has_come(self) -> bool:
        """Something came while this thread computed."""
        self._looked += self._inbox.lane.take()
        return bool(self._looked) or not self._inbox.is_empty

    def _take_rows(self) -> list[Request]:
        """The rows of the lane, those first that were seen before."""
        looked, self._looked = self._looked, []
        return [*looked, *self._inbox.lane.take()]

    def _compute(self, run: Run) -> Outcome:
        """What a run on the short way gives. What is left to do for the one before is done beside it where it is long,
        and before it where it is short."""
        sessions = self._sessions
        self._is_behind = run.cost_s >= OVERLAP_S
        if not self._is_behind:
            self._tell()
        if not self._is_behind or not (sessions.has_replies or sessions.is_unsettled):
            return sessions.runs.compute(run)
        caught_up: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._runner.start(lambda: caught_up.put(self._catch_up()), waits=False)
        outcome = sessions.runs.compute(run)
        if (fault := caught_up.get()) is not None:
            raise fault
        return outcome

    def _tell(self) -> None:
        """Sends the replies that wait, stored first where that is asked for."""
        if self._sessions.has_replies:
            self._sessions.persist()
            self._send(self._sessions.take_replies())

    def _catch_up(self) -> Exception | None:
        """Sends what waits to be sent, and stores answers; on the runner's thread, while this one computes."""
        try:
            self._tell()
            self._sessions.settle_late()
        except Exception as fault:
            return fault
        return None

    def _take(self) -> list[Request]:
        """The rows of the lane, and behind them what was in the inbox before they were taken; without work it waits for
        either, a limit or the end of draining. While a run is under way it waits for its outcome, or for a large frame
        that nothing came before: to admit that takes long. Where those that are ready fill the next run whoever comes,
        rows are taken when it is under way.

        Rows go first: on their stream nothing unanswered can stand before them, but a frame in the inbox may behind.
        """
        inbox = self._inbox
        requests: list[Request] = []
        if self._run is not None:
            leaves_rows, self._leaves_rows = self._leaves_rows, False
            if leaves_rows and self._sessions.has_ready and (rows := self._take_rows()):
                return [*rows]
            while self._outcome is None:
                has_waited, before = inbox.wait(None), len(requests)
                if self._drain(requests, is_waiting=True):
                    rows = self._take_rows()
                    if not rows:
                        self._count_wait(has_waited, is_vain=False)
                        return requests
                    requests[:0] = rows
                self._count_wait(has_waited, is_vain=self._outcome is None and len(requests) == before)
            self._drain(requests)
            self._leaves_rows = not requests and self._sessions.is_deep
            if self._leaves_rows:
                return requests
        else:
            sessions = self._sessions
            # that can wait as long as there is something else to do
            if self._is_behind or sessions.is_unsettled or sessions.has_rest:
                self._drain(requests)
                rows = self._take_rows()
                if not rows and not sessions.has_rest:
                    self._tell()
                if requests or rows or sessions.has_rest:
                    return [*rows, *requests]
                sessions.settle_late()
            has_waited = not (sessions.has_ready or self._looked) and inbox.wait(self._patience_s())
            self._drain(requests)
            requests[:0] = self._take_rows()
            self._count_wait(has_waited, is_vain=not requests)
            return requests
        return [*self._take_rows(), *requests]

    def _count_wait(self, has_waited: bool, *, is_vain: bool) -> None:
        counts = self._core.counts
        counts.waits += has_waited
        counts.vain_waits += has_waited and is_vain

    def _patience_s(self) -> float | None:
        """Seconds after which there is something to do though nothing came; None: never."""
        now = self._clock()
        until = self._sessions.expire_at
        if self._sessions.durability.is_on:
            until = min(until, self._sessions.durability.wake_at, now + 1.0)
        if self._stop_at is not None:
            until = min(self._stop_at, until)
        return None if until == float("inf") else max(0.0, until - now)

    def _drain(self, requests: list[Request], *, is_waiting: bool = False) -> bool:
        """Moves what is in the inbox to `requests`, and a run's outcome to its place; is_waiting: ends there, or with
        True at a large frame that is the first."""
        inbox = self._inbox
        while not inbox.is_empty and (len(requests) < MAX_BATCH or is_waiting):
            item = inbox.pop()
            if isinstance(item, Ran):
                self._outcome = item.outcome
                if is_waiting:
                    break
            elif item is not None:
                requests.append(item)
                self._taken_bytes += num_bytes(item)
                if is_waiting and len(requests) == 1 and isinstance(item, FrameRequest) and item.columns is not None:
                    return True
        return False

    def _send(self, replies: list[Reply]) -> None:
        if replies:
            self._deliver(replies)

    def _die(self) -> None:
        """A fault of the engine itself: everything that waits is answered, and health says so."""
        error_id = new_error_id()
        extra = self._core.about(error_id=error_id)
        log.exception("the engine of model %s died [%s]", self.name, error_id, extra=extra)
        self._dead = CellarError(
            Reason.INTERNAL, f"the model's engine failed; the log has the fault as {error_id}", error_id=error_id
        )
        self._runner.stop()
        try:
            if self._run is not None:
                self._sessions.runs.finish(self._run, self._dead)
            self._sessions.fail_all(self._dead)
        except Exception:
            log.exception("the dead engine of model %s could not answer all [%s]", self.name, error_id, extra=extra)
        self._send(self._sessions.take_replies())
        for request in self._taken[self._sessions.num_admitted :]:
            self._refuse(request, self._dead)
        self._refuse_inbox()

    def _refuse_inbox(self) -> None:
        """Answers what came after the thread's end."""
        error = self._dead or CellarError(Reason.SHUTTING_DOWN, "the server is stopping", retry_after_ms=1000)
        looked, self._looked = self._looked, []
        for request in looked:
            self._refuse(request, error)
        try:
            while True:
                self._refuse(self._inbox.pop(), error)
        except IndexError:
            pass

    def _refuse(self, request: Request | Ran | None, error: CellarError) -> None:
        replies = replies_of_refused(request, error)
        for reply in replies:
            if not isinstance(reply, RowsBack):
                self.count_refused(error, len(reply.call) if isinstance(reply, RowsRefused) else 1)
        self._send(replies)
