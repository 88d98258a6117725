"""Indexes of features as they are asked for: checked, made, by one replica or several, resumed."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from weft_attribution.core.feature_index.building import IndexBuilder, Room
from weft_attribution.core.feature_index.datasets import SealedDataset, read_dataset
from weft_attribution.core.feature_index.manifests import begin_index, clear_states, read_manifest
from weft_attribution.core.feature_index.sequences import SequenceSource, find_text, read_text
from weft_attribution.core.feature_index.settings import MAX_INDEX_TOKENS, IndexRequest
from weft_attribution.core.feature_index.sharing import TEXT, IndexShare
from weft_attribution.core.feature_index.text import Span, Text
from weft_attribution.core.ports import ModelRunner
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.waited_threads import ended
from weft_common.errors import CancelledError, FailedPreconditionError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["FeatureIndexing"]

Progress = Callable[[int, int], None]


class FeatureIndexing:
    """
    Makes indexes, each with whatever replicas make it too.

    Args:
        store: The bucket.
        runner: The base model, for shards that lack tokens for their norm.
        source: Where the sequences behind a dataset come from.
        memory_bytes: What may be held of features at once.
        workers: Layers that are worked on at once.
        lease_s: Seconds without a sign of life after which another replica takes a layer over.
        poll_s: Wait between looks at what others make.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        runner: ModelRunner,
        source: SequenceSource,
        *,
        memory_bytes: int,
        workers: int,
        lease_s: float = 20.0,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._runner, self._source = store, runner, source
        self._memory_bytes, self._workers = memory_bytes, workers
        self._share = partial(IndexShare, lease_s=lease_s, poll_s=poll_s, clock=clock)

    async def check(self, request: IndexRequest) -> int:
        """
        Check a request against what there is.

        Returns:
            The tokens that are to be read, over all layers.

        Raises:
            NotFoundError: No such transcoder or dataset.
            InvalidArgumentError: They do not fit, a setting is out of its range, or the memory does not bear it.
            FailedPreconditionError: The dataset is not sealed, or has more tokens than an index goes over.
        """
        request.check()
        dataset, transcoder = await asyncio.to_thread(self._look_up, request)
        shape = await asyncio.to_thread(transcoder.encoder_shape, 0)
        Room.of(request, self._memory_bytes, self._workers, *shape)
        return _num_tokens(dataset, request) * dataset.num_layers

    async def build(self, request: IndexRequest, progress: Progress) -> Mapping[str, Any]:
        """
        Make an index, or go on with one, and return its manifest.

        Args:
            request: What is asked for.
            progress: Told the tokens done and those there are, over all layers; may raise to stop the work.

        Raises:
            AlreadyExistsError: The id stands for another index.
            Everything that `check` raises.
        """
        request.check()
        dataset, transcoder = await asyncio.to_thread(self._look_up, request)
        await asyncio.to_thread(begin_index, self._store, request, transcoder.mark)
        try:
            manifest = await asyncio.to_thread(read_manifest, self._store, request.keys)
        except NotFoundError:
            pass
        else:
            # Who wrote it may have died right after.
            await asyncio.to_thread(clear_states, self._store, request.keys)
            return manifest
        share, stopping = self._share(self._store, request.keys, dataset.num_layers), threading.Event()

        def told(done: int, total: int) -> None:
            if stopping.is_set():
                raise CancelledError("the index was stopped")
            progress(done, total)

        share.begin()
        try:
            text, spans = await self._text(request, dataset, share)
            # It draws from all positions, which takes seconds where there are many.
            builder = await asyncio.to_thread(
                IndexBuilder,
                self._store,
                request,
                dataset,
                transcoder,
                text,
                spans,
                share,
                memory_bytes=self._memory_bytes,
                workers=self._workers,
            )
            work = asyncio.ensure_future(asyncio.to_thread(builder.build, told))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                # The thread ends with its next step; it is waited for, so that two never work side by side here.
                stopping.set()
                await ended(work)
                raise
        finally:
            await asyncio.to_thread(share.end)

    async def _text(
        self, request: IndexRequest, dataset: SealedDataset, share: IndexShare
    ) -> tuple[Text, tuple[Span, ...]]:
        """The text, found by one replica."""
        while (there := await asyncio.to_thread(read_text, self._store, request.keys)) is None:
            if await asyncio.to_thread(share.take, [TEXT]) is None:
                await asyncio.sleep(share.poll_s)
                continue
            there = await find_text(self._store, self._runner, self._source, dataset, request)
            await asyncio.to_thread(share.release, TEXT)
            break
        return there

    def _look_up(self, request: IndexRequest) -> tuple[SealedDataset, TranscoderReader]:
        transcoder = TranscoderReader(self._store, request.transcoder)
        dataset = read_dataset(self._store, request.dataset, held_out=request.held_out)
        num_layers = 0
        while transcoder.has_layer(num_layers):
            num_layers += 1
        d_model = transcoder.encoder_shape(0)[1] if num_layers else 0
        dataset.check_fits(transcoder.manifest, num_layers, d_model)
        if _num_tokens(dataset, request) > MAX_INDEX_TOKENS:
            raise FailedPreconditionError(
                f"datasets/{request.dataset} has {_num_tokens(dataset, request)} tokens in this split, more than the "
                f"{MAX_INDEX_TOKENS} that an index goes over; give max_tokens"
            )
        return dataset, transcoder


def _num_tokens(dataset: SealedDataset, request: IndexRequest) -> int:
    there = sum(shard.num_tokens for shard in dataset.shards)
    return min(there, request.max_tokens) if request.max_tokens else there
