"""Which datasets a listing is about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from weft_cache.core.records import State
from weft_cache.core.tags import check_tags
from weft_common.errors import InvalidArgumentError
from weft_common.resource_names import parse_name

__all__ = ["EVERYTHING", "DatasetFilter"]


@dataclass(frozen=True, slots=True)
class DatasetFilter:
    """
    All that is set must hold.

    Args:
        state: OPEN or SEALED.
        model: `models/{model}`.
        codec: By name.
        tags: All of them, of these very values.
        created_from: Created then or later.
        created_before: Created earlier.
    """

    state: State | None = None
    model: str = ""
    codec: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    created_from: datetime | None = None
    created_before: datetime | None = None

    def check(self) -> None:
        """
        Refuse what no dataset could be.

        Raises:
            InvalidArgumentError: Names the field.
        """
        if self.model:
            parse_name(self.model, "models", field="filter.model")
        check_tags(self.tags, field="filter.tags")
        if self.created_from and self.created_before and self.created_from >= self.created_before:
            raise InvalidArgumentError(
                f"filter.created_from is {self.created_from.isoformat()}, which is not before created_before "
                f"{self.created_before.isoformat()}; nothing lies between them",
                field="filter.created_from",
            )

    def takes(self, manifest: Mapping[str, Any]) -> bool:
        """Whether a dataset of this manifest is one of them."""
        spec, created = manifest["spec"], datetime.fromisoformat(manifest["create_time"])
        tags = manifest.get("tags", {})
        return (
            (self.state is None or manifest["state"] == self.state)
            and (not self.model or spec["model"] == self.model)
            and (not self.codec or spec["codec"] == self.codec)
            and all(tags.get(key) == value for key, value in self.tags.items())
            and (self.created_from is None or created >= self.created_from)
            and (self.created_before is None or created < self.created_before)
        )


EVERYTHING = DatasetFilter()
