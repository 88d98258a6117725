"""
Whole indexes, opened: their summaries are in memory, everything else is read when it is asked for.

Legend: N features of all layers, W tokens of a window, K stretches of a feature.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.hashing import draw
from weft_attribution.core.feature_index.settings import IndexRequest
from weft_attribution.core.feature_index.stored_text import StoredText
from weft_attribution.core.feature_index.tables import Table
from weft_attribution.core.feature_ports import Examples, Window
from weft_common.errors import DataLossError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["FeatureRow", "OpenIndex"]

Array = npt.NDArray[Any]
Json = Mapping[str, Any]
_OPEN_TABLES = 16
"""Files of layers whose footers, some megabytes each, are held."""
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
        first_L: [L + 1]: number of the first feature of each layer, and of all features.
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
        self.first_L = np.concatenate([[0], np.cumsum(sizes)])
        if self.first_L[-1] != len(self.layer_N):
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
        """
        What it takes, and may come to take once every order was asked for: an order each way for each column.

        Triggers, text and footers of layers' files are told once they are there.
        """
        columns = [*self.columns.values(), self.layer_N, self.index_N, *self.__dict__.get("triggers", ())]
        footers = sum(table.footer_bytes for table in list(self._tables.values()))
        orders = (8 * len(self.columns) + 1) * len(self.layer_N)
        return sum(int(column.nbytes) for column in columns) + orders + footers + self.text.held_bytes

    @property
    def num_layers(self) -> int:
        """Layers of the transcoder."""
        return len(self.first_L) - 1

    def num_features(self, layer: int) -> int:
        """Features of a layer."""
        return int(self.first_L[layer + 1] - self.first_L[layer])

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
        number = self.first_L[layer] + index
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
        return int(self.first_L[layer]) + index

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
        found = self.text.stretches(starts[quiet[order[:count]]].tolist())
        return [Window(sequence, first, ids, (0.0,) * len(ids), 0.0, -1) for sequence, first, ids in found]

    def _table(self, layer: int) -> Table:
        with self._lock:
            if layer not in self._tables:
                self._tables[layer] = Table(self._store, self._keys.layer(layer))
                while len(self._tables) > _OPEN_TABLES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(layer)
            return self._tables[layer]
