"""
What is kept of a graph as JSON: how it was asked for, and what came out.

`graphs/{id}/request.json` is written when a graph is asked for, `graphs/{id}/edges.safetensors` when it is computed,
then `graphs/{id}.json`: a graph is complete exactly when that one is there. `graphs/{id}/summary.json` follows it, for
listings, and takes up what is measured. `graphs/{id}/partial.json` shows a graph while it is made, and
`graphs/{id}/rows.json` says which entry of the cache is its own.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from weft_attribution.core.targets import Target
from weft_common.errors import InvalidArgumentError

__all__ = [
    "GraphRequest",
    "GraphSettings",
    "check_graph_id",
    "check_threshold",
    "edges_key",
    "graph_key",
    "partial_key",
    "request_key",
    "rows_key",
    "summary_key",
]

Json = dict[str, Any]
_ID = re.compile(r"[a-z0-9-]{1,63}")
MAX_LOGITS = 100
MAX_BATCH = 4096
MAX_FEATURES = 1 << 30


@dataclass(frozen=True)
class GraphSettings:
    """How a graph is made, defaults filled in."""

    model: str
    transcoder: str
    prompt: str
    max_logits: int = 10
    logit_probability: float = 0.95
    target_token_ids: tuple[int, ...] = ()
    node_threshold: float = 0.8
    edge_threshold: float = 0.98
    batch_size: int = 0
    max_features: int = 0
    targets: tuple[Target, ...] = ()
    position: int = -1

    @property
    def explained(self) -> tuple[Target, ...]:
        """What is asked for, however; nothing where the likeliest tokens are."""
        return (*(Target(token_id=token_id) for token_id in self.target_token_ids), *self.targets)

    def check(self) -> None:
        """
        Check what can be checked without looking anything up.

        Raises:
            InvalidArgumentError: Something is out of its range.
        """
        if not self.prompt:
            raise InvalidArgumentError("spec.prompt is empty; give the text to explain", field="spec.prompt")
        if not 1 <= self.max_logits <= MAX_LOGITS:
            raise InvalidArgumentError(
                f"spec.max_logits is {self.max_logits}; give 1 to {MAX_LOGITS}, or 0 for 10", field="spec.max_logits"
            )
        if not 0 <= self.batch_size <= MAX_BATCH:
            raise InvalidArgumentError(
                f"spec.batch_size is {self.batch_size}; give 1 to {MAX_BATCH}, or 0 to have it chosen",
                field="spec.batch_size",
            )
        if not 0 <= self.max_features <= MAX_FEATURES:
            raise InvalidArgumentError(
                f"spec.max_features is {self.max_features}; give 1 to {MAX_FEATURES}, or 0 for all active ones",
                field="spec.max_features",
            )
        check_threshold(self.logit_probability, "spec.logit_probability")
        check_threshold(self.node_threshold, "spec.node_threshold")
        check_threshold(self.edge_threshold, "spec.edge_threshold")
        if self.position >= 0 and any(target.text or target.minus_text for target in self.targets):
            raise InvalidArgumentError(
                "spec.targets has texts, which follow the whole prompt, and spec.position is given; give token ids",
                field="spec.targets",
            )
        if len(self.explained) > MAX_LOGITS:
            raise InvalidArgumentError(
                f"spec.targets and spec.target_token_ids name {len(self.explained)} targets; give at most {MAX_LOGITS}",
                field="spec.targets",
            )

    def to_json(self) -> Json:
        """As plain JSON values."""
        return {**asdict(self), "target_token_ids": list(self.target_token_ids)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "GraphSettings":
        """Read back what `to_json` wrote."""
        targets = tuple(Target.from_json(target) for target in document.get("targets", ()))
        token_ids = tuple(document["target_token_ids"])
        return cls(**{**document, "target_token_ids": token_ids, "targets": targets})


@dataclass(frozen=True)
class GraphRequest:
    """A graph as it was asked for."""

    graph_id: str
    settings: GraphSettings
    create_s: float
    request_id: str = ""

    def to_json(self) -> Json:
        return {
            "graph_id": self.graph_id,
            "settings": self.settings.to_json(),
            "create_s": self.create_s,
            "request_id": self.request_id,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "GraphRequest":
        return cls(
            document["graph_id"],
            GraphSettings.from_json(document["settings"]),
            document["create_s"],
            document["request_id"],
        )


def check_graph_id(graph_id: str, name: str = "graph_id") -> str:
    """
    Return an id if it is one.

    >>> check_graph_id("capital-of-france")
    'capital-of-france'
    """
    if not _ID.fullmatch(graph_id):
        raise InvalidArgumentError(
            f"{name} is {graph_id[:100]!r}; an id is lower-case letters, digits and '-', 1 to 63 of them", field=name
        )
    return graph_id


def check_threshold(value: float, name: str) -> float:
    """Return a share if it lies above 0 and at most at 1."""
    if not 0 < value <= 1:
        raise InvalidArgumentError(f"{name} is {value}; give a share above 0 and at most 1", field=name)
    return value


def request_key(graph_id: str) -> str:
    """Where the request of a graph lies."""
    return f"graphs/{graph_id}/request.json"


def edges_key(graph_id: str) -> str:
    """Where the edges of a graph lie."""
    return f"graphs/{graph_id}/edges.safetensors"


def partial_key(graph_id: str) -> str:
    """Where what there is of a graph lies while it is made."""
    return f"graphs/{graph_id}/partial.json"


def rows_key(graph_id: str) -> str:
    """Where it is said which cache entry names a graph's rows."""
    return f"graphs/{graph_id}/rows.json"


def summary_key(graph_id: str) -> str:
    """Where the summary of a finished graph lies."""
    return f"graphs/{graph_id}/summary.json"


def graph_key(graph_id: str) -> str:
    """Where the finished graph lies."""
    return f"graphs/{graph_id}.json"
