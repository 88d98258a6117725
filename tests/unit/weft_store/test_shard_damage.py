"""A damaged shard gives DataLossError: never other numbers, another error, or memory without bound."""

import hashlib
import json
import struct
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from weft_common.errors import DataLossError
from weft_store import open_store
from weft_store.shard import CodecSpec, ShardReader, basis_key, encode_shard, learn_basis, verify

_RNG = np.random.default_rng(5)
_STREAMS = {name: _RNG.normal(size=(2, 5, 3)).astype(np.float32) for name in ("input", "output")}
_BASIS = learn_basis(_STREAMS)
_SHARDS = {
    codec: encode_shard(
        _STREAMS,
        CodecSpec(codec),
        row_group_tokens=3,
        attributes={"model": "models/x"},
        basis=_BASIS if codec == "klt" else None,
    )
    for codec in ("bf16", "uniform", "klt")
}
# What version 1 wrote too, which is read on.
_DATA = {codec: shard.data for codec, shard in _SHARDS.items()} | {
    "uniform of version 1": (
        Path(__file__).resolve().parents[2] / "assets" / "shards" / "version-1-uniform.weft"
    ).read_bytes()
}
# The prelude as the format's document gives it, not as the code does.
_PRELUDE = struct.Struct("<8sIIQQ32s")


def _read_all(data: bytes) -> list[np.ndarray]:
    store = open_store("memory://")
    store.put("shard", data)
    store.put(basis_key("shard", _BASIS.sha256), _BASIS.data())
    reader = ShardReader(store, "shard")
    return [
        reader.read(stream, layer, group)
        for group in range(reader.header.num_row_groups)
        for stream in ("input", "output")
        for layer in range(reader.header.num_layers)
    ]


def _same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


_GOOD = {codec: _read_all(data) for codec, data in _DATA.items()}


@pytest.mark.parametrize("codec", ["bf16", "uniform", "klt"])
def test_a_flipped_bit_anywhere_is_noticed(codec: str) -> None:
    """For every byte of a shard: a full verification refuses it, and so does the read of the block it lies in."""
    shard = _SHARDS[codec]
    store = open_store("memory://")
    for at in range(len(shard.data)):
        damaged = bytearray(shard.data)
        damaged[at] ^= 1 << (at % 8)
        store.put("shard", bytes(damaged))
        with pytest.raises(DataLossError):
            verify(store, "shard", shard.sha256)
        with pytest.raises(DataLossError):
            _read_all(bytes(damaged))


@pytest.mark.parametrize("codec", ["bf16", "uniform", "klt"])
def test_a_truncated_shard_is_noticed(codec: str) -> None:
    """However short a shard was cut, reading all of it and verifying it are refused."""
    shard = _SHARDS[codec]
    store = open_store("memory://")
    for length in range(len(shard.data)):
        store.put("shard", shard.data[:length])
        with pytest.raises(DataLossError):
            _read_all(shard.data[:length])
        with pytest.raises(DataLossError):
            verify(store, "shard", shard.sha256)


@pytest.mark.parametrize("codec", ["bf16", "uniform", "klt"])
def test_verify_notices_added_bytes(codec: str) -> None:
    """Bytes after the last block are damage too, even where the manifest was made from them."""
    data = _SHARDS[codec].data + b"\0"
    store = open_store("memory://")
    store.put("shard", data)
    with pytest.raises(DataLossError):
        verify(store, "shard", _SHARDS[codec].sha256)
    with pytest.raises(DataLossError):
        verify(store, "shard", hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("codec", ["bf16", "uniform", "klt"])
def test_damage_leaves_other_blocks_readable(codec: str) -> None:
    """Only reads that touch the damaged block are refused."""
    data = bytearray(_SHARDS[codec].data)
    data[-1] ^= 1
    store = open_store("memory://")
    store.put("shard", bytes(data))
    store.put(basis_key("shard", _BASIS.sha256), _BASIS.data())
    reader = ShardReader(store, "shard")
    np.testing.assert_array_equal(reader.read("output", 0, 1), _GOOD[codec][6])
    reader.read_row_group(0)
    with pytest.raises(DataLossError, match="'output', layer 1, row group 1"):
        reader.read("output", 1, 1)
    with pytest.raises(DataLossError):
        reader.read_row_group(1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    codec=st.sampled_from(sorted(_DATA)),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 1 << 20),
)
def test_fuzzed_bytes_give_data_loss_or_the_same_numbers(codec: str, edits: list[tuple[int, int]], cut: int) -> None:
    """Any edits, with a cut, give the error or the very numbers that were written."""
    data = bytearray(_DATA[codec])
    for at, value in edits:
        data[at % len(data)] = value
    del data[len(data) - cut % 9 :]
    try:
        read = _read_all(bytes(data))
    except DataLossError:
        return
    assert _same(read, _GOOD[codec])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    codec=st.sampled_from(sorted(_DATA)),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_hostile_index_gives_data_loss_or_an_array(codec: str, edits: list[tuple[int, int]]) -> None:
    """With digests made to fit again, an edited header, table or block still raises nothing else."""
    data = bytearray(_DATA[codec])
    for at, value in edits:
        data[at % len(data)] = value
    try:
        read = _read_all(_signed(data))
    except DataLossError:
        return
    assert all(np.isfinite(block).all() or codec != "bf16" for block in read)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    """What never was a shard is refused, with or without a shard's first bytes."""
    for candidate in (data, b"WEFTSHRD" + data, b"WEFTSHRD\x01\0\0\0" + data):
        with pytest.raises(DataLossError):
            _read_all(candidate)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_layers": 1 << 40},
        {"num_tokens": 1 << 39},
        {"num_tokens": -1},
        {"d_model": 1 << 30},
        {"row_group_tokens": 0},
        {"row_group_tokens": "3"},
        {"row_group_tokens": True},
        {"codec": "zip"},
        {"codec": 7},
        {"group_channels": 0},
        {"basis": "0" * 64},
        {"attributes": []},
        {"attributes": {"a": 1}},
        {"more": 1},
        {"target_fvu": None},
    ],
    ids=str,
)
def test_impossible_headers_are_refused_without_memory(fields: dict[str, object]) -> None:
    """A signed header with sizes or types that cannot be is refused before anything of that size is allocated."""
    data = _SHARDS["uniform"].data
    magic, version, header_bytes, index_bytes, object_bytes, _ = _PRELUDE.unpack_from(data)
    header = json.loads(data[_PRELUDE.size : _PRELUDE.size + header_bytes]) | fields
    encoded = json.dumps(header).encode()
    grown = len(encoded) - header_bytes
    prelude = _PRELUDE.pack(magic, version, len(encoded), index_bytes + grown, object_bytes + grown, bytes(32))
    tracemalloc.start()
    try:
        with pytest.raises(DataLossError):
            _read_all(_signed(bytearray(prelude + encoded + data[_PRELUDE.size + header_bytes :])))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("stated", [True, False])
def test_a_plane_that_swells_is_refused_without_memory(stated: bool) -> None:
    """A block whose zstd frame would give a gibibyte is refused by its size, stated or not."""
    bomb = zstandard.ZstdCompressor(write_content_size=stated).compress(bytes(1 << 28))
    data = _SHARDS["bf16"].data
    _, _, _, index_bytes, _, _ = _PRELUDE.unpack_from(data)
    start = _PRELUDE.size + index_bytes
    table = start - 8 * 32
    payload = struct.pack("<I", len(bomb)) + bomb
    index = bytearray(data[:start])
    # The first block becomes the bomb; the seven others move behind it.
    old = struct.unpack_from("<Q", data, table + 8)[0]
    struct.pack_into("<Q", index, table + 8, len(payload))
    index[table + 16 : table + 32] = hashlib.sha256(payload).digest()[:16]
    for row in range(1, 8):
        offset = struct.unpack_from("<Q", index, table + 32 * row)[0]
        struct.pack_into("<Q", index, table + 32 * row, offset + len(payload) - old)
    struct.pack_into("<Q", index, 24, len(data) + len(payload) - old)
    signed = _signed(index + payload + data[start + old :])
    tracemalloc.start()
    try:
        with pytest.raises(DataLossError, match=r"size|decompressed"):
            _read_all(signed)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def _signed(data: bytearray) -> bytes:
    """Make the index's digest fit, as a hostile writer would."""
    if len(data) >= _PRELUDE.size:
        index_bytes = struct.unpack_from("<Q", data, 16)[0]
        end = min(len(data), _PRELUDE.size + index_bytes)
        data[32:64] = hashlib.sha256(data[:32] + data[64:end]).digest()
    return bytes(data)
