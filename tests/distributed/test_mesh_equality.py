"""One rank against two and four, in float64, as processes over gloo."""

from pathlib import Path
from typing import Any

import pytest
import torch
from clt_cases import RECIPES, config_of, own_batch, trainer_of
from forked_ranks import run_ranks
from mesh_process import train_rank

from weft_clt.kernels import CpuKernels

pytestmark = pytest.mark.distributed

CASES: dict[str, dict[str, Any]] = {
    name: RECIPES[name]
    for name in (
        "top_k",
        "top_k_per_layer",
        "batch_top_k_aux",
        "joint_top_k_window_aux",
        "relu_aux",
        "jump_relu_through_threshold",
        "jump_relu_window_skip_aux",
    )
}
"""Every way of selecting features, and everything that can stand beside it."""


def _train_mesh(feature_ranks: int, data_ranks: int, folder: Path) -> None:
    ranks = range(feature_ranks * data_ranks)
    run_ranks(train_rank, [(rank, feature_ranks, data_ranks, CASES, str(folder)) for rank in ranks], folder, 280)


def _joined(ranks: list[dict[str, Any]], name: str) -> torch.Tensor:
    """Join the shares of the first data group: decoder tensors by column, encoder tensors by feature."""
    size = ranks[0]["share"][1]
    parts = [rank["state"][name] for rank in ranks[:size]]
    if name == "silent_tokens":
        return parts[0]
    dim = -1 if name.endswith(("w_dec", "b_dec")) else 1
    return torch.cat(parts, dim=dim)


def _check_case(name: str, feature_ranks: int, ranks: list[dict[str, Any]]) -> None:
    config = config_of(**CASES[name])
    alone = trainer_of(config, CpuKernels())
    metrics = [alone.train_step(own_batch(step, alone.mesh)) for step in range(1, config.batch.num_steps + 1)]
    assert any(entry.gradient_norm > config.optimizer.clip_norm for entry in metrics)
    evaluation = alone.evaluate(iter([own_batch(99, alone.mesh)]), 1)
    for tensor_name, tensor in alone.state():
        torch.testing.assert_close(_joined(ranks, tensor_name), tensor, rtol=1e-10, atol=1e-10)
    wanted = [(m.loss, m.gradient_norm, m.l0, m.explained_variance, m.dead_share, m.aux_loss) for m in metrics]
    assert any(entry.aux_loss > 0 for entry in metrics) == (config.loss.aux_top_k > 0)
    for rank in ranks:
        assert torch.tensor(rank["metrics"]) == pytest.approx(torch.tensor(wanted), rel=1e-9)
        assert rank["evaluation"] == pytest.approx(
            (evaluation.explained_variance, evaluation.reconstruction_loss, evaluation.silent_share), rel=1e-9
        )
        assert rank["counted"] == (
            evaluation.l0_by_layer,
            evaluation.silent_share_by_layer,
            evaluation.dense_share_by_layer,
            evaluation.density_counts_by_layer,
        )
        assert rank["sent_bytes"] > 0
    for rank in ranks[feature_ranks:]:
        twin = ranks[rank["share"][0]]
        for tensor_name, tensor in rank["state"].items():
            assert torch.equal(tensor, twin["state"][tensor_name])


@pytest.mark.parametrize(("feature_ranks", "data_ranks"), [(2, 1), (1, 2), (4, 1), (2, 2)])
def test_mesh_trains_as_one_rank_does(feature_ranks: int, data_ranks: int, tmp_path: Path) -> None:
    """Parameters, moments, clocks, metrics and evaluation agree to 1e-10 after several clipped steps."""
    _train_mesh(feature_ranks, data_ranks, tmp_path)
    for name in CASES:
        ranks = [torch.load(tmp_path / f"{name}-rank{rank}.pt") for rank in range(feature_ranks * data_ranks)]
        _check_case(name, feature_ranks, ranks)
