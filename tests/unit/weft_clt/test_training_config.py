"""What a training spec may say."""

import subprocess
import sys
from typing import Any

import pytest
from clt_cases import JUMP_RELU, RECIPES, RELU, config_of

from weft.training.v1 import messages_pb2
from weft_clt.config import TrainingConfig
from weft_clt.recipes import demo
from weft_common.errors import InvalidArgumentError


def test_config_has_exactly_the_fields_of_the_proto() -> None:
    """No field of TrainingSpec is forgotten and none is invented."""
    assert set(config_of().to_spec()) == set(messages_pb2.TrainingSpec.DESCRIPTOR.fields_by_name)


NARROW = {"moments": "MOMENTS_BFLOAT16", "parameters": "PARAMETER_TYPE_BFLOAT16"}


@pytest.mark.parametrize("changes", [*RECIPES.values(), {"scales": "SCALES_TIED"}, NARROW])
def test_config_survives_its_json_form(changes: dict[str, Any]) -> None:
    """Writing and reading gives the same configuration and digest, also with 64-bit integers as text."""
    config = config_of(**changes)
    spec = config.to_spec() | {"num_steps": "5", "seed": "11"}
    assert TrainingConfig.from_spec(spec) == config
    assert TrainingConfig.from_spec(spec).digest() == config.digest()
    assert config_of(seed=12).digest() != config.digest()


@pytest.mark.parametrize(("field", "kind"), [("moments", "MOMENTS"), ("parameters", "PARAMETER_TYPE")])
def test_types_are_part_of_the_digest_where_they_are_not_the_default(field: str, kind: str) -> None:
    """A checkpoint of one kind is not resumed as the other; older ones, which had one kind, keep their digest."""
    plain = config_of().digest()
    assert config_of(**{field: f"{kind}_UNSPECIFIED"}).digest() == plain
    assert config_of(**{field: f"{kind}_FLOAT32"}).digest() == plain
    assert config_of(**{field: f"{kind}_BFLOAT16"}).digest() != plain


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
        ("decoder_span", -1),
        ("linear_skip", 1),
        ("aux_top_k", -1),
        ("aux_coeff", float("nan")),
        ("scales", "SCALES_OTHER"),
        ("micro_batches", -1),
        ("micro_batches", 3),
        ("moments", "MOMENTS_INT8"),
        ("parameters", "PARAMETER_TYPE_FLOAT16"),
    ],
)
def test_config_refuses_what_makes_no_sense(field: str, value: object) -> None:
    """The error names the field."""
    with pytest.raises(InvalidArgumentError) as caught:
        config_of(**{"sparsity_scale": 1.0, field: value})
    assert caught.value.field == f"spec.{field}"


@pytest.mark.parametrize(("field", "value"), [("top_k", 3), ("threshold_init", 0.1)])
def test_config_of_relu_refuses_what_it_has_no_use_for(field: str, value: float) -> None:
    """ReLU keeps all that is positive."""
    with pytest.raises(InvalidArgumentError) as caught:
        config_of(**RELU | {field: value})
    assert caught.value.field == f"spec.{field}"


@pytest.mark.parametrize("activation", ["ACTIVATION_TOP_K", "ACTIVATION_BATCH_TOP_K", "ACTIVATION_JOINT_TOP_K"])
@pytest.mark.parametrize("changes", [{"sparsity_coeff": 0.5}, {"preact_coeff": 0.5}, {"top_k": 0}, {"top_k": 13}])
def test_config_that_counts_has_no_sparsity_loss_and_a_count(activation: str, changes: dict[str, Any]) -> None:
    """The error names the field, and what is allowed."""
    with pytest.raises(InvalidArgumentError, match="give") as caught:
        config_of(activation=activation, **{"sparsity_scale": 1.0} | changes)
    assert caught.value.field == f"spec.{next(iter(changes))}"


@pytest.mark.parametrize(("given", "missing"), [({"aux_top_k": 4}, "aux_coeff"), ({"aux_coeff": 0.03}, "aux_top_k")])
def test_config_needs_both_settings_of_aux_k(given: dict[str, Any], missing: str) -> None:
    """The error names the one that is not there."""
    with pytest.raises(InvalidArgumentError, match="both above 0, or neither") as caught:
        config_of(**given)
    assert caught.value.field == f"spec.{missing}"


def test_config_refuses_more_revived_features_than_there_are_and_a_window_wider_than_the_model() -> None:
    """The window is checked once the dataset's shape is known."""
    with pytest.raises(InvalidArgumentError, match="aux_top_k: 13 of 12"):
        config_of(aux_top_k=13, aux_coeff=0.1)
    with pytest.raises(InvalidArgumentError, match="give 1 to 3, or 0 for all"):
        config_of(decoder_span=4).check_shape(3, 8)


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


def test_config_refuses_micro_batches_where_all_tokens_compete() -> None:
    """BatchTopK's selection would be another one; how many there are is no part of what is learnt."""
    with pytest.raises(InvalidArgumentError, match="all tokens of a step") as caught:
        config_of(activation="ACTIVATION_BATCH_TOP_K", micro_batches=2)
    assert caught.value.field == "spec.micro_batches"
    with pytest.raises(InvalidArgumentError, match="8 parts of 4 tokens of a rank"):
        config_of(micro_batches=8, data_ranks=2)
    assert config_of(micro_batches=4).digest() == config_of().digest()


def test_config_needs_no_torch() -> None:
    """A controller can check a spec without loading torch."""
    code = "import sys, weft_clt.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_demo_recipe_is_a_valid_spec() -> None:
    """The recipe of the demo is for two ranks and survives its JSON form."""
    assert TrainingConfig.from_spec(demo("datasets/x").to_spec()).mesh.feature_ranks == 2
