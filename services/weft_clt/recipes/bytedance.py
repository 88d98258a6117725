"""One TopK over all layers of a token, ranked by value times decoder norm, as ByteDance trained Qwen3-8B's."""

from __future__ import annotations

from weft_clt.config import Activation, TrainingConfig
from weft_clt.recipes.counting import counting_config
from weft_clt.recipes.recipe import Recipe, RunSize

__all__ = ["BYTEDANCE"]


def _make(size: RunSize) -> TrainingConfig:
    return counting_config(size, Activation.JOINT_TOP_K, learning_rate=2e-4, beta1=0.9)


BYTEDANCE = Recipe(
    name="bytedance",
    summary="one TopK over all layers of a token, ranked by value times decoder norm; AuxK",
    source="ByteDance-Seed, cross-layer transcoder of Qwen3-8B",
    input_hook="",
    deviations=(
        "published are the ranking, the joint count and leaving out tokens of 20 times the mean norm, which a harvest "
        "does (max_norm_ratio); optimiser, schedule and AuxK are weft's choice; top_k is the mean over layers"
    ),
    make=_make,
)
