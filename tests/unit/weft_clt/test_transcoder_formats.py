"""Layouts of transcoders: what comes back predicts what went in, and peers' files predict what peers' formulas do."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transcoder_layouts import (
    InMemory,
    clt_forge_original,
    inputs_of,
    llamascopium_original,
    new_folder,
    per_layer_original,
    predict,
    random_transcoder,
)

from weft_clt.formats.circuit_tracer import CircuitTracerFiles, write_circuit_tracer
from weft_clt.formats.files import FolderFiles
from weft_clt.formats.opening import READABLE, WRITABLE, detect, open_transcoder, write_transcoder
from weft_clt.formats.representation import Array
from weft_common.errors import FailedPreconditionError, InvalidArgumentError

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7))
SEEDS = st.integers(0, 2**32 - 1)


def assert_predicts(found: Array, wanted: Array) -> None:
    """Compare predictions to 1e-6 of their size."""
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(wanted).max())))


@settings(max_examples=60, deadline=None)
@given(SHAPES, SEEDS, st.sampled_from(WRITABLE), st.integers(1, 4), st.booleans(), st.booleans())
def test_layout_predicts_the_same_after_a_round_trip(
    shape: tuple[int, int, int], seed: int, layout: str, window: int, thresholds: bool, skip: bool
) -> None:
    """Whatever a layout can hold is read back, found by its names alone, as a transcoder that predicts the same."""
    is_lens = layout == "saelens"
    original = random_transcoder(
        seed, *shape, window=1 if is_lens else window, thresholds=thresholds, input_hook="resid_mid",
        skip=skip and is_lens,
    )  # fmt: skip
    inputs_LTD = inputs_of(original.facts, seed + 1)
    with new_folder() as folder:
        names = list(write_transcoder(original, layout, folder, "tiny"))
        assert sorted(names) == sorted(FolderFiles(folder).sizes())
        assert detect(FolderFiles(folder)) == layout
        again = open_transcoder(FolderFiles(folder))
        facts = again.facts
        assert (facts.num_layers, facts.num_features, facts.d_model) == shape
        assert (facts.input_hook, facts.output_hook) == ("resid_mid", "mlp_out")
        assert_predicts(predict(again, inputs_LTD), predict(original, inputs_LTD))


@settings(max_examples=20, deadline=None)
@given(SHAPES, SEEDS, st.integers(1, 4), st.booleans())
def test_windowed_files_hold_no_zeros_and_predict_the_same(
    shape: tuple[int, int, int], seed: int, window: int, skip: bool
) -> None:
    """weft's own form keeps just the decoders that there are, so that per-layer transcoders stay small, and skips."""
    original = random_transcoder(seed, *shape, window=window, skip=skip)
    inputs_LTD = inputs_of(original.facts, seed + 1)
    with new_folder() as folder:
        list(write_circuit_tracer(original, folder, "tiny", padded=False))
        again = CircuitTracerFiles(FolderFiles(folder))
        assert again.facts == original.facts
        assert load_file(folder / "W_dec_0.safetensors")["W_dec_0"].shape[1] == min(window, shape[0])
        assert_predicts(predict(again, inputs_LTD), predict(original, inputs_LTD))


@settings(max_examples=30, deadline=None)
@given(SHAPES, SEEDS, st.booleans(), st.integers(1, 3))
def test_clt_forge_files_predict_what_clt_forge_does(
    shape: tuple[int, int, int], seed: int, crossing: bool, ranks: int
) -> None:
    """Scales, biases by pair, logarithms and shards of features are folded."""
    num_layers, num_features, d_model = shape
    num_features *= ranks
    with new_folder() as folder:
        wanted = clt_forge_original(folder, seed, num_layers, num_features, d_model, crossing=crossing, ranks=ranks)
        source = open_transcoder(FolderFiles(folder), input_hook="mlp_in")
        assert source.facts.window == (num_layers if crossing else 1)
        assert_predicts(predict(source, inputs_of(source.facts, seed)), wanted)


@settings(max_examples=30, deadline=None)
@given(SHAPES, SEEDS, st.booleans(), st.booleans())
def test_llamascopium_files_predict_what_llamascopium_does(
    shape: tuple[int, int, int], seed: int, by_norm: bool, scaled: bool
) -> None:
    """Norms of the dataset, and thresholds in units of decoder norms, are folded."""
    with new_folder() as folder:
        wanted = llamascopium_original(folder, seed, *shape, by_norm=by_norm, scaled=scaled)
        source = open_transcoder(FolderFiles(folder))
        assert source.facts.input_hook == "resid_mid"
        assert_predicts(predict(source, inputs_of(source.facts, seed)), wanted)


@settings(max_examples=30, deadline=None)
@given(SHAPES, SEEDS, st.sampled_from(["saelens", "gemmascope", "circuit-tracer"]), st.booleans(), st.booleans())
def test_per_layer_files_predict_what_their_makers_do(
    shape: tuple[int, int, int], seed: int, layout: str, jumprelu: bool, skip: bool
) -> None:
    """Where a threshold is negative, relu decides for some of them; a linear skip is added."""
    jumprelu, skip = jumprelu or layout == "gemmascope", skip and layout != "gemmascope"
    with new_folder() as folder:
        wanted = per_layer_original(folder, seed, *shape, layout=layout, jumprelu=jumprelu, skip=skip)
        assert detect(FolderFiles(folder)) == layout
        source = open_transcoder(FolderFiles(folder), input_hook="mlp_in")
        assert (source.facts.window, source.facts.has_thresholds, source.facts.has_skip) == (1, jumprelu, skip)
        assert_predicts(predict(source, inputs_of(source.facts, seed)), wanted)


@settings(max_examples=20, deadline=None)
@given(SHAPES, SEEDS, st.booleans(), st.booleans())
def test_norm_weights_make_a_transcoder_read_behind_the_norm(
    shape: tuple[int, int, int], seed: int, with_bias: bool, skip: bool
) -> None:
    """One made for z predicts from z * weight + bias what it did from z, through a linear skip too."""
    num_layers, _, d_model = shape
    random = np.random.default_rng(seed)
    with new_folder() as folder:
        wanted = per_layer_original(
            folder, seed, *shape, layout="circuit-tracer" if skip else "gemmascope", skip=skip
        )  # fmt: skip
        if skip:
            config = folder / "config.yaml"
            config.write_text(config.read_text().replace("mlp.hook_in", "ln2.hook_normalized"))
        weight_LD = (random.uniform(0.5, 2, (num_layers, d_model)) * random.choice([-1, 1], d_model)).astype(np.float32)
        bias_LD = random.standard_normal((num_layers, d_model)).astype(np.float32) * with_bias
        norms = {f"weight_{layer}": weight_LD[layer] for layer in range(num_layers)}
        if with_bias:
            norms |= {f"bias_{layer}": bias_LD[layer] for layer in range(num_layers)}
        save_file(norms, folder / "norm.safetensors")
        source = open_transcoder(FolderFiles(folder))
        assert source.facts.input_hook == "mlp_in"
        inputs_LTD = inputs_of(source.facts, seed) * weight_LD[:, None] + bias_LD[:, None]
        assert_predicts(predict(source, inputs_LTD), wanted)


def test_bfloat16_and_float16_are_read_exactly(tmp_path: Path) -> None:
    """Halves keep their value, brain floats are the upper half of a float32."""
    original = random_transcoder(1, 1, 4, 3)
    list(write_transcoder(original, "circuit-tracer", tmp_path, "tiny"))
    half = original.w_dec[0, 0].astype(np.float16)
    save_file({"W_dec_0": half[:, None]}, tmp_path / "W_dec_0.safetensors")
    source = open_transcoder(FolderFiles(tmp_path))
    np.testing.assert_array_equal(source.decoder(0, 0, slice(1, 3)), half[1:3].astype(np.float32))
    bits = np.array([[0x3F80, 0xC020, 0x0001]] * 4, np.uint16)
    header = json.dumps({"W_dec_0": {"dtype": "BF16", "shape": [4, 1, 3], "data_offsets": [0, 24]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bits.tobytes()
    (tmp_path / "W_dec_0.safetensors").write_bytes(data)
    source = open_transcoder(FolderFiles(tmp_path))
    np.testing.assert_array_equal(
        source.decoder(0, 0, slice(0, 1)), np.array([[1.0, -2.5, 9.183549615799121e-41]], "f4")
    )


def test_zero_thresholds_survive_logarithms(tmp_path: Path) -> None:
    """exp(log_threshold) cannot be 0; what is written fires for every pre-activation that matters."""
    original = random_transcoder(2, 2, 6, 3, thresholds=False)
    list(write_transcoder(original, "clt-forge", tmp_path, "tiny"))
    again = open_transcoder(FolderFiles(tmp_path))
    threshold_F = again.encoder(0).threshold_F
    assert threshold_F is not None
    assert (threshold_F > 0).all()
    assert (threshold_F < 1e-37).all()


@pytest.mark.parametrize("layout", ["clt-forge", "llamascopium", "saelens"])
def test_negative_thresholds_are_refused_where_a_layout_has_none(tmp_path: Path, layout: str) -> None:
    """A feature with negative activations cannot be said there, and is not changed in silence."""
    original = random_transcoder(3, 2, 6, 3, window=1)
    assert original.threshold_LF is not None
    original.threshold_LF[1, 2] = -0.5
    with pytest.raises(FailedPreconditionError, match=r"thresholds of layer 1 are negative, down to -0.5"):
        list(write_transcoder(original, layout, tmp_path, "tiny"))


def test_saelens_refuses_features_that_write_to_later_layers(tmp_path: Path) -> None:
    """Only per-layer transcoders can be said in its layout."""
    with pytest.raises(FailedPreconditionError, match="per-layer transcoders only"):
        list(write_transcoder(random_transcoder(4, 2, 3, 3), "saelens", tmp_path, "tiny"))


@pytest.mark.parametrize("layout", ["", "gemmascope", "pickle"])
def test_unknown_layouts_are_refused_by_name(tmp_path: Path, layout: str) -> None:
    """The message lists what there is; GemmaScope's is read only."""
    original: InMemory = random_transcoder(5, 1, 2, 2)
    with pytest.raises(InvalidArgumentError, match="circuit-tracer") as caught:
        list(write_transcoder(original, layout, tmp_path, "tiny"))
    assert caught.value.field == "format"
    with pytest.raises(InvalidArgumentError, match="input_hook"):
        open_transcoder(FolderFiles(tmp_path), READABLE[0], input_hook="attn_out")
