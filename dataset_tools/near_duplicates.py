"""Photos that are almost the same: 64-bit perceptual hashes in, groups out, without comparing every pair.

Two hashes that differ in at most three bits agree in at least three of six bands of bits. So for each choice of three
bands the hashes are sorted by them, and only neighbours that agree there are compared: a few seconds for a million.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 3
"""Bits in which two hashes may differ. Saved again or scaled is 0 to 2; unrelated photos differ in about 32."""

_BAND_STARTS = (0, 11, 22, 33, 44, 54, 64)
_BANDS = tuple((1 << stop) - (1 << start) for start, stop in pairwise(_BAND_STARTS))
_MIN_BITS = 8
_MAX_NEIGHBOURS = 64


def parse_hashes(phashes: Sequence[str]) -> NDArray[np.uint64]:
    """Hashes of 16 hex digits as (n,) uint64. Raises ValueError for others."""
    packed = np.frombuffer(bytes.fromhex("".join(phashes)), ">u8").astype(np.uint64)
    if len(packed) != len(phashes):
        raise ValueError("a perceptual hash has 16 hex digits")
    return packed


def group_of(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The group of each hash, (n,) int64, numbered by their first members; -1 for one that stands alone.

    Groups are chains: a and c may share one because b is near both. A hash with fewer than eight bits set is that of a
    flat picture and says nothing about likeness: it stands alone. Work is bounded: of more than 64 different hashes
    with the same three bands, those that are further apart in the sorted order are not compared.
    """
    groups = np.full(len(hashes), -1, np.int64)
    telling = np.flatnonzero(np.bitwise_count(hashes) >= _MIN_BITS)
    different, place = np.unique(hashes[telling], return_inverse=True)
    roots = _joined(len(different), _near_pairs(different))[place]
    _, first, chain, sizes = np.unique(roots, return_index=True, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(sizes > 1)
    numbers = np.full(len(sizes), -1, np.int64)
    numbers[shared[np.argsort(first[shared])]] = np.arange(len(shared))
    groups[telling] = numbers[chain]
    return groups


def _near_pairs(hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    for bands in combinations(_BANDS, len(_BANDS) - MAX_DISTANCE):
        banded = hashes & np.uint64(sum(bands))
        order = np.argsort(banded, kind="stable")
        banded = banded[order]
        for step in range(1, _MAX_NEIGHBOURS + 1):
            alike = np.flatnonzero(banded[step:] == banded[:-step])
            if not len(alike):
                break
            a, b = order[alike], order[alike + step]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= MAX_DISTANCE
            yield a[near], b[near]


def _joined(count: int, pairs: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> NDArray[np.int64]:
    """Union-find: for each of `count` items the smallest member of what the pairs join it to."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in pairs:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    return np.array([root(item) for item in range(count)], np.int64)
