"""One rank of two whose kernels are Triton's, interpreted: trains some cases and writes its share to files."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.triton_lane.step_cases import CASES, config_for, narrow_trainer, train

from weft_clt.kernels.triton_kernels import TritonKernels
from weft_clt.mesh import make_mesh


def main() -> None:
    """Take the rank, feature ranks, data ranks, a folder, and names of cases."""
    rank, feature_ranks, data_ranks = (int(text) for text in sys.argv[1:4])
    folder = Path(sys.argv[4])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)  # type: ignore[no-untyped-call]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = make_mesh(feature_ranks, data_ranks)
    for name in sys.argv[5:]:
        config = config_for(name, feature_ranks=feature_ranks, data_ranks=data_ranks)
        trainer = narrow_trainer(config, TritonKernels(), mesh)
        figures = train(trainer, CASES[name][1])
        torch.save({"figures": figures, "params": dict(trainer.params.named())}, folder / f"{name}-rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
