"""A reader written from `docs/reference/shard-format.md` alone reads what the encoder writes."""

import hashlib
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard

from weft_store import open_store
from weft_store.shard import CodecSpec, ShardReader, encode_shard, learn_basis

_ASSETS = Path(__file__).resolve().parents[2] / "assets" / "shards"
_DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "reference" / "shard-format.md"


def _plane(block: io.BytesIO, size: int) -> list[int]:
    (length,) = struct.unpack("<I", block.read(4))
    content = zstandard.ZstdDecompressor().decompress(block.read(length))
    assert len(content) == size
    return list(content)


def _uniform_1(block: io.BytesIO, count: int, width: int, group: int) -> list[tuple[int, int, int]]:
    """Token, place and u of every value of a block of version 1."""
    found = []
    for start in range(0, width, group):
        c = min(group, width - start)
        (n,) = block.read(1)
        planes = [_plane(block, count * c) for _ in range(n)]
        for at in range(count * c):
            found.append((at // c, start + at % c, sum(planes[byte][at] << (8 * byte) for byte in range(n))))
    return found


def _uniform_2(block: io.BytesIO, count: int, width: int, group: int) -> list[tuple[int, int, int]]:
    """Token, place and u of every value of a block of version 2."""
    kinds = block.read(-(-width // group))
    num_escapes, size = struct.unpack("<IB", block.read(5))
    content = io.BytesIO(zstandard.ZstdDecompressor().decompress(block.read()))
    found: list[tuple[int, int, int]] = []
    places = []
    for start, k in zip(range(0, width, group), kinds, strict=True):
        c = min(group, width - start)
        digits = [0] * (count * c)
        if k:
            base = {1: 256, 2: 16, 3: 6, 5: 3}[k]
            symbols = content.read(-(-count * c // k))
            digits = [symbol // base**at % base for symbol in symbols for at in range(k)][: count * c]
        places += [(start, c, k, digits)]
    planes = [content.read(num_escapes) for _ in range(size)]
    assert content.read() == b""
    escapes = iter([sum(plane[e] << (8 * at) for at, plane in enumerate(planes)) for e in range(num_escapes)])
    for start, c, k, digits in places:
        escape = {1: 255, 2: 15, 3: 5}.get(k)
        for at, digit in enumerate(digits):
            found.append((at // c, start + at % c, next(escapes) if digit == escape else digit))
    assert next(escapes, None) is None
    return found


def _specified(data: bytes, vectors: np.ndarray | None = None) -> dict[tuple[int, int, int], np.ndarray]:
    """Read all blocks, value by value, as the document says."""
    assert data[:8] == b"WEFTSHRD"
    version, header_bytes, index_bytes, object_bytes = struct.unpack("<IIQQ", data[8:32])
    index = data[64 : 64 + index_bytes]
    assert object_bytes == len(data)
    assert hashlib.sha256(data[:32] + index).digest() == data[32:64]
    header = json.loads(index[:header_bytes])
    assert json.dumps(header, sort_keys=True, separators=(",", ":")).encode() == index[:header_bytes]
    layers, width, tokens = header["num_layers"], header["d_model"], header["num_tokens"]
    rows, at = header["row_group_tokens"], header_bytes
    steps, means, orders = [], [], []
    if header["codec"] != "bf16":
        steps = struct.unpack_from(f"<{2 * layers}f", index, at)
        means = struct.unpack_from(f"<{2 * layers * width}f", index, at + 8 * layers)
        orders = struct.unpack_from(f"<{2 * layers * width}H", index, at + 8 * layers + 8 * layers * width)
        at += 8 * layers + 12 * layers * width
    blocks, end = {}, 64 + index_bytes
    for group in range(-(-tokens // rows)):
        for stream in range(2):
            for layer in range(layers):
                offset, length, digest = struct.unpack_from("<QQ16s", index, at)
                at += 32
                assert offset == end
                end = offset + length
                assert hashlib.sha256(data[offset:end]).digest()[:16] == digest
                block, count = io.BytesIO(data[offset:end]), min(rows, tokens - group * rows)
                pair = stream * layers + layer
                values = np.zeros((count, width), np.float32)
                if header["codec"] == "bf16":
                    planes = zip(_plane(block, count * width), _plane(block, count * width), strict=True)
                    for place, (exponent, rest) in enumerate(planes):
                        bits = (rest & 128) << 8 | exponent << 7 | rest & 127
                        values.flat[place] = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
                else:
                    coded = {1: _uniform_1, 2: _uniform_2}[version](block, count, width, header["group_channels"])
                    assert len(coded) == count * width
                    for token, place, u in coded:
                        q = u // 2 if u % 2 == 0 else -(u + 1) // 2
                        channel = orders[pair * width + place]
                        scaled = np.float32(np.float32(q) * np.float32(steps[pair]))
                        mean = np.float32(means[pair * width + channel])
                        values[token, channel] = scaled if header["codec"] == "klt" else scaled + mean
                    if vectors is not None:
                        values = values.astype(np.float64) @ vectors[stream, layer]
                        values = values + means[pair * width : (pair + 1) * width]
                assert block.read() == b""
                blocks[group, stream, layer] = values
    assert at == index_bytes
    assert end == object_bytes
    return blocks


def _compare(data: bytes) -> int:
    store = open_store("memory://")
    store.put("shard", data)
    reader = ShardReader(store, "shard")
    specified = _specified(data)
    for (group, stream, layer), expected in specified.items():
        read = reader.read("input" if stream == 0 else "output", layer, group)
        np.testing.assert_array_equal(read.view(np.uint32), expected.view(np.uint32))
    return len(specified)


@pytest.mark.parametrize(
    ("codec", "target", "width"),
    [("bf16", 0.0, 3), ("uniform", 1e-7, 3), ("uniform", 1e-3, 70), ("uniform", 1e-2, 90), ("uniform", 0.3, 70)],
)
def test_the_document_describes_the_bytes(codec: str, target: float, width: int) -> None:
    """Every block comes out bit for bit: large codes, symbols of one to five codes, groups that are all zero."""
    rng = np.random.default_rng(1)
    values = (rng.normal(size=(2, 2, 600, width)) * np.geomspace(0.05, 1, width)).astype(np.float32)
    values[0, 1, 77] *= 3000
    shard = encode_shard(
        {"input": values[0], "output": values[1]},
        CodecSpec(codec, target),
        row_group_tokens=256,
        attributes={"a": "b"},
    )
    assert _compare(shard.data) == 3 * 2 * 2


def _compare_klt(data: bytes, written: bytes) -> None:
    _, layers, width = struct.unpack_from("<III", written, 8)
    assert (written[:8], struct.unpack_from("<I", written, 8)) == (b"WEFTBASE", (1,))
    head, size = 20 + 16 * 2 * layers, 2 * width * width
    for at in range(2 * layers):
        matrix = written[head + at * size : head + (at + 1) * size]
        assert hashlib.sha256(matrix).digest()[:16] == written[20 + 16 * at : 36 + 16 * at]
    vectors = np.array(struct.unpack_from(f"<{2 * layers * width * width}e", written, head))
    vectors = vectors.reshape(2, layers, width, width)
    store = open_store("memory://")
    store.put("A/shards/0.weft", data)
    store.put(f"A/bases/{hashlib.sha256(written[:head]).hexdigest()}.weft", written)
    reader = ShardReader(store, "A/shards/0.weft")
    for (group, stream, layer), expected in _specified(data, vectors).items():
        read = reader.read("input" if stream == 0 else "output", layer, group)
        np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-5)


def test_the_document_describes_klt() -> None:
    """The basis is where the document says and as it says, and with it every block comes out to rounding."""
    values = np.random.default_rng(1).normal(size=(2, 2, 60, 5)).astype(np.float32)
    streams = {"input": values[0], "output": values[1]}
    basis = learn_basis(streams)
    shard = encode_shard(streams, CodecSpec("klt", 1e-3), row_group_tokens=25, attributes={}, basis=basis)
    _compare_klt(shard.data, basis.data())


@pytest.mark.parametrize("codec", ["uniform", "klt"])
def test_version_2_is_read_as_the_document_says(codec: str) -> None:
    """Shards that were once written in this version are read on, whatever the writer does now."""
    data = (_ASSETS / f"version-2-{codec}.weft").read_bytes()
    assert struct.unpack_from("<I", data, 8) == (2,)
    if codec == "klt":
        _compare_klt(data, (_ASSETS / "version-2-klt-basis.weft").read_bytes())
    else:
        assert _compare(data) == 2 * 2 * 2


@pytest.mark.parametrize("codec", ["bf16", "uniform"])
def test_version_1_is_read_as_the_document_says(codec: str) -> None:
    """Shards that version 1's writer has left are read bit for bit."""
    data = (_ASSETS / f"version-1-{codec}.weft").read_bytes()
    assert struct.unpack_from("<I", data, 8) == (1,)
    assert _compare(data) == 3 * 2 * 2


def test_the_document_names_the_version() -> None:
    """The document is of the version that is written."""
    shard = encode_shard(
        {name: np.zeros((1, 1, 1), np.float32) for name in ("input", "output")}, CodecSpec("bf16"), attributes={}
    )
    assert f"Version {struct.unpack_from('<I', shard.data, 8)[0]}." in _DOCUMENT.read_text()
