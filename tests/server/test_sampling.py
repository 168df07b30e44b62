"""The generator against its authors' vectors, and draws that no batch-mate can change."""

from __future__ import annotations

import numpy as np
import pytest
from cellar_proto.v1.manifest_pb2 import Generation
from cellar_proto.v1.sampling_pb2 import Sampling
from cellar_server.errors import CellarError
from cellar_server.sampling.philox import philox4x32, uniforms
from cellar_server.sampling.sampler import Options, sample

from tests.fakes.bench import reason_of


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    found = philox4x32(np.array([counter], np.uint32), np.array([key], np.uint32))
    assert found.tolist() == [expected]


def draw(logits: np.ndarray, **options: float) -> np.ndarray:
    n = len(logits)
    return sample(
        logits.astype(np.float32),
        np.full(n, options.get("temperature", 1.0), np.float32),
        np.full(n, options.get("top_k", 0)),
        np.full(n, options.get("top_p", 0.0), np.float32),
        np.full(n, int(options.get("seed", 5)), np.uint64),
        np.arange(n, dtype=np.uint64),
    )[0]


def test_uniforms_are_in_range_and_even() -> None:
    u = uniforms(np.full(20_000, 3, np.uint64), np.arange(20_000, dtype=np.uint64))
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01


def test_frequencies_are_the_probabilities() -> None:
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.tile(np.log(p), (20_000, 1))
    assert np.abs(np.bincount(draw(logits), minlength=4) / 20_000 - p).max() < 0.015
    top = np.bincount(draw(logits, top_k=2), minlength=4) / 20_000
    assert np.abs(top - [0.625, 0.375, 0, 0]).max() < 0.015
    nucleus = np.bincount(draw(logits, top_p=0.7), minlength=4) / 20_000
    assert np.abs(nucleus - [0.625, 0.375, 0, 0]).max() < 0.015


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert draw(np.array([[1.0, 3.0, 3.0]]), temperature=0.0).tolist() == [1]


def columns_of(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
    return (
        rng.choice([0.0, 0.1, 0.7, 1.0, 1.3, 100.0], rows).astype(np.float32),
        rng.choice([0, 0, 1, 3, 9, 40, 5000], rows),
        rng.choice([0.0, 0.0, 0.1, 0.9, 0.95, 0.999, 1.0], rows).astype(np.float32),
        rng.integers(0, 2**63, rows).astype(np.uint64),
        rng.integers(0, 100, rows).astype(np.uint64),
    )


def sorted_whole(
    logits: np.ndarray,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    seeds: np.ndarray,
    positions: np.ndarray,
) -> list[int]:
    """What `sample` says that it draws, row by row, in words that look at everything."""
    ids = []
    for i, row in enumerate(logits.astype(np.float64)):
        if not temperature[i]:
            ids.append(int(row.argmax()))
            continue
        order = np.argsort(-row, kind="stable")
        weights = np.exp((row[order] - row.max()) / np.float64(temperature[i]))
        if top_k[i]:
            weights[top_k[i] :] = 0.0
        if 0 < top_p[i] < 1:
            weights[np.cumsum(weights) - weights >= np.float64(top_p[i]) * weights.sum()] = 0.0
        sums = np.cumsum(weights)
        place = int((sums <= uniforms(seeds[i : i + 1], positions[i : i + 1])[0] * sums[-1]).sum())
        ids.append(int(order[min(place, (weights > 0).sum() - 1)]))
    return ids


@pytest.mark.parametrize("size", [2, 66, 128, 129, 400, 1189])
@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0, 50.0])
def test_of_long_rows_only_a_part_is_sorted_and_the_draws_are_the_same(size: int, spread: float) -> None:
    rng = np.random.default_rng(size)
    for _ in range(12):
        logits = rng.normal(0, spread, (40, size)).astype(np.float32)
        logits[:10] = np.round(logits[:10])  # many are equal
        logits[10:20, rng.integers(1, size, size // 2)] = -np.inf  # masked
        columns = columns_of(rng, 40)
        assert sample(logits, *columns)[0].tolist() == sorted_whole(logits, *columns)


@pytest.mark.parametrize("size", [50, 3000])
def test_a_row_does_not_depend_on_its_batch_mates(size: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (64, size)).astype(np.float32)
    columns = columns_of(rng, 64)
    together = sample(logits, *columns)
    for i in range(64):
        alone = sample(logits[i : i + 1], *(c[i : i + 1] for c in columns))
        assert alone[0][0] == together[0][i]
        assert alone[1][0] == together[1][i]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-1),
        Sampling(temperature=float("nan")),
        Sampling(top_p=1.5),
        Sampling(max_steps=101),
        Sampling(stop=[""]),
        Sampling(stop=["x"] * 9),
    ],
)
def test_options_that_cannot_be(sampling: Sampling) -> None:
    with pytest.raises(CellarError) as caught:
        Options.from_proto(sampling, Generation(max_steps=100, default_max_steps=10), lambda: 1)
    assert reason_of(caught.value) == "INVALID_SAMPLING"


def test_what_a_caller_leaves_out_is_the_models() -> None:
    generation = Generation(
        max_steps=100, default_max_steps=10, default_temperature=0.75, default_top_k=5, default_top_p=0.5
    )
    silent = Options.from_proto(Sampling(seed=1), generation, lambda: 1)
    assert (silent.temperature, silent.top_k, silent.top_p) == (0.75, 5, 0.5)
    said = Options.from_proto(Sampling(seed=1, temperature=0, top_k=0, top_p=0), generation, lambda: 1)
    assert (said.temperature, said.top_k, said.top_p) == (0, 0, 0)
    # as it is kept with a session: what was said, whatever the model's own are by then
    assert Options.from_proto(said.to_proto(), generation, lambda: 1) == said
    with pytest.raises(CellarError, match="temperature is from 0 to 100, not 200"):
        Options.from_proto(Sampling(), Generation(max_steps=1, default_temperature=200), lambda: 1)


def test_a_seed_is_minted_where_none_is_given() -> None:
    generation = Generation(max_steps=100, default_max_steps=10)
    assert Options.from_proto(Sampling(), generation, lambda: 77).seed == 77
    assert Options.from_proto(Sampling(seed=0), generation, lambda: 77).seed == 0
    assert Options.from_proto(Sampling(), generation, lambda: 77).max_steps == 10
