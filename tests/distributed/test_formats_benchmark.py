"""The comparison of layouts with other tools, with a stand-in for one of them."""

import re
import subprocess
import sys
from pathlib import Path

import compare
import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "assets" / "stand_in_peer"


def test_comparison_goes_both_ways() -> None:
    """Written by weft and read by the tool, made by the tool and read by weft, and there and back."""
    command = [sys.executable, str(ROOT / "benchmarks" / "formats" / "compare.py")]
    peer = f"circuit-tracer={sys.executable}:{STAND_IN}"
    done = subprocess.run([*command, "--peer", peer], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"\| circuit-tracer \| (\S+) \| (\S+) \| (\S+) \| \d+ \|", done.stdout.splitlines()[-1])
    assert found is not None, done.stdout
    assert all(float(each) < 1e-6 for each in found.groups())


@pytest.mark.parametrize("worst", [2e-6, float("nan")])
def test_comparison_fails_above_its_limit(worst: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One difference that is too large, or none at all, is enough."""
    monkeypatch.setattr(compare, "compare", lambda *_: {"out": 1e-9, "in": worst, "back": 0.0})
    monkeypatch.setattr("sys.argv", ["", "--peer", "circuit-tracer=python"])
    assert compare.main() == 1
