"""Tokens with what they are as text: each alone, or as a run, whose texts put together are the run's."""

from collections.abc import Sequence
from dataclasses import dataclass

from weft_activations.core.ports import ModelBackend
from weft_common.token_texts import run_texts

__all__ = ["TokenText", "tokens_alone", "tokens_of_run"]


@dataclass(frozen=True)
class TokenText:
    """A token id, its bytes, which may be a part of a character, and what stands for it as text."""

    token_id: int
    piece: bytes
    text: str


def tokens_alone(backend: ModelBackend, model_id: str, token_ids: Sequence[int]) -> list[TokenText]:
    """Tokens that have nothing to do with each other; a part of a character is U+FFFD."""
    pieces = backend.token_pieces(model_id, token_ids)
    return [
        TokenText(token_id, piece, piece.decode(errors="replace"))
        for token_id, piece in zip(token_ids, pieces, strict=True)
    ]


def tokens_of_run(backend: ModelBackend, model_id: str, token_ids: Sequence[int]) -> list[TokenText]:
    """Tokens that follow each other; a character that some share stands whole at the first of them."""
    pieces = backend.token_pieces(model_id, token_ids)
    return [TokenText(*each) for each in zip(token_ids, pieces, run_texts(pieces), strict=True)]
