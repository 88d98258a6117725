"""TopK from a decoder of zeros, with dead features revived, as EleutherAI trains transcoders."""

from __future__ import annotations

from weft_clt.config import Activation, TrainingConfig
from weft_clt.recipes.counting import counting_config
from weft_clt.recipes.recipe import Recipe, RunSize

__all__ = ["ELEUTHERAI"]

_RATE, _RATE_FEATURES = 2e-4, 1 << 14


def _make(size: RunSize) -> TrainingConfig:
    rate = _RATE / (size.num_features / _RATE_FEATURES) ** 0.5
    return counting_config(size, Activation.TOP_K, learning_rate=rate, beta1=0.0)


ELEUTHERAI = Recipe(
    name="eleutherai",
    summary="TopK, AuxK, learning rate 2e-4 / sqrt(F / 16,384), no first moment",
    source="EleutherAI/clt-training (sparsify) at cf9821f; AuxK: Gao et al. 2024",
    input_hook="mlp_in",
    deviations=(
        "features write to all later layers and each layer has its own k; decoder rows are not brought to unit length; "
        "the loss is the squared error, not its share of the variance; AuxK, off by default there, has the weight and "
        "k of Gao et al.; warm-up takes at most a tenth of the run, and the last 20 % decay"
    ),
    make=_make,
)
