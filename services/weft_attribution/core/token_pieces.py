"""
Tokens of one model as the bytes of their text, each asked for once, and the text of a run of them.

A token may hold a part of a character. Bytes of a run are put together first and read as text once.
"""

import codecs
from collections.abc import Sequence

from weft_attribution.core.ports import ModelRunner

__all__ = ["TokenPieces", "run_texts"]

_TOKENS_A_CALL = 10_000
_KEPT_PIECES = 300_000


class TokenPieces:
    """
    Remembers the bytes of tokens, of 300,000 at most.

    Args:
        runner: The base model.
        model: Its id.
    """

    def __init__(self, runner: ModelRunner, model: str) -> None:
        self._runner, self._model = runner, model
        self._known: dict[int, bytes] = {}

    async def __call__(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """The bytes of each token."""
        found = await self.by_id(token_ids)
        return tuple(found[token] for token in token_ids)

    async def by_id(self, token_ids: Sequence[int]) -> dict[int, bytes]:
        """The bytes of each token by its id."""
        found = {token: self._known[token] for token in token_ids if token in self._known}
        missing = [token for token in dict.fromkeys(token_ids) if token not in found]
        for low in range(0, len(missing), _TOKENS_A_CALL):
            asked = missing[low : low + _TOKENS_A_CALL]
            found.update(zip(asked, await self._runner.pieces(self._model, asked), strict=True))
        if len(self._known) + len(missing) > _KEPT_PIECES:
            self._known = {}
        self._known.update((token, found[token]) for token in missing)
        return found


def run_texts(pieces: Sequence[bytes], weights: Sequence[float]) -> tuple[str, ...]:
    """
    The text of a run, shared out over its tokens.

    Characters that tokens share stand whole at the one of them with the largest weight, the first of equals, and the
    others have none: who marks tokens by weight marks whole characters, and the texts put together are the run's. What
    is no whole character within the run, at its ends for one, is U+FFFD.

    Args:
        pieces: Bytes of its tokens.
        weights: One a token; what a feature does there, for one.

    >>> run_texts([b" ", "é".encode()[:1], "é".encode()[1:]], [0, 1, 2])
    (' ', '', 'é')
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts, held, first = [""] * len(pieces), "", 0
    for at, piece in enumerate(pieces):
        is_last = at == len(pieces) - 1
        held += decoder.decode(piece, final=is_last)
        if is_last or not decoder.getstate()[0]:
            texts[max(range(first, at + 1), key=lambda token: weights[token])] = held
            held, first = "", at + 1
    return tuple(texts)
