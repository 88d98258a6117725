"""Exports of datasets, read back by the libraries of their formats."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import zarr
from prometheus_client import CollectorRegistry
from safetensors import safe_open
from shard_messages import shard_message

from weft.cache.v1 import messages_pb2, service_pb2
from weft_cache.wiring import registration
from weft_client import Client, Endpoint
from weft_client.exporting import FORMATS, export_dataset
from weft_client.exporting.formats import Extent, ShardPlace, open_writer
from weft_client.sync.calls import unary
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store import ObjectStore, open_store
from weft_store.shard import CodecSpec, encode_shard

_LAYERS, _WIDTH, _GROUP = 3, 8, 16
_SHARDS = {0: (40, "train"), 1: (0, "train"), 2: (20, "held_out"), 3: (33, "train"), 4: (1, "held_out")}
_SPLITS = {"train": messages_pb2.SPLIT_TRAIN, "held_out": messages_pb2.SPLIT_HELD_OUT}


def _fill(client: Client, store: ObjectStore) -> dict[int, np.ndarray]:
    """Make a dataset of integers, which bfloat16 keeps; rows by shard, [stream, L, T, D]."""
    stub = client.datasets._stub
    spec = messages_pb2.DatasetSpec(
        model="models/m",
        model_revision="ab" * 32,
        num_layers=_LAYERS,
        d_model=_WIDTH,
        input_hook="mlp_in",
        output_hook="mlp_out",
        codec="bf16",
    )
    unary(stub.CreateDataset, service_pb2.CreateDatasetRequest(dataset_id="a", spec=spec))
    rng, kept = np.random.default_rng(0), {}
    for index, (tokens, split) in _SHARDS.items():
        kept[index] = rng.integers(-99, 99, (2, _LAYERS, tokens, _WIDTH)).astype(np.float32)
        streams = dict(zip(("input", "output"), kept[index], strict=True))
        encoded = encode_shard(streams, CodecSpec("bf16"), row_group_tokens=_GROUP, attributes={})
        upload = unary(stub.BeginShard, service_pb2.BeginShardRequest(dataset="datasets/a", shard_index=index))
        store.put(upload.key, encoded.data)
        shard = shard_message(
            encoded, upload.key, index=index, num_tokens=tokens, split=_SPLITS[split], row_group_tokens=_GROUP
        )
        unary(stub.CommitShard, service_pb2.CommitShardRequest(dataset="datasets/a", shard=shard))
    return kept


class _House:
    """A cache, a client of it, and what its dataset holds."""

    def __init__(self, client: Client, rows: dict[int, np.ndarray]) -> None:
        self.client, self.rows = client, rows

    def seal(self) -> None:
        request = service_pb2.SealDatasetRequest(name="datasets/a", num_shards=len(_SHARDS))
        unary(self.client.datasets._stub.SealDataset, request)

    def of(self, split: str) -> np.ndarray:
        """All rows of a split, [stream, L, T, D]."""
        shards = [self.rows[index] for index, (_, which) in _SHARDS.items() if which == split]
        return np.concatenate(shards, axis=2)


@pytest.fixture
async def house() -> AsyncIterator[_House]:
    store = open_store("memory://")
    settings = ServiceSettings(token="t")
    served = [registration(store, registry=CollectorRegistry())]
    async with serving("cache", settings, served) as server:
        with Client.to(cache=Endpoint(f"127.0.0.1:{server.port}", "t")) as client:
            yield _House(client, await asyncio.to_thread(_fill, client, store))


def _read_safetensors(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for split in _SPLITS:
        shards = []
        for path in sorted((folder / split).glob("*.safetensors")):
            with safe_open(path, "numpy") as file:
                assert file.metadata()["model"] == "models/m"
                parts = [[file.get_tensor(f"{stream}.{n}") for n in range(_LAYERS)] for stream in ("input", "output")]
                shards.append(np.array(parts))
        found[split] = np.concatenate(shards, axis=2)
    return found


def _read_parquet(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    everything = pyarrow.dataset.dataset(folder, format="parquet", partitioning="hive", exclude_invalid_files=True)
    for split in _SPLITS:
        layers = []
        for layer in range(_LAYERS):
            chosen = (pyarrow.dataset.field("split") == split) & (pyarrow.dataset.field("layer") == layer)
            table = everything.to_table(filter=chosen)
            layers.append([np.array(table[stream].to_pylist(), np.float32) for stream in ("input", "output")])
        found[split] = np.array(layers).swapaxes(0, 1)
    path = folder / "split=train" / "layer=1" / "shard-00000.parquet"
    assert pyarrow.parquet.ParquetFile(path).metadata.num_row_groups == 3
    assert pyarrow.parquet.read_table(path)["row"].to_pylist() == list(range(40))
    return found


def _read_zarr(folder: Path) -> dict[str, np.ndarray]:
    root: Any = zarr.open_group(folder / "activations.zarr", mode="r")
    assert root.attrs["model"] == "models/m"
    assert root["train/input"].chunks == (1, _GROUP, _WIDTH)
    return {split: np.array([root[f"{split}/{stream}"][:] for stream in ("input", "output")]) for split in _SPLITS}


_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "safetensors": _read_safetensors,
    "parquet": _read_parquet,
    "zarr": _read_zarr,
}


@pytest.mark.parametrize("file_format", list(FORMATS))
async def test_export_is_read_back_by_the_library_of_its_format(
    house: _House, tmp_path: Path, file_format: str
) -> None:
    """Every value of every token, in the order of shards, also where an export was cut short and went on."""
    await asyncio.to_thread(house.seal)

    def cut_short(done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    def work() -> int:
        with pytest.raises(KeyboardInterrupt):
            export_dataset(house.client, "a", tmp_path / "out", file_format, progress=cut_short)
        assert json.loads((tmp_path / "out" / "export.json").read_text())["shards"] == [0]
        return export_dataset(house.client, "a", tmp_path / "out", file_format)

    assert await asyncio.to_thread(work) == 94
    note = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (note["complete"], note["shards"]) == (True, [0, 2, 3, 4])
    for split, rows in _READERS[file_format](tmp_path / "out").items():
        np.testing.assert_array_equal(rows, house.of(split))


async def test_export_of_an_open_dataset_is_of_a_snapshot(house: _House, tmp_path: Path) -> None:
    """Without one it is refused; with one it is what the snapshot lists."""

    def work() -> int:
        with pytest.raises(FailedPreconditionError, match="still grows"):
            export_dataset(house.client, "a", tmp_path / "out", "safetensors")
        house.client.datasets.snapshot("a")
        return export_dataset(house.client, "a", tmp_path / "out", "safetensors", snapshot=1)

    assert await asyncio.to_thread(work) == 94
    np.testing.assert_array_equal(_read_safetensors(tmp_path / "out")["train"], house.of("train"))


async def test_export_leaves_folders_of_others_alone(house: _House, tmp_path: Path) -> None:
    """Neither files of a person nor another export are written over, and a format is one of three."""
    await asyncio.to_thread(house.seal)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")

    def work() -> None:
        with pytest.raises(InvalidArgumentError, match="not empty"):
            export_dataset(house.client, "a", tmp_path / "mine", "safetensors")
        export_dataset(house.client, "a", tmp_path / "out", "safetensors")
        with pytest.raises(InvalidArgumentError, match="holds another export, of datasets/a as safetensors"):
            export_dataset(house.client, "a", tmp_path / "out", "parquet")
        with pytest.raises(InvalidArgumentError, match="safetensors, parquet, zarr"):
            export_dataset(house.client, "a", tmp_path / "other", "npz")

    await asyncio.to_thread(work)


@pytest.mark.parametrize("file_format", list(FORMATS))
def test_writers_hold_blocks_and_never_a_shard(tmp_path: Path, file_format: str) -> None:
    """Memory of Python, NumPy and Arrow stays at a few blocks of 256 KiB while a shard of 32 MiB is written."""
    groups, tokens, width = 64, 256, 256
    extent = Extent(1, width, tokens, {"train": groups * tokens}, {})
    place = ShardPlace(0, "train", groups * tokens, 0)
    writer = open_writer(file_format, tmp_path, extent)
    rows = np.random.default_rng(0).standard_normal((tokens, width)).astype(np.float32)

    def block(group: int) -> None:
        for stream in ("input", "output"):
            writer.write(place, stream, 0, group * tokens, rows)

    writer.begin(place)
    block(0)
    before = pa.total_allocated_bytes()
    most = 0
    tracemalloc.start()
    try:
        for group in range(1, groups):
            block(group)
            most = max(most, pa.total_allocated_bytes() - before)
        writer.end(place)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak + most < 16 * rows.nbytes
