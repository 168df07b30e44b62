"""The demo's further chapters: what a server does for sessions, files and those who come back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cellar_client
import numpy as np
import pyarrow.parquet as pq

from benchmarks import samples
from benchmarks.demo.story import Story
from benchmarks.serving import Served, served
from benchmarks.wire import Wire


def streaming(client: cellar_client.Client, server: Served, wire: Wire, story: Story) -> None:
    story.chapter("7  a session remembers: hour by hour, then from a second client, then two futures")
    hours = samples.hours()[:168]
    whole = np.asarray(client.predict("forecast", hours)).reshape(-1)
    before = wire.counters("forecast")
    session = client.session("forecast")
    parts = [np.asarray(session.step(hour)).reshape(-1) for hour in hours[:120]]
    steps = wire.counters("forecast").steps - before.steps
    story.check(steps == 120, f"the server computed {steps} steps for 120 hours sent: nothing was run again")
    with cellar_client.Client(server.address) as second:
        resumed = second.resume(session.id)
        story.check(resumed.position == 120, f"session {session.id} taken up at position {resumed.position}")
        parts += [np.asarray(resumed.step(hour)).reshape(-1) for hour in hours[120:]]
        difference = float(np.abs(np.concatenate(parts) - whole).max())
        tolerance = 1e-5 * float(np.abs(whole).max())
        same = "the same bits" if difference == 0 else f"within the card's tolerance {tolerance:.1e}"
        story.check(
            difference <= tolerance, f"remembered = whole sequence: largest difference {difference:.1e}, {same}"
        )
        fork = resumed.fork()
        calm, windy = hours[-1].copy(), hours[-1].copy()
        calm[5], windy[5] = 0.9, 200.0
        for _ in range(6):
            still = float(np.asarray(resumed.step(calm)).reshape(-1)[-1])
            blown = float(np.asarray(fork.step(windy)).reshape(-1)[-1])
        story.say(f"  what if, six hours on: calm {still:.1f} ug/m3, a strong wind {blown:.1f} ug/m3")
        story.check(still != blown, "the fork went its own way")
        fork.close()
        resumed.close()
    story.note("session", "120 + 48 hours", f"difference {difference:.1e}, {steps} steps computed")


def scoring(server: Served, folder: Path, story: Story) -> None:
    story.chapter("8  a file at once: review sentences to Parquet")
    source, target = samples.sentences_file(), folder / "scored.parquet"
    command = [str(Path(sys.executable).parent / "cellar"), "score", "--server", server.address, "--model", "sentiment"]
    command += ["--input", str(source), "--output", str(target), "--text", "text"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    took_s = time.perf_counter() - started
    story.check(done.returncode == 0, f"cellar score ended with {done.returncode} {done.stderr.strip()[-300:]}")
    rows = pq.read_table(target).to_pylist()
    truth = [json.loads(line)["label"] for line in source.read_text().splitlines() if line]
    column = "predicted"  # the file has a `label` of its own
    right = sum(row[column] == label for row, label in zip(rows, truth, strict=True))
    share = right / len(rows)
    story.say(f"  {len(rows)} rows in {took_s:.2f} s ({len(rows) / took_s:.0f} rows/s with start-up): {target}")
    story.check(len(rows) >= 1000 and share > 0.6, f"accuracy {share:.3f} over {len(rows)} rows")
    story.note("scoring", f"{len(rows)} sentences", f"{len(rows) / took_s:.0f} rows/s, accuracy {share:.3f}")


def surviving(folder: Path, story: Story) -> None:
    story.chapter("9  the server is killed, and the session goes on")
    hours = samples.hours()[:48]
    store = ["--store", f"sqlite:///{folder}/sessions.db", "--durability", "step"]
    with served(extra=store) as server, cellar_client.Client(server.address) as client:
        whole = np.asarray(client.predict("forecast", hours)).reshape(-1)
        with client.session("forecast") as session:
            parts = [np.asarray(session.step(hour)).reshape(-1) for hour in hours[:30]]
            story.check(session.durable_position == 30, "30 hours answered, 30 hours stored")
            server.process.kill()
            server.process.wait()
            killed = time.perf_counter()
            with served(extra=[*store, "--listen", server.address]) as again:
                parts += [np.asarray(session.step(hour)).reshape(-1) for hour in hours[30:]]
                took_s = time.perf_counter() - killed
                session.close()
                difference = float(np.abs(np.concatenate(parts) - whole).max())
                story.check(
                    difference <= 1e-5 * float(np.abs(whole).max()),
                    f"killed with SIGKILL, started again as process {again.process.pid}: the same 48 answers",
                )
    story.note("kill -9", "30 + 18 hours", f"went on after {took_s:.1f} s, difference {difference:.1e}")
