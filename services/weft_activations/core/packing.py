"""
Packs documents into sequences: where sequences end, where start tokens and separators stand, what is kept.

Position 0 of a sequence is never kept; nor are start tokens, separators and the tokens that a harvest filters out.
Every other token of a document is kept once and in order, but the one that lands on position 0 where no start token
stands there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from weft_activations.core.ports import ModelInfo
from weft_common.errors import InvalidArgumentError

__all__ = ["BY_DOCUMENT", "PackedSequence", "Packer", "Packing", "StartRule", "check_packing"]

_MAX_SKIPPED_IDS = 1000
Ids = npt.NDArray[np.int64]


class StartRule(Enum):
    """Where the model's start token stands."""

    MODEL = "model"
    SEQUENCE = "sequence"
    DOCUMENT = "document"
    NONE = "none"


@dataclass(frozen=True)
class Packing:
    """The fields of weft.activations.v1.Packing; `skipped_token_ids` rise."""

    cross_documents: bool = False
    start_rule: StartRule = StartRule.MODEL
    separator_token_id: int | None = None
    max_document_tokens: int = 0
    skipped_token_ids: tuple[int, ...] = ()

    def starts_sequences(self, bos_token_id: int | None) -> bool:
        """Whether every sequence begins with the start token."""
        return bos_token_id is not None and self.start_rule in (StartRule.MODEL, StartRule.SEQUENCE)


BY_DOCUMENT = Packing()
"""Every document by itself, and every sequence with the start token that the tokenizer adds."""


@dataclass(frozen=True)
class PackedSequence:
    """
    A sequence as the model reads it.

    Attributes:
        ids: Token ids.
        skipped: Positions after the first that are not kept, rising.
    """

    ids: Ids
    skipped: Ids

    @property
    def num_kept(self) -> int:
        """Positions that are kept, unless their norm is left out."""
        return len(self.ids) - 1 - len(self.skipped)

    def kept(self) -> npt.NDArray[np.bool_]:
        """Say of each position but the first whether it is kept."""
        mask = np.ones(len(self.ids), bool)
        mask[self.skipped] = False
        return mask[1:]


def check_packing(packing: Packing, info: ModelInfo) -> None:
    """
    Check a packing against a model.

    Raises:
        InvalidArgumentError: A token that the model does not have, or rules that contradict each other.
    """
    if packing.start_rule in (StartRule.SEQUENCE, StartRule.DOCUMENT) and info.bos_token_id is None:
        raise InvalidArgumentError(
            f"start_rule is {packing.start_rule.name}, but {info.model_id}'s tokenizer adds no start token; give NONE",
            field="spec.packing.start_rule",
        )
    if packing.separator_token_id is not None and not packing.cross_documents:
        raise InvalidArgumentError(
            "there is a separator_token_id, but no sequence crosses documents; set cross_documents or leave it out",
            field="spec.packing.separator_token_id",
        )
    if packing.max_document_tokens < 0:
        raise InvalidArgumentError(
            f"max_document_tokens is {packing.max_document_tokens}; give 0 for all, or more",
            field="spec.packing.max_document_tokens",
        )
    if len(packing.skipped_token_ids) > _MAX_SKIPPED_IDS:
        raise InvalidArgumentError(
            f"there are {len(packing.skipped_token_ids)} skipped_token_ids; give {_MAX_SKIPPED_IDS} at most",
            field="spec.packing.skipped_token_ids",
        )
    separator = () if packing.separator_token_id is None else (packing.separator_token_id,)
    for field, ids in (("skipped_token_ids", packing.skipped_token_ids), ("separator_token_id", separator)):
        for token_id in ids:
            if not 0 <= token_id < info.vocab_size:
                raise InvalidArgumentError(
                    f"{field} has {token_id}, outside the vocabulary of {info.model_id}; give 0 to "
                    f"{info.vocab_size - 1}",
                    field=f"spec.packing.{field}",
                )


class Packer:
    """
    Packs the documents of one split.

    Args:
        packing: The rules.
        bos_token_id: The model's start token; None where its tokenizer adds none.
        sequence_tokens: Most tokens of a sequence.
        num_tokens: Tokens to keep; what comes after them is not packed.
    """

    def __init__(self, packing: Packing, *, bos_token_id: int | None, sequence_tokens: int, num_tokens: int) -> None:
        self._packing = packing
        self._sequence_start = [bos_token_id] if packing.starts_sequences(bos_token_id) else []
        self._document_start = [bos_token_id] if packing.start_rule is StartRule.DOCUMENT else []
        self._separator = [] if packing.separator_token_id is None else [packing.separator_token_id]
        self._skipped_ids = np.asarray(packing.skipped_token_ids, np.int64)
        self._sequence_tokens = sequence_tokens
        self.left = num_tokens
        self.sequences: list[PackedSequence] = []
        self._ids: list[Ids] = []
        self._kept: list[npt.NDArray[np.bool_]] = []
        self._length = 0

    def add(self, document: Sequence[int]) -> None:
        """Pack a document."""
        ids = np.asarray(document, np.int64)
        if self._packing.max_document_tokens:
            ids = ids[: self._packing.max_document_tokens]
        if not len(ids):
            return
        before = [*self._separator, *self._document_start] if self._length else self._document_start
        if self._length + len(before) >= self._sequence_tokens:
            # What stands before a document stands in one sequence with some of it.
            self.finish()
            before = self._document_start
        self._put(np.asarray(before, np.int64), is_text=False)
        self._put(ids, is_text=True)
        if not self._packing.cross_documents:
            self.finish()

    def finish(self) -> None:
        """End the sequence that is open; one that keeps nothing is dropped."""
        if self._length:
            kept = np.concatenate(self._kept)
            kept[0] = False
            if kept.any():
                skipped = np.flatnonzero(~kept)[1:]
                self.sequences.append(PackedSequence(np.concatenate(self._ids), skipped))
        self._ids, self._kept, self._length = [], [], 0

    def _put(self, ids: Ids, *, is_text: bool) -> None:
        wanted = ~np.isin(ids, self._skipped_ids) if is_text else np.zeros(len(ids), bool)
        at = 0
        while at < len(ids) and self.left:
            if self._length == self._sequence_tokens:
                self.finish()
            if not self._length:
                start = np.asarray(self._sequence_start, np.int64)
                self._append(start, np.zeros(len(start), bool))
            kept = wanted[at : at + self._sequence_tokens - self._length].copy()
            if not self._length:
                kept[0] = False
            reached = np.searchsorted(np.cumsum(kept), self.left)
            kept = kept[: reached + 1]
            self._append(ids[at : at + len(kept)], kept)
            self.left -= int(kept.sum())
            at += len(kept)

    def _append(self, ids: Ids, kept: npt.NDArray[np.bool_]) -> None:
        if len(ids):
            self._ids.append(ids)
            self._kept.append(kept)
            self._length += len(ids)
