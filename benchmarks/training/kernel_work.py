"""
What each kernel of a step has to do, by formula: floating-point operations, and bytes through memory and caches.

Memory: what must come from it or go to it at least once, a decoder row once for each pair of layers however often it is
read, Adam's states read and written. Cache: what the kernel reads and writes again and again beside that.
Shapes: L layers, T tokens, F features of a layer, D d_model, P pairs of a source and a target layer, N entries.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernel_watch import PARTS
from serving import Shape

from weft_clt.kernels import FeatureLists
from weft_clt.kernels.threads import WIDEST_BYTES

__all__ = ["Work", "works"]

_ITEM = 4
_ADAM_FLOP = 12
"""Of one parameter: scaling, two moments, root, division, step."""
_ENTRY_BYTES = 8
"""Token and value."""


@dataclass(frozen=True)
class Work:
    """Of one step."""

    flop: int
    memory_bytes: int
    cache_bytes: int


def works(shape: Shape, lists: FeatureLists) -> dict[str, Work]:
    """
    Return the work of each kernel that has a row of its own.

    Args:
        lists: The entries of a step of that shape, all above 0, Adam with a first moment.
    """
    layers, features, d_model = shape.num_layers, shape.num_features, shape.d_model
    counts_LF = lists.start_LF1.diff(dim=1).long()
    entries_L, rows_L = counts_LF.sum(1).tolist(), (counts_LF > 0).sum(1).tolist()
    targets_L = [layers - source for source in range(layers)]
    pair_entries = sum(count * targets for count, targets in zip(entries_L, targets_L, strict=True))
    pair_rows = sum(count * targets for count, targets in zip(rows_L, targets_L, strict=True))
    row = d_model * _ITEM
    stream = layers * shape.num_tokens * row
    encoder, decoder = layers * features * row, shape.num_pairs * features * row
    strips = -(-row // WIDEST_BYTES)
    listed = pair_entries * strips * _ENTRY_BYTES
    preacts = layers * shape.num_tokens * features
    return {
        PARTS["encode"]: Work(2 * preacts * d_model, encoder + stream, 2 * preacts * _ITEM),
        PARTS["decode_pass"]: Work(
            2 * pair_entries * d_model, pair_rows * row + 2 * stream, 2 * pair_entries * row + 2 * stream + listed
        ),
        PARTS["value_grad_pass"]: Work(
            4 * pair_entries * d_model,
            pair_rows * row + stream,
            pair_entries * row + stream + listed + 2 * pair_entries * strips * _ITEM,
        ),
        PARTS["decoder_adam"]: Work(
            2 * pair_entries * d_model + _ADAM_FLOP * decoder // _ITEM,
            6 * decoder + stream,
            pair_entries * row + stream + listed,
        ),
        PARTS["encode_backward"]: Work(
            2 * sum(entries_L) * d_model, stream + 2 * sum(rows_L) * row, 2 * sum(entries_L) * row
        ),
        PARTS["adam"]: Work(_ADAM_FLOP * encoder // _ITEM, 7 * encoder, 0),
    }
