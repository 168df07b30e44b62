"""`cellar top`: what the models of some servers do, from their counters, asked for once a second."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cellar_client.client import Client
from cellar_client.errors import CellarError
from cellar_client.messages import ModelInfo

# Seconds that a server may take for its answer before it is shown as one that gives none.
PATIENCE_S = 2.0
COLUMNS = (
    ("SERVER", "left"),
    ("MODEL", "left"),
    ("SESSIONS", "right"),
    ("STEPS/S", "right"),
    ("RUNS/S", "right"),
    ("ROWS/RUN", "right"),
    ("QUEUE", "right"),
    ("WAIT MS", "right"),
    ("RUN MS", "right"),
    ("FIRST MS", "right"),
    ("REFUSED/S", "right"),
    ("REPLAYED/S", "right"),
    ("STORE LAG S", "right"),
    ("", "left"),
)


@dataclass(frozen=True)
class Look:
    """What one server said at one moment: its models, or why it said nothing."""

    address: str
    at_s: float
    models: Mapping[tuple[str, int], ModelInfo] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Row:
    """A model between two looks; None where nothing happened that could be said of it."""

    server: str
    model: str
    sessions: int
    steps_per_s: float
    runs_per_s: float
    rows_per_run: float | None
    queue: int
    wait_ms: float | None
    run_ms: float | None
    first_ms: float | None
    refused_per_s: float
    replayed_per_s: float
    lag_s: float
    remark: str = ""


def between(before: Look, after: Look) -> list[Row]:
    """What each model did from one look to the next. A model that was loaded again in between, and one that is new,
    did everything since."""
    elapsed_s = max(after.at_s - before.at_s, 1e-9)
    rows = []
    for key, info in sorted(after.models.items()):
        now = info.counters
        then = before.models[key].counters if key in before.models else {}
        if any(now[name] < then.get(name, 0) for name in ("runs", "steps", "sessions_opened")):
            then = {}
        grown = {name: value - then.get(name, 0) for name, value in now.items() if not isinstance(value, dict)}
        refused = sum(now["refusals"].values()) - sum(then.get("refusals", {}).values())
        rows.append(
            Row(
                server=after.address,
                model=f"{info.name}/{info.version}",
                sessions=now["sessions_live"],
                steps_per_s=grown["steps"] / elapsed_s,
                runs_per_s=grown["runs"] / elapsed_s,
                rows_per_run=_mean(grown["rows"], grown["runs"]),
                queue=now["rows_waiting"],
                wait_ms=_mean(1000 * grown["queue_s"], grown["rows_begun"]),
                run_ms=_mean(1000 * grown["run_s"], grown["runs"]),
                first_ms=_mean(1000 * grown["first_emission_s"], grown["first_emissions"]),
                refused_per_s=refused / elapsed_s,
                replayed_per_s=grown["chunks_replayed"] / elapsed_s,
                lag_s=now["store_lag_s"],
                remark=f"broken: {info.error.name}" if info.error else "",
            )
        )
    return rows


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


class Watch:
    """Asks some servers what they do. connect: makes a client of one address; clock: monotonic seconds."""

    def __init__(
        self,
        addresses: Sequence[str],
        connect: Callable[[str], Client],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(len(addresses)))
        self._clients = {address: self._stack.enter_context(connect(address)) for address in addresses}
        self._last: dict[str, Look] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _look(self, address: str) -> Look:
        try:
            models = self._clients[address].models()
        except CellarError as error:
            return Look(address, self._clock(), error=type(error).__name__)
        return Look(address, self._clock(), {(info.name, info.version): info for info in models})

    def look(self) -> list[Row | Look]:
        """One call to each server, all at once: what its models did since the last one; of a server that does not
        answer its Look, with the error. The first look at a server has no rows."""
        found: list[Row | Look] = []
        for after in self._pool.map(self._look, self._clients):
            if after.error:
                found.append(after)
                continue
            before = self._last.get(after.address)
            self._last[after.address] = after
            if before is not None:
                found += between(before, after)
        return found


def table(found: Sequence[Row | Look]) -> Table:
    """What there is to see, as a table."""
    made = Table(box=None, pad_edge=False)
    for name, justify in COLUMNS:
        made.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in found:
        if isinstance(row, Look):
            made.add_row(row.address, Text(f"no answer: {row.error}", "red"))
            continue
        made.add_row(
            row.server,
            row.model,
            f"{row.sessions:,}",
            f"{row.steps_per_s:,.0f}",
            f"{row.runs_per_s:,.0f}",
            _number(row.rows_per_run, 1),
            f"{row.queue:,}",
            _number(row.wait_ms, 2),
            _number(row.run_ms, 2),
            _number(row.first_ms, 1),
            Text(f"{row.refused_per_s:,.1f}", "red" if row.refused_per_s else ""),
            f"{row.replayed_per_s:,.1f}",
            f"{row.lag_s:.1f}",
            Text(row.remark, "red"),
        )
    return made


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument("--once", action="store_true", help="print one table, of one interval, and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (default 1)")


def run(options: argparse.Namespace, connect: Callable[[str], Client]) -> int:
    """0 when it was told to end; 1 where `--once` saw no server that answered."""
    if not options.interval >= 0.2:
        raise ValueError("top: the interval is 0.2 seconds or more")
    console = Console()
    if not console.is_terminal:  # as wide as it must be
        console = Console(width=200)
    with Watch(options.server.split(","), connect) as watch:
        try:
            found = watch.look()
            if options.once:
                time.sleep(options.interval)
                found = watch.look()
                console.print(table(found))
                return 1 if found and all(isinstance(each, Look) for each in found) else 0
            with Live(_screen(found), console=console, screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(options.interval)
                    live.update(_screen(watch.look()), refresh=True)
        except KeyboardInterrupt:
            return 0


def _screen(found: Sequence[Row | Look]) -> Any:
    return Group(table(found), Text("\nCtrl-C ends", "dim"))
