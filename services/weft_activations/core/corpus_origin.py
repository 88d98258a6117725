"""Where an imported corpus comes from: what was asked for, the files and what was found in them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["BrokenRecord", "CorpusOrigin", "ImportSpec", "SourceFile"]


@dataclass(frozen=True)
class ImportSpec:
    """The fields of weft.activations.v1.CorpusImportSpec, each with its meaning filled in."""

    source: str
    text_field: str = "text"
    max_broken: int = 0
    sample_share: float = 1.0
    sample_seed: int = 0
    max_documents: int = 0


@dataclass(frozen=True)
class SourceFile:
    """A file that was read; `sha256` is that of the very bytes."""

    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class BrokenRecord:
    """A line or row, from 1, that is no document."""

    file: str
    number: int
    problem: str


@dataclass(frozen=True)
class CorpusOrigin:
    """
    The lineage of an imported corpus.

    Attributes:
        files: In the order in which they were read.
        num_records: All that were read.
        num_empty: Of these, without text.
        num_broken: Of these, no documents.
        broken: The first of them.
        weft_version: What read the files.
    """

    spec: ImportSpec
    files: tuple[SourceFile, ...]
    num_records: int
    num_empty: int
    num_broken: int
    broken: tuple[BrokenRecord, ...]
    weft_version: str

    def to_json(self) -> dict[str, Any]:
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "CorpusOrigin":
        """Read the stored form."""
        return cls(
            **{
                **document,
                "spec": ImportSpec(**document["spec"]),
                "files": tuple(SourceFile(**each) for each in document["files"]),
                "broken": tuple(BrokenRecord(**each) for each in document["broken"]),
            }
        )
