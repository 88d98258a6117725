"""
Which tokens a harvest reads, in which order, in which lease: a function of the corpus and the request alone.

Every replica works the plan out for itself and compares its digest with the one in the harvest's record, so leases
mean the same everywhere. Documents come in an order drawn from the corpus's digest: the first of them are held out,
until the split has its tokens, and the training split begins with the next one. So no document is in both, and both
splits have exactly the tokens that were asked for; of the last document of each, the rest is not read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weft_activations.core.packing import BY_DOCUMENT, PackedSequence, Packer, Packing
from weft_activations.core.ports import Split
from weft_common.errors import FailedPreconditionError

__all__ = ["HarvestPlan", "Lease", "plan_harvest"]


@dataclass(frozen=True)
class Lease:
    """
    Sequences that one replica reads in one go, into the shard of the same index.

    Attributes:
        sequences: Each with what of it is kept; position 0 never is.
    """

    index: int
    split: Split
    sequences: Sequence[PackedSequence]

    @property
    def num_tokens(self) -> int:
        """Tokens that are kept, unless their norm is left out."""
        return sum(sequence.num_kept for sequence in self.sequences)

    @property
    def num_rows(self) -> int:
        """Rows that the model gives: every position but the first of each sequence."""
        return sum(len(sequence.ids) - 1 for sequence in self.sequences)

    def turns(self, most_tokens: int) -> list[list[npt.NDArray[np.int64]]]:
        """Share its sequences' ids out, in their order, over turns of so many tokens at most, or of one sequence."""
        turns: list[list[npt.NDArray[np.int64]]] = []
        num_tokens = 0
        for sequence in self.sequences:
            num_tokens += len(sequence.ids)
            if not turns or num_tokens > most_tokens:
                turns.append([])
                num_tokens = len(sequence.ids)
            turns[-1].append(sequence.ids)
        return turns


@dataclass(frozen=True)
class HarvestPlan:
    """All leases of a harvest; `digest` is the hex SHA-256 over them."""

    leases: Sequence[Lease]
    digest: str

    def num_tokens(self, split: Split) -> int:
        """Tokens of a split."""
        return sum(lease.num_tokens for lease in self.leases if lease.split is split)

    @property
    def order(self) -> list[int]:
        """
        Indices of the leases in the order in which replicas take them.

        Held out first, so that a run that begins while the harvest goes on has something to be evaluated on.
        """
        leases = sorted(self.leases, key=lambda lease: (lease.split is not Split.HELD_OUT, lease.index))
        return [lease.index for lease in leases]


def plan_harvest(
    documents: Sequence[Sequence[int]],
    *,
    corpus_digest: str,
    bos_token_id: int | None,
    num_tokens: int,
    held_out_share: float,
    sequence_tokens: int,
    lease_sequences: int,
    packing: Packing = BY_DOCUMENT,
) -> HarvestPlan:
    """
    Cut documents into sequences and sequences into leases.

    Args:
        documents: Token ids of each document, without a start token.
        corpus_digest: Seeds the order of the documents.
        bos_token_id: The model's start token; None where the tokenizer adds none.
        num_tokens: Tokens to keep, both splits together; exactly this many are planned.
        held_out_share: Share of these in the held-out split.
        sequence_tokens: Tokens of a sequence, the start token included.
        lease_sequences: Sequences of a lease.
        packing: How documents become sequences; by default each by itself.

    Raises:
        FailedPreconditionError: The corpus holds fewer tokens; says how many.
    """
    order = sorted(range(len(documents)), key=lambda i: hashlib.sha256(f"{corpus_digest}/{i}".encode()).digest())
    held_out = max(1, round(held_out_share * num_tokens)) if held_out_share > 0 else 0
    wanted = {Split.HELD_OUT: held_out, Split.TRAIN: num_tokens - held_out}
    sequences: dict[Split, list[PackedSequence]] = {Split.TRAIN: [], Split.HELD_OUT: []}
    rest = iter(order)
    for split, most in wanted.items():
        packer = Packer(packing, bos_token_id=bos_token_id, sequence_tokens=sequence_tokens, num_tokens=most)
        while packer.left:
            index = next(rest, None)
            if index is None:
                found = num_tokens - packer.left - (wanted[Split.TRAIN] if split is Split.HELD_OUT else 0)
                raise FailedPreconditionError(
                    f"the corpus's {len(documents)} documents give {found} tokens, position 0 of each sequence and "
                    f"skipped tokens left out and no document in both splits, but num_tokens is {num_tokens}; ask for "
                    "fewer or upload more text",
                    field="spec.num_tokens",
                )
            packer.add(documents[index])
        packer.finish()
        sequences[split] = packer.sequences
    leases: list[Lease] = []
    digest = hashlib.sha256()
    for split in Split:
        own = sequences[split]
        for start in range(0, len(own), lease_sequences):
            lease = Lease(len(leases), split, own[start : start + lease_sequences])
            leases.append(lease)
            digest.update(f"{lease.index} {split.value} {len(lease.sequences)}\n".encode())
            for sequence in lease.sequences:
                digest.update(b"%d\n" % len(sequence.ids) + sequence.ids.astype("<i8").tobytes())
                if len(sequence.skipped):
                    digest.update(b"-%d\n" % len(sequence.skipped) + sequence.skipped.astype("<i8").tobytes())
    return HarvestPlan(leases, digest.hexdigest())
