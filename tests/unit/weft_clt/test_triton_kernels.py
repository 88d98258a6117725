"""
The Triton kernels without a GPU: interpreted, against the reference, and compiled to a GPU's machine code.

The interpreter has to be chosen before Triton is first imported, so its tests run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has packages for Linux only")

LANE = Path(__file__).parents[2] / "triton_lane"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["products", "selection", "updates"])
def test_interpreted_kernels_agree_with_the_reference(part: str) -> None:
    """Every test of this part of the lane passes; what failed is shown as it stands there."""
    root = LANE.parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(LANE / f"{part}.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_kernels_compile_for_a_gpu(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch compiles for compute capability 9.0; only the encoder may need more than its registers."""
    import triton
    from tests.triton_compiler import compiled, launches, spilled_bytes

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    for name, launch in launches(dtype).items():
        binary = compiled(launch, dtype, 90)
        assert binary.asm["cubin"], name
        if name.startswith("encode") and dtype is torch.bfloat16:
            assert "wgmma.mma_async" in binary.asm["ptx"], f"{name} does not use the matrix units"
        else:
            assert spilled_bytes(binary, tmp_path) == 0, name
