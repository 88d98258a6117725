"""
How an export is asked for, and where its parts lie.

    features/{transcoder}/exports/{id}/request.json     how it was asked for, and of which index as it was then
    features/{transcoder}/exports/{id}/state/...        what was written on the way; gone when the export is whole
    features/{transcoder}/exports/{id}/files/...        the files as others read them
    features/{transcoder}/exports/{id}/files.json       path and bytes of each of them
    features/{transcoder}/exports/{id}/manifest.json    last: with it the export is whole
    features/{transcoder}/exports/{id}/deleting.json    there from the manifest's end to that of all others
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from weft_attribution.core.feature_index.settings import IndexSettings
from weft_common.errors import InvalidArgumentError

__all__ = ["DEFAULT_LOGITS", "ExportKeys", "ExportLayout", "ExportRequest", "features_a_part"]

DEFAULT_LOGITS = 10
MAX_LOGITS = 100
_MAX_PART = 256
_PART_TOKENS = 1 << 20
_SOURCE_SET = re.compile(r"[A-Za-z0-9_-]{1,63}")
_BATCH = re.compile(r"batch-[0-9]{1,9}\.json|skipped_indexes\.json")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


class ExportLayout(StrEnum):
    """Whose files are written."""

    SAE_DASHBOARD = "sae-dashboard"
    CIRCUIT_TRACER = "circuit-tracer"


@dataclass(frozen=True)
class ExportRequest:
    """
    An export; ids without their collection.

    Args:
        transcoder: Whose features.
        export_id: Its id.
        layout: Whose files.
        index_id: The index that they are of; empty for the newest, before it is looked up.
        layers: Rising; none means all, before they are looked up.
        model_name: What the files call the model; empty for its id, before it is looked up.
        source_set: What the files call the features.
        num_logits: Top and bottom logits of each feature.
    """

    transcoder: str
    export_id: str
    layout: ExportLayout
    index_id: str = ""
    layers: tuple[int, ...] = ()
    model_name: str = ""
    source_set: str = ""
    num_logits: int = DEFAULT_LOGITS

    def check(self) -> None:
        """
        Check what can be checked without looking anything up.

        Raises:
            InvalidArgumentError: Something is out of its range.
        """
        if not 1 <= self.num_logits <= MAX_LOGITS:
            raise InvalidArgumentError(
                f"num_logits is {self.num_logits}; give 1 to {MAX_LOGITS}, or 0 for {DEFAULT_LOGITS}",
                field="num_logits",
            )
        if not _SOURCE_SET.fullmatch(self.source_set):
            raise InvalidArgumentError(
                f"source_set is {self.source_set[:100]!r}; give letters, digits, '_' and '-', 63 at most",
                field="source_set",
            )
        if self.model_name and not _MODEL_NAME.fullmatch(self.model_name):
            raise InvalidArgumentError(
                f"model_name is {self.model_name[:100]!r}; give letters, digits, '.', '_', '-' and '/', 100 at most",
                field="model_name",
            )

    @property
    def operation_id(self) -> str:
        """Id of the work that makes it."""
        return f"export-{hashlib.sha256(f'{self.transcoder}/{self.export_id}'.encode()).hexdigest()[:24]}"

    @property
    def keys(self) -> "ExportKeys":
        """Where it lies."""
        return ExportKeys(self.transcoder, self.export_id)

    def is_file(self, path: str) -> bool:
        """
        Whether files of this layout, of these layers, may have such a path.

        >>> one = ExportRequest("t", "e", ExportLayout.SAE_DASHBOARD, layers=(3,), source_set="s")
        >>> one.is_file("3-s/batch-12.json"), one.is_file("4-s/batch-12.json"), one.is_file("3-s/../x")
        (True, False, False)
        """
        if self.layout is ExportLayout.CIRCUIT_TRACER:
            return path == "index.json.gz" or path in {f"layer_{layer}.bin" for layer in self.layers}
        folder, _, name = path.partition("/")
        return _BATCH.fullmatch(name) is not None and folder in {f"{layer}-{self.source_set}" for layer in self.layers}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "layout": self.layout.value, "layers": list(self.layers)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ExportRequest":
        """Read back what `to_json` wrote. KeyError, TypeError, ValueError where it did not."""
        plain = {each.name: document[each.name] for each in fields(cls)}
        return cls(
            **{**plain, "layout": ExportLayout(plain["layout"]), "layers": tuple(int(each) for each in plain["layers"])}
        )


def features_a_part(settings: IndexSettings) -> int:
    """
    Features that are worked on at once, so that their text fits into tens of megabytes.

    >>> features_a_part(IndexSettings()), features_a_part(IndexSettings(num_top=100, window_tokens=256))
    (256, 16)
    """
    tokens = (settings.num_top + settings.num_sampled) * settings.window_tokens
    return min(_MAX_PART, 1 << max(0, (_PART_TOKENS // tokens).bit_length() - 1))


@dataclass(frozen=True)
class ExportKeys:
    """Keys of one export."""

    transcoder: str
    export_id: str

    @property
    def prefix(self) -> str:
        """Everything of it starts with this."""
        return f"features/{self.transcoder}/exports/{self.export_id}/"

    @property
    def request(self) -> str:
        """How it was asked for."""
        return f"{self.prefix}request.json"

    @property
    def manifest(self) -> str:
        """With it the export is whole."""
        return f"{self.prefix}manifest.json"

    @property
    def files(self) -> str:
        """The files lie below this."""
        return f"{self.prefix}files/"

    @property
    def file_list(self) -> str:
        """Names the files."""
        return f"{self.prefix}files.json"

    @property
    def deleting(self) -> str:
        """It is on its way out."""
        return f"{self.prefix}deleting.json"

    @property
    def states(self) -> str:
        """What was written on the way."""
        return f"{self.prefix}state/"
