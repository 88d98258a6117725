"""One graph's rows by several replicas: the same graph, whoever computes, dies, or writes nonsense."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribution_rig import ReferenceModel, ReferenceRunner, make_reference_folder, make_transcoder
from hypothesis import given, settings
from hypothesis import strategies as st
from interleaving import Program, take_turns
from safetensors.numpy import save
from swept_model import IDS

from weft_attribution.core.edge_file import read_arrays
from weft_attribution.core.gate import Gate
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.pipeline import Building, Limits, capture_hooks
from weft_attribution.core.ports import Capture
from weft_attribution.core.row_helper import RowHelper
from weft_attribution.core.row_parts import ROOT
from weft_attribution.core.row_rounds import open_round
from weft_attribution.core.shared_rows import SharedRows
from weft_attribution.core.targets import Target, choose_targets
from weft_attribution.core.transcoder import TranscoderReader
from weft_store import ObjectStore
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.documents import encode_json

PART = 4
LIMITS = Limits(batch_size=3, workers=1, max_active=5000, max_features=0, memory_bytes=1 << 22)
Array = np.ndarray[Any, Any]


@dataclass
class Place:
    """A prompt to explain, in a bucket that several replicas have."""

    store: MemoryObjectStore
    models: ModelFolder
    capture: Capture
    targets: tuple[Target, ...]
    shares: Array
    folder: Path

    def building(self, limits: Limits = LIMITS) -> Building:
        reader = TranscoderReader(self.store, "t")
        return Building(self.models.weights("tiny"), reader, self.capture, self.targets, self.shares, limits)

    def helper(self, gate: Gate | None = None, told: list[str] | None = None) -> RowHelper:
        """Another replica."""
        models, told = ModelFolder(self.folder), [] if told is None else told
        return RowHelper(self.store, models, LIMITS, gate or Gate(), lambda prefix, reason: told.append(reason))

    def make(
        self, during: Callable[[SharedRows, int], None] = lambda shared, done: None, limits: Limits = LIMITS
    ) -> tuple[dict[str, Array], int]:
        """Make the graph, handing rows out; `during` is called at every step of it."""
        building, path = self.building(limits), self.folder / "shared.safetensors"
        shared = SharedRows(self.store, "g", PART, building.table.logit_start)
        shared.publish(self.capture, "t", self.targets, building.features_digest)
        building.build(path, lambda stage, done, total: during(shared, done), lambda: None, shared)
        shared.close()
        assert building.conservation_error() < 1e-4
        return {name: np.array(array) for name, array in read_arrays(path).items()}, shared.num_helped

    def alone(self, limits: Limits = LIMITS) -> dict[str, Array]:
        path = self.folder / "alone.safetensors"
        self.building(limits).build(path, lambda *_: None, lambda: None)
        return {name: np.array(array) for name, array in read_arrays(path).items()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    model = ReferenceModel(make_reference_folder(tmp_path / "tiny", "llama"))
    store = MemoryObjectStore()
    make_transcoder(store, "t", model, jump=True)
    found = asyncio.run(ReferenceRunner(model).capture("tiny", IDS, capture_hooks("mlp_in")))
    capture = replace(found, tensors={name: array.astype(np.float32) for name, array in found.tensors.items()})
    targets, shares = choose_targets(capture.tensors["logits"], max_logits=3, probability=0.9, targets=())
    return Place(store, ModelFolder(tmp_path), capture, targets, shares, tmp_path)


def assert_same(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    assert found.keys() == wanted.keys()
    for name in ("layer", "position", "index", "indptr", "indices"):
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    for name in ("values", "activation", "constant", "value"):
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6 * scale, err_msg=name)


@pytest.mark.parametrize("budget", [0, 11])
def test_rows_of_helpers_make_the_same_graph(place: Place, budget: int) -> None:
    """Two helpers take parts in every round, with all features or a budget ranked on the way; nothing is left."""
    limits = replace(LIMITS, max_features=budget)
    helpers = [place.helper(), place.helper()]
    found, helped = place.make(lambda shared, done: [helper.look() for helper in helpers].clear(), limits)
    assert_same(found, place.alone(limits))
    assert helped >= PART
    assert not list(place.store.list(ROOT))


def test_helper_that_dies_costs_nothing(place: Place) -> None:
    """Parts that it claimed and never wrote are computed by the maker."""

    def during(shared: SharedRows, done: int) -> None:
        handed_out = open_round(place.store, shared.prefix, {"part_rows": PART, "num_columns": 0})
        if handed_out is not None:
            with suppress(ZeroDivisionError):
                handed_out.help(lambda rows, take, check: 1 // 0, lambda: True)

    found, helped = place.make(during)
    assert_same(found, place.alone())
    assert helped == 0


def _rows(columns: list[int], values: list[float], num_rows: int = PART) -> bytes:
    indptr = np.linspace(0, len(columns), num_rows + 1).astype("<i8")
    return save({"indptr": indptr, "indices": np.array(columns, "<i4"), "values": np.array(values, "<f4")})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        _rows([0, 1, 2, 3], [1.0] * 4, PART + 1),
        _rows([0, 1, 2, 1 << 20], [1.0] * 4),
        _rows([0, 1, 2, -1], [1.0] * 4),
        _rows([0, 1, 2, 3], [1.0, 1.0, 1.0, float("nan")]),
        save({"indptr": np.zeros(PART + 1, "<i8")}),
        # Whole, and of another graph: their edges do not add up to what the targets have.
        _rows([0, 1, 2, 3], [1e3, -1e3, 2e3, 5e3]),
        _rows([], []),
    ],
)
def test_rows_that_are_not_whole_or_another_graphs_are_computed_again(place: Place, data: bytes) -> None:
    """Cut short, of columns that there are not, no numbers or wrong ones: the graph is what it is alone."""

    def during(shared: SharedRows, done: int) -> None:
        for info in list(place.store.list(f"{shared.prefix}rounds/")):
            number = info.key.rpartition("/")[2]
            for part in range(info.size_bytes // 8 // PART):
                place.store.put(f"{shared.prefix}claims/{number}-{part:06}", b"{}")
                place.store.put(f"{shared.prefix}rows/{number}-{part:06}", data)

    found, helped = place.make(during)
    assert_same(found, place.alone())
    assert helped == 0


def test_helper_with_other_features_stays_away(place: Place) -> None:
    """A replica that finds other features active computes no row, and says why once."""
    told: list[str] = []
    helper = place.helper(told=told)

    def during(shared: SharedRows, done: int) -> None:
        make_transcoder(place.store, "t", ReferenceModel(place.folder / "tiny"), jump=True, seed=9)
        assert helper.look() == 0

    wanted = place.alone()
    found, helped = place.make(during)
    assert_same(found, wanted)
    assert (helped, len(told)) == (0, 1)
    assert "other features" in told[0]


def test_own_graph_comes_first(place: Place) -> None:
    """Who makes a graph does not help; a helper gives its part back when one is asked for."""
    gate = Gate()
    helper = place.helper(gate)
    looked = []

    def during(shared: SharedRows, done: int) -> None:
        with gate.making():
            assert helper.look() == 0
        before = {info.key for info in place.store.list(f"{shared.prefix}claims/")}
        asked = iter([True, True, False])
        assert helper.look(lambda: next(asked, False)) == 0
        assert {info.key for info in place.store.list(f"{shared.prefix}claims/")} == before
        looked.append(done)

    found, helped = place.make(during)
    assert_same(found, place.alone())
    assert looked
    assert helped == 0


COLUMNS = 7


def edges_of(rows: Array) -> Array:
    """What the rows of the next test are."""
    return ((rows[:, None] * 5 + np.arange(COLUMNS)) % 4).astype(np.float32)


@given(
    turns=st.lists(st.integers(0, 2), max_size=80),
    kills=st.lists(st.tuples(st.integers(0, 79), st.integers(1, 2)), max_size=2),
    count=st.integers(1, 9),
    parts=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_taken_once_whatever_the_order(
    turns: list[int], kills: list[tuple[int, int]], count: int, parts: int
) -> None:
    """Operations of maker and helpers come in any order, helpers die anywhere: rows are right, all is taken back."""
    store = MemoryObjectStore()
    rows = np.random.default_rng(count).permutation(20)[:count]
    taken: dict[int, Array] = {}

    def compute(some: Array, take: Callable[[Array, Array], None], check: Callable[[int], None]) -> None:
        check(0)
        take(some, edges_of(some))

    def take(some: Array, dense: Array) -> None:
        for row, edges in zip(some.tolist(), dense, strict=True):
            assert row not in taken
            taken[row] = edges

    def make(bucket: ObjectStore) -> None:
        shared = SharedRows(bucket, "g", parts, COLUMNS)
        bucket.put(f"{shared.prefix}problem.json", encode_json({"part_rows": parts, "num_columns": COLUMNS}))
        done: list[int] = []
        shared.sweep(rows, compute, take, done.append, lambda rows, sums: True)
        assert done == sorted(done)
        assert done[-1] == count
        shared.close()

    def help_out(bucket: ObjectStore) -> None:
        for _ in range(3):
            for attempt in bucket.list_folders(f"{ROOT}g/"):
                prefix = f"{ROOT}g/{attempt}/"
                handed_out = open_round(bucket, prefix, {"part_rows": parts, "num_columns": COLUMNS})
                if handed_out is not None:
                    handed_out.help(compute, lambda: True)

    programs = [Program(store, make), Program(store, help_out), Program(store, help_out)]
    take_turns(programs, turns, kills, lambda: None)
    assert sorted(taken) == sorted(rows.tolist())
    for row, edges in taken.items():
        np.testing.assert_array_equal(edges, edges_of(np.array([row]))[0])
    if not kills:
        assert not list(store.list(ROOT))
