"""
Whole indexes, opened: their summaries are in memory, everything else is read when it is asked for.

Legend: N features of all layers, W tokens of a window, K stretches of a feature.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.hashing import draw
from weft_attribution.core.feature_index.manifests import list_indexes, read_manifest
from weft_attribution.core.feature_index.settings import IndexKeys, IndexRequest
from weft_attribution.core.feature_index.stored_text import StoredText
from weft_attribution.core.feature_index.tables import Table
from weft_attribution.core.feature_ports import Examples, Window
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["FeatureRow", "OpenIndex", "OpenIndexes"]

Array = npt.NDArray[Any]
Json = Mapping[str, Any]
_OPEN_INDEXES = 2
_OPEN_TABLES = 16
"""Files of layers whose footers, some megabytes each, are held."""
_KNOWN_TRANSCODERS = 256
_LOOK_S = 2.0
_QUIET = 0x74
_EXAMPLE_COLUMNS = [f"{kind}_{part}" for kind in ("top", "sample") for part in ("positions", "peaks", "windows")]


@dataclass(frozen=True)
class FeatureRow:
    """What an index keeps of one feature besides its text; partners past the last are left out."""

    num_active: int
    mean: float
    largest: float
    histogram: tuple[int, ...]
    decoder_norms: tuple[float, ...]
    first_layer: int
    last_layer: int
    neighbours: tuple[tuple[int, float], ...]
    partners: tuple[tuple[int, int, float], ...]


class OpenIndex:
    """
    One index.

    Args:
        store: The bucket.
        manifest: Its manifest.

    Attributes:
        request: How it was asked for.
        manifest: Its manifest.
        layer_N: Layer of each feature; features are in order of layer and index.
        index_N: Index within its layer.
        columns: More by name, [N]: `num_active`, `mean`, `largest`, `norm`, `first_layer`, `last_layer`, `density`.
        text: The text behind it.
    """

    def __init__(self, store: ObjectStore, manifest: Json) -> None:
        self._store = store
        self.manifest = manifest
        self.request = IndexRequest.from_json(manifest["request"])
        self._keys = self.request.keys
        summary = Table(store, self._keys.summary).read()
        self.columns: dict[str, Array] = {name: summary.column(name).to_numpy() for name in summary.column_names}
        self.columns["density"] = self.columns["num_active"] / max(1, self.num_tokens)
        self.layer_N, self.index_N = self.columns.pop("layer"), self.columns.pop("index")
        sizes = [int(layer["num_features"]) for layer in manifest["layers"]]
        self._first_L = np.concatenate([[0], np.cumsum(sizes)])
        if self._first_L[-1] != len(self.layer_N):
            raise DataLossError(f"{self._keys.summary} does not fit its manifest; index the transcoder again")
        self.text = StoredText(store, self._keys, self.request.settings)
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._orders: dict[str, Array] = {}
        self._lock = threading.Lock()

    @property
    def transcoder(self) -> str:
        return self.request.transcoder

    @property
    def model(self) -> str:
        return str(self.manifest["model"])

    @property
    def index_id(self) -> str:
        return self.request.index_id

    @property
    def num_quantiles(self) -> int:
        return self.request.settings.num_quantiles

    @property
    def num_tokens(self) -> int:
        """Tokens that were read."""
        return int(self.manifest["num_tokens"])

    @property
    def num_bytes(self) -> int:
        """What it may come to take once every order was asked for: its columns, and an order each way for each."""
        return sum(column.nbytes for column in self.columns.values()) + 8 * len(self.columns) * len(self.layer_N)

    @property
    def num_layers(self) -> int:
        """Layers of the transcoder."""
        return len(self._first_L) - 1

    def num_features(self, layer: int) -> int:
        """Features of a layer."""
        return int(self._first_L[layer + 1] - self._first_L[layer])

    @cached_property
    def state_of_each(self) -> Array:
        """0 for a feature that was never active, 2 for a dense one, 1 for all others."""
        dense_N = self.columns["density"] > self.request.settings.dense_share
        return np.asarray(np.where(self.columns["num_active"] == 0, 0, np.where(dense_N, 2, 1)).astype(np.int8))

    @cached_property
    def triggers(self) -> tuple[Array, Array, Array]:
        """Tokens, rising, with the number of a feature that fires there and on how many of its strongest stretches."""
        table = Table(self._store, self._keys.triggers).read()
        layer, index = table.column("layer").to_numpy(), table.column("index").to_numpy()
        number = self._first_L[layer] + index
        return table.column("token").to_numpy(), number.astype(np.int32), table.column("count").to_numpy()

    def order(self, column: str, *, falling: bool) -> Array:
        """Numbers of all features by a column; of equals the first comes first. Kept once it was worked out."""
        key = f"{column} {falling}"
        with self._lock:
            if key not in self._orders:
                values = self.columns[column]
                self._orders[key] = np.argsort(-values if falling else values, kind="stable").astype(np.int32)
            return self._orders[key]

    def has(self, layer: int, index: int) -> bool:
        """Whether there is such a feature."""
        return 0 <= layer < self.num_layers and 0 <= index < self.num_features(layer)

    def number(self, layer: int, index: int) -> int:
        """
        The number of a feature among all.

        Raises:
            NotFoundError: There is none.
        """
        if not 0 <= layer < self.num_layers:
            raise NotFoundError(
                f"transcoders/{self.transcoder} has no layer {layer}; its layers are 0 to {self.num_layers - 1}"
            )
        size = self.num_features(layer)
        if not 0 <= index < size:
            raise NotFoundError(f"layer {layer} of transcoders/{self.transcoder} has no feature {index}; it has {size}")
        return int(self._first_L[layer]) + index

    def row(self, layer: int, index: int) -> FeatureRow:
        """
        Read what is kept of a feature besides its text.

        Raises:
            NotFoundError: There is none.
        """
        self.number(layer, index)
        names = ("num_active", "mean", "largest", "histogram", "decoder_norms", "first_layer", "last_layer")
        lists = ("neighbours", "neighbour_cosines", "partners", "partner_counts", "partner_shares")
        row = self._table(layer).row(index, [*names, *lists])
        partners = zip(row["partners"], row["partner_counts"], row["partner_shares"], strict=True)
        return FeatureRow(
            num_active=row["num_active"],
            mean=row["mean"],
            largest=row["largest"],
            histogram=tuple(row["histogram"]),
            decoder_norms=tuple(row["decoder_norms"]),
            first_layer=row["first_layer"],
            last_layer=row["last_layer"],
            neighbours=tuple(zip(row["neighbours"], row["neighbour_cosines"], strict=True)),
            partners=tuple(each for each in partners if each[0] >= 0),
        )

    def directions(self, layer: int) -> Array:
        """Read the summed decoders of a layer, of length 1: float32 [F, D]."""
        column = self._table(layer).read(["direction"]).column("direction").combine_chunks()
        width = int(self.manifest["d_model"])
        data = np.frombuffer(column.buffers()[1], np.float16, count=len(column) * width)
        return data.reshape(-1, width).astype(np.float32)

    def examples(self, layer: int, index: int) -> Examples:
        """Windows where a feature is active."""
        number = self.number(layer, index)
        return self._examples(number, self._table(layer).row(index, _EXAMPLE_COLUMNS))

    def many(self, layer: int, low: int, high: int) -> Iterator[tuple[tuple[int, ...], Examples]]:
        """Histogram and windows of each feature from `low` to `high` of a layer, in one reading."""
        first = self.number(layer, low)
        rows = self._table(layer).rows(low, high, ["histogram", *_EXAMPLE_COLUMNS])
        for place in range(high - low):
            row = rows.slice(place, 1).to_pylist()[0]
            yield tuple(row["histogram"]), self._examples(first + place, row)

    def _examples(self, number: int, row: Mapping[str, Any]) -> Examples:
        top = self.text.windows(row["top_positions"], row["top_peaks"], row["top_windows"], by_quantile=False)
        sample = self.text.windows(
            row["sample_positions"], row["sample_peaks"], row["sample_windows"], by_quantile=True
        )
        return Examples(
            num_active=int(self.columns["num_active"][number]),
            num_tokens=self.num_tokens,
            top=top,
            by_quantile=tuple(sorted(sample, key=lambda window: (window.quantile, -window.peak))),
        )

    def quiet(self, layer: int, index: int, count: int) -> Sequence[Window]:
        """Windows in which a feature is nowhere active, another choice for each feature."""
        number = self.number(layer, index)
        starts = self.text.pool_starts
        fired = np.frombuffer(self._table(layer).row(index, ["fired"])["fired"], np.uint8)
        quiet = np.flatnonzero(np.unpackbits(fired, bitorder="little")[: len(starts)] == 0)
        order = np.argsort(draw(self.request.settings.seed, _QUIET, number, quiet), kind="stable")
        found = []
        for start in starts[quiet[order[:count]]]:
            sequence, first, ids = self.text.stretch(int(start))
            found.append(Window(sequence, first, ids, (0.0,) * len(ids), 0.0, -1))
        return found

    def _table(self, layer: int) -> Table:
        with self._lock:
            if layer not in self._tables:
                self._tables[layer] = Table(self._store, self._keys.layer(layer))
                while len(self._tables) > _OPEN_TABLES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(layer)
            return self._tables[layer]


class OpenIndexes:
    """
    Indexes in a bucket; the newest whole one of a transcoder answers.

    Args:
        store: The bucket.
        memory_bytes: What those that are kept open may take; the last one asked for is kept in any case.
        look_s: For so long an answer to which one that is holds.
    """

    def __init__(self, store: ObjectStore, *, memory_bytes: int = 1 << 30, look_s: float = _LOOK_S) -> None:
        self._store, self._memory_bytes, self._look_s = store, memory_bytes, look_s
        self._newest: OrderedDict[str, tuple[float, Json]] = OrderedDict()
        self._open: OrderedDict[tuple[str, str, float], OpenIndex] = OrderedDict()
        self._lock = threading.Lock()

    def manifests(self, transcoder: str) -> list[dict[str, Any]]:
        """Manifests of all whole indexes of a transcoder, newest first. NotFoundError: no such transcoder."""
        try:
            mark = hashlib.sha256(self._store.get(f"transcoders/{transcoder}/manifest.json")).hexdigest()
        except NotFoundError:
            raise NotFoundError(
                f"no transcoder transcoders/{transcoder}: export or import one first, or list those that there are"
            ) from None
        return list_indexes(self._store, transcoder, mark)

    def manifest(self, transcoder: str, index_id: str) -> Json:
        """
        The manifest of one index.

        Raises:
            NotFoundError: There is no whole index of that name.
        """
        try:
            return read_manifest(self._store, IndexKeys(transcoder, index_id))
        except NotFoundError:
            raise NotFoundError(
                f"transcoders/{transcoder}/indexes/{index_id} is not there, or not whole yet; ListFeatureIndexes shows "
                "those that there are"
            ) from None

    def find(self, transcoder: str) -> OpenIndex | None:
        """The newest whole index; None where there is none. NotFoundError: no such transcoder."""
        manifest = self._newest_manifest(transcoder)
        return None if manifest is None else self._opened(manifest)

    def open(self, transcoder: str) -> OpenIndex:
        """The newest whole index. NotFoundError: no such transcoder; FailedPreconditionError: it has none."""
        return self._opened(self.newest(transcoder))

    def newest(self, transcoder: str) -> Json:
        """The manifest of what `open` gives, without opening it; raises as that does."""
        found = self._newest_manifest(transcoder)
        if found is None:
            raise FailedPreconditionError(
                f"transcoders/{transcoder} has no index of its features yet; ask IndexFeatures for one and wait for it"
            )
        return found

    def _newest_manifest(self, transcoder: str) -> Json | None:
        now = time.monotonic()
        seen = self._newest.get(transcoder)
        if seen is None or now - seen[0] > self._look_s:
            manifests = self.manifests(transcoder)
            if not manifests:
                with self._lock:
                    self._newest.pop(transcoder, None)
                return None
            seen = now, manifests[0]
            with self._lock:
                self._newest[transcoder] = seen
                self._newest.move_to_end(transcoder)
                while len(self._newest) > _KNOWN_TRANSCODERS:
                    self._newest.popitem(last=False)
        return seen[1]

    def _opened(self, manifest: Json) -> OpenIndex:
        request = manifest["request"]
        key = (str(request["transcoder"]), str(request["index_id"]), float(manifest["create_s"]))
        with self._lock:
            if key not in self._open:
                self._open[key] = OpenIndex(self._store, manifest)
                while len(self._open) > 1 and self._is_too_much():
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]

    def _is_too_much(self) -> bool:
        held = sum(each.num_bytes for each in self._open.values())
        return len(self._open) > _OPEN_INDEXES or held > self._memory_bytes
