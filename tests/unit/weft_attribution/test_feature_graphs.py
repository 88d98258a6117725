"""Graphs that a feature stands in, against the arrays that the graphs' files were written from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft_attribution.core.edge_file import write_arrays
from weft_attribution.core.feature_graphs import FeatureGraphs, FoundGraphs
from weft_attribution.core.records import GraphRequest, GraphSettings, edges_key, graph_key
from weft_common.errors import DataLossError, InvalidArgumentError
from weft_store.opening import open_store
from weft_store.port import ObjectStore

Columns = dict[str, np.ndarray[Any, Any]]


class Bucket:
    """Graphs of a transcoder and what stands in their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: ObjectStore = open_store("memory://")
        self.requests: list[GraphRequest] = []
        self.columns: dict[str, Columns] = {}
        self.gets: list[str] = []
        self._get = self.store.get
        self.store.get = self.count  # type: ignore[method-assign]

    def count(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read, and remember that."""
        self.gets.append(key)
        return self._get(key, offset=offset, length=length)

    def add(self, graph_id: str, num: int, *, transcoder: str = "t", is_finished: bool = True, seed: int = 0) -> None:
        """Write a graph of `num` features, the newest so far."""
        rng = np.random.default_rng(seed)
        columns: Columns = {
            "layer": rng.integers(0, 3, num).astype("<i4"),
            "position": rng.integers(1, 20, num).astype("<i4"),
            "index": rng.integers(0, 4, num).astype("<i4"),
            "activation": rng.random(num).astype("<f4"),
        }
        path = self.folder / graph_id
        rest = {"constant": np.zeros(num, "<f4"), "indptr": np.zeros(num + 1, "<i8")}
        edges = {"indices": ("<i4", iter([b"abcd"] * 9)), "values": ("<f4", iter([b"efgh"] * 9))}
        write_arrays(path, {**columns, **rest}, edges, 9)
        self.store.put(edges_key(graph_id), path.read_bytes())
        if is_finished:
            self.store.put(graph_key(graph_id), b"{}")
        settings = GraphSettings("tiny", transcoder, f"prompt of {graph_id}")
        self.requests.append(GraphRequest(graph_id, settings, float(len(self.requests))))
        self.columns[graph_id] = columns

    def expected(self, layer: int, index: int, graph_ids: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]]:
        """Graphs with the feature, and its positions and activations, by going over every row."""
        found = []
        for graph_id in graph_ids:
            of = {name: column.tolist() for name, column in self.columns[graph_id].items()}
            places = [
                (of["position"][row], of["activation"][row])
                for row in range(len(of["layer"]))
                if (of["layer"][row], of["index"][row]) == (layer, index)
            ]
            if places:
                found.append((graph_id, sorted(places, key=lambda place: place[0])))
        return found


def told(found: FoundGraphs) -> list[tuple[str, list[tuple[int, float]]]]:
    return [(each.request.graph_id, list(zip(each.positions, each.activations, strict=True))) for each in found.graphs]


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    made = Bucket(tmp_path)
    for number in range(6):
        made.add(f"g{number}", 5 * number, seed=number)
    made.add("other", 50, transcoder="u")
    made.add("running", 50, is_finished=False)
    return made


def test_graphs_with_a_feature_are_found_newest_first(bucket: Bucket) -> None:
    """Those of its transcoder that are finished, with every position where it is a node."""
    graphs = FeatureGraphs(bucket.store, lambda: bucket.requests)
    newest = [f"g{number}" for number in (5, 4, 3, 2, 1, 0)]
    some = False
    for layer in range(3):
        for index in range(4):
            found = graphs.find("t", layer, index)
            assert told(found) == bucket.expected(layer, index, newest)
            assert (found.num_read, found.next_token) == (6, "")
            some = some or 0 < len(found.graphs) < 6
    assert some
    assert told(graphs.find("t", 9, 0)) == []


def test_pages_of_graphs_join_to_all_of_them(bucket: Bucket) -> None:
    """A page is so many graphs looked through, whether the feature is in them or not."""
    graphs = FeatureGraphs(bucket.store, lambda: bucket.requests)
    whole = told(graphs.find("t", 1, 2))
    joined, token, sizes = [], "", []
    while True:
        found = graphs.find("t", 1, 2, 4, token)
        joined += told(found)
        sizes.append(found.num_read)
        token = found.next_token
        if not token:
            break
    # The newest of the seven is not finished, and fills a place of the first page all the same.
    assert sizes == [3, 3]
    assert joined == whole
    with pytest.raises(InvalidArgumentError, match="page_size"):
        graphs.find("t", 1, 2, -1)
    with pytest.raises(InvalidArgumentError, match="page_token"):
        graphs.find("t", 1, 2, 0, "no token")


def test_large_graph_is_read_up_to_its_edges(bucket: Bucket) -> None:
    """What does not come with the first bytes is read by one range more, and once as long as nothing changes."""
    bucket.requests.clear()
    bucket.add("large", 10_000)
    graphs = FeatureGraphs(bucket.store, lambda: bucket.requests)
    bucket.gets.clear()
    assert told(graphs.find("t", 2, 3)) == bucket.expected(2, 3, ["large"])
    assert bucket.gets == [edges_key("large")] * 2
    graphs.find("t", 0, 0)
    assert len(bucket.gets) == 2
    bucket.add("large", 10_000, seed=7)
    bucket.requests.pop(0)
    bucket.store.put(graph_key("large"), b'{"again": 1}')
    assert told(graphs.find("t", 2, 3)) == bucket.expected(2, 3, ["large"])
    assert len(bucket.gets) == 4


def test_tables_that_are_kept_are_bounded(bucket: Bucket) -> None:
    """What does not fit goes, the longest unused first, and is read again."""
    # g5 and g4 have 25 and 20 features of 16 bytes.
    graphs = FeatureGraphs(bucket.store, lambda: bucket.requests, kept_bytes=16 * 45)
    graphs.find("t", 0, 0, 3)
    bucket.gets.clear()
    graphs.find("t", 0, 0, 3)
    assert bucket.gets == []
    graphs.find("t", 0, 0)
    # Six graphs of 75 features in all: those that went are read again, however often all are asked for.
    bucket.gets.clear()
    graphs.find("t", 0, 0)
    assert len(bucket.gets) >= 1
    kept = list(graphs._tables.values())
    assert 0 < sum(column.nbytes for table in kept for column in table.values()) <= 16 * 45
    assert told(graphs.find("t", 1, 1)) == bucket.expected(1, 1, [f"g{number}" for number in (5, 4, 3, 2, 1, 0)])


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x08" + bytes(7) + b'{"a": 1}', b"\x02" + bytes(7) + b"[]"])
def test_damaged_file_is_told_and_not_guessed(bucket: Bucket, damage: bytes) -> None:
    """Nothing is read out of a file whose header is none, or that is cut short."""
    whole = bucket.store.get(edges_key("g5"))
    for data in (damage, whole[: len(whole) // 2], whole[:20]):
        bucket.store.put(edges_key("g5"), data)
        with pytest.raises(DataLossError, match="g5"):
            FeatureGraphs(bucket.store, lambda: bucket.requests).find("t", 0, 0)
