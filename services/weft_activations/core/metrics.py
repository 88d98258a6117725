"""What this service counts, beside the gRPC metrics that every service has."""

import asyncio

from prometheus_client import Counter, Gauge

from weft_common.errors import Code, WeftError
from weft_common.metrics import REGISTRY

__all__ = [
    "ANOTHER_WAS_FIRST",
    "CAPTURED_BYTES",
    "EXTRACT_INCOMPLETE",
    "EXTRACT_TOKENS",
    "QUEUE_DEPTH",
    "incomplete_reason",
]

ANOTHER_WAS_FIRST = "another_was_first"
_INTERRUPTED = "interrupted"

EXTRACT_TOKENS = Counter(
    "weft_extract_tokens_total", "Tokens whose activations were committed by this replica.", registry=REGISTRY
)
EXTRACT_INCOMPLETE = Counter(
    "weft_extract_incomplete_total",
    "Times that a piece of a harvest did not become a shard here: a gRPC code, or one of the two that do no harm, "
    f"{ANOTHER_WAS_FIRST} and {_INTERRUPTED}.",
    ("reason",),
    registry=REGISTRY,
)
CAPTURED_BYTES = Gauge("weft_captured_bytes", "Bytes of captures that run or are being sent.", registry=REGISTRY)
QUEUE_DEPTH = Gauge("weft_queue_depth", "Forward passes that run or wait for the model.", registry=REGISTRY)


def incomplete_reason(error: BaseException) -> str:
    """
    Return the label of a piece that was not finished because of an error.

    >>> incomplete_reason(asyncio.CancelledError()), incomplete_reason(MemoryError())
    ('interrupted', 'unknown')
    """
    if isinstance(error, asyncio.CancelledError):
        return _INTERRUPTED
    return (error.code if isinstance(error, WeftError) else Code.UNKNOWN).name.lower()


for _reason in (ANOTHER_WAS_FIRST, _INTERRUPTED, *(code.name.lower() for code in Code if code is not Code.OK)):
    EXTRACT_INCOMPLETE.labels(_reason)
