"""Batch scoring: a file in, a file out, a row for a row; also `python -m cellar_client.score`.

Every row is a sequence of its own (a text, a row of numbers, or a list of steps), or, with --group-by, rows of equal
key that follow one another are one sequence, and each row gets the emissions of its steps. Memory is bounded: the
input is read, sent and written in batches. A row that fails is written with its reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cellar_client import credentials, tables
from cellar_client.client import Client
from cellar_client.groups import units
from cellar_client.scorer import Answers, Options, Scorer

# Rows of the input that are read, sent and written together.
BATCH_ROWS = 4096


@dataclass
class Summary:
    """What came of it."""

    rows: int = 0
    failed: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.rows / self.seconds if self.seconds else 0.0
        return f"{self.rows} rows, {self.failed} failed, {self.seconds:.1f} s, {rate:,.0f} rows/s"


def score(options: Options) -> Summary:
    """Scores a file; the output appears, whole, at the end. CellarError, OSError, tables.TableError."""
    summary = Summary()
    begun = time.perf_counter()
    partial = options.output.with_name(options.output.name + ".partial")
    with (
        Client(options.server.split(","), timeout=options.timeout_s, **options.credentials) as client,
        tables.Reader(options.input, BATCH_ROWS) as reader,
    ):
        scorer = Scorer(client, options, reader.columns)
        writer = tables.Writer(partial, options.output.suffix)
        try:
            with tables.progress(reader.num_rows, options.is_quiet) as advance:
                for batch, answers in _answers(scorer, options, iter(reader)):
                    writer.write(scorer.output(batch, answers))
                    summary.rows += batch.num_rows
                    summary.failed += len(answers.errors)
                    advance(batch.num_rows)
            scorer.end_group()
            writer.close()
        except BaseException:
            writer.close()
            partial.unlink(missing_ok=True)
            raise
    os.replace(partial, options.output)
    summary.seconds = time.perf_counter() - begun
    return summary


def _answers(
    scorer: Scorer, options: Options, batches: Iterable[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, Answers]]:
    """Batches with their answers, in order; up to `in_flight` are on their way. Pieces of a long group, whose state is
    carried, go one after the other."""
    jobs: Iterator[tuple[Executor, Callable[[Any], Answers], Any, pa.RecordBatch]]
    with ThreadPoolExecutor(options.in_flight) as pool, ThreadPoolExecutor(1) as carrier:
        if options.group_by is None:
            jobs = ((pool, scorer.score, batch, batch) for batch in batches)
        else:
            jobs = (
                (carrier, scorer.score_piece, unit, unit.batch)
                if unit.is_piece
                else (pool, scorer.score_groups, unit, unit.batch)
                for unit in units(batches, options.group_by)
            )
        waiting: deque[tuple[pa.RecordBatch, Future[Answers]]] = deque()
        for executor, function, argument, batch in jobs:
            waiting.append((batch, executor.submit(function, argument)))
            if len(waiting) > options.in_flight:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `cellar score`."""
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument("--version", type=int, default=0, help="its version (default: the newest)")
    parser.add_argument("--input", type=Path, required=True, help="CSV, JSONL or Parquet file")
    parser.add_argument("--output", type=Path, required=True, help="CSV, JSONL or Parquet file to write")
    parser.add_argument("--text", help="column of texts (default: text)")
    parser.add_argument("--features", help="columns of one step's numbers, by commas (default: the model's names)")
    parser.add_argument("--group-by", help="rows of equal value here that follow one another are one sequence")
    parser.add_argument("--in-flight", type=int, default=4, help="batches on their way at once (default 4)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if any row failed")


def run(arguments: argparse.Namespace) -> int:
    """Scores as the flags say; 0, or 1 with --strict and failed rows."""
    summary = score(
        Options(
            arguments.model,
            arguments.input,
            arguments.output,
            arguments.server,
            arguments.text,
            tuple(arguments.features.split(",")) if arguments.features else None,
            arguments.group_by,
            arguments.in_flight,
            arguments.version,
            is_quiet=arguments.quiet,
            credentials=credentials.from_arguments(vars(arguments)),
        )
    )
    print(f"{arguments.output}: {summary}", file=sys.stderr)
    return int(arguments.strict and summary.failed > 0)


if __name__ == "__main__":
    from cellar_client.cli import main

    sys.exit(main(["score", *sys.argv[1:]]))
