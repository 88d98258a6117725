"""Tokens of one model as the bytes of their text, each asked for once."""

from collections.abc import Sequence

from weft_attribution.core.ports import ModelRunner

__all__ = ["TokenPieces"]

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
