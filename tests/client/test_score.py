"""`cellar score` against a real server whose model gives running sums of two numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cellar_client
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from cellar_client.cli import main
from cellar_client.groups import units
from cellar_client.score import BATCH_ROWS
from cellar_client.tables import TableError
from hypothesis import given
from hypothesis import strategies as st


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def score(address: str, source: Path, *flags: str, kind: str = ".parquet") -> list[dict[str, Any]]:
    out = source.with_name(f"out{kind}")
    assert (
        main(["score", "--server", address, "--model", "counter", "--input", str(source), "--output", str(out), *flags])
        == 0
    )
    assert not list(source.parent.glob("*.partial"))
    if kind == ".parquet":
        return pa.parquet.read_table(out).to_pylist()
    if kind == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def sums(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(row["output_0"], row["output_1"]) for row in rows]


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_rows_are_scored_in_order(address: str, tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"in{kind}", [{"id": i, "a": float(i), "b": 0.5} for i in range(3000)])
    rows = score(address, tmp_path / f"in{kind}", "--features", "a,b")
    assert [row["id"] for row in rows] == list(range(3000))
    assert sums(rows) == [(float(i), 0.5) for i in range(3000)]
    assert {row["error"] for row in rows} == {None}


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_the_output_is_of_the_kind_that_its_name_says(address: str, tmp_path: Path, kind: str) -> None:
    write(tmp_path / "in.parquet", [{"a": 1.5, "b": 2.0}, {"a": -1.0, "b": 0.0}])
    rows = score(address, tmp_path / "in.parquet", kind=kind)
    assert [(float(row["output_0"]), float(row["output_1"])) for row in rows] == [(1.5, 2), (-1, 0)]


def test_rows_that_fail_are_written_with_their_reason(address: str, tmp_path: Path) -> None:
    values = [(1.0, 1.0), (None, 1.0), ("x", 2.0), (4.0, 2.0)]
    write(tmp_path / "in.jsonl", [{"a": a, "b": b} for a, b in values])
    rows = score(address, tmp_path / "in.jsonl")
    assert sums(rows) == [(1, 1), (None, None), (None, None), (4, 2)]
    assert rows[0]["error"] is rows[3]["error"] is None
    assert "missing" in rows[1]["error"]
    assert "'x' is not a number" in rows[2]["error"]
    source, target = str(tmp_path / "in.jsonl"), str(tmp_path / "strict.csv")
    flags = ["--server", address, "--model", "counter", "--input", source, "--output", target, "--strict"]
    assert main(["score", *flags]) == 1


def test_a_value_that_is_not_finite_fails_its_row(address: str, tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", [{"a": 1.0, "b": 1.0}, {"a": float("nan"), "b": 1.0}])
    rows = score(address, tmp_path / "in.parquet")
    assert sums(rows) == [(1, 1), (None, None)]
    assert rows[1]["error"].startswith("NON_FINITE_INPUT: ")


def test_rows_of_one_key_are_one_sequence_across_batches(address: str, tmp_path: Path) -> None:
    lengths = [BATCH_ROWS - 5, 10, 2 * BATCH_ROWS + 3, 1, 1, 40]
    keys = [key for key, n in enumerate(lengths) for _ in range(n)]
    write(tmp_path / "in.parquet", [{"key": key, "a": 1.0, "b": float(key)} for key in keys])
    rows = score(address, tmp_path / "in.parquet", "--group-by", "key", "--features", "a,b")
    expected = [(step + 1.0, key * (step + 1.0)) for key, n in enumerate(lengths) for step in range(n)]
    assert sums(rows) == expected


def test_a_group_of_any_length_is_scored_in_pieces(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cellar_client.groups.units, "__defaults__", (100,))
    lengths = [30, 2000, 1100, 7]
    keys = [key for key, n in enumerate(lengths) for _ in range(n)]
    write(tmp_path / "in.parquet", [{"key": key, "a": 1.0, "b": 0.0} for key in keys])
    rows = score(address, tmp_path / "in.parquet", "--group-by", "key")
    assert [row["output_0"] for row in rows] == [step + 1.0 for n in lengths for step in range(n)]


def test_a_bad_row_is_left_out_of_its_group(address: str, tmp_path: Path) -> None:
    values = [1.0, None, 2.0, float("inf"), 3.0]
    rows = [{"key": key, "a": value, "b": 0.0} for key in "xy" for value in (values if key == "x" else [5.0])]
    write(tmp_path / "in.parquet", rows)
    rows = score(address, tmp_path / "in.parquet", "--group-by", "key")
    assert [row["output_0"] for row in rows] == [1, None, 3, None, 6, 5]
    assert [row["error"] is None for row in rows] == [True, False, True, False, True, True]


def test_lists_are_sequences_of_any_length(address: str, tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", [{"steps": [[1.0, 2.0]] * n} for n in (3, 1, 2)])
    rows = score(address, tmp_path / "in.parquet", "--features", "steps")
    assert [row["output_0"] for row in rows] == [[1, 2, 3], [1], [1, 2]]
    assert [row["output_1"] for row in rows] == [[2, 4, 6], [2], [2, 4]]


def test_a_file_that_cannot_be_scored_leaves_nothing(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in.csv", [{"a": 1.0, "b": 1.0}])
    flags = ["score", "--server", address, "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")]
    assert main([*flags, "--model", "nothing"]) == 1
    assert main([*flags, "--model", "counter", "--group-by", "c"]) == 1
    assert "no column 'c'; it has a, b" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), max_size=12),
    st.integers(1, 9),
    st.integers(1, 15),
)
def test_units_hold_every_row_once_and_whole_groups(
    runs: list[tuple[int, int]], batch_rows: int, max_rows: int
) -> None:
    keys = [key for key, n in runs for _ in range(n)]
    table = pa.table({"key": pa.array(keys, pa.int64()), "row": pa.array(range(len(keys)), pa.int64())})
    made = list(units(table.to_batches(batch_rows), "key", max_rows))
    rows = [row for unit in made for row in unit.batch.column("row").to_pylist()]
    assert rows == list(range(len(keys)))
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    begun = []
    for unit in made:
        first = unit.batch.column("row")[0].as_py()
        if not unit.is_piece:
            begun += [first + start for start, _ in unit.bounds]
            assert unit.batch.num_rows == unit.bounds[-1][1]
        elif unit.is_first:
            begun.append(first)
    assert begun == starts
    assert all(end - start < max_rows + batch_rows for unit in made for start, end in unit.bounds)


def test_batches_of_other_types_are_an_error() -> None:
    first = pa.RecordBatch.from_pylist([{"key": 1, "a": 1.0}])
    with pytest.raises(TableError, match="other types"):
        list(units([first, pa.RecordBatch.from_pylist([{"key": 1, "a": "x"}])], "key"))


def test_a_label_is_the_most_likely_class() -> None:
    emissions = cellar_client.Emissions(np.array([[0.1, 0.9], [0.7, 0.3]]), ("no", "yes"))
    assert (emissions.labels, emissions.label) == (["yes", "no"], "no")
