"""
Which tokens the rows of a dataset are, found once for an index and kept beside it.

The activations service works the sequences out again from the harvest's record, and tells which tokens it left out for
their norm. Harvests of before that was written down tell the rule alone: the sequences of shards that lack some are run
through the model again, and the same rule leaves out the same tokens, or the index is refused.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.datasets import SealedDataset, SealedShard
from weft_attribution.core.feature_index.settings import IndexKeys, IndexRequest
from weft_attribution.core.feature_index.text import Span, Text, align
from weft_attribution.core.ports import ModelRunner
from weft_common.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from weft_common.logging import get_logger
from weft_store.documents import create_json, read_json
from weft_store.port import ObjectStore

__all__ = ["HarvestedSequences", "SequenceSource", "find_text", "read_text"]

Array = npt.NDArray[Any]
_LOG = get_logger(__name__)


@dataclass(frozen=True)
class HarvestedSequences:
    """
    What a dataset was harvested from.

    Args:
        model_revision: Of the model that gave the tokens.
        token_ids: Of each sequence.
        skipped: Of each, positions that were not kept, 0 among them.
        norm_limits: By layer, the norm from which on tokens were left out that `skipped` lacks; empty where it has all.
    """

    model_revision: str
    token_ids: Sequence[Array]
    skipped: Sequence[Array]
    norm_limits: tuple[float, ...]


class SequenceSource(Protocol):
    """Where the sequences behind a dataset come from."""

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        """
        The sequences of a split, up to the one that brings the kept tokens to `max_tokens`; 0 gives all.

        Raises:
            NotFoundError: No harvest wrote this dataset.
            FailedPreconditionError: The model or the corpus is no longer what it was.
        """


async def find_text(
    store: ObjectStore, runner: ModelRunner, source: SequenceSource, dataset: SealedDataset, request: IndexRequest
) -> tuple[Text, tuple[Span, ...]]:
    """Read the text of an index back, or find it and keep it."""
    there = await asyncio.to_thread(read_text, store, request.keys)
    if there is not None:
        return there
    found = await source.sequences(dataset.dataset, held_out=request.held_out, max_tokens=request.max_tokens)
    if found.model_revision != dataset.model_revision:
        raise FailedPreconditionError(
            f"datasets/{dataset.dataset} holds revision {dataset.model_revision[:16]} of models/{dataset.model}, its "
            f"sequences are of {found.model_revision[:16]}; put the model back as it was, or harvest again"
        )
    skipped = list(found.skipped)
    if found.norm_limits:
        skipped = await _with_left_out(store, runner, dataset, found, request.keys)
    shards = [(shard.key, shard.num_tokens, shard.row_group_tokens) for shard in dataset.shards]
    text, spans = await asyncio.to_thread(align, found.token_ids, skipped, shards, cut=bool(request.max_tokens))
    await asyncio.to_thread(_write_text, store, request.keys, text, spans)
    return text, spans


async def _with_left_out(
    store: ObjectStore, runner: ModelRunner, dataset: SealedDataset, found: HarvestedSequences, keys: IndexKeys
) -> list[Array]:
    """Add the positions that were left out for their norm; those of a shard are kept as soon as they are found."""
    size = dataset.shard_sequences
    if not size or not dataset.norm_hook:
        raise FailedPreconditionError(
            f"datasets/{dataset.dataset} leaves out tokens for their norm, and its lineage does not say how; harvest "
            "it again"
        )
    limits_L = np.array(found.norm_limits)[:, None]
    skipped = list(found.skipped)
    for place, shard in enumerate(dataset.shards):
        numbers = range(place * size, min((place + 1) * size, len(skipped)))
        if not numbers or sum(len(found.token_ids[i]) - len(skipped[i]) for i in numbers) == shard.num_tokens:
            continue
        # By the shard's own key, so that a dataset of the same name that is harvested again has its own.
        key = keys.text(f"left_out/{hashlib.sha256(shard.key.encode()).hexdigest()[:32]}.bin")
        stops = np.cumsum([len(found.token_ids[number]) for number in numbers])
        gaps = await asyncio.to_thread(_read_gaps, store, key, stops)
        known = gaps is not None
        gaps = gaps or [await _left_out(runner, dataset, found.token_ids[number], limits_L) for number in numbers]
        for number, gap in zip(numbers, gaps, strict=True):
            skipped[number] = np.union1d(skipped[number], gap)
        _check_count(
            dataset, shard, sum(len(found.token_ids[i]) - len(skipped[i]) for i in numbers), len(numbers) == size
        )
        if not known:
            await asyncio.to_thread(_write_gaps, store, key, gaps, stops)
        _LOG.info("what a harvest left out was found", index=keys.index_id, shards=place + 1, of=len(dataset.shards))
    return skipped


async def _left_out(runner: ModelRunner, dataset: SealedDataset, token_ids: Array, limits_L: Array) -> Array:
    """Run a sequence, and return the positions at which a norm reaches its limit."""
    hook = f"layers.*.{dataset.norm_hook}"
    capture = await runner.capture(dataset.model, [int(token_id) for token_id in token_ids], [hook])
    streams = [capture.tensors[hook.replace("*", str(layer))] for layer in range(dataset.num_layers)]
    left_out: Array = np.flatnonzero((np.stack([_norms(stream) for stream in streams]) >= limits_L).any(axis=0))
    return left_out[left_out > 0]


def _read_gaps(store: ObjectStore, key: str, stops: Array) -> list[Array] | None:
    """Read what `_write_gaps` kept of a shard; None where it has not, or where it is damaged."""
    try:
        data = store.get(key)
    except NotFoundError:
        return None
    if len(data) % 8:
        return None
    places = np.frombuffer(data, "<i8")
    starts = [0, *stops[:-1].tolist()]
    return [
        places[(places >= start) & (places < stop)] - start for start, stop in zip(starts, stops.tolist(), strict=True)
    ]


def _write_gaps(store: ObjectStore, key: str, gaps: Sequence[Array], stops: Array) -> None:
    starts = [0, *stops[:-1].tolist()]
    places = np.concatenate([gap + start for gap, start in zip(gaps, starts, strict=True)])
    store.put(key, places.astype("<i8").tobytes())


def _norms(stream_PD: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("pd,pd->p", stream_PD, stream_PD)))


def _check_count(dataset: SealedDataset, shard: SealedShard, num_kept: int, is_whole: bool) -> None:
    if num_kept > shard.num_tokens or (is_whole and num_kept != shard.num_tokens):
        raise FailedPreconditionError(
            f"{shard.key} has {shard.num_tokens} tokens, and by their norms {num_kept} would have been kept: models/"
            f"{dataset.model} computes differently now; harvest the dataset again, with max_norm_ratio 0 to keep all"
        )


def read_text(store: ObjectStore, keys: IndexKeys) -> tuple[Text, tuple[Span, ...]] | None:
    """Read what `find_text` kept; None where it has not."""
    try:
        plan, _ = read_json(store, keys.text("plan.json"))
    except NotFoundError:
        return None
    num_positions = int(plan["num_positions"])
    bits = np.frombuffer(store.get(keys.text("kept.bin")), np.uint8)
    text = Text(
        token_id_P=np.frombuffer(store.get(keys.text("tokens.bin")), "<u4"),
        start_N=np.frombuffer(store.get(keys.text("starts.bin")), "<i8"),
        kept_P=np.unpackbits(bits, count=num_positions, bitorder="little").astype(bool),
    )
    return text, tuple(Span(*span) for span in plan["spans"])


def _write_text(store: ObjectStore, keys: IndexKeys, text: Text, spans: Sequence[Span]) -> None:
    """Two that write at once write the same bytes."""
    store.put(keys.text("tokens.bin"), text.token_id_P.astype("<u4").tobytes())
    store.put(keys.text("starts.bin"), text.start_N.astype("<i8").tobytes())
    store.put(keys.text("kept.bin"), np.packbits(text.kept_P, bitorder="little").tobytes())
    document = {
        "num_positions": len(text.token_id_P),
        "spans": [
            [span.key, span.first_sequence, span.last_sequence, span.num_rows, span.row_group_tokens] for span in spans
        ],
    }
    try:
        create_json(store, keys.text("plan.json"), document)
    except AlreadyExistsError:
        return
