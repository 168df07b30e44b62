"""Rows of equal key that follow one another, kept together while a table is read in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from cellar_client.tables import TableError

# Rows of one key from which they are scored as they come, and no longer read as a whole first.
MAX_GROUP_ROWS = 16_384


@dataclass(frozen=True)
class Unit:
    """Rows that are scored together: whole groups, or a piece of one long group (is_first: its first piece)."""

    batch: pa.RecordBatch
    bounds: list[tuple[int, int]]  # first and last (exclusive) row of each group
    is_piece: bool = False
    is_first: bool = False


def cut(keys: list[object]) -> list[tuple[int, int]]:
    """First and last (exclusive) place of each run of equal keys."""
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    return list(zip(starts, [*starts[1:], len(keys)], strict=True))


def units(batches: Iterable[pa.RecordBatch], column: str, max_rows: int = MAX_GROUP_ROWS) -> Iterator[Unit]:
    """The batches' rows in their order. Holds the rows of one open group, `max_rows` and a batch at most.

    TableError where the batches' types do not agree.
    """
    held: list[pa.RecordBatch] = []  # rows of the open group, which may go on in the next batch
    is_long = False  # the open group is given out in pieces
    key: object = None
    for batch in batches:
        keys = batch.column(column).to_pylist()
        if not keys:
            continue
        if is_long and keys[0] == key:
            end = cut(keys)[0][1]
            yield Unit(batch.slice(0, end), [(0, end)], is_piece=True)
            batch, keys = batch.slice(end), keys[end:]
            if not keys:
                continue
        elif held and keys[0] != key:
            yield _whole(held, column)
            held = []
        is_long = False
        last_start = cut(keys)[-1][0]
        if last_start:
            yield _whole([*held, batch.slice(0, last_start)], column)
            held = []
        held.append(batch.slice(last_start))
        key = keys[-1]
        if sum(each.num_rows for each in held) >= max_rows:
            piece = _join(held)
            yield Unit(piece, [(0, piece.num_rows)], is_piece=True, is_first=True)
            held, is_long = [], True
    if held:
        yield _whole(held, column)


def _whole(batches: list[pa.RecordBatch], column: str) -> Unit:
    batch = _join(batches)
    return Unit(batch, cut(batch.column(column).to_pylist()))


def _join(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    try:
        tables = [pa.Table.from_batches([batch]) for batch in batches]
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks().to_batches()[0]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(f"a later part of the input has other types: {error}") from None
