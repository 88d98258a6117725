"""Datasets of files that others wrote: what is taken, what is refused with its name."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from prometheus_client import CollectorRegistry
from safetensors.numpy import save_file

from weft.cache.v1 import messages_pb2
from weft_cache.wiring import registration
from weft_client import Client, Endpoint
from weft_client.exporting import export_dataset
from weft_client.importing import import_dataset, run
from weft_client.importing.clt_forge_cache import CompressedCache
from weft_client.importing.sources import files_of
from weft_common.errors import AlreadyExistsError, DataLossError, InvalidArgumentError
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store import open_store

_GOLDEN = Path(__file__).parents[1] / "assets" / "clt_forge_cache"
_KINDS = ("int8", "int8_global", "int4", "int2", "none")
_OF: dict[str, Any] = {
    "model": "models/m",
    "model_revision": "ab" * 32,
    "input_hook": "mlp_in",
    "output_hook": "mlp_out",
    "codec": "bf16",
}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A client of a cache whose bucket it cannot reach."""
    served = [registration(open_store("memory://"), registry=CollectorRegistry())]
    async with serving("cache", ServiceSettings(token="t"), served) as server:
        with Client.to(cache=Endpoint(f"127.0.0.1:{server.port}", "t")) as one:
            yield one


def _rows(seed: int, tokens: int) -> np.ndarray:
    """Integers, which bfloat16 keeps: [stream, L, T, D]."""
    return np.random.default_rng(seed).integers(-99, 99, (2, 3, tokens, 8)).astype(np.float32)


def _write(path: Path, rows: np.ndarray) -> None:
    """A file of the layout that an export has, by the library of the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("input", "output")
    tensors = {f"{name}.{layer}": rows[at, layer] for at, name in enumerate(names) for layer in range(len(rows[at]))}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def _read(client: Client, dataset: str) -> dict[int, np.ndarray]:
    """All rows of both splits, in the order of shards; [stream, L, T, D] by the number of the split."""
    found = client.datasets.get(dataset)
    parts: dict[int, list[np.ndarray]] = {}
    for shard in found.shards:
        layers = []
        for layer in range(found.spec.num_layers):
            blocks: dict[str, list[np.ndarray]] = {"input": [], "output": []}
            for stream, _, rows in client.datasets.read(dataset, shard_index=shard.index, layer=layer):
                blocks[stream].append(rows)
            layers.append([np.concatenate(blocks[stream]) for stream in ("input", "output")])
        parts.setdefault(shard.split, []).append(np.array(layers).swapaxes(0, 1))
    return {split: np.concatenate(shards, axis=2) for split, shards in parts.items()}


async def test_import_takes_every_row_once_and_goes_on_where_it_was_cut_short(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files in the order of their numbers, cut into shards; a second import adds nothing."""
    for number in (10, 9, 2):
        _write(tmp_path / "in" / f"part-{number}.safetensors", _rows(number, 300))
    monkeypatch.setattr(run, "_SHARD_BYTES", 8 * 3 * 8 * 256)

    def cut_short(done: int, total: int) -> None:
        if done >= 556:
            raise KeyboardInterrupt

    def work() -> messages_pb2.Dataset:
        with pytest.raises(KeyboardInterrupt):
            import_dataset(client, "a", tmp_path / "in", held_out_share=0.2, progress=cut_short, **_OF)
        assert len(client.datasets.get("a").shards) == 3
        import_dataset(client, "a", tmp_path / "in", held_out_share=0.2, **_OF)
        return import_dataset(client, "a", tmp_path / "in", held_out_share=0.2, **_OF)

    found = await asyncio.to_thread(work)
    assert found.state == messages_pb2.DATASET_STATE_SEALED
    assert [(shard.num_tokens, shard.split) for shard in found.shards] == [
        (256, 1), (44, 1), (256, 2), (44, 1), (256, 1), (44, 1)
    ]  # fmt: skip
    rows = {number: _rows(number, 300) for number in (2, 9, 10)}
    read = await asyncio.to_thread(_read, client, "a")
    np.testing.assert_array_equal(read[messages_pb2.SPLIT_HELD_OUT], rows[9][:, :, :256])
    train = np.concatenate([rows[2], rows[9][:, :, 256:], rows[10]], axis=2)
    np.testing.assert_array_equal(read[messages_pb2.SPLIT_TRAIN], train)
    with pytest.raises(AlreadyExistsError, match="another spec"):
        await asyncio.to_thread(import_dataset, client, "a", tmp_path / "in", held_out_share=0.3, **_OF)


async def test_export_is_imported_with_its_splits(client: Client, tmp_path: Path) -> None:
    """Folders named after splits say which is which, whatever share is asked for."""
    _write(tmp_path / "in" / "train" / "shard-00000.safetensors", _rows(0, 40))
    _write(tmp_path / "in" / "held_out" / "shard-00001.safetensors", _rows(1, 9))

    def work() -> dict[int, np.ndarray]:
        import_dataset(client, "a", tmp_path / "in", **_OF)
        export_dataset(client, "a", tmp_path / "out", "safetensors")
        import_dataset(client, "b", tmp_path / "out", **_OF)
        return _read(client, "b")

    read = await asyncio.to_thread(work)
    np.testing.assert_array_equal(read[messages_pb2.SPLIT_TRAIN], _rows(0, 40))
    np.testing.assert_array_equal(read[messages_pb2.SPLIT_HELD_OUT], _rows(1, 9))


async def test_uncompressed_cache_of_clt_forge_is_imported(client: Client, tmp_path: Path) -> None:
    """`act_in` and `act_out` [tokens, layers, d_model], with token ids beside them that are passed over."""
    rows = _rows(0, 50)
    stacked = {name: np.ascontiguousarray(rows[at].swapaxes(0, 1)) for at, name in enumerate(("act_in", "act_out"))}
    (tmp_path / "ctx_8").mkdir()
    path = tmp_path / "ctx_8" / "activations_ctx_8_split_0.safetensors"
    save_file({**stacked, "tokens": np.arange(50)}, path)
    await asyncio.to_thread(import_dataset, client, "a", tmp_path, held_out_share=0.0, **_OF)
    read = await asyncio.to_thread(_read, client, "a")
    np.testing.assert_array_equal(read[messages_pb2.SPLIT_TRAIN], rows)


@pytest.mark.parametrize("kind", _KINDS)
def test_compressed_cache_is_read_as_clt_forge_reads_it(kind: str) -> None:
    """
    Files that CLT-Forge's own code wrote, against what its own code read back.

    Goldens: `CompressedActivationsStore` of CLT-Forge at dcf4cc8, seed 0, 7 tokens, 3 layers, d_model 4.
    """
    part = CompressedCache(_GOLDEN / f"{kind}.bin")
    expected = np.load(_GOLDEN / "expected.npz")
    try:
        assert part.shape == (3, 7, 4)
        for start, stop in ((0, 7), (2, 5)):
            for name, rows in zip(("input", "output"), part.read(start, stop), strict=True):
                wanted = expected[f"{kind}.{name}"][start:stop].swapaxes(0, 1)
                np.testing.assert_allclose(rows, wanted, rtol=1e-6, atol=1e-7)
    finally:
        part.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_import_names_the_file_that_is_not_finite(client: Client, tmp_path: Path, bad: float) -> None:
    """And nothing is sealed."""
    rows = _rows(0, 20)
    _write(tmp_path / "0.safetensors", rows)
    rows[1, 2, 3, 4] = bad
    _write(tmp_path / "1.safetensors", rows)
    with pytest.raises(DataLossError, match=r"1\.safetensors"):
        await asyncio.to_thread(import_dataset, client, "a", tmp_path, **_OF)
    assert (await asyncio.to_thread(client.datasets.get, "a")).state == messages_pb2.DATASET_STATE_OPEN


async def test_import_refuses_what_does_not_fit_before_it_makes_a_dataset(client: Client, tmp_path: Path) -> None:
    """Another width, other tensors, a pickle, no files: each is named, and there is no dataset."""
    _write(tmp_path / "shapes" / "0.safetensors", _rows(0, 20))
    _write(tmp_path / "shapes" / "1.safetensors", _rows(0, 20)[..., :4])
    (tmp_path / "tensors").mkdir()
    save_file({"weight": np.zeros((2, 2), np.float32)}, tmp_path / "tensors" / "0.safetensors")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "0.bin").write_bytes(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94.")
    (tmp_path / "empty").mkdir()

    def work() -> None:
        for folder, error, match in (
            ("shapes", DataLossError, r"1\.safetensors has 3 layers of 4"),
            ("tensors", DataLossError, r"0\.safetensors holds .*weight"),
            ("pickle", DataLossError, r"0\.bin is no whole cache"),
            ("empty", InvalidArgumentError, "holds 0 files"),
        ):
            with pytest.raises(error, match=match):
                import_dataset(client, "a", tmp_path / folder, **_OF)
        assert list(client.datasets.list()) == []

    await asyncio.to_thread(work)


def _cache_file(path: Path, metadata: dict[str, Any], items: dict[str, bytes]) -> Path:
    """A compressed cache, written by hand as its layout says."""
    document = json.dumps(metadata).encode()
    data = struct.pack("<I", len(document)) + document + struct.pack("<I", len(items))
    for name, value in items.items():
        data += struct.pack("<I", len(name)) + name.encode() + struct.pack("<Q", len(value)) + value
    path.write_bytes(data)
    return path


def test_compressed_cache_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    """An item that grows beyond its shape, a missing end, a scale that is not finite, lz4: nothing is taken."""
    metadata = {
        "quantization": "int8",
        "compression": "zstd",
        "symmetric": True,
        "original_shape_in": [2, 1, 4],
        "original_shape_out": [2, 1, 4],
        "scale_shape_in": [1, 1, 1],
        "scale_shape_out": [1, 1, 1],
    }
    packed = zstandard.ZstdCompressor().compress
    scale = packed(np.array([0.5], "<f4").tobytes())
    good = {"act_in_data": packed(bytes(8)), "act_in_scale": scale}
    good |= {"act_out_data": packed(bytes(8)), "act_out_scale": scale}
    path = tmp_path / "a.bin"
    part = CompressedCache(_cache_file(path, metadata, good))
    assert [rows.shape for rows in part.read(0, 2)] == [(1, 2, 4)] * 2
    part.close()
    infinite = packed(np.array([np.inf], "<f4").tobytes())
    for change, items in (
        ({}, {**good, "act_in_data": packed(bytes(1 << 28))}),
        ({}, {**good, "act_in_data": packed(bytes(7))}),
        ({}, {**good, "act_out_scale": infinite, "act_out_data": packed(b"\x01" * 8)}),
        ({}, {name: value for name, value in good.items() if name != "act_out_data"}),
        ({"compression": "lz4"}, good),
        ({"symmetric": False}, good),
        ({"original_shape_in": [2, 1, 1 << 40]}, good),
        ({"original_shape_out": [3, 1, 4]}, good),
    ):
        _cache_file(path, metadata | change, items)
        with pytest.raises(DataLossError, match=r"a\.bin"), closing(CompressedCache(path)) as part:
            part.read(0, 2)
    whole = _cache_file(path, metadata, good).read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(DataLossError, match=r"a\.bin"), closing(CompressedCache(path)) as part:
            part.read(0, 2)


def test_files_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Split 10 comes after split 9; links and hidden folders are nobody's activations."""
    for name in ("s_10.bin", "s_9.bin", "a/s_1.safetensors", ".hidden/s_0.bin", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "s_0.bin").symlink_to(tmp_path / "note.txt")
    assert [path.name for path in files_of(tmp_path)] == ["s_1.safetensors", "s_9.bin", "s_10.bin"]
