"""
The formulas of `weft_clt.sizing` against ranks that really run.
"""

import os
import subprocess
import sys
from typing import Any

import pytest
from worker_rig import ROW_GROUP_TOKENS, Rig, harvest, spec_of

from weft_clt.config import Activation
from weft_clt.sizing import Workload
from weft_store import open_store
from weft_store.documents import read_json

pytestmark = pytest.mark.distributed

WITHIN = 0.15
SHAPES = {"small": (3, 16, ROW_GROUP_TOKENS), "wide": (8, 256, 1024)}
"""Layers, width and tokens of a row group; the wide one's arrays are large enough to be mapped, as those of real runs."""
JUMPS = {
    "activation": "ACTIVATION_JUMP_RELU",
    "top_k": 0,
    "sparsity_coeff": 0.1,
    "sparsity_scale": 4.0,
    "threshold_init": 0.03,
    # So narrow that next to nothing is near a threshold without being above it.
    "bandwidth": 1e-6,
}
WIDE = {"dataset": "datasets/wide", "num_features": 1024, "top_k": 16, "num_steps": 3}


@pytest.fixture(scope="module")
def measured(rig: Rig) -> Rig:
    """The rig with a second, wider dataset."""
    layers, width, row_group = SHAPES["wide"]
    harvest(rig, "wide", num_layers=layers, d_model=width, row_group_tokens=row_group, shard_tokens=(2048, 1024, 512))
    # The first ranks compile their kernels, which takes memory of its own.
    for run, changes in (("warm", {}), ("warm-jump", JUMPS)):
        train(rig, run, **changes)
    return rig


def train(rig: Rig, run: str, **changes: Any) -> tuple[dict[str, Any], int]:
    """Train a run to its end; its last metrics and the peak memory of a rank."""
    spec = spec_of(**{"num_steps": 4, "warmup_steps": 1, "checkpoint_steps": 2, **changes})
    rig.create_run(run, spec)
    rig.train(run, spec["feature_ranks"] * spec["data_ranks"])
    return rig.metrics(run)[-1], rig.peak_memory_bytes(run)


def workload(**changes: Any) -> Workload:
    """The same run for the formulas."""
    spec = spec_of(**changes)
    layers, width, row_group = SHAPES[spec["dataset"].removeprefix("datasets/")]
    return Workload(
        num_layers=layers,
        d_model=width,
        num_features=spec["num_features"],
        activation=Activation(spec["activation"]),
        active=changes.get("l0") or spec["top_k"],
        near=0.0,
        decoder_span=0,
        step_tokens=spec["step_tokens"],
        feature_ranks=spec["feature_ranks"],
        data_ranks=spec["data_ranks"],
        preact_loss=spec.get("preact_coeff", 0) > 0,
        row_group_tokens=row_group,
    )


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("features", {"num_features": 4096, "step_tokens": 8}, {"num_features": 131_072, "step_tokens": 8}),
        ("features-jump", JUMPS | {"num_features": 4096}, JUMPS | {"num_features": 65_536}),
        (
            "tokens",
            WIDE | {"step_tokens": 1024},
            WIDE | {"step_tokens": 8192},
        ),
    ],
)
def test_memory_of_a_rank_grows_as_planned(
    measured: Rig, name: str, small: dict[str, Any], large: dict[str, Any]
) -> None:
    """Between two sizes the peak of a rank grows by what the formulas say; the interpreter's own memory drops out."""
    grown = train(measured, f"{name}-large", **large)[1] - train(measured, f"{name}-small", **small)[1]
    # JumpReLU starts with half of all features active, and its first step is the largest.
    planned = [
        workload(**spec, l0=spec["num_features"] / 2 if "threshold_init" in spec else 0).memory().total
        for spec in (large, small)
    ]
    print(name, "grown", grown / 2**20, "planned", (planned[0] - planned[1]) / 2**20)
    print(workload(**large, l0=large["num_features"] / 2 if "threshold_init" in large else 0).memory())
    assert planned[0] - planned[1] == pytest.approx(grown, rel=WITHIN)
