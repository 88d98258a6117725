"""Whoever sets a field that nothing reads is told."""

from typing import Any

import pytest
from clt_cases import JUMP_RELU, NAMED, RECIPES, RELU, config_of

from weft_clt.config import TrainingConfig
from weft_clt.recipes import demo
from weft_clt.unused_fields import check_used
from weft_common.errors import InvalidArgumentError

_BATCH, _JOINT = ({"activation": f"ACTIVATION_{kind}_TOP_K"} for kind in ("BATCH", "JOINT"))


@pytest.mark.parametrize(
    ("given", "field", "value", "says"),
    [
        (JUMP_RELU, "top_k", 4, "4 has no meaning with ACTIVATION_JUMP_RELU, .*give 0"),
        ({}, "threshold_init", 0.1, "ACTIVATION_TOP_K, which learns no thresholds"),
        (_BATCH, "bandwidth", 1.0, "ACTIVATION_BATCH_TOP_K, which learns no thresholds"),
        (_JOINT, "gradient_through_threshold", True, "true has no meaning .* give false"),
        (RELU, "bandwidth", 1.0, "ACTIVATION_RELU, which learns no thresholds"),
        (RELU, "gradient_through_threshold", True, "ACTIVATION_RELU"),
        ({}, "sparsity_scale", 4.0, "without sparsity_coeff"),
        ({}, "sparsity_ramp_share", 0.5, "without sparsity_coeff"),
        (JUMP_RELU | {"sparsity_coeff": 0.0, "sparsity_ramp_share": 0.0}, "sparsity_scale", 2.0, "without sparsity_co"),
    ],
)
def test_field_that_nothing_reads_is_refused(given: dict[str, Any], field: str, value: object, says: str) -> None:
    """The sentence names field and value, why it changes nothing, and what to give; without it all is well."""
    with pytest.raises(InvalidArgumentError, match=says) as caught:
        check_used(config_of(**given | {field: value}))
    assert caught.value.field == f"spec.{field}"
    check_used(config_of(**given | {field: type(value)(0)}))


@pytest.mark.parametrize("spec", [*NAMED.values(), demo("datasets/d").to_spec()])
def test_named_recipes_set_nothing_in_vain(spec: dict[str, Any]) -> None:
    """Also the demo's."""
    check_used(TrainingConfig.from_spec(spec))


@pytest.mark.parametrize("name", RECIPES)
def test_every_way_of_selecting_can_be_asked_for(name: str) -> None:
    """Nothing that is needed is refused."""
    check_used(config_of(**RECIPES[name]))
