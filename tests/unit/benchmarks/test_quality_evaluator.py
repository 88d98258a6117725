"""The evaluator of the quality benchmark, against weft's own evaluation and against CLT-Forge's formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.training.quality.evaluator import Selection, Weights, evaluate
from benchmarks.training.quality.sides import weights_of
from clt_cases import NUM_LAYERS, NUM_TOKENS, RECIPES, config_of, tokens, trainer_of
from safetensors.numpy import load_file
from transcoder_layouts import clt_forge_original

from weft_clt.kernels import ReferenceKernels
from weft_clt.trainer import Batch


@pytest.mark.parametrize("recipe", ["top_k", "top_k_aux", "batch_top_k", "joint_top_k", "jump_relu"])
def test_evaluator_finds_what_weft_finds(recipe: str) -> None:
    """After some steps of each way of selecting, two implementations agree on held-out tokens in float64."""
    trainer = trainer_of(config_of(**RECIPES[recipe]), ReferenceKernels())
    for step in range(3):
        trainer.train_step(Batch(*tokens(step), NUM_TOKENS))
    held_out = [tokens(step) for step in (7, 8)]
    own = trainer.evaluate(iter([Batch(*each, NUM_TOKENS) for each in held_out]), 2)
    found = evaluate(
        weights_of(trainer), [(inputs.transpose(0, 1), targets.transpose(0, 1)) for inputs, targets in held_out],
        torch.float64,
    )  # fmt: skip
    assert found.tokens == own.tokens == 2 * NUM_TOKENS
    np.testing.assert_allclose(found.explained_variance_by_layer, own.explained_variance_by_layer, rtol=1e-9)
    assert found.explained_variance == pytest.approx(np.mean(own.explained_variance_by_layer), rel=1e-9)
    assert found.l0_by_layer == own.l0_by_layer
    assert found.l0 > 0
    assert found.silent_share == pytest.approx(own.silent_share)


def test_total_explained_variance_weighs_layers_by_their_variance() -> None:
    """A model that predicts one loud layer exactly and nothing of a quiet one explains the loud one's share."""
    targets_TLD = torch.zeros(4, 2, 1, dtype=torch.float64)
    targets_TLD[:, 0, 0] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    targets_TLD[:, 1, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    ones = torch.ones(2, 2, 1, dtype=torch.float64)
    w_enc_LFD = torch.stack([torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1)]).double()
    w_dec_PFD = torch.stack([torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1), torch.zeros(2, 1)]).double()
    weights = Weights(
        w_enc_LFD, torch.zeros(2, 2), torch.zeros(2, 2), w_dec_PFD, torch.zeros(2, 1), Selection.THRESHOLD
    )
    found = evaluate(weights, [(targets_TLD[:, :1].expand_as(targets_TLD) * ones[0, 0], targets_TLD)], torch.float64)
    assert found.explained_variance_by_layer == [1.0, 0.0]
    assert found.explained_variance == 0.5
    assert found.total_explained_variance == pytest.approx(36 / 40)
    assert found.l0_by_layer == [1.0, 0.0]
    assert found.silent_share == 0.5


def test_weights_of_clt_forge_predict_what_its_formulas_do(tmp_path: Path) -> None:
    """Pairs, biases of every pair, transposed encoders and logarithms of thresholds are read as they are meant."""
    predicted_LTD = clt_forge_original(tmp_path, 3, NUM_LAYERS, 6, 4, crossing=True, ranks=1)
    saved = load_file(tmp_path / "clt_weights.safetensors")
    scale_in_L, scale_out_L = (saved[f"estimated_norm_scaling_factor_{side}"] for side in ("in", "out"))
    inputs_TLD = np.random.default_rng(3).standard_normal((NUM_LAYERS, 5, 4)).transpose(1, 0, 2) * scale_in_L[:, None]
    weights = Weights.of_clt_forge(tmp_path).to(torch.float64)
    acts_TLF = weights.activations(torch.from_numpy(inputs_TLD))
    for layer in range(NUM_LAYERS):
        found_TD = weights.predict(acts_TLF, layer).numpy() / scale_out_L[layer]
        np.testing.assert_allclose(found_TD, predicted_LTD[layer], rtol=1e-5, atol=1e-5)
