"""
The files of one export, written part by part; a part is some neighbouring features of a layer.

Every part is an object of its own when it is written, so that work goes on after the last of them, wherever it stopped;
memory holds one part.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import numpy as np

from weft_attribution.core.feature_export import circuit_tracer
from weft_attribution.core.feature_export.describing import Described
from weft_attribution.core.feature_export.sae_dashboard import SaeDashboardFiles
from weft_attribution.core.feature_export.scratch import Scratch
from weft_attribution.core.feature_export.settings import ExportRequest, features_a_part
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.waited_threads import in_thread
from weft_store.port import ObjectStore

__all__ = ["Progress", "Writing"]

Progress = Callable[[int, int], None]


class Writing:
    """
    Writes the files of one export, or those that are left.

    Args:
        store: The bucket.
        request: The export, looked up.
        index: What it is of.
        scratch: Holds one layer's file at a time.
        part: Describes the features of a layer from one index to another, with the bytes of their tokens.
        progress: Called with features that are written and all of them.

    Attributes:
        total: Features of all layers.
        paths: The files that are written, or were there, so far.
    """

    def __init__(
        self,
        store: ObjectStore,
        request: ExportRequest,
        index: OpenIndex,
        scratch: Scratch,
        part: Callable[[int, int, int], Awaitable[tuple[list[Described], dict[int, bytes]]]],
        progress: Progress,
    ) -> None:
        self._store, self._request, self._index, self._scratch = store, request, index, scratch
        self._part, self._progress, self._keys = part, progress, request.keys
        self._size = features_a_part(index.request.settings)
        self._done = 0
        self.paths: list[str] = []
        self.total = sum(index.num_features(layer) for layer in request.layers)

    async def batches(self) -> None:
        """SAEDashboard's files; a part is a file."""
        files = SaeDashboardFiles(self._request, self._index)
        there = await self._there(self._keys.files)
        for layer in self._request.layers:
            folder = files.folder(layer)
            for number, (low, high) in enumerate(self._parts(layer)):
                key = self._file(f"{folder}/batch-{number}.json")
                if key not in there:
                    described, piece_of = await self._part(layer, low, high)
                    await in_thread(self._put, key, partial(files.batch, described, piece_of))
                self._tell(high - low)
            await in_thread(self._put, self._file(f"{folder}/skipped_indexes.json"), partial(files.skipped, layer))

    async def layers(self) -> None:
        """circuit-tracer's files; parts are put together layer by layer."""
        there = await self._there(self._keys.states) | await self._there(self._keys.files)
        request, settings = self._request, self._index.request.settings
        for layer in request.layers:
            file, parts = self._file(circuit_tracer.layer_file(layer)), []
            is_there = file in there and self._lengths_key(layer) in there
            for low, high in self._parts(layer):
                key = f"{self._keys.states}{layer}-{low}.part"
                if not is_there and key not in there:
                    described, piece_of = await self._part(layer, low, high)
                    data = partial(circuit_tracer.packed, request.transcoder, settings, described, piece_of)
                    await in_thread(self._put, key, data)
                parts.append(key)
                self._tell(high - low)
            if not is_there:
                await in_thread(self._join, layer, parts)
        await in_thread(self._put_index, self._file(circuit_tracer.INDEX_FILE))

    def _join(self, layer: int, parts: Sequence[str]) -> None:
        """Make a layer's file of its parts, then write down what each feature takes, which says that it is there."""
        name, lengths = circuit_tracer.layer_file(layer), []
        size_of = {info.key: info.size_bytes for info in self._store.list(f"{self._keys.states}{layer}-")}
        path = self._scratch.room(name, sum(size_of.get(key, 0) for key in parts))
        with path.open("wb") as file:
            for key in parts:
                data = self._store.get(key)
                file.write(data)
                lengths += circuit_tracer.lengths(data)
        self._store.put_file(self._keys.files + name, path)
        path.unlink()
        # The parts stay until all is whole: whoever was given this work before may still be at it.
        self._store.put(self._lengths_key(layer), np.array(lengths, "<u4").tobytes())

    def _put_index(self, key: str) -> None:
        lengths = {
            layer: np.frombuffer(self._store.get(self._lengths_key(layer)), "<u4").tolist()
            for layer in self._request.layers
        }
        self._store.put(key, circuit_tracer.index_file(lengths))

    def _file(self, path: str) -> str:
        """The key of a file, which is one of the export from now on."""
        self.paths.append(path)
        return self._keys.files + path

    def _lengths_key(self, layer: int) -> str:
        return f"{self._keys.states}{layer}.lengths"

    def _parts(self, layer: int) -> Iterator[tuple[int, int]]:
        count = self._index.num_features(layer)
        for low in range(0, count, self._size):
            yield low, min(low + self._size, count)

    async def _there(self, prefix: str) -> set[str]:
        return await in_thread(lambda: {info.key for info in self._store.list(prefix)})

    def _put(self, key: str, data: Callable[[], bytes]) -> None:
        self._store.put(key, data())

    def _tell(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self.total)
