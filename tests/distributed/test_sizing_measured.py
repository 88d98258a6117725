"""
The formulas of `weft_clt.sizing` and `weft_client.plan` against ranks that really run.

The wide dataset's arrays are large enough to be mapped one by one, as those of real runs are.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from worker_rig import ROW_GROUP_TOKENS, Rig, harvest, spec_of

from weft_client.plan.estimate import PROCESS_BYTES, dataset_bytes
from weft_clt.config import Activation
from weft_clt.sizing import Workload
from weft_store import open_store
from weft_store.documents import read_json
from weft_store.shard import CodecSpec, encode_shard, learn_basis

pytestmark = pytest.mark.distributed

WITHIN = 0.1
# The JumpReLU run's lists grow from step to step, so that what is kept of the shorter ones counts too: the plan takes
# half of all features as active for that.
WITHIN_GROWTH = {"features": 0.15, "jump": 0.2, "tokens": 0.15}
SHAPES = {"small": (3, 16, ROW_GROUP_TOKENS), "wide": (8, 256, 1024)}
"""Layers, width and tokens of a row group."""
TRAIN_TOKENS = 350
"""Of the small dataset."""
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
NARROW = {"parameters": "PARAMETER_TYPE_BFLOAT16", "moments": "MOMENTS_BFLOAT16"}
WARM = {"jump": JUMPS, "narrow": NARROW}
"""What a run must have for the same kernels as those of its kind."""
RUNS: Mapping[str, dict[str, Any]] = {
    "features-small": {"num_features": 4096, "step_tokens": 8},
    # So large that the 10 MiB by which the allocator moves a peak from run to run are little of the difference.
    "features-large": {"num_features": 262_144, "step_tokens": 8},
    "narrow-large": NARROW | {"num_features": 65_536, "step_tokens": 8},
    "jump-small": JUMPS | {"num_features": 4096},
    "jump-large": JUMPS | {"num_features": 65_536},
    "tokens-small": WIDE | {"step_tokens": 1024},
    "tokens-large": WIDE | {"step_tokens": 8192},
    "tokens-in-passes": WIDE | {"step_tokens": 8192, "micro_batches": 8},
    "data-ranks": {"num_features": 512, "feature_ranks": 1, "data_ranks": 2},
}


def workload(name: str, l0: float = 0.0) -> Workload:
    """A run for the formulas."""
    spec = spec_of(**RUNS[name])
    layers, width, row_group = SHAPES[spec["dataset"].removeprefix("datasets/")]
    return Workload(
        num_layers=layers,
        d_model=width,
        num_features=spec["num_features"],
        activation=Activation(spec["activation"]),
        # JumpReLU starts with half of all features active, and its first step is the largest.
        active=l0 or spec["top_k"] or spec["num_features"] / 2,
        near=0.0,
        decoder_span=0,
        step_tokens=spec["step_tokens"],
        feature_ranks=spec["feature_ranks"],
        data_ranks=spec["data_ranks"],
        through_threshold=spec.get("gradient_through_threshold", False),
        row_group_tokens=row_group,
        passes=spec.get("micro_batches", 1),
        weight_bytes=2 if "parameters" in spec else 4,
        moment_bytes=2 if "moments" in spec else 4,
    )


@dataclass
class Bench:
    """Trains each run once, when it is first asked for."""

    rig: Rig
    done: set[str] = field(default_factory=set)

    def run(self, name: str, spec: dict[str, Any] | None = None) -> str:
        """Have a run at its end."""
        if name not in self.done:
            whole = spec_of(**({"num_steps": 4, "warmup_steps": 1, "checkpoint_steps": 2} | (spec or RUNS[name])))
            self.rig.create_run(name, whole)
            self.rig.train(name, whole["feature_ranks"] * whole["data_ranks"])
            self.done.add(name)
        return name

    def peak(self, name: str) -> int:
        """Peak memory of a rank whose kernels were compiled before, as compiling takes memory of its own."""
        kind = name.split("-", 1)[0]
        self.run(f"warm-{kind if kind in WARM else 'all'}", WARM.get(kind, {}) | {"num_features": 64})
        return self.rig.peak_memory_bytes(self.run(name))

    def last_step(self, name: str) -> dict[str, Any]:
        """Metrics of the last step."""
        return self.rig.metrics(self.run(name))[-1]


@pytest.fixture(scope="module")
def bench(rig: Rig) -> Bench:
    """The rig with a second, wider dataset."""
    layers, width, row_group = SHAPES["wide"]
    harvest(rig, "wide", num_layers=layers, d_model=width, row_group_tokens=row_group, shard_tokens=(2048, 1024, 512))
    return Bench(rig)


@pytest.mark.parametrize("what", ["features", "jump", "tokens"])
def test_memory_of_a_rank_grows_as_planned(bench: Bench, what: str) -> None:
    """Between two sizes the peak of a rank grows by what the formulas say; the interpreter's own memory drops out."""
    grown = bench.peak(f"{what}-large") - bench.peak(f"{what}-small")
    planned = workload(f"{what}-large").memory().total - workload(f"{what}-small").memory().total
    assert planned == pytest.approx(grown, rel=WITHIN_GROWTH[what])


@pytest.mark.parametrize("name", RUNS)
def test_memory_of_a_rank_is_as_planned(bench: Bench, name: str) -> None:
    """With the interpreter and its libraries, the peak itself is what the plan says."""
    assert workload(name).memory().total + PROCESS_BYTES == pytest.approx(bench.peak(name), rel=WITHIN)


@pytest.mark.parametrize("name", ["features-large", "jump-large", "tokens-large", "tokens-in-passes", "data-ranks"])
def test_network_bytes_are_those_of_the_step(bench: Bench, name: str) -> None:
    """What a rank sends for a token, as the step counts it, on either axis and for either activation."""
    measured = bench.last_step(name)
    work = workload(name, measured["l0"])
    assert work.network().total / work.step_tokens == pytest.approx(measured["sent_bytes_per_token"], rel=WITHIN)


@pytest.mark.parametrize("name", ["features-large", "narrow-large", "jump-large", "tokens-large"])
def test_checkpoint_bytes_are_those_of_the_files(bench: Bench, name: str) -> None:
    """In the middle with moments and clocks, at the end with parameters only."""
    store, run = open_store(bench.rig.bucket_url), bench.run(name)
    steps = {info.key.split("/")[3] for info in store.list(f"runs/{run}/checkpoints/")}
    sizes = []
    for step in sorted(steps):
        manifest, _ = read_json(store, f"runs/{run}/checkpoints/{step}/manifest.json")
        sizes.append(sum(facts["size_bytes"] for facts in manifest["files"].values()))
    work = workload(name)
    assert sizes == [
        pytest.approx(work.checkpoint_bytes, rel=0.01),
        pytest.approx(work.last_checkpoint_bytes, rel=0.01),
    ]


def _export(bench: Bench, name: str) -> tuple[int, int]:
    """Export the last checkpoint; bytes of its files, and the process's peak memory."""
    rig, run = bench.rig, bench.run(name)
    step = str(bench.last_step(name)["step"])
    environment = rig.environment(run, WEFT_WORKER_CHECKPOINT_STEP=step, WEFT_WORKER_TRANSCODER=run)
    with (rig.folder / f"export-{run}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "weft_trainer.worker.export"], env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (rig.folder / f"export-{run}.log").read_text()[-3000:]
    manifest, _ = read_json(open_store(rig.bucket_url), f"transcoders/{run}/manifest.json")
    return manifest["size_bytes"], usage.ru_maxrss * 1024


def test_export_is_as_large_as_planned(bench: Bench) -> None:
    """Bytes of the transcoder's files, and the peak of the process that writes them."""
    files, peak = _export(bench, "features-large")
    work = workload("features-large")
    assert work.transcoder_bytes == pytest.approx(files, rel=0.01)
    # An export has no ranks to talk to, and so less of the process's own.
    assert work.export(TRAIN_TOKENS).peak + PROCESS_BYTES == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("codec", ["uniform", "klt", "bf16"])
def test_dataset_bytes_are_those_of_a_shard(codec: str) -> None:
    """Bits of the blocks, around them the means, orders and tables of a shard of a harvest's size, and the basis."""
    random = np.random.default_rng(1)
    streams = {name: random.standard_normal((4, 2040, 128), dtype=np.float32) for name in ("input", "output")}
    basis = learn_basis(streams) if codec == "klt" else None
    shard = encode_shard(streams, CodecSpec(codec, 1e-3), attributes={}, basis=basis)
    blocks = sum(entry.input.size_bytes + entry.output.size_bytes for entry in shard.statistics)
    bits = 8 * blocks / (2 * 4 * 2040 * 128)
    written = len(shard.data) + (len(basis.data()) if basis else 0)
    assert dataset_bytes(4, 128, 2040, bits, has_basis=basis is not None) == pytest.approx(written, rel=0.02)
