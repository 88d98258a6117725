"""
Specs with sensible values in the fields that were left out.

The services take a spec as it is, so that what is stored is what was asked for; here is where a value is chosen for
those who do not want to.
"""

from typing import Any

from weft.activations.v1 import messages_pb2 as activations
from weft.training.v1 import messages_pb2 as training


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


def training_spec(**given: Any) -> training.TrainingSpec:
    """
    A TopK run on one rank; give `dataset` and what else you want other than here.

    JumpReLU, `activation=ACTIVATION_JUMP_RELU`, comes with its own sparsity loss in place of `top_k`.

    >>> training_spec(dataset="datasets/d", num_features=64).top_k
    32
    """
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
    else:
        chosen["top_k"] = 32
    return training.TrainingSpec(**{**chosen, **given})
