"""Batches through pinned memory, on a GPU: those of the host, whatever is computed beside the copies."""

import pytest
import torch
from numbered_tokens import SIZES, NumberedTokens, normalization

from weft_clt.loader import LoaderOptions, TokenLoader
from weft_clt.staging import CudaStaging, HostStaging, Staging


def _loader(staging: Staging) -> TokenLoader:
    return TokenLoader(
        NumberedTokens(SIZES), normalization(), step_tokens=12, rank=0, world_size=1,
        options=LoaderOptions(num_streams=3), staging=staging,
    )  # fmt: skip


@pytest.mark.cuda
def test_batches_through_pinned_memory_are_those_of_the_host() -> None:
    """Two draws: while the first batch is used by a long product the second is filled, into the other buffer."""
    device = torch.device("cuda", 0)
    ahead, plain = _loader(CudaStaging(device)), _loader(HostStaging())
    busy = torch.ones(4096, 4096, device=device)
    for _ in range(2):
        batch = ahead.draw()
        for _ in range(20):
            busy = busy @ busy / 4096
        # Read after the product, and so after the next batch was begun.
        found = batch.inputs_LOD + 0, batch.targets_LOD + 0
        wanted = plain.draw()
        assert torch.equal(found[0].cpu(), wanted.inputs_LOD)
        assert torch.equal(found[1].cpu(), wanted.targets_LOD)
    ahead.close()
    plain.close()
