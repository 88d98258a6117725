"""An index of features against a recount by loops, in the order of the definitions."""

import asyncio
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rig import IndexRig, histogram_bins
from structlog.testing import capture_logs

from weft_attribution.core.feature_index import matching as matching_module
from weft_attribution.core.feature_index import open_indexes, text
from weft_attribution.core.feature_index import opened as opened_module
from weft_attribution.core.feature_index.building import IndexBuilder, Room
from weft_attribution.core.feature_index.gathering import NUM_BINS, PartState, bin_edges
from weft_attribution.core.feature_index.hashing import draw
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.matching import FeatureMatching
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.feature_index.settings import IndexRequest
from weft_attribution.core.feature_index.tables import Bytes, Table, write_table
from weft_attribution.core.feature_index.text import align
from weft_attribution.core.feature_ports import Window
from weft_common.errors import (
    AlreadyExistsError,
    CancelledError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from weft_store.opening import open_store
from weft_store.port import ObjectStore


def nothing(done: int, total: int) -> None:
    """No progress is wanted."""


# Each build comes long after the one before: what a dead one held is free.
_HOURS = itertools.count()


def build(
    rig: IndexRig,
    request: IndexRequest,
    *,
    store: ObjectStore | None = None,
    memory_bytes: int = 1 << 30,
    workers: int = 1,
    progress: Callable[[int, int], None] = nothing,
    runner: Any = None,
) -> None:
    now = 3600.0 * next(_HOURS)
    indexing = FeatureIndexing(
        store or rig.store, runner, rig, memory_bytes=memory_bytes, workers=workers, clock=lambda: now
    )
    asyncio.run(indexing.build(request, progress))


def opened(rig: IndexRig) -> OpenIndex:
    return OpenIndexes(rig.store).open("t")


def bytes_of(store: ObjectStore, prefix: str) -> dict[str, str]:
    found = {info.key: hashlib.sha256(store.get(info.key)).hexdigest() for info in store.list(prefix)}
    # When it was asked for is all that may differ.
    return {key: value for key, value in found.items() if not key.endswith(("manifest.json", "request.json"))}


def tiles(rig: IndexRig, width: int, num_sequences: int) -> list[range]:
    """Positions of each tile, by the definition."""
    found, start = [], 0
    for ids in rig.token_ids[:num_sequences]:
        found += [range(low, min(low + width, start + len(ids))) for low in range(start, start + len(ids), width)]
        start += len(ids)
    return found


def recounted_window(rig: IndexRig, acts_P: np.ndarray, position: int, width: int) -> tuple[int, int, list[float]]:
    """Sequence, place in it, and activations of the window around a position."""
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in rig.token_ids])])
    sequence = max(number for number in range(len(rig.token_ids)) if starts[number] <= position)
    low, high = starts[sequence], starts[sequence + 1]
    start = max(low, min(position - width * 3 // 4, high - width))
    return sequence, int(start - low), np.nan_to_num(acts_P[start : min(start + width, high)]).tolist()


def check_feature(rig: IndexRig, index: OpenIndex, layer: int, feature: int, num_sequences: int) -> None:
    """Everything of one feature equals what loops count."""
    kept = index.request.settings
    acts_P = rig.activations(layer, num_sequences)[:, feature]
    active = [position for position in range(len(acts_P)) if acts_P[position] > 0]
    row, examples = index.row(layer, feature), index.examples(layer, feature)
    assert (row.num_active, examples.num_active) == (len(active), len(active))
    assert examples.num_tokens == int((~np.isnan(acts_P)).sum())
    assert row.largest == max((acts_P[p] for p in active), default=0)
    assert row.mean == (sum(acts_P[p] for p in active) / len(active) if active else 0)
    edges = bin_edges()
    counted = [sum(low <= acts_P[p] < high for p in active) for low, high in pairwise(edges)]
    assert list(row.histogram) == counted
    peaks = []
    for tile in tiles(rig, kept.window_tokens, num_sequences):
        there = [position for position in tile if acts_P[position] > 0]
        if there:
            peaks.append(max(there, key=lambda position: (acts_P[position], -position)))
    strongest = sorted(peaks, key=lambda position: (-acts_P[position], position))[: kept.num_top]
    assert [window.peak for window in examples.top] == [acts_P[position] for position in strongest]
    for window, position in zip(examples.top, strongest, strict=True):
        check_window(rig, acts_P, window, position, kept.window_tokens)
    assert len(examples.by_quantile) == min(len(peaks), kept.num_sampled)
    drawn = [(window.sequence, window.start + window.peak_at) for window in examples.by_quantile]
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in rig.token_ids])])
    places = [int(starts[sequence]) + place for sequence, place in drawn]
    assert len(set(places)) == len(places)
    assert set(places) <= set(peaks)
    for window, position in zip(examples.by_quantile, places, strict=True):
        check_window(rig, acts_P, window, position, kept.window_tokens)
    ordered = sorted(examples.by_quantile, key=lambda window: window.peak)
    for lower, upper in pairwise(ordered):
        assert lower.quantile <= upper.quantile or lower.peak == upper.peak
    for window in index.quiet(layer, feature, 4):
        start = int(starts[window.sequence]) + window.start
        assert not np.nan_to_num(acts_P[start : start + len(window.token_ids)]).any()
        assert list(window.token_ids) == tokens(rig, window)


def tokens(rig: IndexRig, window: Window) -> list[int]:
    ids = rig.token_ids[window.sequence]
    return [int(each) for each in ids[window.start : window.start + len(window.token_ids)]]


def check_window(rig: IndexRig, acts_P: np.ndarray, window: Window, position: int, width: int) -> None:
    sequence, start, acts = recounted_window(rig, acts_P, position, width)
    assert (window.sequence, window.start) == (sequence, start)
    assert window.activations == pytest.approx(acts, rel=1e-3, abs=1e-6)
    assert window.activations[window.peak_at] == window.peak == acts_P[position]
    assert list(window.token_ids) == tokens(rig, window)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9),
    shard_sequences=st.integers(1, 4),
    row_group_tokens=st.integers(1, 16),
    width=st.integers(4, 9),
    seed=st.integers(0, 1000),
    held_back=st.integers(0, 3),
)
def test_every_figure_and_example_equals_a_recount(
    lengths: list[int], shard_sequences: int, row_group_tokens: int, width: int, seed: int, held_back: int
) -> None:
    """Densities, histograms, largest and mean, examples and their windows, quiet ones; whole or stopped early."""
    rig = IndexRig.make(
        open_store("memory://"), lengths, shard_sequences=shard_sequences, row_group_tokens=row_group_tokens, seed=seed
    )
    counts = np.cumsum([len(ids) - len(skipped) for ids, skipped in zip(rig.token_ids, rig.skipped, strict=True)])
    num_sequences = max(1, len(lengths) - held_back)
    max_tokens = int(counts[num_sequences - 1]) if num_sequences < len(lengths) else 0
    build(rig, rig.request(max_tokens=max_tokens, window_tokens=width))
    index = opened(rig)
    assert index.num_tokens == counts[num_sequences - 1]
    for layer in range(rig.num_layers):
        for feature in range(rig.num_features):
            check_feature(rig, index, layer, feature, num_sequences)
            number = index.number(layer, feature)
            assert index.columns["num_active"][number] == index.row(layer, feature).num_active
    assert set(index.state_of_each[index.columns["num_active"] == 0]) <= {0}


def test_relations_are_those_of_dense_matrices() -> None:
    """Neighbours by cosine, partners by what is active on the drawn tokens, norms and layers written to."""
    rig = IndexRig.make(open_store("memory://"), (30, 40, 25, 50), num_layers=3, num_features=40, d_model=5, seed=3)
    build(rig, rig.request(coactivation_tokens=1000))
    index = opened(rig)
    for layer in range(3):
        decoder_FSD = rig.decoders[layer].astype(np.float64)
        summed_FD = decoder_FSD.sum(axis=1)
        length_F = np.linalg.norm(summed_FD, axis=1)
        unit_FD = summed_FD / np.where(length_F > 0, length_F, 1)[:, None]
        cosine_FF = unit_FD @ unit_FD.T
        np.fill_diagonal(cosine_FF, -np.inf)
        acts_PF = rig.activations(layer)
        active_PF = (acts_PF[~np.isnan(acts_PF[:, 0])] > 0).astype(np.int64)
        both_FF = active_PF.T @ active_PF
        for feature in range(40):
            row = index.row(layer, feature)
            best = np.sort(cosine_FF[feature])[::-1][:3]
            assert [cosine for _, cosine in row.neighbours] == pytest.approx(best.tolist(), abs=2e-3)
            for other, cosine in row.neighbours:
                assert cosine_FF[feature, other] == pytest.approx(cosine, abs=2e-3)
            either_F = both_FF[feature, feature] + np.diag(both_FF) - both_FF[feature]
            share_F = np.where(either_F > 0, both_FF[feature] / np.maximum(either_F, 1), 0)
            share_F[feature] = 0
            wanted = [int(i) for i in np.lexsort((np.arange(40), -share_F)) if share_F[i] > 0][:3]
            assert [(other, count) for other, count, _ in row.partners] == [
                (other, both_FF[feature, other]) for other in wanted
            ]
            assert [share for _, _, share in row.partners] == pytest.approx([share_F[other] for other in wanted])
            assert row.decoder_norms == pytest.approx(np.linalg.norm(decoder_FSD[feature], axis=1).tolist())
        assert index.directions(layer) == pytest.approx(unit_FD, abs=1e-3)
    # Its decoder is zeros.
    assert (index.row(0, 0).first_layer, index.row(0, 0).last_layer) == (0, 0)
    token, number, count = index.triggers
    wanted_pairs: dict[tuple[int, int], int] = {}
    for layer in range(3):
        for feature in range(40):
            for window in index.examples(layer, feature).top:
                key = window.token_ids[window.peak_at], index.number(layer, feature)
                wanted_pairs[key] = wanted_pairs.get(key, 0) + 1
    assert {(int(t), int(n)): int(c) for t, n, c in zip(token, number, count, strict=True)} == wanted_pairs
    assert token.tolist() == sorted(token.tolist())


@given(st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1))
def test_histogram_bins_lie_between_their_edges(values: list[float]) -> None:
    """A bin is half an octave, the outer ones are open, whatever the value."""
    edges = [2 ** ((b - NUM_BINS // 2) / 2) for b in range(NUM_BINS + 1)]
    for value, place in zip(values, histogram_bins(np.array(values, np.float32)).tolist(), strict=True):
        assert place == NUM_BINS - 1 or value < edges[place + 1] * (1 + 1e-7)
        assert place == 0 or value >= edges[place] * (1 - 1e-7)
    assert bin_edges().tolist() == pytest.approx(edges)


class DyingStore:
    """A bucket whose process dies before one of its writes, or right after."""

    def __init__(self, store: ObjectStore, *, writes: int, after: bool) -> None:
        self._store, self._left, self._after = store, writes, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes, **condition: Any) -> Any:
        self._left -= 1
        if self._left < 0 and not self._after:
            raise CancelledError("killed")
        info = self._store.put(key, data, **condition)
        if self._left < 0:
            raise CancelledError("killed")
        return info


def test_killed_at_any_write_and_resumed_gives_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write is the last of its process, the next one ends with the bytes of a run that was not disturbed."""
    whole = IndexRig.make(open_store("memory://"), num_features=7)
    monkeypatch.setattr("weft_attribution.core.feature_index.building.STORE_EVERY_S", 0.0)
    build(whole, whole.request())
    wanted = bytes_of(whole.store, "features/t/index/i1/")
    assert not any("/state/" in key for key in wanted)
    deaths = 0
    for writes in range(40):
        rig = IndexRig.make(open_store("memory://"), num_features=7)
        survived = False
        for after in (False, True):
            dying: Any = DyingStore(rig.store, writes=writes, after=after)
            try:
                build(rig, rig.request(), store=dying)
                survived = True
            except CancelledError:
                deaths += 1
        build(rig, rig.request())
        assert bytes_of(rig.store, "features/t/index/i1/") == wanted
        if survived:
            break
    assert deaths > 10


def test_killed_between_blocks_and_resumed_gives_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is stopped by its progress, again and again, ends with equal bytes and loses no stored span."""
    monkeypatch.setattr("weft_attribution.core.feature_index.building.STORE_EVERY_S", 0.0)
    whole = IndexRig.make(open_store("memory://"))
    build(whole, whole.request())
    rig = IndexRig.make(open_store("memory://"))
    seen: list[int] = []
    for _ in range(50):
        calls = 0

        def stop(done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls > 3:
                raise CancelledError("stopped")

        try:
            build(rig, rig.request(), progress=stop)
            break
        except CancelledError:
            seen.append(calls)
    else:
        pytest.fail("it never came to its end")
    assert seen
    assert bytes_of(rig.store, "features/") == bytes_of(whole.store, "features/")
    assert rig.asked == 1


def test_two_at_once_lose_nothing() -> None:
    """Another process that takes this one for dead and makes the whole index changes no byte of either."""
    whole = IndexRig.make(open_store("memory://"))
    build(whole, whole.request())
    rig = IndexRig.make(open_store("memory://"))
    begun = False

    def meanwhile(done: int, total: int) -> None:
        nonlocal begun
        if done and not begun:
            begun = True
            other = Thread(target=lambda: build(rig, rig.request()))
            other.start()
            other.join()

    build(rig, rig.request(), progress=meanwhile)
    assert begun
    assert bytes_of(rig.store, "features/") == bytes_of(whole.store, "features/")


def test_memory_and_workers_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of some features, one after the other or at once, are the whole layer; a part holds what it is allowed."""
    monkeypatch.setattr("weft_attribution.core.feature_index.gathering.CHUNK", 4)
    monkeypatch.setattr("weft_attribution.core.feature_index.building.CHUNK", 4)
    # Parts begin where row groups do, as 2,048 is a multiple of 256.
    monkeypatch.setattr("weft_attribution.core.feature_index.layer_files.LAYER_ROWS", 4)
    found = []
    # Enough for one chunk, and not for two.
    chunk = 6 * PartState.bytes_of_one(IndexRig.make(open_store("memory://")).request().settings)
    for memory_bytes, workers in ((1 << 30, 1), (chunk, 1), (3 * chunk, 3)):
        rig = IndexRig.make(open_store("memory://"), num_features=13)
        states = 0

        def count(done: int, total: int, rig: IndexRig = rig) -> None:
            nonlocal states
            states = max(states, len(list(rig.store.list("features/t/index/i1/state/"))))

        build(rig, rig.request(), memory_bytes=memory_bytes, workers=workers, progress=count)
        found.append(bytes_of(rig.store, "features/"))
        assert states >= (1 if memory_bytes == 1 << 30 else 4)
    assert found[0] == found[1] == found[2]


def test_state_takes_no_more_than_it_says() -> None:
    """The bytes that parts are cut by are at least those of the arrays that a part holds."""
    request = IndexRequest("t", "i", "d", False, 0, IndexRig.make(open_store("memory://")).request().settings)
    state = PartState(0, 0, 2048, request.settings)
    assert sum(array.nbytes for array in state.arrays().values()) <= 2048 * PartState.bytes_of_one(request.settings)


class NormRunner:
    """Gives outputs whose norm is above the limit exactly where tokens were left out."""

    def __init__(self, rig: IndexRig) -> None:
        self._rig, self.captures = rig, 0

    async def capture(self, model: str, token_ids: list[int], hooks: list[str]) -> Any:
        self.captures += 1
        number = next(n for n, ids in enumerate(self._rig.token_ids) if ids.tolist() == token_ids)
        stream = np.ones((len(token_ids), 4), np.float32)
        stream[self._rig.left_out[number]] = 10
        stream[0] = 50
        return SimpleNamespace(tensors={f"layers.{layer}.mlp_out": stream for layer in range(2)})


def test_tokens_left_out_for_their_norm_are_found_again() -> None:
    """Only shards that lack tokens go through the model; every figure then is that of the tokens that are there."""
    rig = IndexRig.make(open_store("memory://"), left_out=[(3, 2), (3, 5), (5, 11)])
    rig.norm_limits = (9.0, 9.0)
    runner = NormRunner(rig)
    build(rig, rig.request(), runner=runner)
    assert runner.captures == 3
    index = opened(rig)
    for feature in range(rig.num_features):
        check_feature(rig, index, 1, feature, len(rig.token_ids))


def test_what_was_left_out_of_a_shard_is_found_once() -> None:
    """An index that is stopped while it looks goes on with the shards that it has not looked through yet."""
    rig = IndexRig.make(open_store("memory://"), left_out=[(0, 1), (3, 2), (3, 5), (5, 11)])
    rig.norm_limits = (9.0, 9.0)

    class Dying(NormRunner):
        async def capture(self, model: str, token_ids: list[int], hooks: list[str]) -> Any:
            if self.captures == 5:
                raise UnavailableError("gone")
            return await super().capture(model, token_ids, hooks)

    with pytest.raises(UnavailableError):
        build(rig, rig.request(), runner=Dying(rig))
    runner = NormRunner(rig)
    build(rig, rig.request(), runner=runner)
    assert runner.captures == 3
    index = opened(rig)
    for feature in range(rig.num_features):
        check_feature(rig, index, 0, feature, len(rig.token_ids))


def test_tokens_that_cannot_be_found_again_are_refused() -> None:
    """A model that computes otherwise now, or rows without sequences, end in a refusal and not in a wrong index."""
    rig = IndexRig.make(open_store("memory://"), left_out=[(3, 2)])
    rig.norm_limits = (9.0, 9.0)
    other = IndexRig.make(open_store("memory://"), left_out=[(3, 2), (3, 5)])
    with pytest.raises(FailedPreconditionError, match="computes differently"):
        build(rig, rig.request(), runner=NormRunner(other))
    rig.norm_limits = ()
    with pytest.raises(FailedPreconditionError, match="no whole number of the sequences"):
        build(rig, rig.request())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"state": "open"}, FailedPreconditionError, "is open"),
        ({"spec.model": "models/other"}, InvalidArgumentError, "model tiny"),
        ({"spec.model_revision": "cd" * 32}, InvalidArgumentError, "revision"),
        ({"spec.input_hook": "resid_mid"}, InvalidArgumentError, "input mlp_in"),
        ({"shards": []}, FailedPreconditionError, "no tokens in its train split"),
    ],
)
def test_dataset_that_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], text: str) -> None:
    """What the dataset is of is checked before anything is written."""
    rig = IndexRig.make(open_store("memory://"))
    manifest = json.loads(rig.store.get("datasets/d/manifest.json"))
    for name, value in change.items():
        place, _, field = name.rpartition(".")
        (manifest[place] if place else manifest)[field] = value
    rig.store.put("datasets/d/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(error, match=text):
        build(rig, rig.request())
    assert not list(rig.store.list("features/"))


def test_index_that_is_only_partly_there_is_not_served() -> None:
    """Without a manifest there is no index; the newest whole one answers; one of a replaced transcoder does not."""
    rig = IndexRig.make(open_store("memory://"))
    indexes = OpenIndexes(rig.store, look_s=0)
    with pytest.raises(FailedPreconditionError, match="IndexFeatures"):
        indexes.open("t")
    with pytest.raises(NotFoundError, match="no transcoder"):
        indexes.open("absent")
    build(rig, rig.request("first"))
    assert indexes.open("t").index_id == "first"
    build(rig, rig.request("second", num_top=1))
    assert indexes.open("t").index_id == "second"
    rig.store.delete("features/t/index/second/manifest.json")
    assert indexes.open("t").index_id == "first"
    with pytest.raises(AlreadyExistsError, match="asked for otherwise"):
        build(rig, rig.request("first", num_top=2))
    manifest = rig.store.get("transcoders/t/manifest.json")
    rig.store.put("transcoders/t/manifest.json", manifest + b" ")
    with pytest.raises(FailedPreconditionError, match="IndexFeatures"):
        indexes.open("t")


@pytest.mark.parametrize(
    "change",
    [{"num_top": 101}, {"window_tokens": 3}, {"dense_share": 2.0}, {"pool_windows": 12}, {"num_quantiles": 5}],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    """Each says what was given and what may be."""
    rig = IndexRig.make(open_store("memory://"))
    with pytest.raises(InvalidArgumentError, match="give"):
        rig.request(**change).check()


def test_align_refuses_what_does_not_fit() -> None:
    """Sequences beyond the shards, or shards that end within one."""
    ids, skipped = [np.arange(5), np.arange(4)], [np.array([0]), np.array([0])]
    with pytest.raises(FailedPreconditionError, match="the sequences it was harvested from"):
        align(ids, skipped, [("a", 4, 8)], cut=False)
    with pytest.raises(FailedPreconditionError, match="no whole number"):
        align(ids, skipped, [("a", 5, 8)], cut=True)
    text, spans = align(ids, skipped, [("a", 4, 8), ("b", 9, 8)], cut=True)
    assert [span.num_rows for span in spans] == [4, 3]
    assert text.num_tokens == 7


def test_table_reads_only_the_row_groups_asked_for() -> None:
    """A row of a large file costs ranges of its row group and the footer, and comes back as it was."""
    store = open_store("memory://")
    rng = np.random.default_rng(0)
    data = rng.standard_normal((4000, 64)).astype(np.float32)
    lists = [np.arange(i % 5, dtype=np.int64) for i in range(4000)]
    store.put(
        "t.parquet",
        write_table(
            {
                "row": np.arange(low, low + 250),
                "wide": data[low : low + 250],
                "ragged": lists[low : low + 250],
                "raw": Bytes(data[low : low + 250, :2]),
            }
            for low in range(0, 4000, 250)
        ),
    )
    whole = store.info("t.parquet").size_bytes
    read = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            found = store.get(key, offset=offset, length=length)
            read.append(len(found))
            return found

    table = Table(Counting(), "t.parquet")  # type: ignore[arg-type]
    read.clear()
    row = table.row(3210)
    assert sum(read) < whole / 8
    assert row["row"] == 3210
    assert row["wide"] == data[3210].tolist()
    assert row["ragged"] == lists[3210].tolist()
    assert row["raw"] == data[3210, :2].tobytes()
    assert table.rows(240, 260, ["row"]).column("row").to_pylist() == list(range(240, 260))
    assert table.num_rows == 4000


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    left_out=st.sets(st.integers(0, 200), max_size=30),
    count=st.integers(1, 60),
    width=st.integers(4, 9),
    seed=st.integers(0, 5),
    at_once=st.integers(1, 50),
)
def test_draws_by_pieces_are_those_of_all_at_once(
    lengths: list[int], left_out: set[int], count: int, width: int, seed: int, at_once: int
) -> None:
    """Positions and tiles with the smallest draws of all, however few are looked at at a time."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    kept = np.array([position not in left_out for position in range(starts[-1])])
    kept[starts[:-1]] = False
    made = text.Text(np.zeros(len(kept), np.uint32), starts, kept)
    positions = np.flatnonzero(kept)
    wanted = sorted(positions[np.argsort(draw(seed, 0x72, positions), kind="stable")[:count]].tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_DRAWN_AT_ONCE", at_once)
        assert text.draw_positions(made, count, seed).tolist() == wanted
    spans = [
        (start, min(start + width, high), start == low)
        for low, high in pairwise(starts.tolist())
        for start in range(low, high, width)
    ]
    whole = [
        number
        for number, (low, high, is_first) in enumerate(spans)
        if high - low == width and kept[low:high].sum() >= width - is_first
    ]
    candidates = np.array(whole or list(range(len(spans))))
    order = np.argsort(draw(seed, 0x71, candidates), kind="stable")[:count]
    assert text.draw_tiles(made, width, count, seed).tolist() == sorted(candidates[order].tolist())


def test_parts_make_room_for_encoders_and_layers_are_written_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide model leaves less room for features; of layers that are gathered at once one is written at a time."""
    rig = IndexRig.make(open_store("memory://"), num_layers=4)
    request = rig.request()
    one = PartState.bytes_of_one(request.settings)
    room = 5 * 2048 * one
    assert Room.of(request, room, 1, 10_000, 0) == Room(1, 5 * 2048)
    assert Room.of(request, room, 1, 10_000, one // 8) == Room(1, 2 * 2048)
    written, at_once, most = IndexBuilder._written, [], []

    def watched(self: IndexBuilder, layer: int, parts: Any) -> bytes:
        at_once.append(layer)
        most.append(len(at_once))
        made = written(self, layer, parts)
        at_once.remove(layer)
        return made

    monkeypatch.setattr(IndexBuilder, "_written", watched)
    build(rig, request, workers=4)
    assert most == [1, 1, 1, 1]
    check_feature(rig, opened(rig), 3, 2, len(rig.token_ids))


def test_memory_bounds_workers_and_refuses_what_it_cannot_bear() -> None:
    """Many workers never hold more than the setting together; settings that do not fit at all are refused at once."""
    rig = IndexRig.make(open_store("memory://"))
    wide = replace(rig.request().settings, num_top=100, num_sampled=200, window_tokens=256, coactivation_tokens=65_536)
    request = replace(rig.request(), settings=wide)
    least = 2048 * PartState.bytes_of_one(wide)
    for memory_bytes in (least, 3 * least, 100 * least):
        room = Room.of(request, memory_bytes, 16, 16_384, 0)
        assert 1 <= room.workers <= 16
        assert room.workers * room.part_features * PartState.bytes_of_one(wide) <= memory_bytes
    with pytest.raises(InvalidArgumentError, match="WEFT_ATTRIBUTION_MEMORY_BYTES"):
        Room.of(request, least - 1, 16, 16_384, 0)
    with pytest.raises(InvalidArgumentError, match="num_top"):
        asyncio.run(FeatureIndexing(rig.store, None, rig, memory_bytes=1 << 10, workers=1).check(rig.request()))  # type: ignore[arg-type]


def test_decoder_that_is_no_number_is_nobodys_neighbour() -> None:
    """It writes nothing that could be told; others have the neighbours that they have without it."""
    rig = IndexRig.make(open_store("memory://"), num_features=12)
    broken = rig.decoders[0].copy()
    broken[3, 1, 2], broken[7, 0, 0] = np.nan, np.inf
    zeroed = broken.copy()
    zeroed[[3, 7]] = 0
    found = []
    for decoders in (zeroed, broken):
        rig.store.put("transcoders/t/W_dec_0.safetensors", safetensors.numpy.save({"W_dec_0": decoders}))
        index_id = f"i{len(found)}"
        build(rig, rig.request(index_id))
        index = OpenIndexes(rig.store).open("t")
        assert index.index_id == index_id
        found.append([index.row(0, feature) for feature in range(12)])
    assert found[0] == found[1]
    assert found[1][3].decoder_norms == (0.0, 0.0)
    assert all(np.isfinite(cosine) for row in found[1] for _, cosine in row.neighbours)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b'{"request": {}, "create_s": 1}', None])
def test_damaged_manifest_is_named_and_passed_over(damage: bytes | None) -> None:
    """What is whole beside it answers; asked for by name it says that it is damaged."""
    rig = IndexRig.make(open_store("memory://"))
    for index_id in ("i1", "i2"):
        build(rig, rig.request(index_id))
    key = "features/t/index/i2/manifest.json"
    if damage is None:
        whole = json.loads(rig.store.get(key))
        damage = json.dumps({**whole, "num_tokens": "many"}).encode()
    rig.store.put(key, damage)
    indexes = OpenIndexes(rig.store)
    with capture_logs() as logs:
        assert indexes.open("t").index_id == "i1"
        assert [each["request"]["index_id"] for each in indexes.manifests("t")] == ["i1"]
    assert {each["index"] for each in logs if each["event"] == "index_passed_over"} == {"transcoders/t/indexes/i2"}
    with pytest.raises(DataLossError, match="i2"):
        indexes.manifest("t", "i2")


def test_what_is_kept_open_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes by their size, footers and transcoders by their number; what is asked for is there in any case."""
    rig = IndexRig.make(open_store("memory://"), num_layers=3)
    build(rig, rig.request())
    for number in range(4):
        for info in list(rig.store.list("transcoders/t/")):
            rig.store.put(info.key.replace("/t/", f"/t{number}/"), rig.store.get(info.key))
        for info in list(rig.store.list("features/t/")):
            data = rig.store.get(info.key)
            if info.key.endswith("manifest.json"):
                document = json.loads(data)
                document["request"]["transcoder"] = f"t{number}"
                data = json.dumps(document).encode()
            rig.store.put(info.key.replace("/t/", f"/t{number}/"), data)
    monkeypatch.setattr(opened_module, "_OPEN_TABLES", 2)
    monkeypatch.setattr(open_indexes, "_KNOWN_TRANSCODERS", 3)
    plenty, tight = OpenIndexes(rig.store), OpenIndexes(rig.store, memory_bytes=0)
    for indexes, most in ((plenty, 4), (tight, 1)):
        for number in range(4):
            found = indexes.open(f"t{number}")
            assert found.transcoder == f"t{number}"
            assert indexes.open(f"t{number}") is found
            for layer in (0, 1, 2, 0):
                assert found.row(layer, 1) == opened(rig).row(layer, 1)
            assert len(found._tables) == 2
        assert len(indexes._open) == most
        assert len(indexes._newest) == 3
    assert plenty.open("t3").num_bytes >= sum(column.nbytes for column in plenty.open("t3").columns.values())


def test_matches_end_a_page_after_so_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that go over a few rows each join to what one page has, and what does not fit into memory is refused."""
    rig = IndexRig.make(open_store("memory://"), num_features=12)
    build(rig, rig.request())
    indexes = OpenIndexes(rig.store)
    matching = FeatureMatching(indexes, memory_bytes=1 << 20)
    whole, following = matching.page("t", "t", 0, min_cosine=0.1, page_size=100, first=0)
    assert following == 0
    assert whole
    monkeypatch.setattr(matching_module, "_ROWS", 5)
    monkeypatch.setattr(matching_module, "_PRODUCTS_A_CALL", 1)
    joined, first, pages = [], 0, 0
    while pages == 0 or first:
        part, first = matching.page("t", "t", 0, min_cosine=0.1, page_size=100, first=first)
        joined, pages = [*joined, *part], pages + 1
    assert pages == 3
    assert [replace(each, cosine=0.0) for each in joined] == [replace(each, cosine=0.0) for each in whole]
    assert [each.cosine for each in joined] == pytest.approx([each.cosine for each in whole])
    read: list[int] = []
    plain = OpenIndex.directions
    monkeypatch.setattr(OpenIndex, "directions", lambda index, layer: read.append(layer) or plain(index, layer))
    for layer in (0, 0, 1, 1, 0):
        matching.page("t", "t", layer, min_cosine=0.1, page_size=1, first=0)
    # Layer 0 is there from the pages above.
    assert read == [1]
    deeper = IndexRig.make(open_store("memory://"), num_layers=3)
    build(deeper, deeper.request())
    tight = FeatureMatching(OpenIndexes(deeper.store), memory_bytes=2 * opened(deeper).directions(0).nbytes)
    read.clear()
    for layer in (0, 1, 2, 0):
        tight.page("t", "t", layer, min_cosine=0.1, page_size=1, first=0)
    assert read == [0, 1, 2, 0]
    assert sum(each.nbytes for each in tight._kept.values()) <= tight._memory_bytes
    with pytest.raises(ResourceExhaustedError, match="WEFT_ATTRIBUTION_MEMORY_BYTES"):
        FeatureMatching(indexes, memory_bytes=300).page("t", "t", 0, min_cosine=0, page_size=0, first=0)
