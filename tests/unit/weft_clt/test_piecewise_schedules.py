"""Schedules as data."""

import math
from dataclasses import replace
from typing import Any

import pytest
from clt_cases import RELU, config_of

from weft_clt.config import TrainingConfig
from weft_clt.piecewise import Piece, Shape, value_at
from weft_clt.schedule import learning_rate, sparsity_coeff
from weft_common.errors import InvalidArgumentError

LINEAR, CONSTANT, COSINE = (f"SCHEDULE_SHAPE_{name}" for name in ("LINEAR", "CONSTANT", "COSINE"))


def _piece(until: object, shape: object, factor: object) -> dict[str, object]:
    return {"until": until, "shape": shape, "factor": factor}


def test_value_follows_each_piece_in_turn() -> None:
    """A line from 0, a plateau, half a cosine down to a tenth, and a jump."""
    pieces = (
        Piece(0.2, Shape.LINEAR, 1.0),
        Piece(0.5, Shape.CONSTANT, 1.0),
        Piece(0.9, Shape.COSINE, 0.1),
        Piece(1.0, Shape.CONSTANT, 0.05),
    )
    wanted = {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.35: 1.0, 0.7: 0.55, 0.9: 0.1, 0.95: 0.05, 1.0: 0.05}
    assert {share: pytest.approx(value_at(pieces, share)) for share in wanted} == wanted
    assert value_at(pieces, 0.6) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_schedules_take_the_place_of_warm_up_decay_and_ramp() -> None:
    """They are read in the middle of each step, and multiply the peak."""
    rate = [_piece(0.5, LINEAR, 1), _piece(1, LINEAR, 0)]
    config = config_of(**RELU, learning_rate_schedule=rate, warmup_steps=0, decay_share=0, num_steps=4)
    found = [learning_rate(config.optimizer, step, 4) for step in range(1, 5)]
    assert found == pytest.approx([2.5e-3, 7.5e-3, 7.5e-3, 2.5e-3])
    # 0.3 is the coefficient; a line to one half, and half a cosine on to one.
    coeffs = [sparsity_coeff(config.loss, step, 4) for step in range(1, 5)]
    first, last = (0.5 + 0.25 * (1 - math.cos(math.pi * share)) for share in (0.25, 0.75))
    assert coeffs == pytest.approx([0.3 / 8, 0.9 / 8, 0.3 * first, 0.3 * last])


def test_schedules_survive_their_json_form() -> None:
    """Pieces are written out as they were read, and count in the digest."""
    config = config_of(**RELU)
    assert TrainingConfig.from_spec(config.to_spec()) == config
    assert config.to_spec()["sparsity_schedule"] == RELU["sparsity_schedule"]
    assert config.digest() != config_of(**RELU | {"sparsity_schedule": []}).digest()


@pytest.mark.parametrize(
    ("pieces", "field"),
    [
        ("linear", ""),
        ([3], "[0]"),
        ([_piece(0.5, LINEAR, 1)], "[0].until"),
        ([_piece(0.5, LINEAR, 1), _piece(0.4, LINEAR, 1)], "[1].until"),
        ([_piece(1.5, LINEAR, 1)], "[0].until"),
        ([_piece(float("nan"), LINEAR, 1)], "[0].until"),
        ([_piece("1", LINEAR, 1)], "[0].until"),
        ([_piece(1, "LINEAR", 1)], "[0].shape"),
        ([{"until": 1, "factor": 1}], "[0].shape"),
        ([_piece(1, LINEAR, -1)], "[0].factor"),
        ([_piece(1, LINEAR, float("inf"))], "[0].factor"),
        ([_piece(1, CONSTANT, 0)], ""),
        ([_piece((index + 1) / 101, LINEAR, 1) for index in range(101)], ""),
        ([_piece(1, COSINE, 1) | {"from": 0}], "[0].from"),
    ],
)
def test_bad_pieces_are_refused_by_name(pieces: Any, field: str) -> None:
    """The error says which piece and which part of it."""
    with pytest.raises(InvalidArgumentError) as caught:
        config_of(learning_rate_schedule=pieces, warmup_steps=0, decay_share=0)
    assert caught.value.field == f"spec.learning_rate_schedule{field}"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate_schedule": [_piece(1, CONSTANT, 1)], "decay_share": 0}, "warmup_steps"),
        ({"learning_rate_schedule": [_piece(1, CONSTANT, 1)], "warmup_steps": 0}, "decay_share"),
        (RELU | {"sparsity_ramp_share": 0.5}, "sparsity_ramp_share"),
        ({"sparsity_schedule": [_piece(1, CONSTANT, 1)]}, "sparsity_schedule"),
    ],
)
def test_a_schedule_and_what_it_replaces_are_not_given_together(changes: dict[str, Any], field: str) -> None:
    """The error names the field that says the same in another way."""
    with pytest.raises(InvalidArgumentError) as caught:
        config_of(**changes)
    assert caught.value.field == f"spec.{field}"


def test_digest_of_a_run_from_before_is_kept() -> None:
    """A configuration that uses nothing new has the digest that it had without it, whatever the ranks and records."""
    config = config_of()
    assert config_of(feature_ranks=4, data_ranks=2, checkpoint_steps=2).digest() == config.digest()
    assert config.digest() == "585652584d7d167993861be312c9bcbd470c94e67cc07180ccc83b8ae9e1ddbe"
    longer = replace(config, features=replace(config.features, decoder_span=2))
    assert longer.digest() != config.digest()
