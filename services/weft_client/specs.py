"""
Specs with sensible values in the fields that were left out.

The services take a spec as it is, so that what is stored is what was asked for; here is where a value is chosen for
those who do not want to.
"""

from typing import Any

from google.protobuf import json_format

from weft.activations.v1 import messages_pb2 as activations
from weft.training.v1 import messages_pb2 as training
from weft_clt.recipes import RunSize, find_recipe
from weft_common.errors import InvalidArgumentError


def harvest_spec(**given: Any) -> activations.HarvestSpec:
    """
    A harvest of MLP inputs and outputs; give `model`, `dataset`, `corpus` and what else you want other than here.

    >>> harvest_spec(model="models/m", num_tokens=5).codec.kind
    'uniform'
    """
    chosen: dict[str, Any] = {
        "num_tokens": 40_000,
        "held_out_share": 0.1,
        "sequence_tokens": 256,
        "streams": activations.Streams(input_hook="mlp_in", output_hook="mlp_out"),
        "codec": activations.Codec(kind="uniform", target_fvu=1e-3),
        "max_norm_ratio": 20.0,
        "lease_sequences": 8,
    }
    return activations.HarvestSpec(**{**chosen, **given})


def recipe_spec(recipe: str, **given: Any) -> training.TrainingSpec:
    """
    A published recipe, `weft_clt.recipes`; give `dataset`, its size, and what else you want other than published.

    Raises:
        InvalidArgumentError: There is no such recipe, or it makes no sense at this size.

    >>> recipe_spec("anthropic", dataset="datasets/d", num_features=64).sparsity_coeff
    20.0
    """
    found = find_recipe(recipe)
    size = RunSize(**{name: value for name, value in given.items() if name in RunSize.__dataclass_fields__})
    config = found.make(size)
    if given.get("top_k") and not config.features.activation.counts:
        raise InvalidArgumentError(
            f"recipe {recipe} has no use for top_k: its loss decides how many features are active; leave it out",
            field="spec.top_k",
        )
    published = config.to_spec()
    kept = {name: value for name, value in published.items() if name not in given}
    spec = json_format.ParseDict(kept, training.TrainingSpec())
    spec.MergeFrom(training.TrainingSpec(**given))
    return spec


def training_spec(**given: Any) -> training.TrainingSpec:
    """
    A TopK run on one rank; give `dataset` and what else you want other than here.

    JumpReLU and ReLU, `activation=ACTIVATION_JUMP_RELU`, come with a sparsity loss in place of `top_k`.

    >>> training_spec(dataset="datasets/d", num_features=64).top_k
    32
    """
    if given.get("learning_rate_schedule"):
        given = {"warmup_steps": 0, "decay_share": 0.0} | given
    if given.get("sparsity_schedule"):
        given = {"sparsity_ramp_share": 0.0} | given
    chosen: dict[str, Any] = {
        "num_features": 512,
        "activation": training.ACTIVATION_TOP_K,
        "num_steps": 60,
        "step_tokens": 1_024,
        "feature_ranks": 1,
        "data_ranks": 1,
        "learning_rate": 2e-3,
        "warmup_steps": min(5, given.get("num_steps", 60) // 10),
        "decay_share": 0.3,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "clip_norm": 1.0,
        "dead_after_tokens": 20_000,
        "checkpoint_steps": 20,
        "seed": 1,
    }
    if given.get("activation", chosen["activation"]) == training.ACTIVATION_JUMP_RELU:
        # Anthropic's values, clt-training: tanh loss with c 4, ramp over the whole run, threshold 0.03.
        chosen |= {
            "sparsity_coeff": 1.0,
            "sparsity_scale": 4.0,
            "sparsity_ramp_share": 1.0,
            "preact_coeff": 3e-6,
            "threshold_init": 0.03,
            "bandwidth": 1.0,
            "gradient_through_threshold": True,
        }
    elif given.get("activation") == training.ACTIVATION_RELU:
        chosen |= {"sparsity_coeff": 1.0, "sparsity_scale": 4.0, "sparsity_ramp_share": 1.0}
    else:
        chosen["top_k"] = 32
    if given.get("sparsity_coeff") == 0:
        chosen |= {"sparsity_scale": 0.0, "sparsity_ramp_share": 0.0}
    return training.TrainingSpec(**{**chosen, **given})
