"""The entropy coder alone: what it reads is what it wrote, near the entropy, and damage is told without a digest."""

import tracemalloc

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from weft_common.errors import DataLossError
from weft_store.shard.coding import encode_block, group_bounds, read_block

_LARGEST = 2**31 - 128
_CODES = st.one_of(st.integers(-3, 3), st.integers(-300, 300), st.integers(-_LARGEST, _LARGEST))
_SLOW = [HealthCheck.too_slow]


def _decoded(payload: bytes, num_tokens: int, order_D: np.ndarray) -> np.ndarray:
    block = read_block(payload, len(order_D), "shard")
    codes_TD = np.zeros((num_tokens, len(order_D)), block.dtype)
    block.decode(order_D, codes_TD)
    return codes_TD


def _entropy_bits(symbols: np.ndarray) -> float:
    shares = np.unique(symbols, return_counts=True)[1] / symbols.size
    return -float((shares * np.log2(shares)).sum()) * symbols.size


@settings(max_examples=150, deadline=None, suppress_health_check=_SLOW)
@given(
    codes=arrays.arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 40)), elements=_CODES),
    cuts=st.lists(st.integers(1, 39), max_size=5),
    seed=st.integers(0, 1 << 30),
)
def test_codes_come_back_as_they_were(codes: np.ndarray, cuts: list[int], seed: int) -> None:
    """Whatever the codes, the order of channels and the groups: every code comes back, in the narrowest type."""
    width = codes.shape[1]
    order = np.random.default_rng(seed).permutation(width)
    bounds = np.array(sorted({0, width, *(cut for cut in cuts if cut < width)}), np.int64)
    read = _decoded(encode_block(codes, order, bounds), len(codes), order)
    np.testing.assert_array_equal(read, codes)
    if np.abs(codes.astype(np.int64)).max() <= 111:
        assert read.dtype == np.int8


@pytest.mark.parametrize("scale", [0.1, 0.4, 1.0, 8.0, 40.0])
def test_bits_are_those_of_the_entropy_by_group(scale: float) -> None:
    """A block takes its groups' empirical entropies, two bytes a symbol for models, and .05 bit a value at most."""
    rng = np.random.default_rng(3)
    spread = scale * np.repeat([0.5, 1.0, 4.0], 64)
    codes = np.rint(rng.laplace(size=(256, 192)) * spread).astype(np.int32)
    order, bounds = np.arange(192), np.array([0, 64, 128, 192])
    groups = [codes[:, first : first + 64] for first in (0, 64, 128)]
    needed = sum(map(_entropy_bits, groups))
    models = 16 * sum(min(256, len(np.unique(group))) for group in groups)
    written = 8 * len(encode_block(codes, order, bounds))
    assert needed <= written <= needed + models + 0.05 * codes.size


def test_groups_part_spreads() -> None:
    """Outlier channels do not share a model with others, groups are no shorter than pays, and they cover all."""
    spread = np.concatenate([np.full(200, 1.0), np.full(40, 3.0), np.full(16, 1000.0)])
    bounds = group_bounds(spread**2, 256)
    assert (bounds[0], bounds[-1]) == (0, 256)
    assert {200, 240} <= set(bounds.tolist())
    assert (np.diff(bounds) >= 8).all()
    assert group_bounds(spread[:5] ** 2, 256).tolist() == [0, 5]
    assert len(group_bounds(spread**2, 1)) == 2


def _some_block() -> tuple[np.ndarray, np.ndarray, bytes]:
    rng = np.random.default_rng(9)
    codes = np.rint(rng.normal(size=(9, 20)) * np.linspace(0.2, 200, 20)).astype(np.int32)
    order = rng.permutation(20)
    return codes, order, encode_block(codes, order, np.array([0, 8, 20]))


@settings(max_examples=400, deadline=None, suppress_health_check=_SLOW)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=5),
    cut=st.integers(0, 40),
    more=st.binary(max_size=3),
)
def test_edited_blocks_give_data_loss_or_codes(edits: list[tuple[int, int]], cut: int, more: bytes) -> None:
    """Without the digest that stands before it, an edited block still raises nothing else and stays in its bounds."""
    codes, order, payload = _some_block()
    data = bytearray(payload)
    for at, value in edits:
        data[at % len(data)] = value
    data = data[: len(data) - cut] + more
    try:
        read = _decoded(bytes(data), len(codes), order)
    except DataLossError:
        return
    assert read.shape == codes.shape


@settings(max_examples=300, deadline=None, suppress_health_check=_SLOW)
@given(data=st.binary(max_size=200), width=st.integers(1, 9))
def test_any_bytes_are_no_block_or_codes(data: bytes, width: int) -> None:
    """What never was a block raises nothing but DataLossError."""
    try:
        _decoded(data, 3, np.arange(width))
    except DataLossError:
        return


def test_a_block_that_announces_much_is_refused_without_memory() -> None:
    """Counts of groups, words and bits that the block does not have are refused before anything is allocated."""
    _, order, payload = _some_block()
    for at, size in ((0, 2), (4, 4), (8, 4), (12, 4)):
        data = bytearray(payload)
        data[at : at + size] = b"\xff" * size
        tracemalloc.start()
        try:
            with pytest.raises(DataLossError):
                _decoded(bytes(data), 9, order)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
