"""Specs whose left-out fields are filled in."""

from weft.training.v1 import messages_pb2
from weft_client.specs import harvest_spec, training_spec


def test_given_values_win_over_chosen_ones() -> None:
    """What is given stays as it is, zero included."""
    assert harvest_spec(model="models/m", max_norm_ratio=0).max_norm_ratio == 0
    assert training_spec(dataset="datasets/d", clip_norm=0).clip_norm == 0


def test_each_activation_has_its_own_sparsity() -> None:
    """TopK has k and no loss; JumpReLU has a loss and no k."""
    top_k = training_spec(dataset="datasets/d")
    jump_relu = training_spec(dataset="datasets/d", activation=messages_pb2.ACTIVATION_JUMP_RELU)
    assert (top_k.top_k, top_k.sparsity_coeff) == (32, 0)
    assert jump_relu.top_k == 0
    assert jump_relu.sparsity_coeff > 0
    assert jump_relu.threshold_init > 0
    plain = training_spec(dataset="datasets/d", activation=messages_pb2.ACTIVATION_JUMP_RELU, sparsity_coeff=0)
    assert (plain.sparsity_scale, plain.sparsity_ramp_share) == (0, 0)
