"""
An index from its first layer to its manifest: by parts of layers, each going over the text once.

A part is as many features of a layer as its share of the memory holds. What a part has gathered is stored from time to
time, and when it is done, by conditional writes: a process that dies loses what it gathered since, and of two that work
on the same part none loses what the other has stored. All that is kept in the end depends on the request alone.
Who makes which layer is settled by `sharing`.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save

from weft_attribution.core.feature_index.datasets import SealedDataset, read_rows
from weft_attribution.core.feature_index.gathering import CHUNK, BlockText, PartState
from weft_attribution.core.feature_index.layer_files import layer_groups
from weft_attribution.core.feature_index.manifests import clear_states, finish_index, read_manifest
from weft_attribution.core.feature_index.settings import IndexRequest
from weft_attribution.core.feature_index.sharing import MANIFEST, IndexShare
from weft_attribution.core.feature_index.tables import write_table
from weft_attribution.core.feature_index.text import Span, Text, draw_positions, draw_tiles
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import AlreadyExistsError, ConflictError, InvalidArgumentError, NotFoundError
from weft_store.port import ObjectStore
from weft_store.shard import Bases

__all__ = ["IndexBuilder", "Room"]

Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]
"""Called with the tokens done, over all layers, and those there are; may raise to stop the work."""
STORE_EVERY_S = 60.0
"""A part that goes on for so long is stored."""


@dataclass(frozen=True)
class Room:
    """
    What may be gathered at once.

    Args:
        workers: Layers that are worked on at once.
        part_features: Features of a part: a multiple of `CHUNK`, so that how layers are cut changes no bit.
    """

    workers: int
    part_features: int

    @classmethod
    def of(cls, request: IndexRequest, memory_bytes: int, workers: int, num_features: int, d_model: int) -> "Room":
        """
        Find the most that fits: of many workers with too little each, fewer are left.

        Raises:
            InvalidArgumentError: Not even one chunk of features does.
        """
        # Beside what is gathered of a feature its encoder row is held, as it was read and in float32.
        one = PartState.bytes_of_one(request.settings) + 8 * d_model
        least = min(CHUNK, num_features) * one
        if least > memory_bytes:
            raise InvalidArgumentError(
                f"with these settings {min(CHUNK, num_features)} features of a layer take {least >> 20} MiB, and the "
                f"service may hold {memory_bytes >> 20}: ask for fewer windows (num_top, num_sampled), shorter ones "
                "(window_tokens) or fewer coactivation_tokens, or raise WEFT_ATTRIBUTION_MEMORY_BYTES",
                field="settings",
            )
        workers = min(workers, memory_bytes // least)
        return cls(workers, max(1, memory_bytes // workers // one // CHUNK) * CHUNK)


@dataclass(frozen=True)
class _Part:
    layer: int
    low: int
    high: int


class _TakenOverError(Exception):
    """Another replica makes this layer now."""


class IndexBuilder:
    """
    Makes one index, with whoever else makes it.

    Args:
        store: The bucket.
        request: What is asked for.
        dataset: The dataset.
        transcoder: The transcoder.
        text: The sequences behind the dataset.
        spans: Which shard holds which of them.
        share: What this replica does of it.
        memory_bytes: What all parts that are worked on at once may hold.
        workers: Layers that are worked on at once, where there is memory for so many.
    """

    def __init__(
        self,
        store: ObjectStore,
        request: IndexRequest,
        dataset: SealedDataset,
        transcoder: TranscoderReader,
        text: Text,
        spans: tuple[Span, ...],
        share: IndexShare,
        *,
        memory_bytes: int,
        workers: int = 1,
    ) -> None:
        self._store, self._request, self._dataset = store, request, dataset
        self._transcoder, self._text, self._spans = transcoder, text, spans
        self._share, room = share, Room.of(request, memory_bytes, workers, *transcoder.encoder_shape(0))
        self._workers, self._part_features = room.workers, room.part_features
        # A layer's file is put together in memory, beside all of its directions: one at a time.
        self._writing = threading.Lock()
        self._bases = Bases(store)
        settings = request.settings
        self._tile_bases = text.tile_bases(settings.window_tokens)
        self._pool = draw_tiles(text, settings.window_tokens, settings.pool_windows, settings.seed)
        self._pairs = draw_positions(text, settings.coactivation_tokens, settings.seed)
        self._stopped: list[BaseException] = []

    def build(self, progress: Progress) -> Mapping[str, Any]:
        """Do what is left to do and nobody else does, and return the manifest once it is there; blocks."""
        stopped, num_tokens = self._stopped, self._text.num_tokens

        def tell() -> None:
            try:
                if stopped:
                    raise stopped[0]
                progress(int(self._share.num_done() * num_tokens), self._dataset.num_layers * num_tokens)
            except BaseException as error:
                stopped.append(error)
                raise

        # Headers are read here once: the reader keeps them, and threads only look.
        for layer in range(self._dataset.num_layers):
            self._transcoder.encoder_shape(layer)
        running: dict[Future[None], str] = {}
        with ThreadPoolExecutor(self._workers, "weft-index") as pool:
            try:
                while missing := self._share.missing():
                    tell()
                    while len(running) < self._workers:
                        name = self._share.take(each for each in missing if each not in running.values())
                        if name is None:
                            break
                        running[pool.submit(self._layer, int(name), tell)] = name
                    # Where there is room for more, another replica may die and leave some.
                    patience_s = self._share.poll_s if len(running) < self._workers else None
                    for ended in _first_ended(running, patience_s):
                        del running[ended]
                        ended.result()
            except BaseException as error:
                stopped.append(error)
                raise
        tell()
        return self._finish(tell)

    def _finish(self, tell: Callable[[], None]) -> Mapping[str, Any]:
        while True:
            try:
                manifest = read_manifest(self._store, self._request.keys)
            except NotFoundError:
                pass
            else:
                # Who wrote it may have died right after.
                clear_states(self._store, self._request.keys)
                return manifest
            if self._share.take([MANIFEST]) is None:
                tell()
                time.sleep(self._share.poll_s)
            elif not _is_there(self._store, self._request.keys.manifest):
                finish_index(
                    self._store, self._request, self._dataset, self._transcoder, self._text, self._dataset.num_layers
                )

    def _parts(self, layer: int) -> Iterator[_Part]:
        num_features, _ = self._transcoder.encoder_shape(layer)
        for low in range(0, num_features, self._part_features):
            yield _Part(layer, low, min(low + self._part_features, num_features))

    def _layer(self, layer: int, tell: Callable[[], None]) -> None:
        """Have a layer's file there, unless another replica takes the layer over on the way."""
        key, num_features = self._request.keys.layer(layer), self._transcoder.encoder_shape(layer)[0]
        parts = list(self._parts(layer))

        def told(part: _Part, share: float) -> None:
            if not self._share.holds(layer):
                raise _TakenOverError
            self._share.tell(layer, (part.low + share * (part.high - part.low)) / num_features)
            tell()

        try:
            if not _is_there(self._store, key):
                with torch.no_grad():
                    for part in parts:
                        self._gather(part, told)
                    with self._writing:
                        # Who waited looks once more whether the work is to go on.
                        told(parts[-1], 1)
                        self._store.put(key, self._written(layer, parts), if_absent=True)
        except _TakenOverError:
            return
        except AlreadyExistsError:
            pass
        except NotFoundError:
            # Who finished the index meanwhile has cleared the states away.
            if not _is_there(self._store, key):
                raise
        self._share.finish(layer)

    def _written(self, layer: int, parts: list[_Part]) -> bytes:
        pairs = np.concatenate([np.zeros((0, 2), np.int32), *(self._stored(part).pairs() for part in parts)])
        states = (self._stored(part) for part in parts)
        return write_table(layer_groups(self._request, self._transcoder, layer, states, pairs))

    def _state_key(self, part: _Part) -> str:
        return self._request.keys.state(part.layer, part.low, part.high)

    def _stored(self, part: _Part) -> PartState:
        state = PartState(part.layer, part.low, part.high, self._request.settings)
        state.restore(load(self._store.get(self._state_key(part))))
        return state

    def _open(self, part: _Part) -> tuple[PartState, str]:
        """What is stored of a part, and its version; a new one where nothing is."""
        state = PartState(part.layer, part.low, part.high, self._request.settings)
        try:
            data, info = self._store.get_with_info(self._state_key(part))
        except NotFoundError:
            return state, ""
        state.restore(load(data))
        return state, info.etag

    def _gather(self, part: _Part, tell: Callable[[_Part, float], None]) -> None:
        state, mark = self._open(part)
        weights = None
        while state.num_spans < len(self._spans):
            if weights is None:
                weights = tuple(
                    torch.from_numpy(np.array(each, np.float32))
                    for each in self._transcoder.encoder_rows(part.layer, part.low, part.high)
                )
            begun = time.monotonic()
            while state.num_spans < len(self._spans):
                self._add_span(state, part, self._spans[state.num_spans], weights)
                state.num_spans += 1
                tell(part, state.num_spans / len(self._spans))
                if time.monotonic() - begun > STORE_EVERY_S:
                    break
            state, mark = self._put(part, state, mark)
        tell(part, 1)

    def _put(self, part: _Part, state: PartState, mark: str) -> tuple[PartState, str]:
        """Store a state, or give the stored one and its version where that is further: both would come to the same."""
        arrays = {name: np.ascontiguousarray(array) for name, array in state.arrays().items()}
        data = save(arrays)
        while True:
            condition: dict[str, Any] = {"if_match": mark} if mark else {"if_absent": True}
            try:
                return state, self._store.put(self._state_key(part), data, **condition).etag
            except (ConflictError, AlreadyExistsError):
                # Somebody else works on it too, or has made the layer: then there is no state any more.
                if not _is_there(self._store, self._state_key(part)):
                    raise NotFoundError(f"{self._state_key(part)} is gone: the index was finished or deleted") from None
                theirs, mark = self._open(part)
                if theirs.num_spans >= state.num_spans:
                    return theirs, mark

    def _add_span(self, state: PartState, part: _Part, span: Span, weights: tuple[torch.Tensor, ...]) -> None:
        w_enc_FD, b_enc_F, threshold_F = weights
        rows = read_rows(self._store, self._bases, span.key, part.layer, span.row_group_tokens, span.num_rows)
        waiting = np.zeros((0, w_enc_FD.shape[1]), np.float32)
        for block in self._text.blocks(span):
            wanted = block.last_row - block.first_row
            while len(waiting) < wanted:
                waiting = np.concatenate([waiting, next(rows)])
            taken, waiting = waiting[:wanted], waiting[wanted:]
            text = BlockText.of(self._text, block, self._request.settings, self._pool, self._pairs, self._tile_bases)
            stream_PD = np.zeros((block.high - block.low, w_enc_FD.shape[1]), np.float32)
            stream_PD[text.kept_P] = taken
            state.add(text, torch.from_numpy(stream_PD), w_enc_FD, b_enc_F, threshold_F)


def _first_ended(running: Collection[Future[None]], patience_s: float | None) -> Collection[Future[None]]:
    """Wait until one of those that run has ended, or so long; none where none has."""
    if not running:
        time.sleep(patience_s or 0)
        return ()
    return wait(running, patience_s, FIRST_COMPLETED).done


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.info(key)
    except NotFoundError:
        return False
    return True
