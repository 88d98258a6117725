"""A transcoder that reads layer by layer predicts what the training step does with all layers at once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from clt_cases import D_MODEL, NUM_LAYERS, RECIPES, config_of, tokens, trainer_of

from weft_clt.kernels import ReferenceKernels
from weft_clt.layerwise import LayerwiseTranscoder
from weft_clt.normalization import Normalization
from weft_common.errors import FailedPreconditionError, ShapeError

BY_LAYER = {name: changes for name, changes in RECIPES.items() if "JOINT" not in changes.get("activation", "")}
BY_LAYER["narrow_weights"] = {"parameters": "PARAMETER_TYPE_BFLOAT16", "linear_skip": True}


@pytest.mark.parametrize("name", BY_LAYER)
def test_reading_by_layer_predicts_what_the_step_does(name: str) -> None:
    """Windows, skips and every way of selecting that one layer can tell, in the model's own units."""
    trainer = trainer_of(config_of(**BY_LAYER[name]), ReferenceKernels())
    random = np.random.default_rng(4)
    if trainer.params.threshold_LS is not None:
        trainer.params.threshold_LS.copy_(torch.from_numpy(random.uniform(0, 0.4, trainer.params.threshold_LS.shape)))
    trainer.params.b_dec_LC.copy_(torch.from_numpy(random.standard_normal((NUM_LAYERS, D_MODEL))))
    scale_in, scale_out = random.uniform(0.5, 3.0, (2, NUM_LAYERS))
    means = np.zeros((NUM_LAYERS, D_MODEL))
    found = LayerwiseTranscoder(
        trainer.params, trainer.config.features, Normalization(scale_in, scale_out, means, means)
    )
    raw = tokens(2)[0].float()
    scaled = raw.double() * torch.from_numpy(scale_in)[:, None, None]
    wanted = trainer.engine.forward(scaled, torch.zeros_like(scaled), near=False).error_LTC
    for _ in range(2):
        for layer in range(NUM_LAYERS):
            found.read(layer, raw[layer].numpy())
            predicted = torch.from_numpy(found.reconstruct(layer)).double() * scale_out[layer]
            torch.testing.assert_close(predicted, wanted[layer], rtol=1e-5, atol=1e-5)
        found.clear()


def test_reading_by_layer_refuses_what_needs_all_layers_and_another_order() -> None:
    """Joint TopK knows nothing of a layer before all are read; a layer is read once, after those below it."""
    trainer = trainer_of(config_of(**RECIPES["joint_top_k"]), ReferenceKernels())
    means = np.zeros((NUM_LAYERS, D_MODEL))
    units = Normalization(np.ones(NUM_LAYERS), np.ones(NUM_LAYERS), means, means)
    with pytest.raises(FailedPreconditionError, match="JOINT_TOP_K"):
        LayerwiseTranscoder(trainer.params, trainer.config.features, units)
    params = replace(trainer.params, threshold_LS=torch.zeros_like(trainer.params.b_enc_LS))
    found = LayerwiseTranscoder(params, trainer.config.features, units)
    with pytest.raises(ShapeError, match="Layer 1 was given where layer 0"):
        found.read(1, np.zeros((2, D_MODEL), np.float32))
    with pytest.raises(ShapeError, match="Layer 0 cannot be written"):
        found.reconstruct(0)
