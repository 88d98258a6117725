"""
How long datasets are kept.

A dataset is kept for as long as one of its rules keeps it, and for ever where it has none. Rules look at its own times
and at the datasets that share a tag with it; who reads it is no matter of theirs, see holds.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from weft_cache.core.tags import check_key
from weft_common.errors import DataLossError, InvalidArgumentError

__all__ = ["Aged", "Retention", "expired"]

_MOST_DAYS = 36_500
_MOST_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Retention:
    """
    Rules of one dataset; the fields of weft.cache.v1.Retention.

    Args:
        keep_days: Days since it was sealed, or last took a shard; 0 is no rule.
        keep_last: It is kept while fewer sealed ones than this, of the same value of a tag, are newer; 0 is no rule.
        keep_last_tag: Key of that tag.
    """

    keep_days: int = 0
    keep_last: int = 0
    keep_last_tag: str = ""

    def check(self) -> None:
        """Refuse rules that make no sense. InvalidArgumentError."""
        for name, most in (("keep_days", _MOST_DAYS), ("keep_last", _MOST_KEPT)):
            if not 0 <= getattr(self, name) <= most:
                raise InvalidArgumentError(
                    f"retention.{name} is {getattr(self, name)}, expected 1 to {most}, or 0 for no such rule",
                    field=f"retention.{name}",
                )
        if bool(self.keep_last) != bool(self.keep_last_tag):
            raise InvalidArgumentError(
                "retention.keep_last and retention.keep_last_tag belong together: how many to keep of each value of "
                "which tag; give both or neither",
                field="retention.keep_last_tag",
            )
        if self.keep_last_tag:
            check_key(self.keep_last_tag, field="retention.keep_last_tag")

    def to_json(self) -> dict[str, Any]:
        """Plain values; empty where there is no rule."""
        return {name: getattr(self, name) for name in self.__slots__ if getattr(self, name)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Retention":
        """The inverse of `to_json`."""
        try:
            return cls(**data)
        except TypeError as error:
            raise DataLossError(f"a dataset's retention in the bucket is damaged: {error}; set it anew") from error


@dataclass(frozen=True, slots=True)
class Aged:
    """
    What rules look at.

    Args:
        id: Of the dataset.
        sealed: Or open.
        create_time: Orders datasets by age.
        active_time: When it was sealed, or last took a shard.
        tags: Its tags.
        retention: Its rules.
    """

    id: str
    sealed: bool
    create_time: datetime
    active_time: datetime
    tags: Mapping[str, str]
    retention: Retention


def expired(datasets: Sequence[Aged], now: datetime) -> list[str]:
    """Ids of those that no rule keeps, though they have one; oldest first."""
    return [each.id for each in sorted(datasets, key=_age) if _expired(each, datasets, now)]


def _expired(one: Aged, datasets: Sequence[Aged], now: datetime) -> bool:
    rules = one.retention
    if not rules.keep_days and not rules.keep_last:
        return False
    if rules.keep_days and now - one.active_time < timedelta(days=rules.keep_days):
        return False
    return not rules.keep_last or _is_superseded(one, datasets)


def _is_superseded(one: Aged, datasets: Sequence[Aged]) -> bool:
    key = one.retention.keep_last_tag
    if not one.sealed or key not in one.tags:
        return False
    newer = [
        each for each in datasets if each.sealed and each.tags.get(key) == one.tags[key] and _age(each) > _age(one)
    ]
    return len(newer) >= one.retention.keep_last


def _age(one: Aged) -> tuple[datetime, str]:
    return one.create_time, one.id
