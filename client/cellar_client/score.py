"""Batch scoring: a file in, a file out, a row for a row; also `python -m cellar_client.score`.

Every row is a sequence of its own (a text, a row of numbers, or a list of steps), or, with --group-by, rows of equal
key that follow one another are one sequence, whose state is carried from row to row. Memory is bounded: the input is
read, sent and written in batches. A row that fails is written with its reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cellar_client import tables
from cellar_client.client import Client, Session
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, InvalidRequest
from cellar_client.messages import ModelInfo

# Rows of the input that are read, sent and written together.
BATCH_ROWS = 512


@dataclass(frozen=True)
class Options:
    """What to score. text: the column of texts; features: columns of one step's numbers (or one column of lists of
    steps); group_by: column whose runs of equal keys are sequences; in_flight: batches on their way at once."""

    model: str
    input: Path
    output: Path
    server: str = "127.0.0.1:50051"
    text: str | None = None
    features: tuple[str, ...] | None = None
    group_by: str | None = None
    in_flight: int = 4
    version: int = 0
    timeout_s: float = 300.0
    is_quiet: bool = False


@dataclass
class Summary:
    """What came of it."""

    rows: int = 0
    failed: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.rows / self.seconds if self.seconds else 0.0
        return f"{self.rows} rows, {self.failed} failed, {self.seconds:.1f} s, {rate:,.0f} rows/s"


class Scorer:
    """Turns batches of input rows into batches of output rows."""

    def __init__(self, client: Client, options: Options, columns: Sequence[str]) -> None:
        self.client = client
        self.options = options
        self.info: ModelInfo = client.model(options.model, options.version)
        if options.group_by is not None and options.group_by not in columns:
            raise InvalidRequest(f"the input has no column {options.group_by!r}; it has {', '.join(columns)}")
        self.text = None
        self.features: tuple[str, ...] = ()
        if self.info.is_text:
            self.text = options.text or ("text" if "text" in columns else columns[0])
        else:
            self.features = options.features or self._features(columns)
        missing = [name for name in (self.text, *self.features) if name is not None and name not in columns]
        if missing:
            raise InvalidRequest(f"the input has no column {missing[0]!r}; it has {', '.join(columns)}")
        self._session: Session | None = None
        self._key: object = None
        self._key_error: CellarError | None = None

    def _features(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The model's own input names where the file has them, else all columns that are not the key."""
        if self.info.input_names and set(self.info.input_names) <= set(columns):
            return self.info.input_names
        return tuple(name for name in columns if name != self.options.group_by)

    # -- one sequence a row --------------------------------------------------------------------------------------

    def sequences(self, batch: pa.RecordBatch) -> list[Any]:
        """The sequence of each row, or the CellarError why it has none."""
        if self.text is not None:
            return [
                value if isinstance(value, str | bytes) else InvalidRequest("the text is missing")
                for value in batch.column(self.text).to_pylist()
            ]
        columns = [batch.column(name) for name in self.features]
        if len(columns) == 1 and (pa.types.is_list(columns[0].type) or pa.types.is_large_list(columns[0].type)):
            return [
                InvalidRequest("the steps are missing") if value is None else value for value in columns[0].to_pylist()
            ]
        try:
            values = np.stack(
                [np.asarray(c.cast(pa.float64()).to_numpy(zero_copy_only=False)) for c in columns], axis=1
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return [_row(values) for values in zip(*(c.to_pylist() for c in columns), strict=True)]
        return list(values[:, None])

    def score(self, batch: pa.RecordBatch) -> list[Emissions | CellarError]:
        """The answer to each row of a batch, a sequence each."""
        sequences = self.sequences(batch)
        good = [i for i, each in enumerate(sequences) if not isinstance(each, CellarError)]
        answers: list[Any] = list(sequences)
        found = self._predict([sequences[i] for i in good])
        for i, answer in zip(good, found, strict=True):
            answers[i] = answer
        return answers

    def _predict(self, sequences: list[Any]) -> Sequence[Emissions | CellarError]:
        for _ in range(20):
            try:
                return self.client.predict_many(
                    self.options.model,
                    sequences,
                    version=self.options.version,
                    bulk=True,
                    timeout=self.options.timeout_s,
                )
            except CellarError as error:
                if error.retry_after_s is None:
                    return [error] * len(sequences)
                failed = error
                time.sleep(error.retry_after_s)
        return [failed] * len(sequences)

    # -- runs of equal keys --------------------------------------------------------------------------------------

    def score_groups(self, batch: pa.RecordBatch) -> list[Emissions | CellarError]:
        """The answer to each row, the state carried on from the rows of the same key before it."""
        assert self.options.group_by is not None
        keys = batch.column(self.options.group_by).to_pylist()
        sequences = self.sequences(batch)
        answers: list[Emissions | CellarError] = []
        at = 0
        while at < len(keys):
            end = at + 1
            while end < len(keys) and keys[end] == keys[at]:
                end += 1
            answers += self._group(keys[at], sequences[at:end])
            at = end
        return answers

    def _group(self, key: object, rows: list[Any]) -> list[Emissions | CellarError]:
        """Rows of one key. A row that cannot be taken in is left out; the state goes on from the one before it."""
        if self._session is None or key != self._key:
            self.end_group()
            self._key, self._key_error = key, None
            try:
                self._session = self.client.session(self.options.model, version=self.options.version)
            except CellarError as error:
                return [error] * len(rows)
        session = self._session
        assert session is not None
        good = [i for i, row in enumerate(rows) if not isinstance(row, CellarError)]
        answers: list[Any] = list(rows)
        try:
            if self.info.is_text:
                raise InvalidRequest("texts are scored a row each")
            steps = np.concatenate([np.asarray(rows[i]).reshape(-1, *self.info.input_shape) for i in good])
            if len(steps) == len(good):
                emissions = session.step(steps, timeout=self.options.timeout_s)
                for i, emission in zip(good, emissions, strict=True):
                    answers[i] = emission[None]
                return answers
        except (CellarError, ValueError):
            pass  # one of them cannot be taken in: row by row says which
        for i in good:
            try:
                answers[i] = session.step(rows[i], timeout=self.options.timeout_s)
            except CellarError as error:
                answers[i] = error
        return answers

    def end_group(self) -> None:
        """Closes the session of the last key."""
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- out -----------------------------------------------------------------------------------------------------

    def output(self, batch: pa.RecordBatch, answers: Sequence[Emissions | CellarError]) -> pa.RecordBatch:
        """The input's columns, then label and p_<label>, or the outputs by name, then `error`."""
        arrays: list[pa.Array] = list(batch.columns)
        names = list(batch.schema.names)
        good = [None if isinstance(answer, CellarError) else answer for answer in answers]
        if self.info.labels:
            last = [None if a is None else np.asarray(a).reshape(-1, len(self.info.labels))[-1] for a in good]
            labels = [None if a is None else self.info.labels[int(a.argmax())] for a in last]
            names += ["label" if "label" not in names else "predicted", *(f"p_{label}" for label in self.info.labels)]
            arrays.append(pa.array(labels, pa.string()))
            for k in range(len(self.info.labels)):
                arrays.append(pa.array([None if a is None else float(a[k]) for a in last], pa.float32()))
        else:
            # a scalar for each row where it is one step, else the list of its emissions
            outputs = self.info.output_names or ("output",)
            is_step = bool(self.options.group_by) or not self._has_lists(batch)
            for k, name in enumerate(outputs):
                columns = [None if a is None else np.asarray(a).reshape(-1, len(outputs))[:, k] for a in good]
                names.append(name)
                if is_step:
                    arrays.append(pa.array([None if c is None else float(c[-1]) for c in columns], pa.float32()))
                else:
                    arrays.append(
                        pa.array([None if c is None else c.tolist() for c in columns], pa.list_(pa.float32()))
                    )
        errors = [f"{a.name}: {a.message}" if isinstance(a, CellarError) else None for a in answers]
        names.append("error")
        arrays.append(pa.array(errors, pa.string()))
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _has_lists(self, batch: pa.RecordBatch) -> bool:
        return any(pa.types.is_list(batch.column(name).type) for name in self.features)


def _row(values: tuple[Any, ...]) -> Any:
    """One step from values that may be no numbers."""
    try:
        return np.array([[float(value) for value in values]])
    except (TypeError, ValueError):
        bad = next((value for value in values if not isinstance(value, int | float)), None)
        return InvalidRequest(f"{bad!r} is not a number" if bad is not None else "a value is missing")


def score(options: Options) -> Summary:
    """Scores a file; the output appears, whole, at the end. CellarError, OSError, tables.TableError."""
    summary = Summary()
    begun = time.perf_counter()
    partial = options.output.with_name(options.output.name + ".partial")
    with (
        Client(options.server, timeout=options.timeout_s) as client,
        tables.Reader(options.input, BATCH_ROWS) as reader,
    ):
        scorer = Scorer(client, options, reader.columns)
        writer = tables.Writer(partial, options.output.suffix)
        try:
            with tables.progress(reader.num_rows, options.is_quiet) as advance:
                for batch, answers in _answers(scorer, options, iter(reader)):
                    writer.write(scorer.output(batch, answers))
                    summary.rows += len(answers)
                    summary.failed += sum(isinstance(answer, CellarError) for answer in answers)
                    advance(len(answers))
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
) -> Iterator[tuple[pa.RecordBatch, Sequence[Emissions | CellarError]]]:
    """Batches with their answers, in order; up to `in_flight` are on their way, except where state is carried."""
    if options.group_by is not None:
        for batch in batches:
            yield batch, scorer.score_groups(batch)
        return
    with ThreadPoolExecutor(options.in_flight) as pool:
        waiting: deque[tuple[pa.RecordBatch, Future[list[Emissions | CellarError]]]] = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(scorer.score, batch)))
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
        )
    )
    print(f"{arguments.output}: {summary}", file=sys.stderr)
    return int(arguments.strict and summary.failed > 0)


if __name__ == "__main__":
    from cellar_client.cli import main

    sys.exit(main(["score", *sys.argv[1:]]))
