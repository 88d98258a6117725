"""Edges of every family against autograd over transformers' own model in float64, and of what the service captures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from attribution_rig import oracle_edges
from frozen_transformer import FrozenTransformer
from swept_model import IDS, LOGITS, build_from
from tiny_models import FAMILIES

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_attribution.core.checkpoints import load_linear_weights
from weft_attribution.core.pipeline import conservation_error
from weft_attribution.core.sweep import target_constants
from weft_common.errors import FailedPreconditionError


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_of_every_family_equal_autograd(tmp_path: Path, family: str) -> None:
    """Edges, values and constants are right where norms follow attention, caps are on, and MLPs stand beside it."""
    model = FrozenTransformer(family, tmp_path / family)
    swept = build_from(model, tmp_path / family)
    active, expected, values = oracle_edges(model, swept.tensors, IDS, LOGITS.tolist())
    features = swept.features
    found = zip(features.layer_N.tolist(), features.position_N.tolist(), features.index_N.tolist(), strict=True)
    assert list(found) == active
    assert len(active) > 30
    edges = swept.edges()
    np.testing.assert_allclose(edges, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_allclose(swept.targets.value_N.numpy(), values, rtol=1e-9, atol=1e-10)
    constant = target_constants(swept.operator, swept.targets, features.constant_LPD).numpy()
    assert conservation_error(values, edges.sum(axis=1), constant, num_logits=len(LOGITS)) < 1e-9


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "neox", "qwen3"])
def test_captured_streams_give_the_same_edges(tmp_path: Path, family: str) -> None:
    """What the activations service calls scales, patterns and outputs is what the sweep takes them for."""
    model = FrozenTransformer(family, tmp_path / family)
    backend = TransformersBackend(tmp_path, dtype="float32", device="cpu", threads=1)

    def capture(hooks: Sequence[str]) -> Mapping[str, np.ndarray]:
        layers = range(model.num_layers)
        names = [hook.replace("*", str(layer)) for hook in hooks for layer in (layers if "*" in hook else [0])]
        return backend.forward(family, IDS, names)

    swept = build_from(model, tmp_path / family, streams=capture)
    _, expected, values = oracle_edges(model, swept.tensors, IDS, LOGITS.tolist())
    np.testing.assert_allclose(swept.edges(), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(swept.targets.value_N.numpy(), values, rtol=1e-4, atol=1e-5)


def test_instructed_gemma_3_has_no_features_in_its_first_turn(tmp_path: Path) -> None:
    """The start of a turn, four tokens, is left to constants, as in circuit-tracer; the oracle leaves it out too."""
    model = FrozenTransformer("gemma3", tmp_path / "gemma-3-tiny-it")
    swept = build_from(model, tmp_path / "gemma-3-tiny-it")
    active, expected, values = oracle_edges(model, swept.tensors, IDS, LOGITS.tolist(), first=4)
    assert active
    assert swept.features.position_N.min() == 4
    edges = swept.edges()
    np.testing.assert_allclose(edges, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())
    constant = target_constants(swept.operator, swept.targets, swept.features.constant_LPD).numpy()
    assert conservation_error(values, edges.sum(axis=1), constant, num_logits=len(LOGITS)) < 1e-9
    assert load_linear_weights(FrozenTransformer("gemma3", tmp_path / "pt").folder).first_position == 1


def test_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    """The message says which model types there are."""
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(FailedPreconditionError, match=r"'mamba'.*gemma3_text.*gpt_neox"):
        load_linear_weights(tmp_path)
