"""Transcoders of every layout as graphs take them: errors are what peers' formulas leave, and rows add up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_rig import load_transcoder
from frozen_transformer import FrozenTransformer
from swept_model import IDS, LOGITS, build_from
from transcoder_layouts import clt_forge_original, llamascopium_original, per_layer_original, predict, random_transcoder

from weft_attribution.core.pipeline import conservation_error
from weft_attribution.core.sweep import target_constants
from weft_clt.formats.circuit_tracer import write_circuit_tracer
from weft_clt.formats.files import FolderFiles
from weft_clt.formats.opening import detect, open_transcoder, write_transcoder
from weft_store.opening import open_store

SHAPE = (3, 12, 16)
Write = Callable[[Path], Any]
LAYOUTS: dict[str, tuple[str, Write]] = {
    "weft, windowed, with a skip": (
        "circuit-tracer",
        lambda folder: list(
            write_circuit_tracer(random_transcoder(3, *SHAPE, window=2, skip=True), folder, "tiny", padded=False)
        ),
    ),
    "circuit-tracer": (
        "circuit-tracer",
        lambda folder: list(write_transcoder(random_transcoder(3, *SHAPE), "circuit-tracer", folder, "tiny")),
    ),
    "circuit-tracer, a set": (
        "circuit-tracer", lambda folder: per_layer_original(folder, 3, *SHAPE, layout="circuit-tracer", jumprelu=False),
    ),
    "circuit-tracer, a set with thresholds and a skip": (
        "circuit-tracer", lambda folder: per_layer_original(folder, 3, *SHAPE, layout="circuit-tracer", skip=True),
    ),
    "clt-forge": (
        "clt-forge", lambda folder: clt_forge_original(folder, 3, *SHAPE, crossing=True, ranks=2),
    ),
    "llamascopium": (
        "llamascopium", lambda folder: llamascopium_original(folder, 3, *SHAPE, by_norm=True, scaled=True),
    ),
    "saelens": ("saelens", lambda folder: per_layer_original(folder, 3, *SHAPE, layout="saelens")),
    "saelens, with a skip": (
        "saelens", lambda folder: per_layer_original(folder, 3, *SHAPE, layout="saelens", jumprelu=False, skip=True),
    ),
    "gemmascope": ("gemmascope", lambda folder: per_layer_original(folder, 3, *SHAPE, layout="gemmascope")),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_imported_transcoder_is_explained_as_what_it_predicts(tmp_path: Path, name: str) -> None:
    """At every place features, skip, constants and error make the MLP's output; the error is what the peer leaves."""
    layout, write = LAYOUTS[name]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    write(tmp_path / "theirs")
    theirs = FolderFiles(tmp_path / "theirs")
    assert detect(theirs) == layout
    given_hook = "mlp_in" if layout in ("clt-forge", "gemmascope") else ""
    source = open_transcoder(theirs, layout, input_hook=given_hook)
    hook, store = source.facts.input_hook, open_store("memory://")
    for file in write_circuit_tracer(source, tmp_path / "ours", "tiny", padded=False):
        store.put_file(f"transcoders/t/{file}", tmp_path / "ours" / file)
    store.put("transcoders/t/manifest.json", json.dumps({"model": "tiny", "input_hook": hook}).encode())
    model = FrozenTransformer("gemma2", tmp_path / "model")
    tensors = load_transcoder(store, "t", 3)
    swept = build_from(model, tmp_path / "model", input_hook=hook, window=source.facts.window, tensors=tensors)
    features, clean = swept.features, swept.model.streams(IDS)
    assert 0 < len(features) < 3 * 12 * (len(IDS) - 1)
    inputs_LPD = np.stack([clean[f"layers.{layer}.{hook}"].numpy() for layer in range(3)])
    outputs_LPD = np.stack([clean[f"layers.{layer}.mlp_out"].numpy() for layer in range(3)])
    left_LPD = outputs_LPD - predict(source, inputs_LPD)
    found_LPD = features.error_LPD.numpy()
    np.testing.assert_allclose(found_LPD[:, 1:], left_LPD[:, 1:], atol=1e-5 * np.abs(left_LPD).max())
    edges = swept.edges()
    constant = target_constants(swept.operator, swept.targets, features.constant_LPD).numpy()
    values = swept.targets.value_N.numpy()
    assert conservation_error(values, edges.sum(axis=1), constant, num_logits=len(LOGITS)) < 1e-9
    assert not torch.equal(features.error_LPD[:, 1:], torch.zeros_like(features.error_LPD[:, 1:]))
