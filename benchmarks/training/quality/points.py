"""
What was measured, a JSON line a run: an interrupted benchmark goes on where it was, and a changed one measures anew.

Runs are found by a digest of all that decides their outcome.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .arms import Job
from .evaluator import Quality

__all__ = ["Point", "PointFile"]


@dataclass(frozen=True)
class Point:
    """One trained and evaluated model."""

    digest: str
    side: str
    arm: str
    setting: str
    value: float
    seed: int
    seconds: float
    """Of all training steps; they depend on the machine and on what else runs there."""
    quality: Quality

    @classmethod
    def of(cls, job: Job, quality: Quality, seconds: float) -> Point:
        """Join a job with its outcome."""
        return cls(job.digest, job.side, job.arm, job.setting, job.value, job.seed, seconds, quality)


class PointFile:
    """
    A file of points.

    Args:
        path: Made where it is missing; a line that was cut off while it was written is dropped.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        whole = path.read_bytes() if path.exists() else b""
        lines = whole[: whole.rfind(b"\n") + 1]
        if lines != whole:
            path.write_bytes(lines)
        self._points = {}
        for line in lines.splitlines():
            document = json.loads(line)
            point = Point(**{**document, "quality": Quality(**document["quality"])})
            self._points[point.digest] = point

    def add(self, point: Point) -> None:
        """Keep a point; it is on the disk when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(point)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._points[point.digest] = point

    def find(self, job: Job) -> Point | None:
        """Return a job's outcome, if it was measured."""
        return self._points.get(job.digest)

    def of(self, jobs: Sequence[Job]) -> list[Point]:
        """Return the outcomes of those jobs that were measured, in their order."""
        return [point for job in jobs if (point := self.find(job)) is not None]
