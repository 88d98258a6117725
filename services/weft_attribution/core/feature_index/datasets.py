"""
Sealed datasets, straight from the bucket: what they are of, their shards, and rows of one layer.

The manifest is the catalog's; a dataset that is sealed does not change.

Legend: T tokens, D d_model.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.transcoder import TranscoderManifest
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_store.documents import read_json
from weft_store.port import ObjectStore
from weft_store.shard import Bases, ShardReader

__all__ = ["SealedDataset", "SealedShard", "read_dataset", "read_rows"]


@dataclass(frozen=True)
class SealedShard:
    """A shard of the split that is read."""

    key: str
    num_tokens: int
    row_group_tokens: int


@dataclass(frozen=True)
class SealedDataset:
    """
    One split of a sealed dataset.

    Args:
        shards: In order.
        norm_hook: Hook, without the layer, whose norms said which tokens were left out; empty where that is not known.
        shard_sequences: Sequences of each shard but the last; 0 where that is not known.
    """

    dataset: str
    model: str
    model_revision: str
    num_layers: int
    d_model: int
    input_hook: str
    shards: tuple[SealedShard, ...]
    norm_hook: str
    shard_sequences: int

    def check_fits(self, transcoder: TranscoderManifest, num_layers: int, d_model: int) -> None:
        """
        Check that a transcoder reads what the dataset holds.

        Raises:
            InvalidArgumentError: It does not.
        """
        mine = (self.model, self.input_hook, self.num_layers, self.d_model)
        wanted = (transcoder.model, transcoder.input_hook, num_layers, d_model)
        names = ("model", "input", "number of layers", "d_model")
        for name, there, asked in zip(names, mine, wanted, strict=True):
            if there != asked:
                raise InvalidArgumentError(
                    f"transcoders/{transcoder.transcoder} has {name} {asked}, datasets/{self.dataset} {there}; "
                    "name a dataset that was harvested for this transcoder's model and input",
                    field="dataset",
                )
        if transcoder.model_revision and transcoder.model_revision != self.model_revision:
            raise InvalidArgumentError(
                f"transcoders/{transcoder.transcoder} is for revision {transcoder.model_revision[:16]} of "
                f"models/{self.model}, datasets/{self.dataset} holds {self.model_revision[:16]}; harvest it again",
                field="dataset",
            )


def read_dataset(store: ObjectStore, dataset: str, *, held_out: bool) -> SealedDataset:
    """
    Look a dataset up.

    Raises:
        NotFoundError: There is none.
        FailedPreconditionError: It is not sealed, or the split is empty.
        DataLossError: Its manifest is damaged.
    """
    try:
        manifest, _ = read_json(store, f"datasets/{dataset}/manifest.json")
    except NotFoundError:
        raise NotFoundError(f"no dataset datasets/{dataset}; list the datasets to see those that there are") from None
    if manifest.get("state") == "deleting":
        raise FailedPreconditionError(f"datasets/{dataset} is being deleted; name another one, or harvest it again")
    if manifest.get("state") != "sealed":
        raise FailedPreconditionError(
            f"datasets/{dataset} is {manifest.get('state')}, and only a sealed one is indexed; wait for its harvest"
        )
    split = "held_out" if held_out else "train"
    try:
        spec = manifest["spec"]
        shards = tuple(
            SealedShard(shard["key"], shard["num_tokens"], shard["row_group_tokens"])
            for shard in sorted(manifest["shards"], key=lambda shard: int(shard["index"]))
            if shard["split"] == split
        )
        made = json.loads(spec.get("lineage") or "{}").get("spec", {})
        found = SealedDataset(
            dataset=dataset,
            model=str(spec["model"]).removeprefix("models/"),
            model_revision=str(spec["model_revision"]),
            num_layers=int(spec["num_layers"]),
            d_model=int(spec["d_model"]),
            input_hook=str(spec["input_hook"]),
            shards=shards,
            norm_hook=str(made.get("output_hook", "")),
            shard_sequences=int(made.get("lease_sequences", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataLossError(f"the manifest of datasets/{dataset} is damaged ({error!r}); harvest it again") from error
    if not any(shard.num_tokens for shard in shards):
        raise FailedPreconditionError(f"datasets/{dataset} has no tokens in its {split} split; ask for the other one")
    return found


def read_rows(
    store: ObjectStore, bases: Bases, key: str, layer: int, row_group_tokens: int, num_rows: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Read the inputs of one layer, row group after row group, until there are `num_rows` of them: [T, D] each."""
    reader = ShardReader(store, key, bases)
    for row_group in range(-(-num_rows // row_group_tokens)):
        rows: npt.NDArray[Any] = reader.read("input", layer, row_group)
        yield rows[: num_rows - row_group * row_group_tokens]
