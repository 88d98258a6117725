"""
How an index is asked for, and where its parts lie.

    features/{transcoder}/index/{id}/request.json     how it was asked for
    features/{transcoder}/index/{id}/text/...         sequences as tokens, and which shard holds them
    features/{transcoder}/index/{id}/state/...        what was gathered so far; gone when the index is whole
    features/{transcoder}/index/{id}/leases/...       who makes which layer; gone when the index is whole
    features/{transcoder}/index/{id}/layers/{n}.parquet, summary.parquet, triggers.parquet
    features/{transcoder}/index/{id}/manifest.json    last: with it the index is whole
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from weft_common.errors import InvalidArgumentError

__all__ = ["MAX_INDEX_TOKENS", "ActivityRule", "IndexKeys", "IndexRequest", "IndexSettings"]

MAX_INDEX_TOKENS = 100_000_000
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "num_top": (1, 100),
    "num_sampled": (1, 200),
    "num_quantiles": (1, 20),
    "window_tokens": (4, 256),
    "dense_share": (1e-6, 1),
    "num_neighbours": (1, 100),
    "coactivation_tokens": (1, 65_536),
    "pool_windows": (8, 1_024),
}


class ActivityRule(StrEnum):
    """By what an index takes features for active."""

    THRESHOLD = "threshold"
    """As the transcoder has it."""
    THRESHOLD_FOR_COUNT = "threshold_for_count"
    """The transcoder keeps the largest; the threshold by which a feature fires as often stands for that."""


@dataclass(frozen=True)
class IndexSettings:
    """
    What is kept of each feature.

    Args:
        num_top: Windows around its strongest activations.
        num_sampled: Windows drawn from all stretches where it is active.
        num_quantiles: Quantiles that the drawn ones are told apart by.
        window_tokens: Tokens of a window.
        dense_share: A feature that is active on a larger share of tokens is called dense.
        num_neighbours: Nearest features by decoder, and by what is active together.
        coactivation_tokens: Tokens, drawn at random, on which it is counted what is active together.
        pool_windows: Windows drawn at random, of which the quiet ones of a feature are taken; a multiple of 8.
        seed: Of all draws.
    """

    num_top: int = 20
    num_sampled: int = 40
    num_quantiles: int = 10
    window_tokens: int = 32
    dense_share: float = 0.1
    num_neighbours: int = 10
    coactivation_tokens: int = 4096
    pool_windows: int = 256
    seed: int = 0

    def check(self) -> None:
        """
        Check that everything is in its range.

        Raises:
            InvalidArgumentError: Something is not.
        """
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InvalidArgumentError(
                    f"settings.{name} is {value}; give {least} to {most}, or 0 for {getattr(IndexSettings, name)}",
                    field=f"settings.{name}",
                )
        if self.pool_windows % 8:
            raise InvalidArgumentError(
                f"settings.pool_windows is {self.pool_windows}; give a multiple of 8", field="settings.pool_windows"
            )
        if self.num_quantiles > self.num_sampled:
            raise InvalidArgumentError(
                f"settings.num_quantiles is {self.num_quantiles}, more than the {self.num_sampled} windows that are "
                "drawn; give fewer quantiles or more windows",
                field="settings.num_quantiles",
            )


@dataclass(frozen=True)
class IndexRequest:
    """An index as it was asked for; ids without their collection."""

    transcoder: str
    index_id: str
    dataset: str
    held_out: bool
    max_tokens: int
    settings: IndexSettings

    def check(self) -> None:
        """
        Check what can be checked without looking anything up.

        Raises:
            InvalidArgumentError: Something is out of its range.
        """
        if not 0 <= self.max_tokens <= MAX_INDEX_TOKENS:
            raise InvalidArgumentError(
                f"max_tokens is {self.max_tokens}; give 1 to {MAX_INDEX_TOKENS}, or 0 for the whole split",
                field="max_tokens",
            )
        self.settings.check()

    @property
    def operation_id(self) -> str:
        """Id of the work that makes it."""
        return f"index-{hashlib.sha256(f'{self.transcoder}/{self.index_id}'.encode()).hexdigest()[:24]}"

    @property
    def keys(self) -> "IndexKeys":
        """Where it lies."""
        return IndexKeys(self.transcoder, self.index_id)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "IndexRequest":
        """Read back what `to_json` wrote."""
        settings = {each.name: document["settings"][each.name] for each in fields(IndexSettings)}
        return cls(
            **{each.name: document[each.name] for each in fields(cls) if each.name != "settings"},
            settings=IndexSettings(**settings),
        )


@dataclass(frozen=True)
class IndexKeys:
    """Keys of one index."""

    transcoder: str
    index_id: str

    @property
    def prefix(self) -> str:
        """Everything of it starts with this."""
        return f"features/{self.transcoder}/index/{self.index_id}/"

    @property
    def request(self) -> str:
        """How it was asked for."""
        return f"{self.prefix}request.json"

    @property
    def manifest(self) -> str:
        """With it the index is whole."""
        return f"{self.prefix}manifest.json"

    @property
    def summary(self) -> str:
        """A row a feature, without text."""
        return f"{self.prefix}summary.parquet"

    @property
    def triggers(self) -> str:
        """Which features fire on which token, by token."""
        return f"{self.prefix}triggers.parquet"

    @property
    def states(self) -> str:
        """What was gathered so far."""
        return f"{self.prefix}state/"

    @property
    def leases(self) -> str:
        """Who makes which part now."""
        return f"{self.prefix}leases"

    def text(self, part: str) -> str:
        """A file of the sequences."""
        return f"{self.prefix}text/{part}"

    @property
    def layers(self) -> str:
        """The files of layers."""
        return f"{self.prefix}layers/"

    def layer(self, layer: int) -> str:
        """Everything on the features of a layer."""
        return f"{self.layers}{layer}.parquet"

    def state(self, layer: int, low: int, high: int) -> str:
        """What was gathered of the features `low` to `high` of a layer."""
        return f"{self.states}{layer}-{low}-{high}.safetensors"
