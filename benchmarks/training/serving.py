"""
One side of a comparison, as a process that does a step whenever it is asked; only Python's own library.

A side is started with a `Shape` as JSON. It makes its model and data, does a step that is not counted, and says so with
an empty answer; from then on it does a step a line of its input and answers with a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

__all__ = ["Answer", "Shape", "serve"]


@dataclass(frozen=True)
class Shape:
    """What all sides compute: float32, random data in memory, the mean of `active` features a token and layer."""

    num_layers: int
    d_model: int
    num_features: int
    num_tokens: int
    active: int
    activation: str = "top-k"
    """Or jump-relu, with CLT-Forge's losses."""
    clt_forge: str = ""
    """CLT-Forge's working tree, for its side."""

    def __str__(self) -> str:
        return f"L {self.num_layers}, d {self.d_model}, F {self.num_features}, T {self.num_tokens}"

    @property
    def num_pairs(self) -> int:
        """Decoder blocks."""
        return self.num_layers * (self.num_layers + 1) // 2


@dataclass(frozen=True)
class Answer:
    """One step."""

    seconds: float
    cpu_s: float
    """Of this process, all its threads."""
    active: float
    """Features a token and layer, as it counted them."""
    peak_bytes: int
    """Resident, since the process began."""


def serve(make: Callable[[Shape], Callable[[], float]]) -> None:
    """
    Answer until the input ends.

    Args:
        make: Returns what does a step and returns how many features were active.
    """
    # Libraries print; only answers go where the other end reads.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = make(Shape(**json.loads(sys.argv[1])))
    step()
    print(file=answers, flush=True)
    for _ in sys.stdin:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        active = step()
        answer = Answer(
            seconds=time.perf_counter() - start_s,
            cpu_s=time.process_time() - start_cpu_s,
            active=active,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )
        print(json.dumps(asdict(answer)), file=answers, flush=True)
