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
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Answer", "Done", "Shape", "peak_bytes", "serve"]


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
    passes: int = 1
    """In which a peer takes the tokens of a step, where all at once do not fit; their gradients add up."""
    num_ranks: int = 1
    """Processes that share a step of weft's, over gloo."""
    rank: int = 0
    meeting: str = ""
    """A file by which ranks find each other."""

    @classmethod
    def of_option(cls, text: str, active: int) -> Shape:
        """
        Read an option's layers,width,features,tokens.

        Raises:
            SystemExit: It is something else.
        """
        try:
            return cls(*map(int, text.split(",", 3)), active=active)
        except (TypeError, ValueError):
            raise SystemExit(
                f"--shape {text!r} is refused; give layers,width,features,tokens, such as 12,768,2048,1024."
            ) from None

    def __str__(self) -> str:
        return f"L {self.num_layers}, d {self.d_model}, F {self.num_features}, T {self.num_tokens}"

    @property
    def num_pairs(self) -> int:
        """Decoder blocks."""
        return self.num_layers * (self.num_layers + 1) // 2


@dataclass(frozen=True)
class Done:
    """What a side tells of a step."""

    active: float
    """Features a token and layer, as it counted them."""
    parts_s: dict[str, float] = field(default_factory=dict)
    """Seconds of parts of the step, where it measures them."""


@dataclass(frozen=True)
class Answer:
    """One step."""

    seconds: float
    cpu_s: float
    """Of this process, all its threads."""
    active: float
    peak_bytes: int
    """Resident, since the process began."""
    parts_s: dict[str, float]


def peak_bytes() -> int:
    """Return the peak resident memory of this process; Linux's `ru_maxrss` may be that of the process that forked."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:", 1)[1].split(maxsplit=1)[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(make: Callable[[Shape], Callable[[], Done]]) -> None:
    """
    Answer until the input ends.

    Args:
        make: Returns what does a step.
    """
    # Libraries print; only answers go where the other end reads.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Where memory runs out after all, a side is what should end, and nothing else on the machine.
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")
    step = make(Shape(**json.loads(sys.argv[1])))
    step()
    print(file=answers, flush=True)
    for _ in sys.stdin:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        done = step()
        answer = Answer(
            seconds=time.perf_counter() - start_s,
            cpu_s=time.process_time() - start_cpu_s,
            active=done.active,
            peak_bytes=peak_bytes(),
            parts_s=done.parts_s,
        )
        print(json.dumps(asdict(answer)), file=answers, flush=True)
