"""
An export from its first shard to its last, which goes on where an earlier one was cut short.

`export.json` in the folder says what is exported and which shards are done; it is written after a shard is, so a shard
that was in the middle is written again.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.cache.v1 import messages_pb2
from weft_client.exporting.formats import FORMATS, Extent, ShardPlace, open_writer
from weft_client.sync.client import Client
from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError

__all__ = ["export_dataset"]

_NOTE = "export.json"
_SPLITS = {messages_pb2.SPLIT_TRAIN: "train", messages_pb2.SPLIT_HELD_OUT: "held_out"}


def export_dataset(
    client: Client,
    dataset: str,
    folder: Path,
    file_format: str,
    *,
    snapshot: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """
    Write a dataset's activations as files.

    Args:
        client: Reads them.
        dataset: Sealed, or open with a `snapshot`.
        folder: Made where it is missing; empty, or with the same export, which goes on.
        file_format: One of `FORMATS`.
        snapshot: One of its snapshots; 0 means the sealed dataset.
        progress: Called with the tokens that are written and those there are.

    Returns:
        The tokens that lie in the folder.

    Raises:
        InvalidArgumentError: There is no such format, or the folder holds something else.
        FailedPreconditionError: The dataset is open and no snapshot is named, or the format's library is missing.
        NotFoundError: No such dataset, or it was deleted meanwhile.
        DataLossError: The service sent fewer rows than the catalog has.
    """
    if file_format not in FORMATS:
        raise InvalidArgumentError(
            f"format is {file_format!r}, expected one of {', '.join(FORMATS)}", field="file_format"
        )
    found = client.datasets.get(dataset, snapshot=snapshot)
    if not snapshot and found.state != messages_pb2.DATASET_STATE_SEALED:
        raise FailedPreconditionError(
            f"{found.name} still grows: export one of its snapshots, which `weft datasets snapshot` takes"
        )
    places, extent = _places(found)
    note = _begin(folder, found, file_format)
    writer = open_writer(file_format, folder, extent)
    done, total = 0, sum(extent.num_tokens.values())
    for place in places:
        progress(done, total)
        if place.index not in note["shards"]:
            _write(client, found, place, extent, writer)
            note["shards"].append(place.index)
            _put(folder, note)
        done += place.num_tokens
    _put(folder, {**note, "complete": True})
    progress(done, total)
    return total


def _places(found: messages_pb2.Dataset) -> tuple[list[ShardPlace], Extent]:
    """Where each shard that has tokens goes, and how large everything is."""
    tokens: dict[str, int] = {}
    places = []
    for shard in found.shards:
        split = _SPLITS[shard.split]
        if shard.num_tokens:
            places.append(ShardPlace(shard.index, split, shard.num_tokens, tokens.get(split, 0)))
            tokens[split] = tokens.get(split, 0) + shard.num_tokens
    spec = found.spec
    about = {
        "dataset": found.name,
        "model": spec.model,
        "model_revision": spec.model_revision,
        "input_hook": spec.input_hook,
        "output_hook": spec.output_hook,
        "codec": spec.codec,
        "corpus": spec.corpus,
    }
    rows = max((shard.row_group_tokens for shard in found.shards), default=1)
    return places, Extent(spec.num_layers, spec.d_model, rows, tokens, about)


def _write(client: Client, found: messages_pb2.Dataset, place: ShardPlace, extent: Extent, writer: Any) -> None:
    shard = next(each for each in found.shards if each.index == place.index)
    writer.begin(place)
    for layer in range(extent.num_layers):
        rows_of = {"input": 0, "output": 0}
        for stream, row_group, rows in client.datasets.read(found.name, shard_index=place.index, layer=layer):
            writer.write(place, stream, layer, row_group * shard.row_group_tokens, rows)
            rows_of[stream] += len(rows)
        if set(rows_of.values()) != {place.num_tokens}:
            raise DataLossError(
                f"shard {place.index} of {found.name} gave {rows_of} rows at layer {layer}, expected "
                f"{place.num_tokens} each; verify the dataset"
            )
    writer.end(place)


def _begin(folder: Path, found: messages_pb2.Dataset, file_format: str) -> dict[str, Any]:
    """What is done by now; nothing in an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = {
        "create_time": found.create_time.ToJsonString(),
        "dataset": found.name,
        "format": file_format,
        "shards_sha256": hashlib.sha256("".join(shard.sha256 for shard in found.shards).encode()).hexdigest(),
        "snapshot": found.snapshot,
    }
    path = folder / _NOTE
    if path.is_file():
        try:
            note = json.loads(path.read_text())
            there = {key: note[key] for key in subject}
            shards = [int(index) for index in note["shards"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                f"{path} is not what an export writes ({error}): choose an empty folder", field="folder"
            ) from error
        if there != subject:
            raise InvalidArgumentError(
                f"{folder} holds another export, of {there['dataset']} as {there['format']}: choose an empty folder",
                field="folder",
            )
        return {**subject, "complete": False, "shards": shards}
    if any(folder.iterdir()):
        raise InvalidArgumentError(f"{folder} is not empty: choose an empty folder", field="folder")
    note = {**subject, "complete": False, "shards": []}
    _put(folder, note)
    return note


def _put(folder: Path, note: dict[str, Any]) -> None:
    partial = folder / f"{_NOTE}.partial"
    partial.write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")
    os.replace(partial, folder / _NOTE)
