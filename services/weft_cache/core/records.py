"""What the catalog knows of a dataset, and how that is written as JSON."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from weft_cache.core.retention import Retention
from weft_common.errors import DataLossError, InvalidArgumentError
from weft_common.resource_names import parse_name
from weft_store.shard.layout import CODECS, MAX_TARGET_FVU, MIN_TARGET_FVU, STEPPED

_MAX_LINEAGE_BYTES = 1 << 16
_HEX_SHA256 = re.compile(r"^[0-9a-f]{64}$")


class State(StrEnum):
    """States of a manifest. DELETING is never shown: to a reader the dataset is gone."""

    OPEN = "open"
    SEALED = "sealed"
    DELETING = "deleting"


_MAX_LINEAGE_BYTES = 1 << 16


class Split(StrEnum):
    """Which part of a dataset."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What a dataset is made of; the fields of weft.cache.v1.DatasetSpec."""

    model: str
    model_revision: str
    num_layers: int
    d_model: int
    input_hook: str
    output_hook: str
    codec: str
    target_fvu: float
    corpus: str
    corpus_digest: str
    lineage: str = ""

    def check(self) -> None:
        """
        Refuse a spec that no shard could fit.

        Raises:
            InvalidArgumentError: names the field, what it is and what it must be.
        """
        parse_name(self.model, "models")
        if not _HEX_SHA256.match(self.model_revision):
            raise InvalidArgumentError(
                f"spec.model_revision is {self.model_revision!r}, expected 64 hex digits; take it from GetModel",
                field="spec.model_revision",
            )
        for name, most in (("num_layers", 1024), ("d_model", 1 << 16)):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidArgumentError(
                    f"spec.{name} is {getattr(self, name)}, expected 1 to {most}; take it from GetModel",
                    field=f"spec.{name}",
                )
        for name in ("input_hook", "output_hook"):
            if not getattr(self, name):
                raise InvalidArgumentError(
                    f"spec.{name} is empty; name the hook without its layer, for example `mlp_in`", field=f"spec.{name}"
                )
        if self.codec not in CODECS:
            raise InvalidArgumentError(
                f"spec.codec is {self.codec!r}, expected one of {', '.join(CODECS)}", field="spec.codec"
            )
        if self.codec in STEPPED and not MIN_TARGET_FVU <= self.target_fvu <= MAX_TARGET_FVU:
            raise InvalidArgumentError(
                f"spec.target_fvu is {self.target_fvu}, expected {MIN_TARGET_FVU} to {MAX_TARGET_FVU} for the "
                f"codec {self.codec}; 0.001 is a good choice",
                field="spec.target_fvu",
            )
        if len(self.lineage.encode()) > _MAX_LINEAGE_BYTES:
            raise InvalidArgumentError(
                f"spec.lineage has {len(self.lineage.encode())} bytes, expected {_MAX_LINEAGE_BYTES} at most",
                field="spec.lineage",
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DatasetSpec":
        """The inverse of `dataclasses.asdict`; a manifest of before there was a lineage has none."""
        return cls(
            **{field.name: data[field.name] for field in fields(cls) if field.name != "lineage"},
            lineage=data.get("lineage", ""),
        )


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One committed shard, without its statistics."""

    index: int
    key: str
    sha256: str
    size_bytes: int
    num_tokens: int
    split: Split
    row_group_tokens: int

    def check(self) -> None:
        """Refuse figures that cannot be true of any shard."""
        if not 0 <= self.index < 1 << 31:
            raise InvalidArgumentError(f"shard.index is {self.index}, expected 0 or more", field="shard.index")
        if not _HEX_SHA256.match(self.sha256):
            raise InvalidArgumentError(
                f"shard.sha256 is {self.sha256!r}, expected the 64 hex digits of the object's SHA-256",
                field="shard.sha256",
            )
        for name, least in (("size_bytes", 1), ("num_tokens", 0), ("row_group_tokens", 1)):
            if getattr(self, name) < least:
                raise InvalidArgumentError(
                    f"shard.{name} is {getattr(self, name)}, expected {least} or more", field=f"shard.{name}"
                )

    @property
    def num_row_groups(self) -> int:
        """Row groups in it; the last may be shorter than the others."""
        return math.ceil(self.num_tokens / self.row_group_tokens)

    def tokens_of(self, row_group: int) -> int:
        """Tokens in one row group."""
        return min(self.row_group_tokens, self.num_tokens - row_group * self.row_group_tokens)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardRecord":
        """The inverse of `to_json`; a record that lacks a field has been damaged."""
        try:
            return cls(
                **{each.name: data[each.name] for each in fields(cls) if each.name != "split"},
                split=Split(data["split"]),
            )
        except (KeyError, ValueError) as error:
            raise DataLossError(f"a shard's record in the bucket is damaged: {error!r}; delete the dataset") from error

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "split": self.split.value}


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as a reader sees it, or one of its snapshots; `snapshot` is 0 where it is the dataset itself."""

    id: str
    spec: DatasetSpec
    state: State
    create_time: datetime
    seal_time: datetime | None
    shards: tuple[ShardRecord, ...]
    snapshot: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    retention: Retention = field(default_factory=Retention)

    @property
    def name(self) -> str:
        """Resource name."""
        return f"datasets/{self.id}"

    @property
    def size_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    def num_tokens(self, split: Split) -> int:
        """Tokens of one split."""
        return sum(shard.num_tokens for shard in self.shards if shard.split is split)
