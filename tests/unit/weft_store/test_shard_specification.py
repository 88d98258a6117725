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
from weft_store.shard import CodecSpec, ShardReader, encode_shard

_DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "reference" / "shard-format.md"


def _plane(block: io.BytesIO, size: int) -> list[int]:
    (length,) = struct.unpack("<I", block.read(4))
    content = zstandard.ZstdDecompressor().decompress(block.read(length))
    assert len(content) == size
    return list(content)


def _specified(data: bytes) -> dict[tuple[int, int, int], np.ndarray]:
    """Read all blocks, value by value, as the document says."""
    assert data[:8] == b"WEFTSHRD"
    version, header_bytes, index_bytes, object_bytes = struct.unpack("<IIQQ", data[8:32])
    index = data[64 : 64 + index_bytes]
    assert (version, object_bytes) == (1, len(data))
    assert hashlib.sha256(data[:32] + index).digest() == data[32:64]
    header = json.loads(index[:header_bytes])
    assert json.dumps(header, sort_keys=True, separators=(",", ":")).encode() == index[:header_bytes]
    layers, width, tokens = header["num_layers"], header["d_model"], header["num_tokens"]
    rows, at = header["row_group_tokens"], header_bytes
    steps, means, orders = [], [], []
    if header["codec"] == "uniform":
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
                    for start in range(0, width, header["group_channels"]):
                        c = min(header["group_channels"], width - start)
                        (n,) = block.read(1)
                        planes = [_plane(block, count * c) for _ in range(n)]
                        for place in range(count * c):
                            u = sum(planes[byte][place] << (8 * byte) for byte in range(n))
                            q = u // 2 if u % 2 == 0 else -(u + 1) // 2
                            channel = orders[pair * width + start + place % c]
                            scaled = np.float32(np.float32(q) * np.float32(steps[pair]))
                            values[place // c, channel] = scaled + np.float32(means[pair * width + channel])
                assert block.read() == b""
                blocks[group, stream, layer] = values
    assert at == index_bytes
    assert end == object_bytes
    return blocks


@pytest.mark.parametrize("codec", ["bf16", "uniform"])
def test_the_document_describes_the_bytes(codec: str) -> None:
    """Every block comes out bit for bit, with codes of several bytes and a short last row group among them."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 2, 600, 3)).astype(np.float32)
    values[0, 1, 77] *= 3000
    shard = encode_shard(
        {"input": values[0, :, :, :], "output": values[1]},
        CodecSpec(codec, 1e-7),
        row_group_tokens=256,
        attributes={"a": "b"},
    )
    store = open_store("memory://")
    store.put("shard", shard.data)
    reader = ShardReader(store, "shard")
    specified = _specified(shard.data)
    assert len(specified) == 3 * 2 * 2
    for (group, stream, layer), expected in specified.items():
        read = reader.read("input" if stream == 0 else "output", layer, group)
        np.testing.assert_array_equal(read.view(np.uint32), expected.view(np.uint32))


def test_the_document_names_the_version() -> None:
    """The document is of the version that is written."""
    shard = encode_shard(
        {name: np.zeros((1, 1, 1), np.float32) for name in ("input", "output")}, CodecSpec("bf16"), attributes={}
    )
    assert f"Version {struct.unpack_from('<I', shard.data, 8)[0]}." in _DOCUMENT.read_text()
