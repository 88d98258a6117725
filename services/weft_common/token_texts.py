"""
The text of a run of tokens, one string a token.

A token may hold a part of a character. Bytes of a run are put together first and read as text once: the strings put
together are the run's text, and a character that tokens share stands whole at one of them.
"""

import codecs
from collections.abc import Sequence

__all__ = ["TextStream", "run_texts"]


class TextStream:
    """
    The text of a run whose tokens come one by one; a shared character stands at the token that completes it.

    >>> stream = TextStream()
    >>> [stream.read(piece) for piece in (b" ", "é".encode()[:1], "é".encode()[1:])]
    [' ', '', 'é']
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self, piece: bytes, *, is_last: bool = False) -> str:
        """
        The characters that a token completes.

        Args:
            piece: Its bytes.
            is_last: Whether the run ends here; what is left of a character is U+FFFD then.
        """
        return self._decoder.decode(piece, final=is_last)

    @property
    def has_part(self) -> bool:
        """Whether a character has begun that is not whole yet."""
        return bool(self._decoder.getstate()[0])


def run_texts(pieces: Sequence[bytes], weights: Sequence[float] | None = None) -> tuple[str, ...]:
    """
    The text of a run, shared out over its tokens.

    Characters that tokens share stand whole at the one of them with the largest weight, the first of equals, and the
    others have none: who marks tokens by weight marks whole characters, and the texts put together are the run's. What
    is no whole character within the run, at its ends for one, is U+FFFD.

    Args:
        pieces: Bytes of its tokens.
        weights: One a token; what a feature does there, for one. Without them all are equal.

    >>> run_texts([b" ", "é".encode()[:1], "é".encode()[1:]])
    (' ', 'é', '')
    >>> run_texts([b" ", "é".encode()[:1], "é".encode()[1:]], [0, 1, 2])
    (' ', '', 'é')
    """
    stream, texts, held, first = TextStream(), [""] * len(pieces), "", 0
    for at, piece in enumerate(pieces):
        is_last = at == len(pieces) - 1
        held += stream.read(piece, is_last=is_last)
        if is_last or not stream.has_part:
            sharing = range(first, at + 1)
            texts[first if weights is None else max(sharing, key=lambda token: weights[token])] = held
            held, first = "", at + 1
    return tuple(texts)
