"""
Who reads what, in which order.

A split's units are its (shard, row group) pairs. One permutation of all units, drawn from (seed, epoch, split), is
dealt out in order: each unit goes to the rank that has the fewest tokens so far, the lowest of equals. So shares are
disjoint, complete, differ by at most one row group in tokens, and follow from the arguments alone.
The permutation sorts units by the outputs of SplitMix64 (Steele, Lea, Flood 2014), which is written out here because
the order must not change with a library's version.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np
import numpy.typing as npt

from weft_cache.core.records import ShardRecord, Split

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Slice:
    """One row group in a rank's order."""

    position: int
    shard: ShardRecord
    row_group: int
    num_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A rank's whole share of one epoch."""

    slices: tuple[Slice, ...]
    num_tokens: int


def splitmix64(state: int, count: int) -> npt.NDArray[np.uint64]:
    """
    The first outputs of SplitMix64.

    >>> [int(x) for x in splitmix64(1234567, 2)]
    [6457827717110365317, 3203168211198807973]
    """
    with np.errstate(over="ignore"):
        z = np.uint64(state) + _GAMMA * np.arange(1, count + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _stream(seed: int, epoch: int, split: Split, purpose: str) -> int:
    digest = hashlib.sha256(f"weft plan/{purpose}/{split.value}/{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def plan_reads(
    shards: Sequence[ShardRecord], split: Split, *, rank: int, world_size: int, epoch: int, seed: int
) -> Plan:
    """
    One rank's share of one epoch of a split.

    Args:
        shards: All shards of the dataset, in order of their index.
        split: Shards of the other split are left out.
        rank: 0 to `world_size`, exclusive.
        world_size: Number of readers.
        epoch: Pass over the data, from 0.
        seed: Seed of the shuffle, 64 bits.
    """
    units = [(shard, group) for shard in shards if shard.split is split for group in range(shard.num_row_groups)]
    order = np.argsort(splitmix64(_stream(seed, epoch, split, "order"), len(units)), kind="stable")
    row_seeds = splitmix64(_stream(seed, epoch, split, "rows"), len(units))
    load = [(0, reader) for reader in range(world_size)]
    heapify(load)
    slices: list[Slice] = []
    for unit in order:
        shard, group = units[unit]
        tokens, reader = load[0]
        heapreplace(load, (tokens + shard.tokens_of(group), reader))
        if reader == rank:
            slices.append(Slice(len(slices), shard, group, shard.tokens_of(group), int(row_seeds[unit])))
    return Plan(slices=tuple(slices), num_tokens=sum(piece.num_tokens for piece in slices))
