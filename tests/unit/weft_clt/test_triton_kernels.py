"""
The Triton kernels without a GPU: interpreted, against the reference, and compiled to a GPU's machine code.

The interpreter has to be chosen before Triton is first imported, so its tests run in a process of their own.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has packages for Linux only")

ROOT = Path(__file__).parents[3]
BENCHMARK = str(ROOT / "benchmarks" / "training" / "bench_gpu.py")


def _python(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command, everything = [sys.executable, *arguments], os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=everything, capture_output=True, text=True, check=False)


LANE = [ROOT / "tests" / "triton_lane" / f"{part}.py" for part in ("products", "selection", "updates", "whole_steps")]


@pytest.mark.timeout(600)
def test_interpreted_kernels_agree_with_the_reference() -> None:
    """Every test of the lane passes; what failed is shown as it stands there."""
    done = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, LANE), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    num_tests = sum(part.read_text().count("\ndef test_") for part in LANE)
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed, done.stdout
    assert int(passed[1]) >= num_tests


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_kernels_compile_for_a_gpu(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch compiles for compute capability 9.0; only the encoder may need more than its registers."""
    import triton
    from tests.triton_compiler import compiled, launches, spilled_bytes

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    for name, launch in launches(dtype).items():
        binary = compiled(launch, dtype, 90)
        assert binary.asm["cubin"], name
        if name.startswith("encode ") and dtype is torch.bfloat16:
            assert "wgmma.mma_async" in binary.asm["ptx"], f"{name} does not use the matrix units"
        else:
            assert spilled_bytes(binary, tmp_path) == 0, name


@pytest.mark.timeout(600)
def test_gpu_benchmark_walks_through_on_the_interpreter(tmp_path: Path) -> None:
    """A tiny shape goes through the checks, every part of a rank's step and its loader, and leaves its rows."""
    output = tmp_path / "gpu.json"
    sizes = {
        "layers": 2, "d-model": 16, "features": 10, "tokens": 4, "top-k": 2, "rounds": 1,
        "check-tokens": 3, "check-features": 7, "check-d-model": 5,
    }  # fmt: skip
    arguments = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    done = _python(BENCHMARK, "--interpret", "--output", str(output), *arguments, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(output.read_text())}
    assert {"machine", "encode and select", "decode", "value gradients", "decoder update", "step"} <= rows.keys()
    assert rows["step"]["tokens_per_s"] > 0
    assert rows["step, fed from the host"]["tokens_per_s"] > 0


def test_gpu_benchmark_says_what_it_needs() -> None:
    """Without a GPU it ends with 2 and names the GPU, the software and the memory that each size takes."""
    done = _python(BENCHMARK, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "compute capability 8.0" in done.stderr
    assert "96k 131 GB" in done.stderr, done.stderr
