"""The benchmark of a training step, at a size at which only its rows mean something."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "benchmarks" / "training" / "bench_step.py"


def _bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARK), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_benchmark_compares_with_dense_torch_and_the_floor(tmp_path: Path) -> None:
    """Both sides have the L0 that was asked for, each row its figures and what they were measured under."""
    output = tmp_path / "training.json"
    done = _bench("--shape", "2,16,32,24", "--active", "3", "--rounds", "2", "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())
    assert [row["unit"] for row in rows] == ["tokens/s", "GiB", "s"]
    for row in rows:
        assert row.keys() == {"name", "ours", "peer", "ratio", "unit", "conditions"}
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert "L 2, d 16, F 32, T 24" in row["name"]
        assert "L0 3.0" in row["conditions"]
    assert "L0 3.0 and 3.0" in rows[0]["conditions"]


def test_benchmark_refuses_a_folder_that_is_not_clt_forges(tmp_path: Path) -> None:
    """It says what it looked for."""
    done = _bench("--clt-forge", str(tmp_path))
    assert done.returncode == 1
    assert "src/clt_forge/clt.py" in done.stderr
