"""
A replica that has no graph of its own to make takes rows of one that another makes.

It starts from the captured streams of the maker, so that both explain the same numbers; which features are active must
agree before a row is computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from weft_attribution.core.gate import Gate
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.pipeline import Building, Limits
from weft_attribution.core.ports import Capture, ModelInfo, Token
from weft_attribution.core.row_parts import ROOT
from weft_attribution.core.row_rounds import open_round, read_problem
from weft_attribution.core.targets import Target
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import FailedPreconditionError, WeftError
from weft_store.port import ObjectStore

__all__ = ["RowHelper"]

Json = dict[str, Any]
_MOST_GRAPHS = 64


@dataclass(frozen=True)
class _Known:
    """An attempt that was looked at; no building where there is nothing to help with."""

    prefix: str
    problem: Json
    building: Building | None


class RowHelper:
    """
    Looks for graphs that others make.

    Args:
        store: The bucket.
        models: Frozen weights.
        limits: What it may take.
        gate: Of this process.
        warn: Told of an attempt that cannot be helped with, and why.
    """

    def __init__(
        self,
        store: ObjectStore,
        models: ModelFolder,
        limits: Limits,
        gate: Gate,
        warn: Callable[[str, str], None] = lambda prefix, reason: None,
    ) -> None:
        self._store, self._models, self._limits, self._gate, self._warn = store, models, limits, gate, warn
        self._known: _Known | None = None

    def look(self, goes_on: Callable[[], bool] = lambda: True) -> int:
        """
        Take parts of a graph that hands some out.

        Args:
            goes_on: Asked before each part.

        Returns:
            How many parts were computed.
        """
        with self._gate.helping() as there:
            if not there:
                self._known = None
                return 0
            prefixes = list(self._attempts())
            if self._known is not None and self._known.prefix not in prefixes:
                self._known = None
            for prefix in prefixes:
                helped = self._help(prefix, lambda: goes_on() and not self._gate.is_wanted)
                if helped:
                    return helped
            return 0

    def _attempts(self) -> Iterator[str]:
        for graph in islice(self._store.list_folders(ROOT), _MOST_GRAPHS):
            for attempt in self._store.list_folders(f"{ROOT}{graph}/"):
                yield f"{ROOT}{graph}/{attempt}/"

    def _help(self, prefix: str, goes_on: Callable[[], bool]) -> int:
        if next(iter(self._store.list(f"{prefix}rounds/")), None) is None:
            return 0
        if self._known is None or self._known.prefix != prefix:
            self._known = None
            found = read_problem(self._store, prefix)
            if found is None:
                return 0
            problem, streams = found
            try:
                self._known = _Known(prefix, problem, self._prepare(problem, streams))
            except (WeftError, KeyError, TypeError, ValueError) as error:
                # Another release may say other things of a problem.
                self._warn(prefix, repr(error))
                self._known = _Known(prefix, problem, None)
        known = self._known
        handed_out = open_round(self._store, prefix, known.problem)
        if known.building is None or handed_out is None:
            return 0
        return handed_out.help(known.building.compute, goes_on)

    def _prepare(self, problem: Json, streams: dict[str, Any]) -> Building:
        info = ModelInfo(**problem["model"])
        capture = Capture(info, tuple(Token(*token) for token in problem["tokens"]), streams)
        targets = tuple(Target.from_json(target) for target in problem["targets"])
        building = Building(
            self._models.weights(info.name),
            TranscoderReader(self._store, problem["transcoder"]),
            capture,
            targets,
            # Only who makes the graph ranks features.
            np.ones(len(targets)),
            self._limits,
        )
        if building.features_digest != problem["features"]:
            raise FailedPreconditionError(
                "other features are active here than where the graph is made: give all replicas the same models folder "
                "and release"
            )
        return building
