"""
Exported features, read as their tools read them: by readers written after those tools' code, and by their own classes.

`benchmarks/features/make_peer_schemas.py` asked those classes what they take; `open_export_in_peers.py` beside it runs
the tools themselves.
"""

import asyncio
import gzip
import hashlib
import json
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rig import IndexRig, histogram_bins

from weft_attribution.core.feature_export import exporting
from weft_attribution.core.feature_export.distribution import Distribution
from weft_attribution.core.feature_export.exporting import PIECE_BYTES, FeatureExports
from weft_attribution.core.feature_export.rounding import rounded
from weft_attribution.core.feature_export.settings import ExportLayout, ExportRequest
from weft_attribution.core.feature_index.gathering import NUM_BINS, bin_edges
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_attribution.core.weights import Norm
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StorageFullError,
    UnavailableError,
)
from weft_store.opening import open_store

SCHEMAS = json.loads((Path(__file__).parents[2] / "assets" / "feature_exports.schema.json").read_text())
VOCAB = 40
TEXTS = ["\n", "\t", "\r", " <script>", '"', "\\x41", "ü", "🦊", "", "\u2028", "�"]
BIG = {"num_top": 100, "num_sampled": 200, "window_tokens": 256}
"""So much text a feature that a part is of eight features."""


class Runner:
    """Texts of tokens, some of which are awkward."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def pieces(self, model: str, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        assert model == "tiny"
        self.asked += token_ids
        return tuple(text_of(token).encode() for token in token_ids)


def text_of(token: int) -> str:
    return TEXTS[token] if token < len(TEXTS) else f" t{token}"


class Weights:
    """An unembedding of a small vocabulary behind a norm."""

    def __init__(self, d_model: int) -> None:
        rng = np.random.default_rng(7)
        self.unembedding = rng.normal(size=(VOCAB, d_model))
        self.norm = rng.normal(size=d_model)

    def weights(self, model: str) -> Any:
        return SimpleNamespace(
            dtype=torch.float64,
            unembedding_VD=torch.from_numpy(self.unembedding),
            final_norm=Norm(torch.from_numpy(self.norm), None, centred=False),
        )

    def effects(self, decoder_SD: np.ndarray) -> np.ndarray:
        """On all logits, by the definition."""
        effect = self.unembedding @ (self.norm * decoder_SD.astype(np.float64).sum(axis=0))
        return np.asarray(effect - effect.mean())


class House:
    """An indexed transcoder, and exports of it."""

    def __init__(self, store: Any = None, *, num_features: int = 6, **settings: Any) -> None:
        self.rig = IndexRig.make(store or open_store("memory://"), num_features=num_features)
        self.runner, self.weights = Runner(), Weights(self.rig.d_model)
        none: Any = None
        indexing = FeatureIndexing(self.rig.store, none, self.rig, memory_bytes=1 << 30, workers=1)
        asyncio.run(indexing.build(self.rig.request(**settings), lambda done, total: None))

    def exports(self, store: Any = None, **limits: int) -> FeatureExports:
        store = store or self.rig.store
        runner: Any = self.runner
        return FeatureExports(store, runner, self.weights, OpenIndexes(store), **limits)

    def request(self, layout: ExportLayout, **changes: Any) -> ExportRequest:
        usual = {"transcoder": "t", "export_id": "e1", "layout": layout, "source_set": "first"}
        return ExportRequest(**{**usual, **changes})

    def export(self, layout: ExportLayout, *, store: Any = None, **changes: Any) -> dict[str, bytes]:
        """Files by path."""
        exports = self.exports(store)
        request, _ = exports.look_up(self.request(layout, **changes))
        manifest = asyncio.run(exports.build(request, lambda done, total: None))
        listed = exports.files("t", request.export_id)
        found = {path: b"".join(exports.pieces("t", request.export_id, path)) for path, _ in listed}
        assert [(path, len(data)) for path, data in found.items()] == listed
        assert manifest["num_files"] == len(listed)
        assert manifest["size_bytes"] == sum(size for _, size in listed)
        return found

    @property
    def index(self) -> OpenIndex:
        return OpenIndexes(self.rig.store).open("t")


def as_the_page_reads(files: dict[str, bytes], layer: int, feature: int) -> dict[str, Any]:
    """One feature, by circuit-tracer's `loadFeatureFromBinary` and `getFile`: a range whose end is one byte too far."""
    index = json.loads(gzip.decompress(files["index.json.gz"]))
    offsets, name = index[str(layer)]["offsets"], index[str(layer)]["filename"]
    piece = files[name][offsets[feature] : offsets[feature + 1] + 1]
    length = piece[0] | piece[1] << 8 | piece[2] << 16 | piece[3] << 24
    found: dict[str, Any] = json.loads(zlib.decompress(piece[4 : 4 + length]))
    return found


def close(value: float, wanted: float) -> bool:
    return bool(value == wanted == 0 or (wanted and abs(value / wanted - 1) <= 6e-4))


@pytest.mark.parametrize("settings_of_index", [{}, BIG])
def test_circuit_tracers_page_finds_every_feature(settings_of_index: dict[str, Any]) -> None:
    """Each feature stands where their index says, as their classes take it, and holds what ours holds."""
    house = House(num_features=20, **settings_of_index)
    files = house.export(ExportLayout.CIRCUIT_TRACER, num_logits=4)
    assert sorted(files) == ["index.json.gz", "layer_0.bin", "layer_1.bin"]
    validator = jsonschema.Draft202012Validator(SCHEMAS["circuit_tracer"]["schema"])
    shown = {"\n": "⏎", "\t": "→", "\r": "↵"}
    for layer in range(2):
        for feature in range(20):
            found = as_the_page_reads(files, layer, feature)
            validator.validate(found)
            assert (found["transcoder_id"], found["index"]) == ("t", feature)
            row, examples = house.index.row(layer, feature), house.index.examples(layer, feature)
            drawn = sorted(examples.by_quantile, key=lambda window: (-window.quantile, -window.peak))
            windows = [*examples.top, *drawn]
            told = [example for group in found["examples_quantiles"] for example in group["examples"]]
            assert len(told) == len(windows)
            places = [(window.sequence, window.start + window.peak_at) for window in windows]
            for number, (example, window) in enumerate(zip(told, windows, strict=True)):
                texts = [text_of(token) for token in window.token_ids]
                assert example["tokens"] == [shown.get(text, text) for text in texts]
                assert all(map(close, example["tokens_acts_list"], window.activations))
                assert example["train_token_ind"] == window.peak_at
                assert example["is_repeated_datapoint"] == (places[number] in places[:number])
            names = [group["quantile_name"] for group in found["examples_quantiles"]]
            kinds = list(dict.fromkeys(window.quantile for window in windows))
            most = house.index.request.settings.num_quantiles
            assert names == ["Top activations" if kind < 0 else f"Quantile {kind + 1} of {most}" for kind in kinds]
            assert found["activation_frequency"] == pytest.approx(row.num_active / house.index.num_tokens)
            assert (found["act_min"], close(found["act_max"], row.largest)) == (0, True)
            assert sum(found["histogram"]) == pytest.approx(row.num_active, rel=1e-3)
            assert len(found["quantile_values"]) == (99 if row.num_active else 0)
            effect = house.weights.effects(house.rig.decoders[layer][feature])
            check_logits(found["top_logits"], effect, shown)
            check_logits(found["bottom_logits"], -effect, shown)


CUT = [b"\xe6", b"\x9d\xb1", b" the", b"\xe4\xba", b"\xac cat", " 東".encode()[:3], b"\xb1"]
"""Tokens of which some hold parts of characters."""


@pytest.mark.parametrize("layout", list(ExportLayout))
def test_windows_of_files_are_the_text_of_their_tokens(layout: ExportLayout) -> None:
    """Bytes of a window are read as text once, and what a character of many tokens is shaded by is their largest."""
    house = House()
    runner: Any = house.runner

    async def pieces(model: str, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(CUT[token % len(CUT)] for token in token_ids)

    runner.pieces = pieces
    files = house.export(layout)
    whole = 0
    for feature in range(6):
        if layout is ExportLayout.CIRCUIT_TRACER:
            groups = as_the_page_reads(files, 0, feature)["examples_quantiles"]
            told = [(each["tokens"], each["tokens_acts_list"]) for group in groups for each in group["examples"]]
        else:
            batch = json.loads(next(data for path, data in sorted(files.items()) if "batch" in path))
            here = [each for each in batch["features"] if each["feature_index"] == feature]
            told = [(window["tokens"], window["values"]) for each in here for window in each["activations"]]
        examples = house.index.examples(0, feature)
        drawn = sorted(examples.by_quantile, key=lambda window: (-window.quantile, -window.peak))
        for (tokens, values), window in zip(told, [*examples.top, *drawn], strict=True):
            assert len(tokens) == len(values) == len(window.token_ids)
            held = b"".join(CUT[token % len(CUT)] for token in window.token_ids)
            assert "".join(tokens) == held.decode(errors="replace")
            whole += "".join(tokens).count("東")
    assert whole


def check_logits(texts: list[str], effect: np.ndarray, shown: dict[str, str]) -> None:
    """They are those of the largest effects; where decoders are zero any will do."""
    assert len(texts) == 4
    if np.abs(effect).max() > 1e-9:
        assert texts == [shown.get(text_of(token), text_of(token)) for token in np.argsort(-effect)[:4].tolist()]


@pytest.mark.parametrize("settings_of_index", [{}, BIG])
def test_batches_are_what_sae_dashboard_reads(settings_of_index: dict[str, Any]) -> None:
    """Every live feature is in a batch of its layer, as SAEDashboard's constructors take it; dead ones are named."""
    house = House(num_features=20, **settings_of_index)
    files = house.export(ExportLayout.SAE_DASHBOARD, model_name="smol", source_set="first-clt")
    validator = jsonschema.Draft202012Validator(SCHEMAS["sae_dashboard"]["schema"])
    num_batches = 3 if settings_of_index else 1
    for layer in range(2):
        features: dict[int, Any] = {}
        for number in range(num_batches):
            batch = json.loads(files.pop(f"{layer}-first-clt/batch-{number}.json"))
            validator.validate(batch)
            assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("smol", layer, "first-clt")
            features |= {each["feature_index"]: each for each in batch["features"]}
        skipped = json.loads(files.pop(f"{layer}-first-clt/skipped_indexes.json"))
        assert (skipped["model_id"], skipped["layer"], skipped["sae_set"]) == ("smol", str(layer), "first-clt")
        dead = [feature for feature in range(20) if not house.index.row(layer, feature).num_active]
        assert skipped["skipped_indexes"] == dead
        # As SAEDashboard's runner writes it.
        assert set(skipped) == {"model_id", "layer", "sae_set", "log_sparsity", "skipped_indexes"}
        assert list(features) == [feature for feature in range(20) if feature not in dead]
        for feature, found in features.items():
            check_dashboard(house, layer, feature, found)
    assert not files


def check_dashboard(house: House, layer: int, feature: int, found: dict[str, Any]) -> None:
    row, examples = house.index.row(layer, feature), house.index.examples(layer, feature)
    drawn = sorted(examples.by_quantile, key=lambda window: (-window.quantile, -window.peak))
    windows = [*examples.top, *drawn]
    assert len(found["activations"]) == len(windows)
    acts_P = house.rig.activations(layer)[:, feature]
    active = acts_P[acts_P > 0]
    for example, window in zip(found["activations"], windows, strict=True):
        assert example["tokens"] == [text_of(token) for token in window.token_ids]
        assert all(map(close, example["values"], window.activations))
        # What their converter takes for the place of the maximum.
        assert example["values"][example["qualifying_token_index"]] == rounded([window.peak])[0]
        if window.quantile < 0:
            assert (example["bin_min"], example["bin_contains"]) == (-1, -1)
            assert example["bin_max"] == row.largest
        else:
            same = [each.peak for each in drawn if each.quantile == window.quantile]
            below = max((each.peak for each in drawn if each.peak < min(same)), default=-min(same))
            above = min((each.peak for each in drawn if each.peak > max(same)), default=None)
            assert example["bin_min"] == pytest.approx((min(same) + below) / 2, rel=1e-9)
            assert example["bin_max"] == (row.largest if above is None else pytest.approx((max(same) + above) / 2))
            assert example["bin_min"] < min(same) <= max(same) <= example["bin_max"]
            # Within a half octave, as the histogram tells it.
            low, high = example["bin_min"] / 2**0.5, example["bin_max"] * 2**0.5
            assert 0 < example["bin_contains"] <= ((active >= low) & (active <= high)).mean() + 1e-6
    assert found["frac_nonzero"] == pytest.approx(row.num_active / house.index.num_tokens)
    assert sum(found["freq_hist_data_bar_heights"]) == pytest.approx(row.num_active, rel=1e-3)
    assert len(found["freq_hist_data_bar_values"]) == len(found["freq_hist_data_bar_heights"]) == 50
    effect = house.weights.effects(house.rig.decoders[layer][feature])
    assert found["pos_values"] == pytest.approx(np.sort(effect)[::-1][:10].tolist(), rel=1e-3, abs=1e-9)
    assert found["neg_values"] == pytest.approx(np.sort(effect)[:10].tolist(), rel=1e-3, abs=1e-9)
    assert sum(found["logits_hist_data_bar_heights"]) == VOCAB
    assert found["n_prompts_total"] == len(house.rig.token_ids)
    assert found["dataset"] == "d"


class Failing:
    """A bucket that fails once, at a given write."""

    def __init__(self, store: Any, at: int) -> None:
        self._store, self._left = store, at

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in ("put", "put_file", "delete"):
            return found

        def write(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise UnavailableError("the bucket is away")
            return found(*arguments, **options)

        return write


@pytest.mark.parametrize("layout", list(ExportLayout))
def test_export_that_was_stopped_anywhere_goes_on_to_the_same_bytes(layout: ExportLayout) -> None:
    """After each single write fails, the same request again makes the files that an undisturbed one makes."""
    house = House(num_features=20, **BIG)
    whole = house.export(layout)
    clean(house)
    for at in range(1, 40):
        failing = Failing(house.rig.store, at)
        try:
            files = house.export(layout, store=failing)
        except UnavailableError:
            assert house.export(layout) == whole
            assert not list(house.rig.store.list("features/t/exports/e1/state/"))
            clean(house)
        else:
            assert files == whole
            return
    raise AssertionError("an export makes fewer writes")


def clean(house: House) -> None:
    house.exports().delete("t", "e1")
    assert not list(house.rig.store.list("features/t/exports/"))


@pytest.mark.parametrize(("layout", "at"), [(ExportLayout.CIRCUIT_TRACER, 4), (ExportLayout.SAE_DASHBOARD, 4)])
def test_parts_that_are_there_are_not_made_again(
    layout: ExportLayout, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request and two parts were written: the next process begins with the third, and counts the others as done."""
    house, made = House(num_features=20, **BIG), []
    original = exporting.describe

    def counted(*arguments: Any, with_bars: bool) -> Any:
        made.append(arguments[3:6])
        # Only SAEDashboard's files have a place for them.
        assert with_bars == (layout is ExportLayout.SAE_DASHBOARD)
        return original(*arguments, with_bars=with_bars)

    monkeypatch.setattr(exporting, "describe", counted)
    exports = house.exports(Failing(house.rig.store, at))
    request, total = exports.look_up(house.request(layout))
    with pytest.raises(UnavailableError):
        asyncio.run(exports.build(request, lambda done, all_of_them: None))
    assert made == [(0, 0, 8), (0, 8, 16), (0, 16, 20)]
    told: list[tuple[int, int]] = []
    asyncio.run(house.exports().build(request, lambda done, all_of_them: told.append((done, all_of_them))))
    assert made[3:] == [(0, 16, 20), (1, 0, 8), (1, 8, 16), (1, 16, 20)]
    assert told == [(done, total) for done in (8, 16, 20, 28, 36, 40)]
    asyncio.run(house.exports().build(request, lambda done, all_of_them: None))
    assert len(made) == 7


def test_request_is_filled_in_and_held_to_what_was_begun() -> None:
    """The newest index, all layers and the model's id; the same again is the same, another under its id is refused."""
    house = House()
    exports = house.exports()
    found, total = exports.look_up(house.request(ExportLayout.CIRCUIT_TRACER))
    assert (found.index_id, found.layers, found.model_name, total) == ("i1", (0, 1), "tiny", 12)
    house.export(ExportLayout.CIRCUIT_TRACER)
    assert house.exports().look_up(house.request(ExportLayout.CIRCUIT_TRACER)) == (found, 12)
    for changes in ({"layers": (1,)}, {"num_logits": 3}, {"source_set": "second"}):
        with pytest.raises(AlreadyExistsError, match="an id of its own"):
            exports.look_up(house.request(ExportLayout.CIRCUIT_TRACER, **changes))
    with pytest.raises(AlreadyExistsError):
        exports.look_up(house.request(ExportLayout.SAE_DASHBOARD))
    part, total = exports.look_up(house.request(ExportLayout.SAE_DASHBOARD, export_id="e2", layers=(1,)))
    assert (part.layers, total) == ((1,), 6)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"num_logits": 101}, InvalidArgumentError, "num_logits is 101"),
        ({"source_set": "a/b"}, InvalidArgumentError, "source_set is 'a/b'"),
        ({"source_set": ""}, InvalidArgumentError, "source_set is ''"),
        ({"model_name": "../m"}, InvalidArgumentError, "model_name is"),
        ({"layers": (2,)}, NotFoundError, "no layer 2"),
        ({"index_id": "absent"}, NotFoundError, "ListFeatureIndexes"),
        ({"transcoder": "absent"}, NotFoundError, "no transcoder"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    """Before anything is written."""
    house = House()
    with pytest.raises(error, match=text):
        house.exports().look_up(
            ExportRequest(**{"transcoder": "t", "export_id": "e", "layout": ExportLayout.CIRCUIT_TRACER,
                             "source_set": "first", **changes})
        )  # fmt: skip
    assert not list(house.rig.store.list("features/t/exports/"))


def test_index_of_a_transcoder_that_was_replaced_is_not_exported() -> None:
    """Its examples are another one's."""
    house = House()
    manifest = json.loads(house.rig.store.get("transcoders/t/manifest.json"))
    house.rig.store.put("transcoders/t/manifest.json", json.dumps({**manifest, "run": "runs/other"}).encode())
    with pytest.raises(FailedPreconditionError, match="replaced"):
        house.exports().look_up(house.request(ExportLayout.CIRCUIT_TRACER, index_id="i1"))


def test_decoder_that_is_no_number_is_named() -> None:
    """Not written as what no reader takes for JSON."""
    house = House()
    broken = house.rig.decoders[1].copy()
    broken[4, 0, 2] = np.nan
    house.rig.store.put("transcoders/t/W_dec_1.safetensors", safetensors.numpy.save({"W_dec_1": broken}))
    with pytest.raises(DataLossError, match="1-4 of transcoders/t"):
        house.export(ExportLayout.SAE_DASHBOARD)


def test_files_are_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces join to the file; what is not there, or cut short, is refused."""
    house = House()
    house.export(ExportLayout.CIRCUIT_TRACER)
    exports, key = house.exports(), "features/t/exports/e1/files/layer_0.bin"
    assert b"".join(exports.pieces("t", "e1", "layer_0.bin")) == house.rig.store.get(key)
    assert all(len(piece) <= PIECE_BYTES for piece in exports.pieces("t", "e1", "layer_0.bin"))
    for path in ("layer_9.bin", "../request.json", ""):
        with pytest.raises(NotFoundError, match="has no file"):
            next(exports.pieces("t", "e1", path))
    with pytest.raises(NotFoundError, match="not whole yet"):
        next(exports.pieces("t", "e2", "layer_0.bin"))
    house.rig.store.put("features/t/exports/e1/files/notes.txt", b"not ours")
    with pytest.raises(NotFoundError, match="has no file"):
        next(exports.pieces("t", "e1", "notes.txt"))
    pieces = exports.pieces("t", "e1", "layer_0.bin")
    store: Any = house.rig.store
    get = store.get
    monkeypatch.setattr(store, "get", lambda key, **options: get(key, **options)[:-1] if key == cut else get(key))
    cut = key
    with pytest.raises(DataLossError, match="cut short"):
        list(pieces)


@pytest.mark.parametrize("damage", [b"{}", b'{"create_s": 1, "request": {}}'])
def test_damaged_manifest_says_so(damage: bytes) -> None:
    """And can be deleted."""
    house = House()
    house.export(ExportLayout.CIRCUIT_TRACER)
    house.rig.store.put("features/t/exports/e1/manifest.json", damage)
    with pytest.raises(DataLossError, match="delete the export"):
        house.exports().manifest("t", "e1")
    assert house.exports().ids("t") == ["e1"]
    clean(house)
    with pytest.raises(NotFoundError, match="nothing was deleted"):
        house.exports().delete("t", "e1")


def test_damaged_list_of_files_says_so() -> None:
    """The export is still there, and can be deleted."""
    house = House()
    house.export(ExportLayout.CIRCUIT_TRACER)
    house.rig.store.put("features/t/exports/e1/files.json", b'{"files": [["a"]]}')
    assert house.exports().manifest("t", "e1")["num_files"] == 3
    with pytest.raises(DataLossError, match="delete the export"):
        house.exports().files("t", "e1")
    clean(house)


class Held:
    """A bucket whose first write below a prefix waits until it is let go."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self.begun, self.free = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes, **options: Any) -> Any:
        if key.startswith(self._prefix):
            self.begun.set()
            assert self.free.wait(30)
        return self._store.put(key, data, **options)


@pytest.mark.parametrize(
    ("layout", "below"), [(ExportLayout.SAE_DASHBOARD, "files/"), (ExportLayout.CIRCUIT_TRACER, "state/")]
)
def test_cancelled_export_ends_when_nothing_writes_any_more(layout: ExportLayout, below: str) -> None:
    """Cancelled within a write, twice, it is not done before that write is; then nothing comes after its deletion."""
    house = House()
    held = Held(house.rig.store, f"features/t/exports/e1/{below}")

    async def cancelled() -> None:
        exports = house.exports(held)
        request, _ = exports.look_up(house.request(layout))
        work = asyncio.ensure_future(exports.build(request, lambda done, total: None))
        assert await asyncio.to_thread(held.begun.wait, 30)
        for _ in range(2):
            work.cancel()
            await asyncio.wait({work}, timeout=0.02)
        ended_early = work.done()
        if ended_early:
            clean(house)
        held.free.set()
        await asyncio.wait({work})
        assert work.cancelled()
        assert not ended_early

    # It joins threads that still run.
    asyncio.run(cancelled())
    clean(house)


def test_export_from_which_a_file_goes_is_not_whole_before_that_is_written_again() -> None:
    """It says so, and the same work again makes the same files; what is not of it is not listed."""
    whole = House().export(ExportLayout.CIRCUIT_TRACER)

    class Losing:
        """A bucket that loses the first layer's file as the last file is written."""

        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        def put(self, key: str, data: bytes, **options: Any) -> Any:
            if key.endswith("/files/index.json.gz"):
                self._store.delete(key.replace("index.json.gz", "layer_0.bin"))
            return self._store.put(key, data, **options)

    house = House()
    house.rig.store.put("features/t/exports/e1/files/layer_7.bin", b"of another export")
    with pytest.raises(UnavailableError, match=r"such as layer_0\.bin"):
        house.export(ExportLayout.CIRCUIT_TRACER, store=Losing(house.rig.store))
    with pytest.raises(NotFoundError):
        house.exports().manifest("t", "e1")
    assert house.export(ExportLayout.CIRCUIT_TRACER) == whole


def test_export_that_is_being_deleted_is_neither_read_nor_gone_on_with() -> None:
    """Wherever its deletion stopped: it is not whole, and its id is free once deleting it again has ended."""
    house = House()
    wanted = house.request(ExportLayout.SAE_DASHBOARD)
    for at in range(2, 20):
        house.export(ExportLayout.SAE_DASHBOARD)
        request, _ = house.exports().look_up(wanted)
        try:
            house.exports(Failing(house.rig.store, at)).delete("t", "e1")
        except UnavailableError:
            with pytest.raises(NotFoundError):
                house.exports().manifest("t", "e1")
            if at > 2:
                with pytest.raises(FailedPreconditionError, match="being deleted"):
                    house.exports().look_up(wanted)
                with pytest.raises(FailedPreconditionError, match="being deleted"):
                    asyncio.run(house.exports().build(request, lambda done, total: None))
            clean(house)
        else:
            assert at > 6
            assert not list(house.rig.store.list("features/t/exports/"))
            return
    raise AssertionError("a deletion has fewer writes")


def test_looking_up_reads_no_table_of_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are counted by its manifest alone, also where the newest index is meant."""
    house = House()
    reads: list[str] = []
    store: Any = house.rig.store
    for name in ("get", "get_with_info"):
        call = getattr(store, name)
        monkeypatch.setattr(store, name, lambda key, call=call, **options: (reads.append(key), call(key, **options))[1])
    found, total = house.exports().look_up(house.request(ExportLayout.CIRCUIT_TRACER))
    assert (found.index_id, total) == ("i1", 12)
    assert {key.rpartition("/")[2] for key in reads} == {"manifest.json", "request.json"}


@pytest.mark.parametrize("name", ["create_s", "transcoder_mark"])
def test_export_begun_of_what_was_replaced_does_not_go_on(name: str) -> None:
    """An index made anew under its id, or of a new transcoder, holds other features: parts of both would be joined."""
    house = House(num_features=20, **BIG)
    with pytest.raises(UnavailableError):
        house.export(ExportLayout.SAE_DASHBOARD, store=Failing(house.rig.store, 3))
    wanted = house.request(ExportLayout.SAE_DASHBOARD)
    request, _ = house.exports().look_up(wanted)
    store, key = house.rig.store, "features/t/index/i1/manifest.json"
    index = json.loads(store.get(key))
    if name == "create_s":
        index["create_s"] += 1
    else:
        transcoder = json.loads(store.get("transcoders/t/manifest.json"))
        store.put("transcoders/t/manifest.json", json.dumps({**transcoder, "run": "runs/other"}).encode())
        index["transcoder_mark"] = hashlib.sha256(store.get("transcoders/t/manifest.json")).hexdigest()
    store.put(key, json.dumps(index).encode())
    with pytest.raises(AlreadyExistsError, match="replaced since"):
        house.exports().look_up(wanted)
    with pytest.raises(AlreadyExistsError, match="replaced since"):
        asyncio.run(house.exports().build(request, lambda done, total: None))
    clean(house)
    assert house.export(ExportLayout.SAE_DASHBOARD)


FLOATS = st.floats(min_value=2.0**-30, max_value=2.0**30, width=32)


@given(values=st.lists(st.one_of(st.just(0.0), FLOATS), max_size=40))
def test_rounding_keeps_zeros_order_and_three_digits(values: list[float]) -> None:
    """What is active stays above zero, the larger never becomes the smaller, and the fourth digit is rounded."""
    found = rounded(values)
    assert [value == 0 for value in found] == [value == 0 for value in values]
    assert all(abs(one - other) <= 5.001e-4 * other for one, other in zip(found, values, strict=True))
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()
    assert json.loads(json.dumps(found)) == found
    assert rounded(found) == found


@settings(max_examples=60, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=60), share=st.floats(0.01, 1.0))
def test_distribution_tells_percentiles_and_bars_to_a_bin(values: list[float], share: float) -> None:
    """Against the activations themselves: a percentile is in the bin of the true one, bars join to all of them."""
    acts = np.array(values, np.float32)
    histogram = np.bincount(histogram_bins(acts), minlength=NUM_BINS).tolist()
    found = Distribution(histogram, float(acts.max()))
    ordered = np.sort(acts)
    wanted = ordered[max(0, int(np.ceil(share * len(acts))) - 1)]
    edges = bin_edges()
    edges[0], edges[-1] = 0, np.inf
    at = int(histogram_bins(np.array([wanted]))[0])
    assert edges[at] <= found.percentile(share) <= min(edges[at + 1], float(acts.max()) * (1 + 1e-6))
    assert found.percentile(1.0) == pytest.approx(float(acts.max()))
    rising = [found.percentile(each / 100) for each in range(1, 101)]
    assert rising == sorted(rising)
    middles, heights = found.bars(40)
    assert heights.sum() == pytest.approx(len(values))
    assert (heights >= -1e-9).all()
    assert 0 < middles[0] < middles[-1] < acts.max() * (1 + 1e-6)
    for edge in edges[1:-1]:
        assert found.share_below(edge) == pytest.approx(float((acts < edge).mean()), abs=1e-9)


def test_distribution_of_a_dead_feature_is_empty() -> None:
    """Nothing to divide by, nothing to draw."""
    found = Distribution([0] * NUM_BINS, 0.0)
    assert (found.total, found.percentile(0.5), found.share_below(1.0)) == (0, 0.0, 0.0)
    assert not len(found.bars(10)[1])


def test_text_of_a_large_index_is_read_from_a_scratch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tokens are too many to be held, the files are the same."""
    from weft_attribution.core.feature_index import stored_text

    house = House()
    whole = house.export(ExportLayout.CIRCUIT_TRACER)
    monkeypatch.setattr(stored_text, "_KEPT_TOKEN_BYTES", 0)
    reads: list[str] = []
    store: Any = house.rig.store
    get: Callable[..., bytes] = store.get
    monkeypatch.setattr(store, "get", lambda key, **options: (reads.append(key), get(key, **options))[1])
    assert house.export(ExportLayout.CIRCUIT_TRACER, export_id="e2") == whole
    assert not [key for key in reads if key.endswith("tokens.bin")]


def test_layer_that_the_temporary_folder_cannot_take_is_refused_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the limit and by what the disk has left; with room for its largest layer to the byte the export goes on."""
    from weft_attribution.core.feature_export import scratch

    house = House()
    whole = house.export(ExportLayout.CIRCUIT_TRACER)
    largest = max(len(data) for path, data in whole.items() if path.startswith("layer_"))
    request, _ = house.exports().look_up(house.request(ExportLayout.CIRCUIT_TRACER, export_id="e2"))

    def build(scratch_bytes: int) -> None:
        asyncio.run(house.exports(scratch_bytes=scratch_bytes).build(request, lambda done, total: None))

    with pytest.raises(StorageFullError, match="WEFT_ATTRIBUTION_EXPORT_SCRATCH_BYTES"):
        build(largest - 1)
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(StorageFullError, match="has 10 left"):
        build(largest)
    monkeypatch.undo()
    build(largest)
    assert house.export(ExportLayout.CIRCUIT_TRACER, export_id="e2") == whole


def test_text_that_the_temporary_folder_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens count like a layer does."""
    from weft_attribution.core.feature_index import stored_text

    house = House()
    monkeypatch.setattr(stored_text, "_KEPT_TOKEN_BYTES", 0)
    request, _ = house.exports().look_up(house.request(ExportLayout.SAE_DASHBOARD))
    size = house.rig.store.info(f"{house.index.request.keys.text('tokens.bin')}").size_bytes
    assert size == house.index.text.num_bytes
    with pytest.raises(StorageFullError, match=r"tokens\.bin needs"):
        asyncio.run(house.exports(scratch_bytes=size - 1).build(request, lambda done, total: None))
    asyncio.run(house.exports(scratch_bytes=size).build(request, lambda done, total: None))
