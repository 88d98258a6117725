"""A model that counts turned into one with thresholds."""

from dataclasses import replace

import pytest
import torch
from clt_cases import NUM_FEATURES, NUM_LAYERS, Oracle, config_of, tokens, trainer_of

from weft_clt.config import Activation
from weft_clt.conversion import decoder_norms, selections, thresholds_from_selection
from weft_clt.kernels import CpuKernels
from weft_clt.step import StepEngine

CALIBRATION = 600


@pytest.mark.parametrize("activation", ["ACTIVATION_TOP_K", "ACTIVATION_JOINT_TOP_K"])
def test_conversion_keeps_l0_and_how_often_each_feature_fires(activation: str) -> None:
    """On the calibration tokens exactly, layer by layer and feature by feature; on others nearly."""
    config = config_of(activation=activation, top_k=3)
    trainer = trainer_of(config, CpuKernels())
    params, oracle = trainer.params, Oracle.of(trainer.params)
    inputs, targets = tokens(50, CALIBRATION)
    preact_LNF = torch.stack(oracle.preacts(inputs)).detach()
    selected_L = list(selections(preact_LNF, decoder_norms(params), config.features))
    wanted_L = oracle.kept(list(preact_LNF), config)
    threshold_LS = torch.stack(
        [thresholds_from_selection(preact, kept) for preact, kept in zip(preact_LNF, selected_L, strict=True)]
    )
    for layer in range(NUM_LAYERS):
        assert torch.equal(selected_L[layer], wanted_L[layer])
        fired_NF = preact_LNF[layer] > threshold_LS[layer]
        assert torch.equal(fired_NF.sum(0), wanted_L[layer].sum(0))
    assert (threshold_LS >= 0).all()

    jumps = replace(config.features, activation=Activation.JUMP_RELU, threshold_init=1.0, bandwidth=1.0)
    others, zeros = tokens(51, CALIBRATION)[0], torch.zeros_like(targets)
    actives = []
    for variant, features in ((params, config.features), (replace(params, threshold_LS=threshold_LS), jumps)):
        engine = StepEngine(variant, trainer.mesh, CpuKernels(), features, config.loss, group_tokens=CALIBRATION)
        exchanged = engine.forward(others, zeros, near=False).exchanged
        actives.append([layer.feature_N.shape[0] / CALIBRATION for layer in exchanged.layers])
    assert actives[1] == pytest.approx(actives[0], rel=0.1)


def test_conversion_silences_what_was_never_selected() -> None:
    """Its threshold is its largest pre-activation, and one that is always negative gets 0."""
    preact_NF = torch.tensor([[1.0, -1.0, 5.0], [2.0, -3.0, 4.0]])
    selected_NF = torch.tensor([[False, False, True], [False, False, True]])
    threshold_F = thresholds_from_selection(preact_NF, selected_NF)
    assert threshold_F.tolist() == [2.0, 0.0, 2.0]


@pytest.mark.parametrize("kept", ["FLOAT32", "BFLOAT16"])
def test_decoder_norms_span_all_targets(kept: str) -> None:
    """Over a window of two layers, the last layer's has only one; nothing is summed in 16 bits."""
    trainer = trainer_of(config_of(decoder_span=2, parameters=f"PARAMETER_TYPE_{kept}"), CpuKernels())
    oracle = Oracle.of(replace(trainer.params, w_dec_PFC=trainer.params.w_dec_PFC.double()))
    wanted = torch.stack([oracle.norms(layer) for layer in range(NUM_LAYERS)]).detach()
    torch.testing.assert_close(decoder_norms(trainer.params), wanted)
    assert wanted.shape == (NUM_LAYERS, NUM_FEATURES)
