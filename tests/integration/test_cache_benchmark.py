"""The benchmark of the cache, at a size at which only its rows' form and its bits mean something."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / "benchmarks" / "cache"


def test_cache_benchmark_writes_rows_and_page(tmp_path: Path) -> None:
    """Every row has its figures and conditions, codecs are near what they are held against, and the page is filled."""
    out = tmp_path / "cache.json"
    subprocess.run(
        [sys.executable, _FOLDER / "bench_cache.py", "--quick", "--only", "bits", "rates", "--out", out],
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    rows = json.loads(out.read_text())
    assert {"name", "ours", "peer", "ratio", "unit", "conditions"} <= set.intersection(*(set(row) for row in rows))
    bits = [row for row in rows if row["of"] == "bits"]
    assert {(row["codec"], row["target"], row["source"]) for row in bits} == {
        (codec, target, source)
        for codec in ("uniform", "klt")
        for target in (1e-3, 1e-2)
        for source in ("mlp_in", "resid_mid", "mlp_out")
    }
    for row in bits:
        assert len(row["layers"]) == 30
        if (row["codec"], row["beside"]) == ("uniform", "entropy"):
            assert row["ours"] <= row["peer"] + 0.15
    assert {row["name"].split(":")[0] for row in rows if row["of"] == "rate"} == {
        "uniform", "klt, in its basis", "klt, basis undone on the processor", "bf16",
    }  # fmt: skip
    page = tmp_path / "docs" / "benchmarks" / "cache.md"
    page.parent.mkdir(parents=True)
    page.write_text((_ROOT / "docs" / "benchmarks" / "cache.md").read_text())
    program = "import json, pathlib, sys; from cache_page import fill_page; "
    program += "fill_page(pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text()))"
    subprocess.run([sys.executable, "-c", program, page, out], check=True, cwd=_FOLDER)
    text = page.read_text()
    assert "| klt | 0.01 | `resid_mid` |" in text
    assert "| uniform: encode, allocator of the C library |" in text
    assert (tmp_path / "docs" / "images" / "cache-bits.svg").read_text().lstrip().startswith("<?xml")
