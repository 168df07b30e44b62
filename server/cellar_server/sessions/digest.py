"""Digests of chunks: does a chunk sent again hold the same content? Vectorised over the rows of a frame."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = 2**64 - 1
_U4 = np.dtype("<u4")
# Words of one block: each word of a block has a key of its own.
_BLOCK = 4096


def mix(words: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads every bit (the finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


_KEYS = mix(np.arange(1, _BLOCK + 1, dtype=np.uint64) * _GOLDEN)


def digests(data: bytes | np.ndarray, lengths: np.ndarray, unit_bytes: int) -> np.ndarray:
    """Digest of each chunk: uint64 [N], the same in every process.

    data: the chunks' bytes behind one another; lengths: of each in units [N]; unit_bytes: bytes of one unit. A chunk's
    digest depends on its own bytes and length only: 32-bit words are hashed a block at a time by multilinear hashing
    (Carter and Wegman, "Universal classes of hash functions", JCSS 1979), the blocks' sums are mixed and added. It
    finds a careless caller, not a forger: the session is the caller's own.
    """
    width = 4 if unit_bytes % 4 == 0 else 2 if unit_bytes % 2 == 0 else 1
    words = np.frombuffer(data, dtype=f"<u{width}").astype(np.uint64)
    n = len(lengths)
    counts = lengths * (unit_bytes // width)
    first = int(counts[0])
    if 0 < first <= _BLOCK and len(words) == n * first and (n == 1 or (counts == first).all()):
        sums = mix(np.dot(words.reshape(n, first), _KEYS[:first]) + _GOLDEN)  # twice as fast as @, where no BLAS is
    else:
        sums = _sums(words, counts)
    return mix(sums ^ (lengths.astype(np.uint64) * _GOLDEN))


def digest_of(data: np.ndarray, length: int, unit_bytes: int) -> int:
    """The same of one chunk. For a few words, which is what a step has, in plain numbers: each array operation costs
    more than all of it."""
    words = data.view(_U4 if unit_bytes % 4 == 0 else "<u2" if unit_bytes % 2 == 0 else "u1")
    if not 0 < len(words) <= _BLOCK:
        return int(digests(data, np.array([length]), unit_bytes)[0])
    sums = _mix(int(np.dot(words.astype(np.uint64), _KEYS[: len(words)])) + 0x9E3779B97F4A7C15 & _WORD)
    return _mix(sums ^ (length * 0x9E3779B97F4A7C15 & _WORD))


def _mix(word: int) -> int:
    """As `mix`."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)


def _sums(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mixed blocks of chunks of `counts` words [N], added: uint64 [N]."""
    n = len(counts)
    sums = np.zeros(n, np.uint64)
    if not len(words):
        return sums
    starts = np.cumsum(counts) - counts
    place = np.arange(len(words)) - np.repeat(starts, counts)
    blocks = -(-counts // _BLOCK)
    first_block = np.cumsum(blocks) - blocks
    number = np.arange(int(blocks.sum())) - np.repeat(first_block, blocks)
    hashes = np.add.reduceat(words * _KEYS[place % _BLOCK], np.repeat(starts, blocks) + number * _BLOCK)
    mixed = mix(hashes + (number.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    filled = counts > 0
    sums[filled] = np.add.reduceat(mixed, first_block[filled])
    return sums
