"""
What a rank keeps of a step's tokens: activations and lists of entries, as parts of `weft_clt.sizing`.

Names of dims are those of `weft_clt.sizing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft_clt.sizing import Workload

__all__ = ["activation_bytes", "entry_bytes"]

_INDEX_BYTES = 4
_PREACT_BYTES, _FEWEST_ROWS = 8 << 20, 256  # of pre-activations at a time, as in `kernels.cpu`


def activation_bytes(work: Workload) -> int:
    """The engine's buffers (`step.StepEngine`), and those of the CPU's kernels that are as large."""
    layers, tokens, features, size = work.num_layers, work.group_tokens, work.rank_features, work.float_bytes
    target = tokens * (2 if work.aux_top_k else 1) * work.rank_columns
    numbers = target * layers * (2 if work.aux_top_k or work.linear_skip else 1) + target
    if work.feature_ranks > 1:
        numbers += layers * tokens * (work.d_model + work.rank_columns)
    # The encoder takes some tokens at a time; where all of a layer compete, or dead features do, it takes all.
    numbers += min(tokens, max(_FEWEST_ROWS, _PREACT_BYTES // (features * size))) * features
    # One layer's weights are widened at a time.
    numbers += features * work.d_model if work.weight_bytes < size else 0
    numbers += tokens * features * ((1 if work.compares else 0) + (layers if work.preact_loss else 0))
    return numbers * size


def entry_bytes(work: Workload) -> int:
    """The lists of a step: own ones, what the exchange takes, and what the passes over the decoder take."""
    layers, tokens, size = work.num_layers, work.group_tokens, work.float_bytes
    own, listed, kept = (round(layers * tokens * each) for each in (work.listed_by_rank, work.listed, work.kept))
    dead = round(layers * tokens * min(work.aux_top_k, work.num_features))
    wire = 2 if work.num_features <= 1 << 16 else 4
    # An int64 index (two where masks are read) and the value; JumpReLU keeps the pre-activation too.
    lists = own * (8 * (1 + work.compares) + size * (1 + work.jumps)) + dead * (16 + size)
    # Joined: feature, value, slot.
    joined = 2 * _INDEX_BYTES + size
    lists += (listed + dead) * joined
    exchange = own * 16 + listed * (wire + _INDEX_BYTES + size)
    # By feature: token, value and slot; the value's gradient, at its slot, and on its way back, twice.
    passes = (kept + dead) * (joined + size) + (listed + dead) * 3 * size
    passes += (kept + dead) * joined if dead else 0
    # Measured: what the exchange lets go lies between what stays, and serves nothing as large.
    return lists + exchange + passes + layers * (2 * work.num_features + 2 * tokens) * _INDEX_BYTES
