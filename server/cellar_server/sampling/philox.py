"""Philox4x32-10, a counter-based generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011."""

from __future__ import annotations

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Ten rounds. counter: uint32 [n, 4], key: uint32 [n, 2] -> uint32 [n, 4]."""
    c0, c1, c2, c3 = (counter[:, i].copy() for i in range(4))
    k0, k1 = key[:, 0].copy(), key[:, 1].copy()
    for _ in range(10):
        p0, p1 = _M0 * c0.astype(np.uint64), _M1 * c2.astype(np.uint64)
        high0, low0 = (p0 >> _HALF).astype(np.uint32), (p0 & _LOW).astype(np.uint32)
        high1, low1 = (p1 >> _HALF).astype(np.uint32), (p1 & _LOW).astype(np.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _W0, k1 + _W1
    return np.stack([c0, c1, c2, c3], axis=1)


def uniforms(seeds: np.ndarray, positions: np.ndarray, draw: int = 0) -> np.ndarray:
    """One number in [0, 1) for each row, float64 [n] with 53 random bits, by (seed, position, draw) alone.

    seeds, positions: uint64 [n].
    """
    n = len(seeds)
    counter = np.zeros((n, 4), np.uint32)
    counter[:, 0], counter[:, 1] = positions & _LOW, positions >> _HALF
    counter[:, 2] = draw
    key = np.stack([seeds & _LOW, seeds >> _HALF], axis=1).astype(np.uint32)
    words = philox4x32(counter, key).astype(np.uint64)
    bits = (words[:, 0] >> np.uint64(5) << np.uint64(26)) | (words[:, 1] >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53
