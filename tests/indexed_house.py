"""The attribution service over a small model, with a dataset that its features can be indexed on."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attribution_house import AttributionHouse, attribution_house
from attribution_rig import load_transcoder, make_transcoder
from index_rig import put_dataset
from pydantic import SecretStr

from weft.features.v1 import index_pb2
from weft_attribution.core.feature_index.sequences import HarvestedSequences

SETTINGS = index_pb2.FeatureIndexSettings(window_tokens=6, num_top=4, num_sampled=6, num_quantiles=3, pool_windows=16)


@dataclass
class Texts:
    """Sequences behind the dataset `d`."""

    token_ids: list[np.ndarray]
    fails: int = 0

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        assert (dataset, held_out) == ("d", False)
        skipped = [np.array([0])] * len(self.token_ids)
        return HarvestedSequences("r1", self.token_ids, skipped, ())


@dataclass
class Indexed:
    """A house with a dataset that is not indexed yet, and what every feature does on its text."""

    house: AttributionHouse
    texts: Texts
    acts: list[np.ndarray]

    @property
    def features(self) -> Any:
        return self.house.client.features

    async def index(self, index_id: str = "i1", transcoder: str = "t") -> index_pb2.FeatureIndex:
        return await index_features(self.house, index_id, transcoder)

    async def names(self, found: Any) -> list[str]:
        return [each.name.rpartition("/")[2] async for each in found]


def activations(house: AttributionHouse, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """[tokens kept, features] by layer, in float64 from the model's own streams."""
    tensors = load_transcoder(house.store, "t", 3)
    found: list[list[np.ndarray]] = [[], [], []]
    for ids in sequences:
        streams = house.runner.reference.streams(ids.tolist())
        for layer in range(3):
            pre = streams[f"layers.{layer}.mlp_in"] @ tensors[f"W_enc_{layer}"].T + tensors[f"b_enc_{layer}"]
            found[layer].append(((pre > tensors[f"threshold_{layer}"]) * pre).numpy()[1:])
    return [np.concatenate(rows) for rows in found]


@asynccontextmanager
async def indexed_house(folder: Path, **options: Any) -> AsyncIterator[Indexed]:
    """Serve the model `tiny` with the transcoders `t` and `u`, and the dataset `d`; `options` go to the wiring."""
    rng = np.random.default_rng(0)
    texts = Texts([rng.integers(0, 40, 14) for _ in range(12)])
    async with attribution_house(folder, sequences=texts, **options) as house:
        make_transcoder(house.store, "u", house.runner.reference, seed=2)
        inputs = []
        for ids in texts.token_ids:
            streams = house.runner.reference.streams(ids.tolist())
            inputs.append(np.stack([streams[f"layers.{layer}.mlp_in"].numpy()[1:] for layer in range(3)]))
        shards = [np.concatenate(inputs[at : at + 4], axis=1).astype(np.float32) for at in range(0, 12, 4)]
        put_dataset(house.store, shards, revision="r1", shard_sequences=4)
        yield Indexed(house, texts, activations(house, texts.token_ids))


async def index_features(
    house: AttributionHouse, index_id: str = "i1", transcoder: str = "t"
) -> index_pb2.FeatureIndex:
    """Make an index and wait for it."""
    operation = await house.client.features.index(transcoder, index_id, dataset="d", settings=SETTINGS)
    found = await house.client.operations.wait(operation)
    assert isinstance(found, index_pb2.FeatureIndex)
    return found


def seen_by_console(house: AttributionHouse) -> dict[str, Any]:
    """Settings of a console by which it finds the service."""
    endpoint = json.loads((house.folder / "endpoints.json").read_text())["services"]["attribution"]
    return {"attribution_target": endpoint["target"], "attribution_token": SecretStr(endpoint["token"])}
