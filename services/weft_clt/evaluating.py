"""
How good a transcoder is on held-out data: while it is trained, of a checkpoint, and before it is exported.

Shapes: O tokens of one rank, T tokens of the group, L layers, C columns of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weft_clt.metrics import Evaluation, ReconstructionSums
from weft_clt.step import StepEngine

if TYPE_CHECKING:
    from weft_clt.trainer import Batch

__all__ = ["evaluate"]


def evaluate(
    engine: StepEngine, centre_LC: Tensor, batches: Iterator[Batch], num_batches: int, *, step: int
) -> Evaluation:
    """
    Measure on held-out data; every rank gives the same number of batches, filled up where its data ends.

    Args:
        engine: Of one rank.
        centre_LC: The outputs' mean, or about that, in this rank's columns, float64.
        num_batches: To take; rows from a batch's `num_valid` on count for nothing.
        step: That the parameters are of.

    Collectives: those of a forward pass a batch, and of `ReconstructionSums.reduced`.
    """
    mesh, sums = engine.mesh, ReconstructionSums(engine.params.share, centre_LC)
    for _ in range(num_batches):
        batch = next(batches)
        rank_tokens = batch.inputs_LOD.shape[1]
        inputs_LTD, targets_LTC = engine.gather(batch.inputs_LOD, batch.targets_LOD)
        place_O = torch.arange(rank_tokens, device=engine.params.device)
        valid_T = mesh.feature.gather((place_O < batch.num_valid).to(torch.uint8))
        forward = engine.forward(inputs_LTD, targets_LTC, near=False)
        sums.add(forward.error_LTC, targets_LTC, forward.exchanged, valid_T.flatten().bool())
    return sums.reduced(mesh).evaluation(step)
