"""Drawing the next emission: greedy, temperature, top-k, top-p. No row's draw depends on another row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cellar_proto.v1 import manifest_pb2, sampling_pb2
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.sampling.philox import uniforms

MAX_TEMPERATURE = 100.0
MAX_STOPS, MAX_STOP_BYTES = 8, 64
# Logits up to which a row is sorted as a whole.
SMALL = 128
# Logits that are looked at together: what stays in a core's cache.
BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Options:
    """How one generation is drawn. temperature 0: greedy; top_k 0, top_p 0 or 1: no cut; max_steps: emissions;
    is_seeded: the caller named the seed."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_steps: int
    stop: tuple[bytes, ...] = ()
    is_seeded: bool = True

    def to_proto(self) -> sampling_pb2.Sampling:
        """The same as a message."""
        return sampling_pb2.Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            max_steps=self.max_steps,
            stop=[stop.decode() for stop in self.stop],
        )

    @staticmethod
    def from_proto(
        sampling: sampling_pb2.Sampling, generation: manifest_pb2.Generation, mint_seed: Callable[[], int]
    ) -> Options:
        """Checked options, the model's own where the caller leaves one out; INVALID_SAMPLING names the first that
        cannot be."""
        limit = generation.max_steps
        temperature = sampling.temperature if sampling.HasField("temperature") else generation.default_temperature
        top_k = sampling.top_k if sampling.HasField("top_k") else generation.default_top_k
        top_p = sampling.top_p if sampling.HasField("top_p") else generation.default_top_p
        for is_bad, message in (
            (
                not 0 <= temperature <= MAX_TEMPERATURE,
                f"temperature is from 0 to {MAX_TEMPERATURE:g}, not {temperature:g}",
            ),
            (not 0 <= top_p <= 1, f"top_p is from 0 to 1, not {top_p:g}"),
            (math.isnan(temperature) or math.isnan(top_p), "a sampling option is NaN"),
            (sampling.max_steps > limit, f"max_steps is {limit} at most, not {sampling.max_steps}"),
            (len(sampling.stop) > MAX_STOPS, f"at most {MAX_STOPS} stop texts"),
            (
                any(not 1 <= len(s.encode()) <= MAX_STOP_BYTES for s in sampling.stop),
                f"a stop text has 1 to {MAX_STOP_BYTES} bytes",
            ),
        ):
            if is_bad:
                raise CellarError(Reason.INVALID_SAMPLING, message)
        return Options(
            temperature,
            top_k,
            top_p,
            sampling.seed if sampling.HasField("seed") else mint_seed(),
            sampling.max_steps or min(generation.default_max_steps, limit),
            tuple(stop.encode() for stop in sampling.stop),
            sampling.HasField("seed"),
        )


def sample(
    logits: np.ndarray,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    seeds: np.ndarray,
    positions: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The next token of each row and its log-probability before any cut.

    logits: float32 [rows, V]; temperature, top_k, top_p, seeds, positions (both uint64): [rows] -> ids int64 [rows],
    log_probabilities float32 [rows]. Greedy rows take the lowest of equal ids. A drawn row is ordered by falling
    logit, cut to the top k, then to the fewest whose share reaches top_p, and inverted at a Philox number of its
    seed and position. Of a long row only those are sorted that this can come to.
    """
    block = max(1, BLOCK // logits.shape[1])
    if len(logits) > block:
        columns = (logits, temperature, top_k, top_p, seeds, positions)
        parts = [sample(*(each[i : i + block] for each in columns)) for i in range(0, len(logits), block)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([each for _, each in parts])
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    ids = shifted.argmax(axis=1)
    norms = np.log(np.exp(shifted).sum(axis=1))
    drawn = temperature > 0
    if drawn.all():
        ids = _draw(shifted, temperature, top_k, top_p, seeds, positions)
    elif drawn.any():
        columns = (shifted, temperature, top_k, top_p, seeds, positions)
        ids[drawn] = _draw(*(each[drawn] for each in columns))
    return ids, (shifted[np.arange(len(ids)), ids] - norms).astype(np.float32)


def most_likely(logits: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """The `count` most likely ids of one row float32 [V], and their log-probabilities."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    count = min(count, len(wide))
    ids = np.argpartition(-wide, count - 1)[:count]
    ids = ids[np.lexsort((ids, -wide[ids]))]
    return ids.tolist(), wide[ids].tolist()


def _draw(
    shifted: np.ndarray,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    seeds: np.ndarray,
    positions: np.ndarray,
) -> np.ndarray:
    """Ids [rows]. shifted: float64 [rows, V]: logits less the row's highest."""
    size = shifted.shape[1]
    scaled = shifted / temperature[:, None].astype(np.float64)
    k = np.where(top_k > 0, np.minimum(top_k, size), size)
    p = np.where((top_p > 0) & (top_p < 1), top_p.astype(np.float64), 2.0)
    u = uniforms(seeds, positions)
    if size <= SMALL:
        order = np.argsort(-scaled, axis=1, kind="stable")
        return _invert(order, np.exp(np.take_along_axis(scaled, order, axis=1)), k, p, u, None)
    total = np.exp(scaled).sum(axis=1)
    ids, head = _heads(scaled, k, np.log(0.5 * np.where(p < 1, 1 - p, 1 - u) * total / size))
    order = np.argsort(-head, axis=1, kind="stable")
    weights = np.exp(np.take_along_axis(head, order, axis=1))
    return _invert(np.take_along_axis(ids, order, axis=1), weights, k, p, u, np.where(k < size, 0.0, total))


def _heads(scaled: np.ndarray, k: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What can be drawn of each row: ids ascending int64 [rows, C], and their logits, -inf behind the last one.

    That is the top k where k [rows] cuts, else what lies above floor [rows]: V tokens at the floor would weigh half of
    what no draw of the row looks at.
    """
    rows, size = scaled.shape
    mask = scaled > floor[:, None]
    for each in np.unique(k[k < size]).tolist():
        those = np.flatnonzero(k == each)
        lowest = np.partition(scaled[those], size - each, axis=1)[:, size - each]
        mask[those] = scaled[those] >= lowest[:, None]
    flat = np.flatnonzero(mask)
    row = flat // size
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(flat)) - (np.cumsum(counts) - counts)[row]
    ids = np.zeros((rows, counts.max()), np.int64)
    head = np.full(ids.shape, -np.inf)
    ids[row, place] = flat - row * size
    head[row, place] = scaled.ravel()[flat]
    return ids, head


def _invert(
    ids: np.ndarray, weights: np.ndarray, k: np.ndarray, p: np.ndarray, u: np.ndarray, total: np.ndarray | None
) -> np.ndarray:
    """The id of each row at u of what its cuts leave. ids, weights: [rows, C], the heaviest first; total: weight of the
    whole row where no k cuts it, None where C is all of it."""
    weights[np.arange(weights.shape[1]) >= k[:, None]] = 0.0
    sums = np.cumsum(weights, axis=1)
    whole = sums[:, -1] if total is None else np.where(total > 0, total, sums[:, -1])
    if (p < 1).any():
        # a token stays while the ones before it have not reached top_p of the whole
        weights[(sums - weights) >= (p * whole)[:, None]] = 0.0
        sums = np.cumsum(weights, axis=1)
        whole = np.where(p < 1, sums[:, -1], whole)
    place = (sums <= (u * whole)[:, None]).sum(axis=1)
    last = (weights > 0).sum(axis=1) - 1
    return ids[np.arange(len(ids)), np.minimum(place, last)]
