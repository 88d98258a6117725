"""
Which tokens the rows of a dataset are, found once for an index and kept beside it.

The activations service works the sequences out again from the harvest's record. Where a harvest left tokens out for
their norm, it did not write down which: the sequences of shards that lack some are run through the model again, and
the same rule leaves out the same tokens, or the index is refused.
"""

import asyncio
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
from weft_store.documents import create_json, read_json
from weft_store.port import ObjectStore

__all__ = ["HarvestedSequences", "SequenceSource", "find_text", "read_text"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class HarvestedSequences:
    """
    What a dataset was harvested from.

    Args:
        model_revision: Of the model that gave the tokens.
        token_ids: Of each sequence.
        skipped: Of each, positions that were not kept, 0 among them; those left out for their norm are not.
        norm_limits: By layer, the norm from which on a token was left out; empty where none was.
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
        skipped = await _with_left_out(runner, dataset, found)
    shards = [(shard.key, shard.num_tokens, shard.row_group_tokens) for shard in dataset.shards]
    text, spans = await asyncio.to_thread(align, found.token_ids, skipped, shards, cut=bool(request.max_tokens))
    await asyncio.to_thread(_write_text, store, request.keys, text, spans)
    return text, spans


async def _with_left_out(runner: ModelRunner, dataset: SealedDataset, found: HarvestedSequences) -> list[Array]:
    """Add the positions that were left out for their norm."""
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
        for number in numbers:
            ids = [int(token_id) for token_id in found.token_ids[number]]
            capture = await runner.capture(dataset.model, ids, [f"layers.*.{dataset.norm_hook}"])
            norms_LP = np.stack(
                [_norms(capture.tensors[f"layers.{layer}.{dataset.norm_hook}"]) for layer in range(dataset.num_layers)]
            )
            left_out = np.flatnonzero((norms_LP >= limits_L).any(axis=0))
            skipped[number] = np.union1d(skipped[number], left_out[left_out > 0])
        _check_count(
            dataset, shard, sum(len(found.token_ids[i]) - len(skipped[i]) for i in numbers), len(numbers) == size
        )
    return skipped


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
