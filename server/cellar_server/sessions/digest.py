"""Digests of chunks: does a chunk sent again hold the same content? Vectorised over the rows of a frame."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(words: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads every bit (the finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def digests(data: bytes | np.ndarray, lengths: np.ndarray, unit_bytes: int) -> np.ndarray:
    """Digest of each chunk: uint64 [N], the same in every process.

    data: the chunks' bytes behind one another; lengths: of each in units [N]; unit_bytes: bytes of one unit. A chunk's
    digest depends on its own bytes and length only. It finds a careless caller, not a forger: the session is the
    caller's own.
    """
    width = 4 if unit_bytes % 4 == 0 else 2 if unit_bytes % 2 == 0 else 1
    words = np.frombuffer(data, dtype=f"<u{width}").astype(np.uint64)
    counts = lengths * (unit_bytes // width)
    ends = np.cumsum(counts)
    starts = ends - counts
    place = np.arange(len(words), dtype=np.uint64) - np.repeat(starts, counts).astype(np.uint64)
    mixed = mix(words + (place + np.uint64(1)) * _GOLDEN)
    sums = np.zeros(len(lengths), np.uint64)
    filled = counts > 0
    if filled.any():
        sums[filled] = np.add.reduceat(mixed, starts[filled])
    return mix(sums ^ (lengths.astype(np.uint64) * _GOLDEN))
