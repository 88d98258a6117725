"""What this service counts, beside the gRPC metrics that every service has."""

from prometheus_client import Counter, Gauge

from weft_common.metrics import REGISTRY

__all__ = ["EXTRACT_INCOMPLETE", "EXTRACT_TOKENS", "QUEUE_DEPTH"]

EXTRACT_TOKENS = Counter(
    "weft_extract_tokens_total", "Tokens whose activations were committed by this replica.", registry=REGISTRY
)
EXTRACT_INCOMPLETE = Counter(
    "weft_extract_incomplete_total",
    "Times that a piece of a harvest did not become a shard here, by reason.",
    ("reason",),
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge("weft_queue_depth", "Forward passes that run or wait for the model.", registry=REGISTRY)
