"""What a run must be to be started: its configuration alone, then against its dataset."""

import re
from collections.abc import Mapping
from typing import Any

from weft_clt.config import BatchConfig, TrainingConfig
from weft_clt.unused_fields import check_used
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_trainer.core.ports import DatasetCatalog, DatasetFacts

__all__ = ["FIRST_SNAPSHOT_STEPS", "check_data", "check_new_id", "check_run"]

FIRST_SNAPSHOT_STEPS = 64
"""Steps whose tokens a first snapshot has: the units of training are measured on them, see decision 10."""

_ID = re.compile(r"[a-z0-9-]{1,63}")


def check_new_id(value: str, field: str) -> str:
    """Return the id of something new, or raise InvalidArgumentError where it is none."""
    if not _ID.fullmatch(value) or value.startswith("-"):
        raise InvalidArgumentError(
            f"{field} is {value[:80]!r}: give 1 to 63 lower-case letters, digits and '-', the first not a '-'.",
            field=field,
        )
    return value


async def check_run(
    spec: Mapping[str, Any], catalog: DatasetCatalog, max_ranks: int, *, is_new: bool = False
) -> DatasetFacts:
    """
    Check a run's configuration and its dataset.

    Args:
        spec: The fields of TrainingSpec.
        catalog: Where datasets are described.
        max_ranks: Ranks that the launcher can start.
        is_new: No version of weft has accepted it yet: fields that nothing reads are refused.

    Raises:
        InvalidArgumentError: The configuration makes no sense, alone or for a dataset of this shape.
        NotFoundError: No such dataset.
        FailedPreconditionError: See `check_data`.
    """
    config = TrainingConfig.from_spec(spec)
    if is_new:
        check_used(config)
    ranks = config.mesh.world_size
    if ranks > max_ranks:
        raise InvalidArgumentError(
            f"{ranks} ranks are asked for, at most {max_ranks} can be started here: lower feature_ranks or data_ranks, "
            "or raise WEFT_TRAINER_MAX_RANKS.",
            field="spec.feature_ranks",
        )
    facts = await catalog.describe(config.batch.dataset, config.batch.snapshot)
    config.check_shape(facts.num_layers, facts.d_model)
    check_data(config.batch, facts)
    return facts


def check_data(batch: BatchConfig, facts: DatasetFacts) -> None:
    """
    Check that a dataset, or the snapshot that a run begins with, has enough to train on and to evaluate.

    Args:
        batch: What the run asks for.
        facts: Of its snapshot; of the dataset where it names none, or where its first is yet to be taken.

    Raises:
        FailedPreconditionError: It has not, or it is open and no snapshot was asked for.
    """
    grows = not facts.sealed
    if grows and not (batch.snapshot or batch.take_snapshot):
        raise FailedPreconditionError(
            f"{facts.name} is not sealed, so it can still change: wait for its harvest, call SealDataset, or set "
            "take_snapshot to begin with what is there.",
            field="spec.dataset",
        )
    what = f"snapshot {facts.snapshot} of {facts.name}" if facts.snapshot else facts.name
    tokens, step = facts.num_train_tokens, batch.step_tokens
    if (grows or facts.snapshot) and tokens < FIRST_SNAPSHOT_STEPS * step:
        raise FailedPreconditionError(
            f"{what} has {tokens} tokens to train on, fewer than the {FIRST_SNAPSHOT_STEPS * step} of "
            f"{FIRST_SNAPSHOT_STEPS} steps that a first snapshot must have, whose units hold for the whole run: wait "
            "until its harvest has gone further, or lower step_tokens.",
            field="spec.snapshot",
        )
    if tokens < step:
        raise FailedPreconditionError(
            f"{what} has {tokens} tokens to train on, fewer than the {step} of one step: harvest more, or lower "
            "step_tokens.",
            field="spec.step_tokens",
        )
    if facts.num_held_out_tokens == 0:
        raise FailedPreconditionError(
            f"{what} has no held-out tokens, so nothing could be evaluated: harvest it with a held-out split, whose "
            "shards come first.",
            field="spec.dataset",
        )
