"""The sequences that a dataset was harvested from, worked out again from the harvest's record."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft_activations.core.harvest_records import HarvestRecord
from weft_activations.core.packing import PackedSequence
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
    """

    record: HarvestRecord
    sequences: Sequence[PackedSequence]
    output_norm_limits: Sequence[float]


def harvested_sequences(record: HarvestRecord, planned: Planned, split: Split, max_tokens: int) -> Sequences:
    """
    Take sequences of a split in the harvest's order.

    Args:
        record: The harvest.
        planned: Its plan, worked out now.
        split: Which part of the dataset.
        max_tokens: Stop after the sequence that brings the kept tokens to this many; 0 takes all.

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
    num_tokens = 0
    for lease in planned.plan.leases:
        for sequence in lease.sequences if lease.split is split else ():
            if max_tokens and num_tokens >= max_tokens:
                break
            taken.append(sequence)
            num_tokens += sequence.num_kept
    limits = [record.spec.max_norm_ratio * mean for mean in record.mean_norms or ()]
    return Sequences(record, taken, limits)
