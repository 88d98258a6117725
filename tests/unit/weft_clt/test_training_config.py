"""What a training spec may say."""

import subprocess
import sys
from typing import Any

import pytest
from clt_cases import JUMP_RELU, config_of

from weft.training.v1 import messages_pb2
from weft_clt.config import TrainingConfig
from weft_clt.recipes import demo
from weft_common.errors import InvalidArgumentError


def test_config_has_exactly_the_fields_of_the_proto() -> None:
    """No field of TrainingSpec is forgotten and none is invented."""
    assert set(config_of().to_spec()) == set(messages_pb2.TrainingSpec.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize("changes", [{}, JUMP_RELU])
def test_config_survives_its_json_form(changes: dict[str, Any]) -> None:
    """Writing and reading gives the same configuration and digest, also with 64-bit integers as text."""
    config = config_of(**changes)
    spec = config.to_spec() | {"num_steps": "5", "seed": "11"}
    assert TrainingConfig.from_spec(spec) == config
    assert TrainingConfig.from_spec(spec).digest() == config.digest()
    assert config_of(seed=12).digest() != config.digest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "small"),
        ("num_features", 0),
        ("num_features", 2.5),
        ("activation", "ACTIVATION_UNSPECIFIED"),
        ("activation", "RELU"),
        ("top_k", 0),
        ("top_k", 13),
        ("num_steps", 0),
        ("step_tokens", -1),
        ("feature_ranks", 0),
        ("data_ranks", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("warmup_steps", 6),
        ("decay_share", 1.5),
        ("adam_beta1", 1.0),
        ("adam_beta2", 0.0),
        ("clip_norm", -1.0),
        ("sparsity_coeff", 0.5),
        ("preact_coeff", 0.5),
        ("gradient_through_threshold", 1),
        ("dead_after_tokens", 0),
        ("checkpoint_steps", -1),
        ("seed", -1),
        ("surprise", 1),
    ],
)
def test_config_refuses_what_makes_no_sense(field: str, value: object) -> None:
    """The error names the field."""
    with pytest.raises(InvalidArgumentError) as caught:
        config_of(**{"sparsity_scale": 1.0, field: value})
    assert caught.value.field == f"spec.{field}"


@pytest.mark.parametrize("field", ["threshold_init", "bandwidth", "sparsity_scale"])
def test_config_of_jump_relu_refuses_a_missing_value(field: str) -> None:
    """JumpReLU needs a threshold, a bandwidth and, with a sparsity loss, its scale."""
    with pytest.raises(InvalidArgumentError, match=field):
        config_of(**JUMP_RELU | {field: 0.0})


def test_config_refuses_an_uneven_split_and_proposes_an_even_one() -> None:
    """Features and tokens must be multiples of their ranks, columns must split over the feature ranks."""
    with pytest.raises(InvalidArgumentError, match="for example 15"):
        config_of(feature_ranks=5, step_tokens=10)
    with pytest.raises(InvalidArgumentError, match="for example 9"):
        config_of(data_ranks=3)
    with pytest.raises(InvalidArgumentError, match="8 columns"):
        config_of(feature_ranks=3, step_tokens=9).check_shape(2, 8)


def test_config_needs_no_torch() -> None:
    """A controller can check a spec without loading torch."""
    code = "import sys, weft_clt.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_demo_recipe_is_a_valid_spec() -> None:
    """The recipe of the demo is for two ranks and survives its JSON form."""
    assert TrainingConfig.from_spec(demo("datasets/x").to_spec()).mesh.feature_ranks == 2
