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
    seed and position.
    """
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    ids = wide.argmax(axis=1)
    drawn = np.flatnonzero(temperature > 0)
    if len(drawn):
        ids[drawn] = _draw(
            shifted[drawn], temperature[drawn], top_k[drawn], top_p[drawn], seeds[drawn], positions[drawn]
        )
    return ids, log_probabilities[np.arange(len(ids)), ids].astype(np.float32)


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
    rows, size = shifted.shape
    order = np.argsort(-shifted, axis=1, kind="stable")
    weights = np.exp(np.take_along_axis(shifted, order, axis=1) / temperature[:, None].astype(np.float64))
    k = np.where(top_k > 0, np.minimum(top_k, size), size)
    weights[np.arange(size) >= k[:, None]] = 0.0
    sums = np.cumsum(weights, axis=1)
    p = np.where((top_p > 0) & (top_p < 1), top_p.astype(np.float64), 2.0)
    # a token stays while the ones before it have not reached top_p of the whole
    weights[(sums - weights) >= p[:, None] * sums[:, -1:]] = 0.0
    sums = np.cumsum(weights, axis=1)
    target = uniforms(seeds, positions) * sums[:, -1]
    place = (sums <= target[:, None]).sum(axis=1)
    last = (weights > 0).sum(axis=1) - 1
    return order[np.arange(rows), np.minimum(place, last)]
