"""
A rank's training step on a GPU: results against the reference's, times against what the machine can do.

    python benchmarks/training/bench_gpu.py [--features 16384 65536 98304] [--tokens 4096] [--top-k 50] [--rounds 5]

Llama-1B's shape by default: 16 layers of 2,048, TopK, parameters and second moments in bfloat16, Adam with beta1 = 0,
so that 96k features (30 billion parameters) fit 141 GB. Sizes that do not fit are named and left out.
Steps are those of a worker (`weft_clt.trainer`): first on data that lies on the device, in parts and as a whole, then
fed by a rank's loader from the host. What is in no part is sorting of lists, metrics, and waiting for numbers.
The floor of a part is the larger of its arithmetic at the measured rate of a dense matrix product and of the bytes that
it must move at the measured bandwidth of a copy; rows of the decoder count once a pair of layers, however often read.
Writes `.weft/bench/gpu.json`. Without a GPU it says what it needs and ends with 2. `--interpret`, where the environment
has TRITON_INTERPRET=1, walks through everything on the CPU; times mean nothing then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
import triton
from gpu_checks import check_decode, check_kernels
from gpu_step import GpuShape, GpuStep

from weft_clt.kernels import FeatureLists
from weft_clt.kernels.triton_encode import Encoder, Tile
from weft_clt.kernels.triton_kernels import TritonKernels

_TILES = [
    Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 4, 3), Tile(128, 64, 64, 8, 4), Tile(64, 128, 64, 4, 4),
    Tile(128, 256, 64, 8, 3), Tile(256, 128, 64, 8, 3),
]  # fmt: skip
Made = TypeVar("Made")


@dataclass(frozen=True)
class Machine:
    """What was measured on the spot."""

    device: str
    memory_bytes: int
    matmul_flops: float
    """Of a bfloat16 product of 8,192 cubed."""
    copy_bytes_per_s: float
    """Read plus written."""


class Stopwatch:
    """Seconds of named parts, over rounds; waits for the device around each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._round: dict[str, float] = {}
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, work: Callable[[], Made]) -> Made:
        """Do a part, which a round may have several times."""
        self._wait()
        start = time.perf_counter()
        made = work()
        self._wait()
        self._round[name] = self._round.get(name, 0.0) + time.perf_counter() - start
        return made

    def close_round(self) -> None:
        """Keep the sums of a round."""
        for name, seconds in self._round.items():
            self.seconds.setdefault(name, []).append(seconds)
        self._round = {}

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def best_s(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    watch = Stopwatch(device)
    for _ in range(rounds + 1):
        watch.timed("", work)
        watch.close_round()
    return min(watch.seconds[""][1:])


def measured_machine(device: torch.device, rounds: int) -> Machine:
    real = device.type == "cuda"
    side, elements = (8192, 1 << 30) if real else (64, 1 << 12)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    product = torch.empty_like(a)
    matmul_s = best_s(lambda: torch.mm(a, b, out=product), device, 2 * rounds)
    source = torch.ones(elements, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy_s = best_s(lambda: target.copy_(source), device, 2 * rounds)
    return Machine(
        device=torch.cuda.get_device_name() if real else "Triton's interpreter",
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if real else 1 << 30,
        matmul_flops=2 * side**3 / matmul_s,
        copy_bytes_per_s=2 * source.nbytes / copy_s,
    )


def best_tile(step: GpuStep, rounds: int) -> tuple[Tile, dict[str, float]]:
    """Encode one layer with every tile that the device can hold; returns the fastest, and all times."""
    times: dict[str, float] = {}
    best, shape, params = _TILES[0], step.shape, step.trainer.params
    for tile in _TILES:
        kernels = TritonKernels(Encoder(tile))
        own = (step.batch.inputs_LOD[0], params.w_enc_LSD[0], params.b_enc_LS[0])
        try:
            times[str(tile)] = best_s(lambda k=kernels, o=own: k.encode(*o, None, shape.top_k), step.device, rounds)
        except triton.runtime.errors.OutOfResources as error:
            print(f"  {tile}: {error}")
            continue
        if times[str(tile)] <= min(times.values()):
            best = tile
    return best, times


def floors_s(step: GpuStep, lists: FeatureLists, machine: Machine) -> dict[str, float]:
    """The least time of every part of a step."""
    shape, itemsize = step.shape, step.dtype.itemsize
    touched = (lists.start_LF1.diff(dim=1) > 0).sum(1).tolist()
    row, streams = shape.d_model * itemsize, shape.num_layers * shape.num_tokens * shape.d_model * itemsize
    block_rows = len(shape.blocks) * shape.num_features
    decoder_rows = sum(touched[source] for source, _ in shape.blocks)
    encoder_bytes = step.trainer.params.w_enc_LSD.nbytes
    num_bytes = {
        "encode and select": encoder_bytes + streams,
        "decode": decoder_rows * row + 2 * streams,
        "value gradients": decoder_rows * row + streams,
        "encoder gradient": encoder_bytes + 2 * sum(touched) * row + streams,
        "norm of the encoder's gradient": encoder_bytes,
        "decoder update": 2 * (decoder_rows + block_rows) * row + streams,
        "encoder update": 5 * encoder_bytes,
    }
    flops = 2 * shape.num_layers * shape.num_tokens * shape.num_features * shape.d_model
    floors = {name: count / machine.copy_bytes_per_s for name, count in num_bytes.items()}
    floors["encode and select"] = max(floors["encode and select"], flops / machine.matmul_flops)
    return floors


def measured(shape: GpuShape, machine: Machine, device: torch.device, rounds: int) -> list[dict[str, object]]:
    """Steps of one shape: a row for each part, and one for the whole."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = GpuStep(shape, TritonKernels(), torch.bfloat16, device)
    tile, tiles = (Tile(16, 16, 16), {}) if device.type == "cpu" else best_tile(step, rounds)
    step.kernels.own = TritonKernels(Encoder(tile))
    step.run()  # compiles
    lists = step.kernels.lists
    assert lists is not None
    worst = check_decode(step, lists)
    parts, whole = Stopwatch(device), Stopwatch(device)
    for _ in range(rounds):
        step.kernels.timed = parts.timed
        step.run()
        parts.close_round()
        step.kernels.timed = None
        whole.timed("step", step.run)
        whole.close_round()
    floors = floors_s(step, lists, machine)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    fed = fed_row(step, rounds)
    conditions = (
        f"{machine.device}, L {shape.num_layers}, d {shape.d_model}, F {shape.num_features}, T {shape.num_tokens}, "
        f"k {shape.top_k}, bfloat16, beta1 0, {tile}, torch {torch.__version__}, triton {triton.__version__}, "
        f"median of {rounds}"
    )
    rows: list[dict[str, object]] = []
    for name, times in parts.seconds.items():
        seconds = statistics.median(times)
        rows.append(
            {"name": name, "seconds": seconds, "floor_seconds": floors.get(name),
             "share_of_floor": floors[name] / seconds if name in floors else None, "conditions": conditions}
        )  # fmt: skip
    seconds = statistics.median(whole.seconds["step"])
    floor = floors["encode and select"] + floors["decoder update"] + floors["encoder update"]
    rows.append(fed | {"conditions": f"{conditions}; of steps fed from the host the mean"})
    rows.append(
        {"name": "step", "seconds": seconds, "floor_seconds": floor, "share_of_floor": floor / seconds,
         "tokens_per_s": shape.num_tokens / seconds, "peak_bytes": peak, "decode_error": worst, "tile_seconds": tiles,
         "conditions": conditions}
    )  # fmt: skip
    return rows


def fed_row(step: GpuStep, rounds: int) -> dict[str, object]:
    """Steps whose data a loader brings from the host; the first draw, which nothing hides, is in the mean."""
    row: dict[str, object] = {"name": "step, fed from the host", "floor_seconds": None, "share_of_floor": None}
    start = time.perf_counter()
    try:
        step.fed(rounds)
    except torch.OutOfMemoryError as error:
        print(f"F {step.shape.num_features}: no memory is left for a loader's batches: {error}")
        return row | {"seconds": None, "tokens_per_s": None}
    seconds = (time.perf_counter() - start) / rounds
    return row | {"seconds": seconds, "tokens_per_s": step.shape.num_tokens / seconds}


def _gigabytes(num_features: int) -> float:
    """What the default shape needs."""
    return GpuShape(16, 2048, num_features, 4096, 50).num_bytes(torch.bfloat16.itemsize) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--d-model", type=int, default=2048)
    parser.add_argument("--features", type=int, nargs="+", default=[16384, 65536, 98304])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check-tokens", type=int, default=333)
    parser.add_argument("--check-features", type=int, default=1000)
    parser.add_argument("--check-d-model", type=int, default=1100)
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(".weft/bench/gpu.json"))
    options = parser.parse_args()
    if options.interpret and not triton.knobs.runtime.interpret:
        print("--interpret needs TRITON_INTERPRET=1 in the environment before Python starts.", file=sys.stderr)
        return 2
    if not options.interpret and not torch.cuda.is_available():
        print(
            "No GPU was found. This benchmark needs an NVIDIA GPU of compute capability 8.0 or later with its driver, "
            f"and torch for CUDA; this is torch {torch.__version__}. Of its memory, 16k features take "
            f"{_gigabytes(16384):.0f} GB, 64k {_gigabytes(65536):.0f} GB and 96k {_gigabytes(98304):.0f} GB. "
            "`--interpret`, where the environment has TRITON_INTERPRET=1, walks through it on the CPU.",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cpu" if options.interpret else "cuda")
    for dtype in (torch.float32, torch.bfloat16):
        errors = check_kernels(
            TritonKernels(Encoder(Tile(16, 16, 16)) if options.interpret else None), dtype, device,
            num_tokens=options.check_tokens, num_features=options.check_features, d_model=options.check_d_model,
        )  # fmt: skip
        print(f"{dtype}: all results are the reference's; largest error {max(errors.values()):.2g} of what is allowed")
    machine = measured_machine(device, options.rounds)
    print(f"{machine.device}: {machine.matmul_flops / 1e12:.1f} TFLOP/s, {machine.copy_bytes_per_s / 1e9:.0f} GB/s")
    rows: list[dict[str, object]] = [{"name": "machine", **asdict(machine)}]
    for num_features in options.features:
        shape = GpuShape(options.layers, options.d_model, num_features, options.tokens, options.top_k)
        needed = shape.num_bytes(torch.bfloat16.itemsize)
        if needed > machine.memory_bytes:
            print(f"F {num_features}: left out; needs {needed / 1e9:.0f} GB of {machine.memory_bytes / 1e9:.0f} GB.")
            continue
        for row in measured(shape, machine, device, options.rounds):
            rows.append(row)
            share = row["share_of_floor"]
            mark = "" if share is None else f", {share:.0%} of the floor"
            if row["seconds"] is not None:
                print(f"F {num_features}: {row['name']}: {float(str(row['seconds'])) * 1e3:.2f} ms{mark}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
