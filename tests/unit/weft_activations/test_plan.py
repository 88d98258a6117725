"""Plans are a function of corpus and request, exact in tokens, and never split a document over both splits."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_activations.core.packing import Packing
from weft_activations.core.plan import HarvestPlan, plan_harvest
from weft_activations.core.ports import Split
from weft_common.errors import FailedPreconditionError

# Token ids say which document they come from, and where they stand in it.
_STRIDE = 1000
# Of the plan of `test_plan_without_packing_is_what_it_always_was`, worked out at commit 729ad11.
GOLDEN = "4ecd09607c68d65fd0468333807adf42c5ce94ebe4f6ebd93bcb8f90c012b1d9"


def _documents(lengths: list[int]) -> list[list[int]]:
    return [[index * _STRIDE + at for at in range(length)] for index, length in enumerate(lengths)]


def _plan(lengths: list[int], num_tokens: int, **changes: Any) -> HarvestPlan:
    settings: dict[str, Any] = {
        "corpus_digest": "aa",
        "bos_token_id": None,
        "held_out_share": 0.0,
        "sequence_tokens": 10,
        "lease_sequences": 3,
    }
    return plan_harvest(_documents(lengths), num_tokens=num_tokens, **(settings | changes))


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    num_tokens=st.integers(1, 300),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    bos=st.sampled_from([None, 999_999]),
    sequence_tokens=st.integers(3, 20),
    lease_sequences=st.integers(1, 5),
)
def test_plan_is_exact_or_refused(
    lengths: list[int], num_tokens: int, share: float, bos: int | None, sequence_tokens: int, lease_sequences: int
) -> None:
    """Kept tokens are num_tokens with the share held out, each once, no document in both splits, sequences bounded."""
    try:
        plan = _plan(
            lengths,
            num_tokens,
            held_out_share=share,
            bos_token_id=bos,
            sequence_tokens=sequence_tokens,
            lease_sequences=lease_sequences,
        )
    except FailedPreconditionError:
        # The document that the held-out split ends in may be wasted but for one token.
        assert sum(lengths) - (max(lengths) if share else 0) - len(lengths) * (sequence_tokens + 1) <= num_tokens * 2
        return
    held_out = max(1, round(share * num_tokens)) if share else 0
    assert plan.num_tokens(Split.HELD_OUT) == held_out
    assert plan.num_tokens(Split.TRAIN) == num_tokens - held_out
    assert [lease.index for lease in plan.leases] == list(range(len(plan.leases)))
    documents: dict[Split, set[int]] = {split: set() for split in Split}
    kept: list[int] = []
    for lease in plan.leases:
        assert 1 <= len(lease.sequences) <= lease_sequences
        for packed in lease.sequences:
            sequence = packed.ids
            assert not len(packed.skipped)
            assert 2 <= len(sequence) <= sequence_tokens
            if bos is not None:
                assert sequence[0] == bos
            kept += sequence[1:].tolist()
            assert (np.diff(sequence[1:]) == 1).all()
            documents[lease.split] |= set((sequence[1:] // _STRIDE).tolist())
    assert len(set(kept)) == len(kept) == num_tokens
    assert not documents[Split.TRAIN] & documents[Split.HELD_OUT]


def test_plan_is_the_same_every_time_and_another_for_another_corpus() -> None:
    """The digest pins leases and tokens; the corpus's digest orders the documents."""
    lengths = [40] * 9
    assert _plan(lengths, 200).digest == _plan(lengths, 200).digest
    assert _plan(lengths, 200).digest != _plan(lengths, 200, corpus_digest="bb").digest
    assert _plan(lengths, 200).digest != _plan(lengths, 201).digest


def test_plan_without_packing_is_what_it_always_was() -> None:
    """Harvests that were begun before there were packings go on: their plan has the digest that they wrote down."""
    plan = _plan([40, 3, 25], 50, held_out_share=0.2, bos_token_id=7)
    digest = hashlib.sha256()
    for lease in plan.leases:
        digest.update(f"{lease.index} {lease.split.value} {len(lease.sequences)}\n".encode())
        for sequence in lease.sequences:
            digest.update(b"%d\n" % len(sequence.ids) + sequence.ids.astype("<i8").tobytes())
    assert plan.digest == digest.hexdigest() == GOLDEN
    assert _plan([40, 3, 25], 50, packing=Packing(skipped_token_ids=(5,))).digest != _plan([40, 3, 25], 50).digest


def test_too_small_corpus_says_how_many_tokens_it_has() -> None:
    """The refusal names what is there, so that the next request can be right."""
    with pytest.raises(FailedPreconditionError, match=r"2 documents give 27 tokens.* num_tokens is 28"):
        _plan([10, 20], 28)
    assert _plan([10, 20], 27).num_tokens(Split.TRAIN) == 27


def test_one_document_cannot_be_split() -> None:
    """A held-out share of a single document is refused: what is held out must be unseen."""
    with pytest.raises(FailedPreconditionError, match="no document in both splits"):
        _plan([500], 100, held_out_share=0.1)


def test_held_out_leases_come_first() -> None:
    """The order has every lease once, held out before training, by index within a split; indices stay."""
    plan = _plan([60] * 4, 100, held_out_share=0.3)
    splits = [plan.leases[index].split for index in plan.order]
    held_out = splits.count(Split.HELD_OUT)
    assert held_out > 1
    assert splits == [Split.HELD_OUT] * held_out + [Split.TRAIN] * (len(splits) - held_out)
    assert plan.order == sorted(plan.order, key=lambda index: (index < len(splits) - held_out, index))
    assert plan.leases[0].split is Split.TRAIN
