"""The sequences that a dataset was harvested from, worked out again from the harvest's record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weft_activations.core.harvest_records import HarvestRecord
from weft_activations.core.packing import PackedSequence
from weft_activations.core.plan import Lease
from weft_activations.core.planning import Planned
from weft_activations.core.ports import Split
from weft_common.errors import FailedPreconditionError

__all__ = ["Sequences", "harvested_sequences"]


@dataclass(frozen=True)
class Sequences:
    """
    Part of what a harvest read.

    Attributes:
        record: The harvest.
        sequences: Token ids, and what of them was kept but for norms; position 0 never was.
        output_norm_limits: By layer, the output norm from which on a token was left out; empty where none was.
        left_out: Of each sequence, positions that were left out for their norm, rising; None where the harvest did not
            write them down.
    """

    record: HarvestRecord
    sequences: Sequence[PackedSequence]
    output_norm_limits: Sequence[float]
    left_out: Sequence[npt.NDArray[np.int64]] | None


def harvested_sequences(
    record: HarvestRecord,
    planned: Planned,
    split: Split,
    max_tokens: int,
    left_out: Callable[[Lease], Sequence[npt.NDArray[np.int64]] | None],
) -> Sequences:
    """
    Take sequences of a split in the harvest's order.

    Args:
        record: The harvest.
        planned: Its plan, worked out now.
        split: Which part of the dataset.
        max_tokens: Stop after the sequence that brings the kept tokens to this many; 0 takes all.
        left_out: Tells which positions a lease left out of each of its sequences; None where that is not known.

    Raises:
        FailedPreconditionError: The model, the corpus or the plan is no longer what was harvested.
    """
    now = (planned.info.revision, planned.corpus_digest, planned.plan.digest)
    if now != (record.model_revision, record.corpus_digest, record.plan_digest):
        raise FailedPreconditionError(
            f"the model or the corpus of harvests/{record.harvest_id} is no longer what it read; put them back as they "
            "were, or harvest again"
        )
    taken: list[PackedSequence] = []
    gaps: list[npt.NDArray[np.int64]] | None = []
    num_tokens = 0
    for lease in planned.plan.leases:
        if lease.split is not split or (max_tokens and num_tokens >= max_tokens):
            continue
        of_lease = None if gaps is None else left_out(lease)
        for at, sequence in enumerate(lease.sequences):
            if max_tokens and num_tokens >= max_tokens:
                break
            taken.append(sequence)
            num_tokens += sequence.num_kept
            if gaps is not None and of_lease is not None:
                gaps.append(of_lease[at])
        gaps = None if of_lease is None else gaps
    limits = [record.spec.max_norm_ratio * mean for mean in record.mean_norms or ()]
    return Sequences(record, taken, limits, gaps)
