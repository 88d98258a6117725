"""Codes of a block come back as they were, take the bits that their entropy says, and nothing damaged is believed."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings

from weft_common.errors import DataLossError
from weft_store.shard.coding import CodedBlock, encode_block, round_codes


def _decoded(payload: bytes, num_tokens: int, order: np.ndarray, group: int) -> np.ndarray:
    block = CodedBlock(payload, num_tokens, len(order), group, "shard")
    codes = np.full((num_tokens, len(order)), 77, block.dtype)
    block.decode(order, codes)
    return codes


def _order(d_model: int) -> np.ndarray:
    return np.arange(d_model, dtype=np.uint64)


def _entropy_bits(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum())


def _plain(codes: np.ndarray, order: np.ndarray, group: int) -> tuple[bytes, bytes]:
    """Return a block's kinds, and its symbols with the planes of its escapes, number by number."""
    kinds, symbols, escapes = [], [], []
    for first in range(0, len(order), group):
        chosen = codes[:, order[first : first + group].astype(int)].ravel().tolist()
        zigzag = [2 * code if code >= 0 else -2 * code - 1 for code in chosen]
        if not any(zigzag):
            kinds.append(0)
            continue
        for values, base, direct in ((5, 3, 3), (3, 6, 5), (2, 16, 15), (1, 256, 255)):
            over = sum(code >= direct for code in zigzag)
            if values == 1 or over == 0 or (direct < base and 256 * over <= len(zigzag)):
                break
        kinds.append(values)
        escapes += [code for code in zigzag if code >= direct]
        digits = [min(code, direct) for code in zigzag] + [0] * (-len(zigzag) % values)
        symbols += [
            sum(digit * base**place for place, digit in enumerate(digits[start : start + values]))
            for start in range(0, len(digits), values)
        ]
    width = (max(escapes, default=0).bit_length() + 7) // 8
    planes = [(code >> 8 * plane) & 255 for plane in range(width) for code in escapes]
    return bytes(kinds), bytes(symbols + planes)


def _uncompressed(payload: bytes) -> tuple[bytes, bytes]:
    """Take a block apart at its frame, which comes behind five bytes about escapes."""
    start = payload.index(zstandard.FRAME_HEADER)
    return payload[: start - 5], zstandard.ZstdDecompressor().decompress(payload[start:])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_tokens=st.integers(1, 40),
    d_model=st.integers(1, 12),
    group=st.integers(1, 13),
    rare=st.sampled_from([0.0, 0.002, 0.3]),
    common=st.sampled_from([0, 1, 2, 7, 126, 128, 40_000]),
    large=st.sampled_from([3, 8, 127, 128, 129, 32_767, 32_768, 32_769, 2**31 - 1, 2**31]),
    seed=st.integers(0, 1 << 30),
)
def test_codes_come_back(
    num_tokens: int, d_model: int, group: int, rare: float, common: int, large: int, seed: int
) -> None:
    """
    Over ragged shapes, all alphabets and escapes of every width, codes are what they were, channel by channel.

    And the symbols are those that the format's description gives, one by one: versions of weft write the same bytes.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(-common, common + 1, (num_tokens, d_model))
    codes[rng.random(codes.shape) < rare] = large if large < 2**31 else -large
    codes = codes.astype(np.int32)
    order = rng.permutation(d_model).astype(np.uint64)
    payload = encode_block(codes, order, min(group, d_model))
    assert _uncompressed(payload) == _plain(codes, order, min(group, d_model))
    np.testing.assert_array_equal(_decoded(payload, num_tokens, order, min(group, d_model)), codes)


@pytest.mark.parametrize("scale", [0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 8.0, 40.0])
def test_bits_are_those_of_the_entropy_by_group(scale: float) -> None:
    """A block takes its groups' empirical entropies, and less than .12 bit a value for tables and whole bits."""
    rng = np.random.default_rng(3)
    spread = scale * np.repeat([0.5, 1.0, 2.0], 64)
    codes = np.rint(rng.normal(size=(256, 192)) * spread).astype(np.int32)
    needed = sum(_entropy_bits(codes[:, first : first + 64]) for first in (0, 64, 128))
    written = 8 * len(encode_block(codes, _order(192), 64))
    assert written <= needed + 0.12 * codes.size


def test_massive_tokens_are_paid_for_once() -> None:
    """A token of large codes among small ones adds no more than the bits of its own codes and of naming them."""
    codes = np.rint(np.random.default_rng(0).normal(size=(256, 64))).astype(np.int32)
    plain = 8 * len(encode_block(codes, _order(64), 64))
    codes[100] += np.random.default_rng(1).integers(-60_000, 60_000, 64).astype(np.int32)
    with_massive = encode_block(codes, _order(64), 64)
    assert 8 * len(with_massive) <= plain + 64 * (17 + 12)
    np.testing.assert_array_equal(_decoded(with_massive, 256, _order(64), 64), codes)


def test_codes_of_zero_take_almost_nothing() -> None:
    """A block of zeros is its head and an empty frame."""
    payload = encode_block(np.zeros((256, 576), np.int32), _order(576), 64)
    assert len(payload) < 32
    assert not _decoded(payload, 256, _order(576), 64).any()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scale=st.sampled_from([0.3, 1.0, 4.0, 300.0]),
    edits=st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.integers(0, 5),
)
def test_an_edited_block_gives_data_loss_or_codes(scale: float, edits: list[tuple[int, int]], cut: int) -> None:
    """Whatever the bytes of a block, nothing is written beside its codes and no other error is raised."""
    codes = np.rint(np.random.default_rng(2).standard_t(2, (9, 7)) * scale).astype(np.int32)
    payload = bytearray(encode_block(codes, _order(7), 3))
    for at, value in edits:
        payload[at % len(payload)] = value
    del payload[len(payload) - cut :]
    try:
        block = CodedBlock(bytes(payload), 9, 7, 3, "shard")
        around = np.full((11, 7), 5, block.dtype)
        block.decode(_order(7), around[1:10])
    except DataLossError:
        return
    assert (around[[0, 10]] == 5).all()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bytes([4]) + b"\0\0\0\0\0", "codes in a symbol"),
        (bytes([1]) + b"\x01\0\0\0\0", "escapes"),
        (bytes([1]) + b"\0\0\0\0\x01", "escapes"),
        (bytes([1]) + b"\xff\xff\xff\xff\x04", "escapes"),
        (bytes([1]) + b"\x01\0\0\0\x05", "escapes"),
        (bytes([1]) + b"\0\0", "too early"),
        (bytes([2]) + b"\0\0\0\0\0", "another size"),
    ],
)
def test_impossible_heads_are_refused(head: bytes, message: str) -> None:
    """A block whose head cannot be says which part of it."""
    good = encode_block(np.full((3, 2), 40, np.int32), _order(2), 2)
    with pytest.raises(DataLossError, match=message):
        _decoded(head + good[6:] if len(head) == 6 else head, 3, _order(2), 2)


def test_symbols_outside_their_alphabet_are_refused() -> None:
    """A symbol that five digits to base three cannot make is damage, and so are escapes that are missing."""
    for symbols, escapes, message in ((b"\xff\x00", b"", "alphabet"), (b"\x02\x00", b"\x07", "escapes")):
        payload = b"\x05" + len(escapes).to_bytes(4, "little") + bytes([len(escapes)])
        with pytest.raises(DataLossError, match=message):
            _decoded(payload + zstandard.compress(symbols + escapes), 3, _order(2), 2)
    with pytest.raises(DataLossError, match="escapes"):
        _decoded(b"\x01" + bytes(5) + zstandard.compress(b"\xff" * 6), 3, _order(2), 2)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_rounded_codes_are_the_nearest_bfloat16(dtype: type) -> None:
    """Bits are those that torch makes of the same float32."""
    rng = np.random.default_rng(0)
    codes = rng.integers(np.iinfo(dtype).min // 2, np.iinfo(dtype).max // 2, (50, 9)).astype(dtype)
    mean, bits = rng.normal(size=9).astype(np.float32), np.empty((50, 9), np.uint16)
    round_codes(codes, np.float32(0.37), mean, bits)
    values = codes.astype(np.float32) * np.float32(0.37) + mean
    np.testing.assert_array_equal(bits, torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy())
