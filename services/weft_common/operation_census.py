"""What Prometheus is told about long work: how much there is, how old it is, how it ended."""

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from weft_common.errors import Code
from weft_common.metrics import OPERATION_AGE_SECONDS, OPERATIONS, OPERATIONS_ENDED
from weft_common.operation_store import Record

__all__ = ["OperationCensus"]

_STATES = ("waiting", "here", "elsewhere")


class OperationCensus:
    """
    Counts the operations of one manager.

    Args:
        kinds: The kinds of work it knows; each has its figures from the start.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._kinds = tuple(kinds)
        for kind in self._kinds:
            for code in Code:
                OPERATIONS_ENDED.labels(kind, code.name)

    def count(self, records: Mapping[str, Record], running_here: Collection[str]) -> None:
        """Show what is unfinished, by name, of which `running_here` are worked on by this manager."""
        ages = dict.fromkeys(self._kinds, 0.0)
        numbers: Counter[tuple[str, str]] = Counter()
        for name, record in records.items():
            if record.done or record.kind not in ages:
                continue
            ages[record.kind] = max(ages[record.kind], time.time() - record.create_s)
            state = "here" if name in running_here else "elsewhere" if record.owner else "waiting"
            numbers[record.kind, state] += 1
        for kind, age in ages.items():
            OPERATION_AGE_SECONDS.labels(kind).set(age)
            for state in _STATES:
                OPERATIONS.labels(kind, state).set(numbers[kind, state])

    def ended(self, kind: str, result: Code) -> None:
        """Count an end that this manager wrote."""
        if kind in self._kinds:
            OPERATIONS_ENDED.labels(kind, result.name).inc()
