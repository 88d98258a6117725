"""
Sides as processes that take turns, a step each a round, so that what else runs on the machine meets all alike.

Where the sides do not fit into memory side by side, each is started anew in every round, one after the other.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from serving import Answer, Shape

__all__ = ["Given", "Round", "SideError", "Taken", "busy_s", "take_turns"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Given:
    """A side, and what it is to do."""

    name: str
    script: str
    shape: Shape
    needed_bytes: int
    """Of memory, as estimated (`footprints`)."""
    python: str = sys.executable


@dataclass(frozen=True)
class Round:
    """One step of one side."""

    answers: list[Answer]
    """One a rank."""
    others_cores: float
    """Processors that were busy with something else."""

    @property
    def seconds(self) -> float:
        """Until the last rank was done."""
        return max(answer.seconds for answer in self.answers)

    def part_s(self, part: str) -> float:
        """Seconds of a part of the step on the rank that took longest."""
        return max(answer.parts_s.get(part, 0.0) for answer in self.answers)


@dataclass
class Taken:
    """What a side took over its rounds."""

    given: Given
    rounds: list[Round] = field(default_factory=list)
    failure: str = ""
    """Why it has no figures, if it has none."""

    @property
    def seconds(self) -> float:
        """Of a step, the median."""
        return statistics.median(each.seconds for each in self.rounds)

    @property
    def tokens_per_s(self) -> float:
        """By the median step."""
        return self.given.shape.num_tokens / self.seconds

    @property
    def peak_gib(self) -> float:
        """Resident memory at its peak, of all ranks together, interpreter and libraries included."""
        return max(sum(answer.peak_bytes for answer in each.answers) for each in self.rounds) / (1 << 30)

    @property
    def active(self) -> float:
        """Features a token and layer."""
        return statistics.mean(each.answers[0].active for each in self.rounds)

    @property
    def others_cores(self) -> float:
        """The most that others took during a step."""
        return max(each.others_cores for each in self.rounds)

    def part_s(self, part: str) -> float:
        """Seconds of a part of the step, the median."""
        return statistics.median(each.part_s(part) for each in self.rounds)


class SideError(Exception):
    """A side ended before it had done its steps."""


class Side:
    """The processes of a side, one a rank."""

    def __init__(self, given: Given, environment: Mapping[str, str]) -> None:
        self.name = given.name
        self._folder = tempfile.TemporaryDirectory()
        shape = replace(given.shape, meeting=f"{self._folder.name}/ranks" if given.shape.num_ranks > 1 else "")
        self._ranks = [
            subprocess.Popen(
                [given.python, str(HERE / given.script), json.dumps(asdict(replace(shape, rank=rank)))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(shape.num_ranks)
        ]
        try:
            for process in self._ranks:
                self._read(process)
        except SideError:
            self.close()
            raise

    def step(self) -> Round:
        """Do a step."""
        start_s, start_busy_s = time.perf_counter(), busy_s()
        for process in self._ranks:
            assert process.stdin is not None
            try:
                process.stdin.write("step\n")
                process.stdin.flush()
            except BrokenPipeError:
                self._read(process)
        answers = [Answer(**json.loads(self._read(process))) for process in self._ranks]
        others_s = busy_s() - start_busy_s - sum(answer.cpu_s for answer in answers)
        return Round(answers, max(0.0, others_s / (time.perf_counter() - start_s)))

    def close(self) -> None:
        """Let it go; a rank that another has left alone is ended."""
        alone = any(process.poll() for process in self._ranks)
        for process in self._ranks:
            if alone:
                process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # of a step that it never read
                process.stdin.close()
        for process in self._ranks:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._folder.cleanup()

    def _read(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            killed = ", killed, as it happens where memory runs out" if code == -9 else ""
            raise SideError(f"it ended with {code}{killed}; what it said stands in the output")
        return line


def busy_s() -> float:
    """Return the seconds that all processors together were busy since the machine started; 0 where it is unknown."""
    counters = Path("/proc/stat")
    if not counters.exists():
        return 0.0
    user, nice, system, _, _, irq, soft_irq, *_ = map(int, counters.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def take_turns(
    sides: Sequence[Given], rounds: int, environment: Mapping[str, str], *, together: bool, title: str
) -> dict[str, Taken]:
    """
    Have each side do a step a round, after one that is not counted.

    Args:
        together: Keep all in memory from the first round to the last; otherwise start each anew in every round.
        title: Begins the lines that tell how it goes.

    Returns:
        What each took, by its name; one that ended early has a failure and no rounds.
    """
    found = {given.name: Taken(given) for given in sides}
    running: dict[str, Side] = {}
    try:
        for number in range(rounds):
            told = []
            for name, taken in found.items():
                if taken.failure:
                    continue
                try:
                    if name not in running:
                        running[name] = Side(taken.given, environment)
                    taken.rounds.append(running[name].step())
                    told.append(f"{name} {taken.rounds[-1].seconds:.3f} s")
                except SideError as error:
                    taken.failure = str(error)
                    taken.rounds.clear()
                    told.append(f"{name} failed")
                if name in running and (taken.failure or not together):
                    running.pop(name).close()
            print(f"{title}, round {number + 1}: {', '.join(told)}", flush=True)
    finally:
        for side in running.values():
            side.close()
    return found
