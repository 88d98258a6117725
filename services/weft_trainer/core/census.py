"""Counts runs by state for the operators."""

import asyncio
from collections import Counter

from weft_common.errors import WeftError
from weft_common.logging import get_logger
from weft_trainer.core.gauges import Gauges
from weft_trainer.core.runs import RunRepository

__all__ = ["count_runs"]

_log = get_logger(__name__)


async def count_runs(runs: RunRepository, gauges: Gauges, interval_s: float = 10.0) -> None:
    """Count again and again, until cancelled."""
    while True:
        try:
            gauges.jobs(Counter(str(record.state) for record in await runs.all()))
        except WeftError as error:
            _log.warning("runs_not_counted", error=error.message)
        await asyncio.sleep(interval_s)
