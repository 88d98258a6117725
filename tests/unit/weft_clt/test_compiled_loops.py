"""Compiled loops are kept as long as nothing changes that they were made of."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba.core import config

import weft_clt
from weft_clt.kernels import loops, panel_loops
from weft_clt.kernels.compiling import sources_of

_LOOP = (
    "from weft_clt.kernels.compiling import compiled\n"
    "from loops_of_a_test.parts import middle\n\n"
    "@compiled()\n"
    "def total(count):\n"
    "    return middle.part(count)\n"
)
_MIDDLE = "from loops_of_a_test.parts.deep import SUMMAND, numba\n\n@numba.njit\ndef part(x):\n    return x + SUMMAND\n"

Run = Callable[[], Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Import a package afresh, as a new process would, and return its compiled function after a call."""
    package = tmp_path / "loops_of_a_test"
    (package / "parts").mkdir(parents=True)
    for name, text in (("__init__", ""), ("loop", _LOOP), ("parts/__init__", ""), ("parts/middle", _MIDDLE)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))

    def fresh() -> Any:
        for name in [name for name in sys.modules if name.startswith("loops_of_a_test")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("loops_of_a_test.loop").total

    return fresh


def _write_summand(tmp_path: Path, summand: int) -> None:
    text = f"import numba\n\nSUMMAND = {summand}\n"
    (tmp_path / "loops_of_a_test" / "parts" / "deep.py").write_text(text)


def test_change_in_what_a_loop_imports_compiles_it_again(run: Run, tmp_path: Path) -> None:
    """Also two imports away; what did not change comes from the disk, in both versions."""
    for summand, hits in ((1, 0), (1, 1), (20, 0), (20, 1), (1, 1)):
        _write_summand(tmp_path, summand)
        total = run()
        assert total(5) == 5 + summand
        assert sum(total.stats.cache_hits.values()) == hits, summand


def test_sources_of_the_loops_are_found() -> None:
    """Those that are compiled into them; nothing that another kind of kernel is made of."""
    package = Path(weft_clt.__file__).resolve().parent
    for module in (loops, panel_loops):
        names = {path.stem for path in sources_of(Path(module.__file__).resolve(), package)}
        assert {"panel_rows", "vector_code", "compiling"} <= names
        assert not {name for name in names if name.startswith("triton")}
