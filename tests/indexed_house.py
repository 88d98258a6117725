"""An attribution service whose transcoder has a dataset of random sequences, for tests that look at features."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attribution_house import AttributionHouse, attribution_house
from index_rig import put_dataset
from pydantic import SecretStr

from weft.features.v1 import index_pb2
from weft_attribution.core.feature_index.sequences import HarvestedSequences

__all__ = ["SETTINGS", "Texts", "index_features", "indexed_house", "seen_by_console"]

SETTINGS = index_pb2.FeatureIndexSettings(window_tokens=6, num_top=4, num_sampled=6, num_quantiles=3, pool_windows=16)


@dataclass
class Texts:
    """Sequences behind the dataset `d`."""

    token_ids: list[np.ndarray[Any, Any]]
    fails: int = 0

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        """The port SequenceSource."""
        assert (dataset, held_out) == ("d", False)
        skipped = [np.array([0])] * len(self.token_ids)
        return HarvestedSequences("r1", self.token_ids, skipped, ())


@asynccontextmanager
async def indexed_house(folder: Path) -> AsyncIterator[tuple[AttributionHouse, Texts]]:
    """Serve the transcoder `t` of three layers with twelve features each, and its dataset, which is not indexed yet."""
    rng = np.random.default_rng(0)
    texts = Texts([rng.integers(0, 40, 14) for _ in range(12)])
    async with attribution_house(folder, sequences=texts) as house:
        inputs = []
        for ids in texts.token_ids:
            streams = house.runner.reference.streams(ids.tolist())
            inputs.append(np.stack([streams[f"layers.{layer}.mlp_in"].numpy()[1:] for layer in range(3)]))
        shards = [np.concatenate(inputs[at : at + 4], axis=1).astype(np.float32) for at in range(0, 12, 4)]
        put_dataset(house.store, shards, revision="r1", shard_sequences=4)
        yield house, texts


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
