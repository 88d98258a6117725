"""What a run must be to be started: its configuration alone, then against its dataset."""

import re
from collections.abc import Mapping
from typing import Any

from weft_clt.config import TrainingConfig
from weft_clt.unused_fields import check_used
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_trainer.core.ports import DatasetCatalog, DatasetFacts

__all__ = ["check_new_id", "check_run"]

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
        FailedPreconditionError: The dataset is not sealed, or has too few tokens.
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
    facts = await catalog.describe(config.batch.dataset)
    if not facts.sealed:
        raise FailedPreconditionError(
            f"{facts.name} is not sealed, so it can still change: wait for its harvest, or call SealDataset.",
            field="spec.dataset",
        )
    config.check_shape(facts.num_layers, facts.d_model)
    if facts.num_train_tokens < config.batch.step_tokens:
        raise FailedPreconditionError(
            f"{facts.name} has {facts.num_train_tokens} tokens to train on, fewer than the "
            f"{config.batch.step_tokens} of one step: harvest more, or lower step_tokens.",
            field="spec.step_tokens",
        )
    if facts.num_held_out_tokens == 0:
        raise FailedPreconditionError(
            f"{facts.name} has no held-out tokens, so nothing could be evaluated: harvest it with a held-out split.",
            field="spec.dataset",
        )
    return facts
