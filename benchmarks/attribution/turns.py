"""
A side of the comparison of graphs, as a process that answers a line of JSON a line; only Python's own library.

    side:    serve(make)                  make(given) returns what answers a request
    caller:  Side(python, script, given)  .ask({...}) returns the answer, its processor time and its peak memory
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Side", "SideError", "peak_bytes", "resident_bytes", "serve"]

Json = dict[str, Any]
HERE = Path(__file__).parent


class SideError(Exception):
    """A side ended before it answered."""


def peak_bytes() -> int:
    """Return the peak resident memory of this process, on Linux."""
    return _status_bytes("VmHWM")


def resident_bytes(*, from_here: bool = False) -> int:
    """Return the resident memory of this process; `from_here` begins its peak anew."""
    if from_here:
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:", 1)[1].split(maxsplit=1)[0])


def serve(make: Callable[[Json], Callable[[Json], Json]]) -> None:
    """
    Answer until the input ends.

    Args:
        make: Is given what the caller gave, and returns what answers a request.
    """
    # Libraries print; only answers go where the other end reads.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Where memory runs out, a side is what should end, and nothing else on the machine.
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")
    answer = make(json.loads(sys.argv[1]))
    print(file=answers, flush=True)
    for line in sys.stdin:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        found = answer(json.loads(line))
        told = {"wall_s": time.perf_counter() - start_s, "cpu_s": time.process_time() - start_cpu_s}
        print(json.dumps({**told, **found, "peak_bytes": peak_bytes()}), file=answers, flush=True)


class Side:
    """A process that serves, from the caller's end."""

    def __init__(self, python: str, script: str, given: Json, environment: Mapping[str, str]) -> None:
        self._name = script
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()

    def ask(self, **request: object) -> Json:
        """
        Return the answer to a request.

        Raises:
            SideError: It ended; what it said stands in the output.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # said by the line that does not come
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer: Json = json.loads(self._read())
        return answer

    def close(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SideError(f"{self._name} ended with {self._process.wait()}; what it said stands in the output")
        return line
