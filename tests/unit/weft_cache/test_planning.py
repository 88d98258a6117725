"""Shares of a split are disjoint, complete, even, shuffled, and follow from the arguments alone."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_cache.core.planning import plan_reads, splitmix64
from weft_cache.core.records import ShardRecord, Split


def shard(index: int, num_tokens: int, split: Split = Split.TRAIN, row_group_tokens: int = 16) -> ShardRecord:
    return ShardRecord(
        index=index,
        key=f"datasets/a/shards/{index}.weft",
        sha256=f"{index:064x}",
        size_bytes=1,
        num_tokens=num_tokens,
        split=split,
        row_group_tokens=row_group_tokens,
    )


datasets = st.lists(
    st.tuples(st.integers(0, 100), st.sampled_from(list(Split)), st.integers(1, 40)), min_size=1, max_size=12
).map(lambda drawn: [shard(index, *each) for index, each in enumerate(drawn)])
seeds = st.integers(0, 2**64 - 1)


@given(datasets, st.sampled_from(list(Split)), st.integers(1, 7), st.integers(0, 5), seeds)
def test_shares_are_disjoint_complete_and_even(
    shards: list[ShardRecord], split: Split, world_size: int, epoch: int, seed: int
) -> None:
    """Every token of the split is in exactly one share; shares differ by at most one row group."""
    plans = [
        plan_reads(shards, split, rank=rank, world_size=world_size, epoch=epoch, seed=seed)
        for rank in range(world_size)
    ]
    seen = Counter(
        (piece.shard.index, piece.row_group * piece.shard.row_group_tokens + row)
        for plan in plans
        for piece in plan.slices
        for row in range(piece.num_tokens)
    )
    wanted = {(each.index, token) for each in shards if each.split is split for token in range(each.num_tokens)}
    assert seen == Counter(wanted)
    loads = [sum(piece.num_tokens for piece in plan.slices) for plan in plans]
    assert loads == [plan.num_tokens for plan in plans]
    largest = max((min(each.row_group_tokens, each.num_tokens) for each in shards if each.split is split), default=0)
    assert max(loads) - min(loads) <= largest
    assert [[piece.position for piece in plan.slices] for plan in plans] == [
        list(range(len(plan.slices))) for plan in plans
    ]


@given(datasets, st.integers(0, 5), seeds)
def test_plan_follows_from_its_arguments(shards: list[ShardRecord], epoch: int, seed: int) -> None:
    """The same arguments give the same plan, so that a position means the same after a restart."""
    first, again = (
        plan_reads(list(shards), Split.TRAIN, rank=0, world_size=2, epoch=epoch, seed=seed) for _ in range(2)
    )
    assert first == again


def test_plan_is_shuffled_over_the_whole_split() -> None:
    """Neighbours in reading order come from all shards, in another order in another epoch or with another seed."""
    shards = [shard(index, 160) for index in range(20)]
    plans = {
        (epoch, seed): [
            (piece.shard.index, piece.row_group)
            for piece in plan_reads(shards, Split.TRAIN, rank=0, world_size=1, epoch=epoch, seed=seed).slices
        ]
        for epoch, seed in ((0, 1), (1, 1), (0, 2))
    }
    assert len({tuple(order) for order in plans.values()}) == 3
    for order in plans.values():
        assert order != sorted(order)
        first_quarter = {index for index, _ in order[:50]}
        # A shuffle misses a shard in 50 draws of 200 with a chance of about 1 in 20; it never misses half of them.
        assert len(first_quarter) > 10


def test_permutation_is_uniform_over_first_places() -> None:
    """Over many seeds, each unit comes first about equally often."""
    shards = [shard(0, 8 * 16)]
    first = Counter(
        plan_reads(shards, Split.TRAIN, rank=0, world_size=1, epoch=0, seed=seed).slices[0].row_group
        for seed in range(4000)
    )
    expected = 4000 / 8
    chi_squared = sum((first[group] - expected) ** 2 / expected for group in range(8))
    assert chi_squared < 24.3  # 7 degrees of freedom, p = 0.001


def test_row_seeds_differ_between_slices_and_epochs() -> None:
    """Each slice has a seed of its own."""
    shards = [shard(0, 1600)]
    found = [
        piece.seed
        for epoch in range(3)
        for piece in plan_reads(shards, Split.TRAIN, rank=0, world_size=1, epoch=epoch, seed=7).slices
    ]
    assert len(set(found)) == 300


@pytest.mark.parametrize("seed", [0, 1, 0x9E3779B97F4A7C15, 2**64 - 1])
def test_splitmix64_equals_the_published_recurrence(seed: int) -> None:
    """The vectorised generator gives what the reference's scalar steps give."""
    state, wanted = seed, []
    for _ in range(20):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        wanted.append(z ^ (z >> 31))
    assert [int(value) for value in splitmix64(seed, 20)] == wanted


def test_num_row_groups_counts_the_short_last_one() -> None:
    """A shard of 33 tokens in groups of 16 has three."""
    assert shard(0, 33).num_row_groups == math.ceil(33 / 16)
    assert [shard(0, 33).tokens_of(group) for group in range(3)] == [16, 16, 1]
