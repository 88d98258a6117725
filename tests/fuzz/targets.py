"""
What reads bytes that somebody else may have written, as functions of any bytes, for fuzzing.

Each target takes bytes and ends, or raises AssertionError where a reader did something else than to read or to refuse
with DataLossError. The first byte of some says how the others are wrapped, so that the fuzzer need not find digests and
zstd frames by itself.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import numpy as np
import zstandard

from weft_common.errors import DataLossError
from weft_store import open_store
from weft_store.shard import Bases, CodecSpec, ShardReader, basis_key, encode_shard, learn_basis
from weft_store.shard.bf16 import decode_bf16_bits
from weft_store.shard.coding import CodedBlock, encode_block
from weft_store.shard.version_1 import decode_uniform_codes

__all__ = ["TARGETS", "seeds"]

_TOKENS, _WIDTH, _GROUP = 9, 7, 3
_ORDER = np.array([3, 0, 6, 1, 5, 2, 4], np.uint64)
_KINDS = -(-_WIDTH // _GROUP)


def _frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(content)


def uniform_block(data: bytes) -> None:
    """A block of `uniform`: either any bytes, or a head and a sound frame of any content."""
    payload = data[1:]
    if data[:1] != b"\0":
        payload = data[1 : 6 + _KINDS] + _frame(data[6 + _KINDS :])
    try:
        block = CodedBlock(payload, _TOKENS, _WIDTH, _GROUP, "shard")
        around = np.full((_TOKENS + 2, _WIDTH), 5, block.dtype)
        block.decode(_ORDER, around[1:-1])
    except DataLossError:
        return
    assert (around[[0, -1]] == 5).all(), "something was written beside the codes"
    codes = around[1:-1].astype(np.int32)
    again = CodedBlock(encode_block(codes, _ORDER, _GROUP), _TOKENS, _WIDTH, _GROUP, "shard")
    read = np.empty_like(codes)
    again.decode(_ORDER, read)
    assert (read == codes).all(), "codes that were read are not written rightly"


def version_1_block(data: bytes) -> None:
    """A block of `uniform` as version 1 had it: either any bytes, or planes of any content."""
    payload = data[1:]
    if data[:1] != b"\0":
        parts, at = [], 1
        for start in range(0, _WIDTH, _GROUP):
            planes = data[at : at + 1]
            parts.append(planes)
            size = _TOKENS * min(_GROUP, _WIDTH - start)
            at += 1
            for _ in range(planes[0] % 5 if planes else 0):
                frame = _frame(data[at : at + size].ljust(size, b"\0"))
                parts.append(struct.pack("<I", len(frame)) + frame)
                at += size
        payload = b"".join(parts)
    try:
        codes = decode_uniform_codes(payload, _TOKENS, _ORDER.astype(np.uint16), _GROUP, "shard")
    except DataLossError:
        return
    assert codes.shape == (_TOKENS, _WIDTH)


def bf16_block(data: bytes) -> None:
    """A block of `bf16`: either any bytes, or two planes of any content."""
    payload, size = data[1:], _TOKENS * _WIDTH
    if data[:1] != b"\0":
        frames = [_frame(data[1 + at : 1 + at + size].ljust(size, b"\0")) for at in (0, size)]
        payload = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    try:
        bits = decode_bf16_bits(payload, _TOKENS, _WIDTH, "shard")
    except DataLossError:
        return
    assert np.isfinite((bits.astype(np.uint32) << 16).view(np.float32)).all(), "a value that is not finite was read"


def shard(data: bytes) -> None:
    """A whole shard, whose index is signed anew as a hostile writer would, with the basis of the seed beside it."""
    signed = bytearray(data)
    if len(signed) >= 64:
        end = min(len(signed), 64 + struct.unpack_from("<Q", signed, 16)[0])
        signed[32:64] = hashlib.sha256(signed[:32] + signed[64:end]).digest()
    store = open_store("memory://")
    store.put("a/shards/0", bytes(signed))
    store.put(basis_key("a/shards/0", _BASIS.sha256), _BASIS.data())
    try:
        reader = ShardReader(store, "a/shards/0")
        if reader.header.num_row_groups and reader.header.num_layers * reader.header.d_model < 1 << 16:
            for values in reader.read_row_group(0).values():
                assert values.dtype == np.float32
    except DataLossError:
        return


def basis(data: bytes) -> None:
    """A basis under the name that its head has."""
    shape = _BASIS.vectors_SLCD.shape[1:3]
    head = 20 + 16 * 2 * shape[0]
    store, name = open_store("memory://"), hashlib.sha256(data[:head]).hexdigest()
    store.put("a/bases/x", data)
    try:
        vectors = Bases(store).get("a/bases/x", name, shape, 1)
    except DataLossError:
        return
    assert np.isfinite(vectors).all(), "a matrix that is not finite was read"


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (uniform_block, version_1_block, bf16_block, shard, basis)
}

_STREAMS = {
    name: np.random.default_rng(at).normal(size=(2, 5, 3)).astype(np.float32)
    for at, name in enumerate(("input", "output"))
}
_BASIS = learn_basis(_STREAMS)


def seeds() -> dict[str, dict[str, bytes]]:
    """Give sound inputs of each target, by name, from which the committed corpora were begun."""
    made: dict[str, dict[str, bytes]] = {name: {} for name in TARGETS}
    for scale in (0.2, 0.7, 3.0, 60.0, 1e6):
        rows = np.random.default_rng(2).standard_t(2, (_TOKENS, _WIDTH)) * scale
        codes = np.rint(np.clip(rows, -(2.0**30), 2.0**30)).astype(np.int32)
        payload = encode_block(codes, _ORDER, _GROUP)
        head = payload[: 5 + _KINDS]
        content = zstandard.ZstdDecompressor().decompress(payload[5 + _KINDS :])
        made["uniform_block"] |= {f"raw-{scale:g}": b"\0" + payload, f"wrapped-{scale:g}": b"\1" + head + content}
        zigzag = ((codes << 1) ^ (codes >> 31)).view(np.uint32)[:, _ORDER.astype(int)]
        planes = b"\1"
        for start in range(0, _WIDTH, _GROUP):
            group = np.ascontiguousarray(zigzag[:, start : start + _GROUP])
            planes += b"\4" + b"".join((group >> (8 * at)).astype(np.uint8).tobytes() for at in range(4))
        made["version_1_block"][f"wrapped-{scale:g}"] = planes
    for name, content in (("small", bytes([120, 121, 122]) * 100), ("not-finite", b"\xff" * 200)):
        made["bf16_block"][name] = b"\1" + content[: 2 * _TOKENS * _WIDTH]
    for codec in ("bf16", "uniform", "klt"):
        given = _BASIS if codec == "klt" else None
        spec = CodecSpec(codec, 1e-2)
        made["shard"][codec] = encode_shard(_STREAMS, spec, row_group_tokens=3, attributes={}, basis=given).data
    made["basis"]["sound"] = _BASIS.data()
    return made
