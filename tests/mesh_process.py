"""One rank of a mesh, for tests: trains a few steps of each case in float64 and writes what it holds to files."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from clt_cases import config_of, own_batch, trainer_of

from weft_clt.kernels import CpuKernels
from weft_clt.mesh import make_mesh


def run_case(rank: int, feature_ranks: int, data_ranks: int, name: str, case: dict[str, Any], folder: str) -> None:
    """Train as one rank and save parameters, moments, metrics and an evaluation."""
    config = config_of(**case, feature_ranks=feature_ranks, data_ranks=data_ranks)
    mesh = make_mesh(feature_ranks, data_ranks)
    trainer = trainer_of(config, CpuKernels(), mesh)
    metrics = [trainer.train_step(own_batch(step, mesh)) for step in range(1, config.batch.num_steps + 1)]
    evaluation = trainer.evaluate(iter([own_batch(99, mesh)]), 1)
    torch.save(
        {
            "state": dict(trainer.state()),
            "share": (mesh.feature.rank, mesh.feature.size),
            "metrics": [
                (m.loss, m.gradient_norm, m.l0, m.explained_variance, m.dead_share, m.aux_loss) for m in metrics
            ],
            "evaluation": (evaluation.explained_variance, evaluation.reconstruction_loss, evaluation.silent_share),
            "counted": (
                evaluation.l0_by_layer,
                evaluation.silent_share_by_layer,
                evaluation.dense_share_by_layer,
                evaluation.density_counts_by_layer,
            ),
            "sent_bytes": mesh.sent_bytes,
        },
        Path(folder) / f"{name}-rank{rank}.pt",
    )


def train_rank(rank: int, feature_ranks: int, data_ranks: int, cases: dict[str, dict[str, Any]], folder: str) -> None:
    """Train every case as one rank; the ranks meet in the folder."""
    torch.set_num_threads(1)
    world = feature_ranks * data_ranks
    store = dist.FileStore(f"{folder}/store", world)  # type: ignore[no-untyped-call]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    for name, case in cases.items():
        run_case(rank, feature_ranks, data_ranks, name, case, folder)
    dist.barrier()
    dist.destroy_process_group()
