"""The whole of Cellar in one short run on real bundled input (`make demo`); needs no torch.

Exit status 0 when every check held, 1 with the failed check's line otherwise. Nothing is left running.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cellar_client
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks import samples
from benchmarks.serving import Served, served
from benchmarks.wire import Wire

SHADES = " .:-=+*#@"


class CheckError(Exception):
    """A check of the demo did not hold; its text says which."""


class Story:
    """Prints the chapters and keeps a line of each for the table at the end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines: list[tuple[str, str, str]] = []

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise CheckError(what)
        self.console.print(f"[green]ok[/green] {what}", highlight=False)

    def note(self, chapter: str, input_: str, result: str) -> None:
        self.lines.append((chapter, input_, result))

    def table(self) -> Table:
        table = Table(title="What was shown", show_lines=False)
        for name in ("chapter", "input", "result"):
            table.add_column(name)
        for line in self.lines:
            table.add_row(*line)
        return table


def drawing(image: np.ndarray) -> list[str]:
    """An 8 x 8 image of greys 0 to 16 as eight lines, two characters a pixel."""
    return ["".join(2 * SHADES[int(v) * (len(SHADES) - 1) // 16] for v in row) for row in image.reshape(8, 8)]


def rmse(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((guess - truth) ** 2)))


def one_to_one(client: cellar_client.Client, story: Story) -> None:
    story.chapter("1  one-to-one: which digit is it? (RNN, one step)")
    images, truth = samples.digits()
    answers = [client.predict("digits", image[None]).label for image in images[:4]]
    for lines in zip(*(drawing(image) for image in images[:4]), strict=True):
        story.say("   ".join(lines))
    story.say("   ".join(f"answer {a}, truth {t}".ljust(16) for a, t in zip(answers, truth[:4], strict=True)))
    many = client.predict_many("digits", [image[None] for image in images])
    right = sum(str(m.label) == str(t) for m, t in zip(many, truth, strict=True))
    story.check(right >= 0.9 * len(images), f"{right} of {len(images)} held-out images are read right")
    story.note("one-to-one", f"{len(images)} images", f"{right} right")


def many_to_one(client: cellar_client.Client, story: Story) -> None:
    story.chapter("2  many-to-one: is the review good? (GRU, the answer after each word)")
    row = min((s for s in samples.sentences() if len(s["text"].split()) >= 8), key=lambda s: len(s["text"]))
    with client.session("sentiment") as session:
        last = 0.5
        for word in row["text"].split():
            answer = np.asarray(session.step(word + " "), np.float32).reshape(-1, 2)
            if len(answer):
                last = float(answer[-1, 1])
            story.say(f"  {word:<16} {'█' * round(30 * last):<30} positive {last:.2f}")
    whole = client.predict("sentiment", row["text"])
    difference = abs(float(np.asarray(whole).reshape(-1, 2)[-1, 1]) - last)
    story.say(f"  whole text at once: {whole.label} (truth: {row['label']})")
    story.check(difference < 1e-5, f"word by word equals the whole text (difference {difference:.1e})")
    story.note("many-to-one", f"{len(row['text'].split())} words", f"{whole.label}, truth {row['label']}")


def one_to_many(client: cellar_client.Client, story: Story) -> None:
    story.chapter("3  one-to-many: a sentence from a dialogue act (LSTM, drawn with a seed)")
    act = samples.acts()[0]

    def text(seed: int) -> str:
        return "".join(token.text for token in client.generate("describe", act, seed=seed, temperature=0.8))

    story.say(f"  {act}")
    first, again, other = text(7), text(7), text(8)
    story.say(f"  seed 7: {first}\n  seed 7: {again}\n  seed 8: {other}")
    story.check(first == again and first != "", "the same seed gives the same sentence")
    story.note("one-to-many", act[:40], f"{len(first.split())} words, same twice")


def many_to_many(client: cellar_client.Client, story: Story) -> None:
    story.chapter("4  many-to-many: the next hour's PM2.5 in Beijing (LSTM, an answer every hour)")
    hours = samples.hours()
    guess = np.asarray(client.predict("forecast", hours)).reshape(-1)[:-1]
    truth, known = hours[1:, 0], hours[1:, 1] == 0
    for i in range(200, 206):
        story.say(f"  hour {i + 1}: said {guess[i]:6.1f}, was {truth[i]:6.1f} ug/m3")
    ours, naive = rmse(guess[known], truth[known]), rmse(hours[:-1, 0][known], truth[known])
    story.check(ours < naive, f"RMSE over {int(known.sum())} hours {ours:.2f}, last value {naive:.2f}")
    story.note("many-to-many", f"{len(hours)} hours", f"RMSE {ours:.2f}, last value {naive:.2f}")


def streaming(client: cellar_client.Client, server: Served, wire: Wire, story: Story) -> None:
    story.chapter("5  a session remembers: hour by hour, then from a second client, then two futures")
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
    story.chapter("6  a file at once: review sentences to Parquet")
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
    story.chapter("7  the server is killed, and the session goes on")
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


def tell(story: Story, folder: Path) -> None:
    """All chapters against a server of our own; CheckError where one does not hold."""
    with served() as server:
        story.say(f"cellar-server {server.address}, process {server.process.pid}")
        with cellar_client.Client(server.address) as client, Wire(server.address) as wire:
            chapters: list[Callable[[cellar_client.Client, Story], None]] = [
                one_to_one,
                many_to_one,
                one_to_many,
                many_to_many,
            ]
            for chapter in chapters:
                chapter(client, story)
            streaming(client, server, wire, story)
            scoring(server, folder, story)
        surviving(folder, story)
        story.chapter("8  the end")
        status = server.terminate()
        story.check(status == 0 and server.is_gone(), "the server drained, ended with 0 and is gone")


def main() -> int:
    console = Console(width=110)
    story = Story(console)
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="cellar-demo-"))
    try:
        tell(story, folder)
    except CheckError as error:
        console.print(f"[red]FAILED[/red] {error}", highlight=False)
        return 1
    console.print()
    console.print(story.table())
    console.print(f"All checks held in {time.perf_counter() - started:.1f} s. Output: {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
