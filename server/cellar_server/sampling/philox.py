"""Philox4x32-10, a counter-based generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011."""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
# what each of the ten rounds adds to the key
_WEYL = np.array([[[n * 0x9E3779B9], [n * 0xBB67AE85]] for n in range(10)], np.uint64)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Ten rounds. counter: uint32 [n, 4], key: uint32 [n, 2] -> uint32 [n, 4]."""
    # words 0 and 2, and words 1 and 3: uint64 [2, n] each, so that a round is five operations
    even, odd = counter.T[::2].astype(np.uint64), counter.T[1::2].astype(np.uint64)
    keys = key.T.astype(np.uint64) + _WEYL & _LOW
    for each in keys:
        product = _MULTIPLIERS * even
        even = (product >> _HALF)[::-1] ^ odd ^ each
        odd = (product & _LOW)[::-1]
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=1).astype(np.uint32)


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
