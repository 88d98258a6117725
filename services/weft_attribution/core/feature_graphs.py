"""
The finished graphs that a feature is a node of, out of their tables of features: no edge is read.

Legend: N features of a graph, one at each position where they are active.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.records import GraphRequest, edges_key, graph_key
from weft_common.errors import DataLossError, NotFoundError
from weft_common.pages import newest_first, paginate
from weft_store.port import ObjectStore

__all__ = ["FeatureGraph", "FeatureGraphs", "FoundGraphs"]

Array = npt.NDArray[Any]
_READS_AT_ONCE = 16
# The header of such a file is some 600 bytes; the features of a usual graph come with it.
_FIRST_BYTES = 64 << 10
_TYPES = {"layer": "<i4", "position": "<i4", "index": "<i4", "activation": "<f4"}
_KEPT_BYTES = 64 << 20
_DEFAULT_PAGE, _MAX_PAGE = 50, 200


@dataclass(frozen=True)
class FeatureGraph:
    """A graph, and where in it the feature is a node."""

    request: GraphRequest
    positions: tuple[int, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class FoundGraphs:
    """Graphs of a page that have the feature, how many finished ones were read, and the token of the next page."""

    graphs: Sequence[FeatureGraph]
    num_read: int
    next_token: str


class FeatureGraphs:
    """
    Looks features up in graphs.

    Args:
        store: The bucket.
        requests: How every graph there is was asked for; blocks.
        kept_bytes: Most bytes of tables that are kept in memory.
    """

    def __init__(
        self, store: ObjectStore, requests: Callable[[], Sequence[GraphRequest]], *, kept_bytes: int = _KEPT_BYTES
    ) -> None:
        self._store, self._requests, self._kept_bytes = store, requests, kept_bytes
        self._tables: OrderedDict[tuple[str, str], dict[str, Array]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, transcoder: str, layer: int, index: int, page_size: int = 0, page_token: str = "") -> FoundGraphs:
        """
        Look through the graphs of a transcoder, newest first; blocks.

        Args:
            transcoder: Its id.
            layer: Layer of the feature.
            index: Index within the layer.
            page_size: Most graphs that are looked through; 0 means 50.
            page_token: From the page before.

        Raises:
            InvalidArgumentError: page_size is negative, or page_token is none of ours.
            DataLossError: A graph's file is damaged.
        """
        page, next_token = paginate(
            [request for request in self._requests() if request.settings.transcoder == transcoder],
            page_size,
            page_token,
            key=lambda request: newest_first(request.create_s, request.graph_id),
            default_size=_DEFAULT_PAGE,
            max_size=_MAX_PAGE,
        )

        def look(request: GraphRequest) -> FeatureGraph | None:
            # Within the thread: of a table that is not kept, only what was found stays.
            table = self._table(request.graph_id)
            if table is None:
                return None
            at = np.flatnonzero((table["layer"] == layer) & (table["index"] == index))
            at = at[np.argsort(table["position"][at], kind="stable")]
            return FeatureGraph(request, tuple(table["position"][at].tolist()), tuple(table["activation"][at].tolist()))

        with ThreadPoolExecutor(_READS_AT_ONCE) as threads:
            read = [each for each in threads.map(look, page) if each is not None]
        return FoundGraphs([each for each in read if each.positions], len(read), next_token)

    def _table(self, graph_id: str) -> dict[str, Array] | None:
        """The features of a finished graph by column [N]; None where it is not finished, or gone."""
        try:
            key = (graph_id, self._store.info(graph_key(graph_id)).etag)
            with self._lock:
                if key in self._tables:
                    self._tables.move_to_end(key)
                    return self._tables[key]
            table = _read_features(self._store, edges_key(graph_id))
        except NotFoundError:
            return None
        size = sum(column.nbytes for column in table.values())
        with self._lock:
            if key not in self._tables and size <= self._kept_bytes:
                self._tables[key] = table
                self._bytes += size
                while self._bytes > self._kept_bytes:
                    _, oldest = self._tables.popitem(last=False)
                    self._bytes -= sum(column.nbytes for column in oldest.values())
        return table


def _read_features(store: ObjectStore, key: str) -> dict[str, Array]:
    """Read the columns of features out of a file of `write_arrays`, which stand before its edges."""
    data = store.get(key, length=_FIRST_BYTES)
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        spans = {name: tuple(map(int, header[name]["data_offsets"])) for name in _TYPES}
        low, high = start + min(first for first, _ in spans.values()), start + max(end for _, end in spans.values())
        if high > len(data):
            data, start = store.get(key, offset=low, length=high - low), start - low
        columns = {
            # Copied, so that nothing else of what was read is kept.
            name: np.frombuffer(data[start + first : start + end], _TYPES[name]).copy()
            for name, (first, end) in spans.items()
        }
        if {len(column) for column in columns.values()} != {(end - first) // 4 for first, end in spans.values()}:
            raise ValueError("it is cut short")
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("columns of different lengths")
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"{key} is damaged; delete the graph and make it again") from error
    return columns
