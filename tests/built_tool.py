"""Where a tool is that one of `scripts/` builds once, for the tests that need the real thing."""

import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["built_tool"]

_SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def built_tool(name: str) -> Path:
    """Ask `scripts/{name}.py` for the executable that it builds; the test fails where it was not built."""
    path = Path(subprocess.check_output([sys.executable, _SCRIPTS / f"{name}.py", "--path"], text=True).strip())
    if not path.is_file():
        pytest.fail(f"nothing at {path}: run `make {name}`, which builds it once (Go and its module proxy needed).")
    return path
