"""CLT-Forge's cache as a process, asked a line at a time."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Peer"]


class Peer:
    """
    The process of `side_clt_forge.py`; a context.

    Args:
        tree: A working tree of CLT-Forge.
        python: Of an environment that it runs in.
        folder: With the streams, and for its files.
    """

    def __init__(self, tree: Path, python: str, folder: Path) -> None:
        script = Path(__file__).with_name("side_clt_forge.py")
        self._process = subprocess.Popen(
            [python, str(script), str(tree), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def ask(self, what: str, **given: str) -> dict[str, Any]:
        """Have something done; the answer has the processor seconds that it took as `cpu_s`. SystemExit if it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": what, **given}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("CLT-Forge's side ended; what it said stands above. Check its folder and its Python.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
