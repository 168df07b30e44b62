"""Batches of input rows into batches of output rows: what `cellar score` does between reading and writing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cellar_client.client import Client, Session
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, InvalidRequest
from cellar_client.groups import Unit
from cellar_client.messages import ModelInfo

# the steps of each row: of numbers, one array [rows, 1, ...]
Steps = Sequence[Any] | np.ndarray


@dataclass(frozen=True)
class Options:
    """What to score. text: the column of texts; features: columns of one step's numbers (or one column of lists of
    steps); group_by: column whose runs of equal keys are sequences; in_flight: batches on their way at once;
    credentials: arguments of Client."""

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
    credentials: Mapping[str, Any] = field(default_factory=dict)


class Answers:
    """The answers to a batch of rows. last: float32 [rows, size], each row's last emission; every: all of them, where
    they are kept; errors: why some rows have none."""

    def __init__(self, num_rows: int, size: int, errors: dict[int, CellarError], *, keeps: bool = False) -> None:
        self.last = np.zeros((num_rows, size), np.float32)
        self.every: list[np.ndarray | None] | None = [None] * num_rows if keeps else None
        self.errors = dict(errors)

    def put(self, row: int, answer: Emissions | CellarError) -> None:
        """One row's emissions [n, ...], or why it has none."""
        if isinstance(answer, CellarError):
            self.errors[row] = answer
            return
        emissions = np.asarray(answer).reshape(-1, self.last.shape[1])
        self.last[row] = emissions[-1]
        if self.every is not None:
            self.every[row] = emissions


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
        if self.text is not None and options.group_by is not None:
            raise InvalidRequest("texts are scored a row each: --group-by is for numbers")
        self._session: Session | None = None
        self.output_size = int(np.prod(self.info.output_shape, dtype=np.int64))

    def _features(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The model's own input names where the file has them, else all columns that are not the key."""
        if self.info.input_names and set(self.info.input_names) <= set(columns):
            return self.info.input_names
        return tuple(name for name in columns if name != self.options.group_by)

    # -- in ------------------------------------------------------------------------------------------------------

    def read(self, batch: pa.RecordBatch) -> tuple[Steps, dict[int, CellarError]]:
        """The sequence of each row, and why some rows have none. Rows of numbers are one array [rows, 1, ...]."""
        if self.text is not None:
            texts = batch.column(self.text).to_pylist()
            bad = [i for i, text in enumerate(texts) if not isinstance(text, str | bytes)]
            return texts, dict.fromkeys(bad, InvalidRequest("the text is missing"))
        columns = [batch.column(name) for name in self.features]
        if self.has_lists(batch):
            rows = columns[0].to_pylist()
            return rows, {i: InvalidRequest("the steps are missing") for i, row in enumerate(rows) if row is None}
        if any(not _is_number(column.type) for column in columns):
            rows = [_row(values) for values in zip(*(column.to_pylist() for column in columns), strict=True)]
            return rows, {i: row for i, row in enumerate(rows) if isinstance(row, CellarError)}
        values = np.empty((batch.num_rows, 1, len(columns)), np.float64)
        errors: dict[int, CellarError] = {}
        for k, (name, column) in enumerate(zip(self.features, columns, strict=True)):
            values[:, 0, k] = column.to_numpy(zero_copy_only=False)
            if column.null_count:
                missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
                errors |= dict.fromkeys(missing, InvalidRequest(f"{name} is missing"))
        return values, errors

    def has_lists(self, batch: pa.RecordBatch) -> bool:
        """A row holds a list of steps."""
        kind = batch.schema.field(self.features[0]).type if len(self.features) == 1 else None
        return kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))

    # -- one sequence a row --------------------------------------------------------------------------------------

    def score(self, batch: pa.RecordBatch) -> Answers:
        """The answer to each row of a batch, a sequence each."""
        rows, errors = self.read(batch)
        answers = Answers(len(rows), self.output_size, errors, keeps=self.text is None and self.has_lists(batch))
        good = [i for i in range(len(rows)) if i not in errors]
        for i, answer in zip(good, self._predict([rows[i] for i in good]), strict=True):
            answers.put(i, answer)
        return answers

    def _predict(self, sequences: list[Any], all_emissions: bool | None = None) -> Sequence[Emissions | CellarError]:
        for _ in range(20):
            try:
                return self.client.predict_many(
                    self.options.model,
                    sequences,
                    version=self.options.version,
                    all_emissions=all_emissions,
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

    def score_groups(self, unit: Unit) -> Answers:
        """The answer to each row of whole groups: a group is one sequence, and its rows get the emissions of theirs."""
        rows, errors = self.read(unit.batch)
        answers = Answers(len(rows), self.output_size, errors)
        sequences, places = [], []
        for start, end in unit.bounds:
            steps = self._joined(rows, errors, start, end)
            if steps is None:
                self._row_by_row(rows, start, end, answers)
            else:
                sequences.append(steps)
                places.append((start, end))
        for (start, end), emissions in zip(places, self._predict(sequences, all_emissions=True), strict=True):
            if isinstance(emissions, CellarError):
                self._row_by_row(rows, start, end, answers)
            else:
                self._put(rows, start, end, emissions, answers)
        return answers

    def score_piece(self, unit: Unit) -> Answers:
        """The answer to each row of a piece of a long group, the state carried on from the piece before it."""
        rows, errors = self.read(unit.batch)
        answers = Answers(len(rows), self.output_size, errors)
        try:
            if unit.is_first:
                self.end_group()
                self._session = self.client.session(self.options.model, version=self.options.version)
            if self._session is None:
                raise InvalidRequest("the group's session could not be opened")
        except CellarError as error:
            answers.errors |= {i: errors.get(i, error) for i in range(len(rows))}
            return answers
        steps = self._joined(rows, errors, 0, len(rows))
        if steps is not None:
            try:
                emissions = self._session.step(steps, timeout=self.options.timeout_s)
                self._put(rows, 0, len(rows), emissions, answers)
                return answers
            except CellarError:
                pass  # one of them cannot be taken in: row by row says which
        self._steps(self._session, rows, 0, len(rows), answers)
        return answers

    def end_group(self) -> None:
        """Closes the session of the last long group."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _joined(self, rows: Steps, errors: dict[int, CellarError], start: int, end: int) -> np.ndarray | None:
        """The steps of rows `start` to `end` behind one another; None where a row has none or another shape."""
        if errors and any(i in errors for i in range(start, end)):
            return None
        try:
            if isinstance(rows, np.ndarray):
                return rows[start:end].reshape(end - start, *self.info.input_shape)
            return np.concatenate([np.asarray(row).reshape(-1, *self.info.input_shape) for row in rows[start:end]])
        except (ValueError, TypeError):
            return None

    def _put(self, rows: Steps, start: int, end: int, emissions: Emissions, answers: Answers) -> None:
        """Gives each row the last emission of its steps."""
        ends = np.cumsum([len(row) for row in rows[start:end]]) - 1
        answers.last[start:end] = np.asarray(emissions).reshape(-1, self.output_size)[ends]

    def _row_by_row(self, rows: Steps, start: int, end: int, answers: Answers) -> None:
        """A group in which a row cannot be taken in: that one is left out, the state goes on from the one before it."""
        try:
            with self.client.session(self.options.model, version=self.options.version) as session:
                self._steps(session, rows, start, end, answers)
        except CellarError as error:
            answers.errors |= {i: answers.errors.get(i, error) for i in range(start, end)}

    def _steps(self, session: Session, rows: Steps, start: int, end: int, answers: Answers) -> None:
        for i in range(start, end):
            if i not in answers.errors:
                try:
                    answers.put(i, session.step(rows[i], timeout=self.options.timeout_s))
                except CellarError as error:
                    answers.errors[i] = error

    # -- out -----------------------------------------------------------------------------------------------------

    def output(self, batch: pa.RecordBatch, answers: Answers) -> pa.RecordBatch:
        """The input's columns, then label and p_<label>, or the outputs by name, then `error`."""
        names, arrays = list(batch.schema.names), list(batch.columns)
        failed = np.zeros(batch.num_rows, np.bool_)
        failed[list(answers.errors)] = True
        outputs: Sequence[str] = self.info.output_names
        if self.info.labels:
            outputs = [f"p_{label}" for label in self.info.labels]
            labels = [self.info.labels[k] for k in answers.last.argmax(axis=1)]
            names.append("label" if "label" not in names else "predicted")
            arrays.append(pa.array(labels, pa.string(), mask=failed))
        elif not outputs:
            outputs = ["output"] if self.output_size == 1 else [f"output_{k}" for k in range(self.output_size)]
        for k, name in enumerate(outputs):
            names.append(name)
            if answers.every is None or self.info.labels:
                arrays.append(pa.array(answers.last[:, k], pa.float32(), mask=failed))
            else:
                lists = [None if each is None else each[:, k] for each in answers.every]
                arrays.append(pa.array(lists, pa.list_(pa.float32())))
        errors = [answers.errors.get(i) for i in range(batch.num_rows)]
        names.append("error")
        arrays.append(pa.array([None if e is None else f"{e.name}: {e.message}" for e in errors], pa.string()))
        return pa.RecordBatch.from_arrays(arrays, names=names)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _row(values: tuple[Any, ...]) -> Any:
    """One step from values that may be no numbers."""
    try:
        return np.array([[float(value) for value in values]])
    except (TypeError, ValueError):
        bad = next((value for value in values if value is not None and not isinstance(value, int | float)), None)
        return InvalidRequest(f"{bad!r} is not a number" if bad is not None else "a value is missing")
