"""Measures Cellar beside its ceilings in one run and writes RESULTS.md (`make bench`; --quick for a look)."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Line, page, updated, write_json
from benchmarks.serving import ROOT
from benchmarks.stand import Scale, Stand
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "RESULTS.md"
RECORDS = ROOT / "build" / "bench" / "results.json"


def servers(given: Sequence[str]) -> dict[str, list[str]]:
    """Cellar servers by name from `NAME=FLAGS` or `FLAGS`; one with no flags where none is given.

    ValueError where two have one name.
    """
    named: dict[str, list[str]] = {}
    for each in given or [""]:
        name, equals, flags = each.partition("=")
        if not equals or name.startswith("-"):
            name, flags = "Cellar", each
        if name in named:
            raise ValueError(f"two servers named {name}")
        named[name] = shlex.split(flags)
    return named


def scale(given: argparse.Namespace) -> Scale:
    """Windows and counts of a full run or of a look, with what was given in particular."""
    chosen = Scale.quick() if given.quick else Scale.short() if given.short else Scale()
    wanted = {"num_pairs": given.pairs, "num_sessions": given.sessions, "held_s": given.held_s}
    return dataclasses.replace(chosen, **{key: value for key, value in wanted.items() if value is not None})


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short windows, small counts: a look, no measurement")
    parser.add_argument("--short", action="store_true", help="fewer windows: a measurement with a wider spread")
    parser.add_argument("--update", action="store_true", help="keep the page's other sections as they are")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="which (default: all)")
    parser.add_argument(
        "--server-flags",
        action="append",
        default=[],
        metavar="[NAME=]FLAGS",
        help="a Cellar server to measure, with these flags; may be given again for another one in the same run",
    )
    parser.add_argument("--pairs", type=int, help="pairs of windows where an aim hangs on them (default 30)")
    parser.add_argument("--held-s", type=float, help="seconds for which the highest load found must hold (default 60)")
    parser.add_argument("--sessions", type=int, help="live sessions of the memory arm (4.5 kB each; default 1,000,000)")
    parser.add_argument(
        "--triton", type=Path, metavar="VENV", help="where nvidia-pytriton is installed (benchmarks/triton/server.py)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the page goes")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where every window goes, as JSON")
    return parser.parse_args(arguments)


def measure(stand: Stand, names: Sequence[str], sections: dict[str, list[Line]], took: list[str]) -> None:
    """The workloads named, in their order; their lines are printed and kept as they come."""
    for name, workload in WORKLOADS.items():
        if name not in names:
            continue
        begun = time.perf_counter()
        print(f"\n{workload.title}", flush=True)
        lines = sections.setdefault(workload.title, [])
        for line in workload.measure(stand):
            lines.append(line)
            print("  " + " | ".join(cell for cell in line.cells() if cell), flush=True)
        took.append(f"{name} {time.perf_counter() - begun:.0f} s")


def main() -> int:
    # ended from outside, it ends its servers and writes what it has
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given = parse()
    named = servers(given.server_flags)
    begun = time.perf_counter()
    sections: dict[str, list[Line]] = {}
    took: list[str] = []
    notes = [f"`{name}`: {shlex.join(['cellar-server', *flags])}" for name, flags in named.items()]
    with tempfile.TemporaryDirectory(prefix="cellar-bench-") as made:
        stand = Stand(Path(made), scale(given), named, given.triton)
        try:
            with stand:
                measure(stand, given.only, sections, took)
        finally:
            # also where a workload failed: what was measured before it is not lost
            kind = " (--quick)" if given.quick else " (--short)" if given.short else ""
            notes.append(f"The whole run took {time.perf_counter() - begun:.0f} s{kind}.")
            if len(took) < len(WORKLOADS):
                notes.append(f"Only these workloads were run to their end: {', '.join(took) or 'none'}.")
            kept = given.output.read_text() if given.update and given.output.exists() else ""
            given.output.write_text(updated(kept, page(sections, notes)))
            write_json(given.records, {"notes": notes, "seconds": took, **stand.records})
            print("", *notes, ", ".join(took), f"written to {given.output} and {given.records}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
