"""Event files that TensorBoard reads, by its own writer."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft_client.tracking.following import Histogram
from weft_common.errors import FailedPreconditionError

__all__ = ["TensorBoardFiles"]


class TensorBoardFiles:
    """
    Writes an event file into a folder.

    Args:
        folder: Made where it is missing; `tensorboard --logdir` takes it or the one above it.

    Raises:
        FailedPreconditionError: The extra is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise FailedPreconditionError(
                f"TensorBoard's event files need the package {error.name}: install weft[tensorboard]."
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._writer: Any = EventFileWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Keep what was measured at a step."""
        value = self._summaries.Summary.Value
        found = [value(tag=name, simple_value=number) for name, number in values.items()]
        found += [value(tag=name, histo=self._histogram(each)) for name, each in histograms.items()]
        event = self._events.Event(wall_time=time.time(), step=step, summary=self._summaries.Summary(value=found))
        self._writer.add_event(event)

    def _histogram(self, found: Histogram) -> Any:
        middles = [(low + high) / 2 for low, high in zip(found.edges[:-1], found.edges[1:], strict=True)]
        weighted = list(zip(middles, found.counts, strict=True))
        return self._summaries.HistogramProto(
            min=found.edges[0],
            max=found.edges[-1],
            num=sum(found.counts),
            sum=sum(middle * count for middle, count in weighted),
            sum_squares=sum(middle * middle * count for middle, count in weighted),
            # A bucket is named by its upper edge; an empty first one says where the second begins.
            bucket_limit=found.edges,
            bucket=[0, *found.counts],
        )

    def close(self) -> None:
        """Write everything down."""
        self._writer.close()
