"""What each caller and each model still may take: chunks in flight, message size, rate, generation length."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.limits import Limits, LimitTable
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.directory import SCOPE_END
from cellar_server.sessions.messages import FrameReply

# The longest time that a refused caller is told to wait.
MAX_RETRY_MS = 60_000


class Meter:
    """One caller's, or one model's, use of its limits. now: seconds on a monotonic clock."""

    def __init__(self, limits: Limits, what: str, now: float) -> None:
        self.limits = limits
        self.what = what
        self.in_flight = 0
        self._level = limits.burst  # steps in the bucket; below 0 where a chunk was larger than it
        self._at = now
        self._answered_at = now
        self._s_per_row = 0.02  # between two answers, lately

    def refusal(self, rows: int, steps: int, num_bytes: int, now: float) -> CellarError | None:
        """Why so many rows, steps and bytes may not come now; None where they may."""
        limits = self.limits
        if limits.max_message_bytes and num_bytes > limits.max_message_bytes:
            what = f"the message has {num_bytes} bytes; {self.what} may send {limits.max_message_bytes}"
            return CellarError(Reason.TOO_LARGE, what)
        if limits.max_chunks_in_flight and self.in_flight + rows > limits.max_chunks_in_flight:
            if rows > limits.max_chunks_in_flight:
                what = f"the message has {rows} rows; {self.what} may have {limits.max_chunks_in_flight} in flight"
                return CellarError(Reason.TOO_LARGE, what)
            over = self.in_flight + rows - limits.max_chunks_in_flight
            what = f"{self.what} has {self.in_flight} of {limits.max_chunks_in_flight} chunks in flight"
            return _overloaded(what, over * self._s_per_row)
        if limits.max_steps_per_s:
            self._fill(now)
            missing = min(steps, limits.burst) - self._level
            if missing > 1e-6:  # sums of parts of steps are not exact
                what = f"{self.what} is over its rate of {limits.max_steps_per_s:g} steps a second"
                return _overloaded(what, missing / limits.max_steps_per_s)
        return None

    def fits(self, rows: int, steps: int, now: float) -> bool:
        """That many rows with so many steps together may come now, whatever each of them has."""
        limits = self.limits
        is_over = limits.max_steps_per_s and steps > limits.burst  # what a full bucket lets through as one
        return not is_over and self.refusal(rows, steps, 0, now) is None

    def take(self, rows: int, steps: int) -> None:
        """They come."""
        self.in_flight += rows
        self._level -= steps

    def give_back(self, rows: int, now: float) -> None:
        """So many are answered."""
        if rows:
            self.in_flight -= rows
            self._s_per_row += 0.1 * ((now - self._answered_at) / rows - self._s_per_row)
            self._answered_at = now

    def _fill(self, now: float) -> None:
        limits = self.limits
        self._level = min(limits.burst, self._level + (now - self._at) * limits.max_steps_per_s)
        self._at = now


class Ration:
    """What one caller may take of one model: the caller's meter and the model's. Any thread may use it; lock: that of
    all who share a meter."""

    def __init__(self, meters: list[Meter], clock: Callable[[], float], lock: threading.Lock) -> None:
        self.meters = meters
        self._clock = clock
        self._lock = lock
        sizes = [meter.limits.max_message_bytes for meter in meters]
        self.max_message_bytes = min(filter(None, sizes), default=0)  # 0: of any size

    def take(self, rows: int, steps: int, num_bytes: int) -> CellarError | None:
        """Takes so many rows, steps and bytes of a message, or says why not: then nothing was taken."""
        with self._lock:
            return self.take_locked(rows, steps, num_bytes, self._clock())

    def take_locked(self, rows: int, steps: int, num_bytes: int, now: float) -> CellarError | None:
        """The same for whoever holds the lock."""
        for meter in self.meters:
            error = meter.refusal(rows, steps, num_bytes, now)
            if error is not None:
                return error
        for meter in self.meters:
            meter.take(rows, steps)
        return None

    def give_back(self, rows: int) -> None:
        """So many rows were answered, whatever the answer."""
        now = self._clock()
        with self._lock:
            for meter in self.meters:
                meter.give_back(rows, now)

    def emit(self, steps: int) -> None:
        """A generation made so many emissions: what follows waits for them."""
        with self._lock:
            for meter in self.meters:
                meter.take(0, steps)

    def options(self, asked: int, options: Options) -> Options:
        """A generation's options within the limits. asked: its max_steps as the caller gave it, 0 for none;
        INVALID_SAMPLING."""
        for meter in self.meters:
            most = meter.limits.max_generation_steps
            if most and asked > most:
                raise CellarError(
                    Reason.INVALID_SAMPLING, f"max_steps is {asked}; {meter.what} may ask for {most} at most"
                )
            if most:
                options = replace(options, max_steps=min(options.max_steps, most))
        return options


class Charged:
    """The asker of a frame whose rows count against a ration until they are answered."""

    __slots__ = ("_ration", "_rows", "_to")

    def __init__(self, to: Any, ration: Ration, rows: int) -> None:
        self._to, self._ration, self._rows = to, ration, rows

    def receive(self, reply: Any) -> None:
        # rows of several frames may come in one answer: they are of one stream and one engine, so of one ration
        self._ration.give_back(self._rows if isinstance(reply, FrameReply) else len(reply.handles))
        self._to.receive(reply)


class Rations:
    """The rations of all callers and models. Any thread may ask for one."""

    def __init__(self, table: LimitTable, clock: Callable[[], float] = time.monotonic) -> None:
        self.table = table
        self._clock = clock
        self._lock = threading.Lock()
        self._callers: dict[str, Meter] = {}
        self._models: dict[str, Meter] = {}
        self._rations: dict[tuple[str, str], Ration] = {}

    def of(self, scope: str, model: str) -> Ration | None:
        """What the caller of a scope may take of a model; None where nothing limits it."""
        caller = scope.removesuffix(SCOPE_END)
        meters: list[Meter] = []
        if not self.limits(scope, model):
            return None
        with self._lock:
            if (known := self._rations.get((caller, model))) is not None:
                return known
            for limits, kept, key, what in (
                (self.table.of_caller(caller), self._callers, caller, "the caller"),
                (self.table.of_model(model), self._models, model, f"model {model!r}"),
            ):
                if limits.is_metered:
                    if key not in kept:
                        kept[key] = Meter(limits, what, self._clock())
                    meters.append(kept[key])
            ration = self._rations[caller, model] = Ration(meters, self._clock, self._lock)
        return ration

    def take_rows(
        self, rations: Sequence[Ration | None], steps: Sequence[int], num_bytes: Mapping[int, int]
    ) -> dict[int, CellarError]:
        """Takes rows that come one a message, of so many steps each, as one after the other would be taken: by place,
        why some may not come. rations: None for a row without limits; num_bytes: of messages that may be too large."""
        now = self._clock()
        totals: dict[Ration, tuple[int, int]] = {}
        for ration, count in zip(rations, steps, strict=True):
            if ration is not None:
                rows, total = totals.get(ration, (0, 0))
                totals[ration] = rows + 1, total + count
        meters: dict[Meter, tuple[int, int]] = {}
        for ration, (rows, total) in totals.items():
            for meter in ration.meters:
                before = meters.get(meter, (0, 0))
                meters[meter] = before[0] + rows, before[1] + total
        errors: dict[int, CellarError] = {}
        with self._lock:
            if not num_bytes and all(meter.fits(*each, now) for meter, each in meters.items()):
                for meter, each in meters.items():
                    meter.take(*each)
                return errors
            for i, (ration, count) in enumerate(zip(rations, steps, strict=True)):
                error = None if ration is None else ration.take_locked(1, count, num_bytes.get(i, 0), now)
                if error is not None:
                    errors[i] = error
        return errors

    def limits(self, scope: str, model: str) -> bool:
        """Something beside the number of sessions limits the caller of a scope, or the model; any thread may ask."""
        table = self.table
        return table.of_model(model).is_metered or table.of_caller(scope.removesuffix(SCOPE_END)).is_metered

    @contextmanager
    def taken(self, scope: str, model: str, rows: int, steps: int, num_bytes: int) -> Iterator[Ration | None]:
        """Takes a call's part of a ration until the call is over. CellarError TOO_LARGE, OVERLOADED."""
        ration = self.of(scope, model)
        if ration is None:
            yield None
            return
        error = ration.take(rows, steps, num_bytes)
        if error is not None:
            raise error
        try:
            yield ration
        finally:
            ration.give_back(rows)


def number_of(scope: str, context: grpc.aio.ServicerContext | None = None) -> int:
    """Under which number a caller takes turns with others: its name's, without tokens its connection's. Two that
    share a number share a turn."""
    if scope or context is None:
        return 1 << 40 | zlib.crc32(scope.encode())
    return number_of_peer(context.peer())


def number_of_peer(peer: str | None) -> int:
    """The same of a connection."""
    return 2 << 40 | zlib.crc32((peer or "").encode())


def _overloaded(what: str, wait_s: float) -> CellarError:
    return CellarError(Reason.OVERLOADED, what, retry_after_ms=min(MAX_RETRY_MS, max(1, int(1000 * wait_s) + 1)))
