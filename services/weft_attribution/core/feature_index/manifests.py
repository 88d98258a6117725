"""
The end of an index: a summary of all layers, what fires on which token, and the manifest that makes it whole.

Legend: N features of all layers.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.datasets import SealedDataset
from weft_attribution.core.feature_index.layer_files import SUMMARY_COLUMNS
from weft_attribution.core.feature_index.settings import ActivityRule, IndexKeys, IndexRequest
from weft_attribution.core.feature_index.tables import SUMMARY_ROWS, Table, write_table
from weft_attribution.core.feature_index.text import Text
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import AlreadyExistsError, DataLossError, NotFoundError
from weft_common.logging import get_logger
from weft_store.documents import keep_json, list_ids, read_json
from weft_store.port import ObjectStore

__all__ = ["begin_index", "clear_states", "finish_index", "list_indexes", "read_manifest"]

Array = npt.NDArray[Any]
Json = dict[str, Any]
_log = get_logger(__name__)
# What is told of an index, beside how it was asked for.
_COUNTS = ("d_model", "num_tokens", "num_sequences", "num_dead", "num_dense", "coactivation_tokens")


def begin_index(store: ObjectStore, request: IndexRequest, mark: str) -> Json:
    """
    Write down how an index is asked for, and of which transcoder; the same again gives what was written first.

    Raises:
        AlreadyExistsError: The id stands for another index.
    """
    document = {
        "create_s": time.time(),
        "request": request.to_json(),
        "transcoder_mark": mark,
    }
    there = keep_json(store, request.keys.request, document)
    if any(there.get(name) != document[name] for name in ("request", "transcoder_mark")):
        raise AlreadyExistsError(
            f"transcoders/{request.transcoder}/indexes/{request.index_id} was asked for otherwise, or of another "
            "transcoder of that name; give this one an id of its own",
            field="index_id",
        )
    return there


def finish_index(
    store: ObjectStore,
    request: IndexRequest,
    dataset: SealedDataset,
    transcoder: TranscoderReader,
    text: Text,
    num_layers: int,
) -> Json:
    """Write what goes over all layers, then the manifest; two that do so at once write the same."""
    keys = request.keys
    begun, _ = read_json(store, keys.request)
    columns: dict[str, list[Array]] = {name: [] for name in ("layer", *SUMMARY_COLUMNS)}
    triggers: list[Array] = []
    layers = []
    for layer in range(num_layers):
        table = Table(store, keys.layer(layer)).read([*SUMMARY_COLUMNS, "top_positions"])
        count = table.num_rows
        columns["layer"].append(np.full(count, layer, np.int32))
        for name in SUMMARY_COLUMNS:
            columns[name].append(table.column(name).to_numpy())
        triggers.append(_triggers(table.column("top_positions").combine_chunks(), text, layer))
        layers.append({"layer": layer, "num_features": count})
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    _put_table(store, keys.summary, joined)
    found = np.concatenate(triggers)
    found = found[np.lexsort((found[:, 2], found[:, 1], found[:, 0]))]
    _put_table(store, keys.triggers, dict(zip(("token", "layer", "index", "count"), found.T, strict=True)))
    manifest: Json = {
        **begun,
        "model": dataset.model,
        "model_revision": dataset.model_revision,
        "d_model": transcoder.encoder_shape(0)[1],
        "layers": layers,
        "num_tokens": text.num_tokens,
        "num_sequences": text.num_sequences,
        "num_dead": int((joined["num_active"] == 0).sum()),
        "num_dense": int((joined["num_active"] > request.settings.dense_share * text.num_tokens).sum()),
        "coactivation_tokens": min(request.settings.coactivation_tokens, text.num_tokens),
        "activity_rule": ActivityRule.THRESHOLD_FOR_COUNT if transcoder.manifest.top_k else ActivityRule.THRESHOLD,
    }
    return keep_json(store, keys.manifest, manifest)


def clear_states(store: ObjectStore, keys: IndexKeys) -> None:
    """Delete what was written on the way to a whole index; nothing where that is done."""
    for prefix in (keys.states, f"{keys.leases}/"):
        for info in list(store.list(prefix)):
            store.delete(info.key)


def _triggers(positions: Any, text: Text, layer: int) -> Array:
    """Token, layer, feature and on how many of its strongest stretches the feature is strongest there: [n, 4]."""
    counts_F = np.diff(positions.offsets.to_numpy())
    token = text.token_id_P[positions.values.to_numpy()].astype(np.int64)
    feature = np.repeat(np.arange(len(counts_F)), counts_F)
    pairs, count = np.unique(np.stack([token, feature], axis=1).reshape(-1, 2), axis=0, return_counts=True)
    return np.stack([pairs[:, 0], np.full(len(pairs), layer), pairs[:, 1], count], axis=1).astype(np.int32)


def _put_table(store: ObjectStore, key: str, columns: Mapping[str, Array]) -> None:
    count = len(next(iter(columns.values())))
    groups = (
        {name: column[low : low + SUMMARY_ROWS] for name, column in columns.items()}
        for low in range(0, max(1, count), SUMMARY_ROWS)
    )
    store.put(key, write_table(groups))


def read_manifest(store: ObjectStore, keys: IndexKeys) -> Json:
    """The manifest of a whole index. NotFoundError; DataLossError where it is damaged."""
    manifest, _ = read_json(store, keys.manifest)
    try:
        IndexRequest.from_json(manifest["request"])
        float(manifest["create_s"]), str(manifest["model"])
        for count in (*(manifest[name] for name in _COUNTS), *(each["num_features"] for each in manifest["layers"])):
            int(count)
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"{keys.manifest} is damaged ({error!r}); index the transcoder again") from error
    return manifest


def list_indexes(store: ObjectStore, transcoder: str, mark: str) -> list[Json]:
    """
    The manifests of all whole indexes of a transcoder, as it is now, newest first.

    One that is damaged is named in the log and passed over, so that those beside it answer.
    """
    current = []
    for each in list_ids(store, f"features/{transcoder}/index/", "/manifest.json"):
        try:
            manifest = read_manifest(store, IndexKeys(transcoder, each))
        except NotFoundError:
            continue
        except DataLossError as error:
            _log.warning("index_passed_over", index=f"transcoders/{transcoder}/indexes/{each}", reason=error.message)
            continue
        if manifest.get("transcoder_mark") == mark:
            current.append(manifest)
    return sorted(current, key=lambda manifest: (-manifest["create_s"], manifest["request"]["index_id"]))
