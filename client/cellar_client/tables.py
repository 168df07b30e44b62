"""CSV, JSONL and Parquet files in batches, by pyarrow: never a whole file in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

KINDS = (".csv", ".jsonl", ".parquet")
# Rows of a JSONL file that are read together: its columns' types are settled by them.
_JSON_ROWS = 512
# Rows of a row group of a Parquet file that is written.
_GROUP_ROWS = 16_384


class TableError(Exception):
    """A file cannot be read or written as a table; the message says why."""


class Reader:
    """A file's rows in record batches of at most `batch_rows`. num_rows: where the format knows it."""

    def __init__(self, path: Path, batch_rows: int) -> None:
        self.path = path
        self.batch_rows = batch_rows
        self.num_rows: int | None = None
        kind = _kind(path)
        if not path.is_file():
            raise TableError(f"{path} does not exist")
        self._file: Any = None
        try:
            if kind == ".parquet":
                # reading ahead keeps the whole file in memory
                self._file = pa.parquet.ParquetFile(path, pre_buffer=False)
                self.num_rows = self._file.metadata.num_rows
                self.columns = self._file.schema_arrow.names
                self._batches: Iterator[pa.RecordBatch] = self._file.iter_batches(batch_rows)
            elif kind == ".csv":
                self._file = pa.csv.open_csv(path, pa.csv.ReadOptions(block_size=1 << 20))
                self.columns = self._file.schema.names
                self._batches = iter(self._file)
            else:
                self._file = path.open("rb")
                self._batches = self._json()
                first = next(self._batches, None)
                self.columns = [] if first is None else first.schema.names
                self._batches = _chain(first, self._batches)
        except (pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TableError(f"{path}: {error}") from None
        if not self.columns:
            raise TableError(f"{path} holds no rows")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                for at in range(0, batch.num_rows, self.batch_rows):
                    yield batch.slice(at, self.batch_rows)
        except (pa.ArrowInvalid, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TableError(f"{self.path}: {error}") from None

    def _json(self) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, Any]] = []
        names: list[str] | None = None
        for line in self._file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TableError(f"{self.path}: each line is an object")
                rows.append(row)
            if len(rows) == _JSON_ROWS:
                names = names or list(dict.fromkeys(name for row in rows for name in row))
                yield _columns(names, rows)
                rows = []
        if rows:
            names = names or list(dict.fromkeys(name for row in rows for name in row))
            yield _columns(names, rows)


def _columns(names: list[str], rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """A batch of JSON objects; a column whose values do not agree in type is one of texts."""
    arrays = []
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            arrays.append(pa.array(values, from_pandas=False))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            arrays.append(pa.array([v if isinstance(v, str) or v is None else json.dumps(v) for v in values]))
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _chain(first: pa.RecordBatch | None, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if first is not None:
        yield first
    yield from rest


class Writer:
    """Writes record batches to a file of a kind, as they come."""

    def __init__(self, path: Path, kind: str) -> None:
        self._group: list[pa.RecordBatch] = []  # of Parquet's next row group: its footer keeps a line for each of them
        self.path = path
        self.kind = _kind(Path("x" + kind))
        self._writer: Any = None
        self._schema: pa.Schema | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a batch. TableError where its columns cannot be those of the first one."""
        if self._writer is None:
            self._schema = batch.schema
            if self.kind == ".parquet":
                self._writer = pa.parquet.ParquetWriter(self.path, batch.schema)
            elif self.kind == ".csv":
                self._writer = pa.csv.CSVWriter(self.path, _flat(batch).schema)
            else:
                self._writer = self.path.open("w", encoding="utf-8")
        if self.kind == ".jsonl":
            for row in batch.to_pylist():
                self._writer.write(json.dumps(row, ensure_ascii=False) + "\n")
            return
        try:
            batch = batch.cast(self._schema) if batch.schema != self._schema else batch
        except (pa.ArrowInvalid, ValueError) as error:
            raise TableError(f"{self.path.name}: a later part of the input has other types: {error}") from None
        if self.kind == ".csv":
            self._writer.write_batch(_flat(batch))
            return
        self._group.append(batch)
        if sum(each.num_rows for each in self._group) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._group:
            self._writer.write_table(pa.Table.from_batches(self._group))
            self._group = []

    def close(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()


def _flat(batch: pa.RecordBatch) -> pa.RecordBatch:
    """CSV has no lists: they are written as JSON."""
    arrays = [
        pa.array([None if v is None else json.dumps(v) for v in column.to_pylist()], pa.string())
        if pa.types.is_nested(column.type)
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _kind(path: Path) -> str:
    if path.suffix not in KINDS:
        raise TableError(f"{path.name}: the ending is one of {', '.join(KINDS)}")
    return path.suffix


@contextmanager
def progress(total: int | None, is_quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's standard error; elsewhere nothing."""
    if is_quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.update(task, advance=count)
