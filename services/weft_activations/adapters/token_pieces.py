"""
Tokens as the bytes that they stand for.

A token may hold a part of a character, and a decoder that gets one token alone takes away a space at its begin. Here
each token has its own bytes, so that those of a run, one after the other, are its text in UTF-8.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["TokenPieces"]

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Spell = Callable[[str], bytes]


class TokenPieces:
    """
    Bytes of one tokenizer's tokens.

    A byte-level one's are looked up in its map of bytes, a SentencePiece one's have spaces for U+2581 and bytes for
    `<0xNN>`. Tokens that were added have the text that they were added with. Of all other tokenizers a token is what it
    decodes to alone.

    Args:
        tokenizer: Of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._spell = _spelling(tokenizer)
        self._added = {id_: str(added.content).encode() for id_, added in tokenizer.added_tokens_decoder.items()}

    def __call__(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; none for an id that the tokenizer does not know."""
        if self._spell is None:
            return [
                self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False).encode()
                for token_id in token_ids
            ]
        spell = self._spell
        names = self._tokenizer.convert_ids_to_tokens(list(token_ids))
        return [
            self._added[token_id] if token_id in self._added else b"" if name is None else spell(name)
            for token_id, name in zip(token_ids, names, strict=True)
        ]


def _spelling(tokenizer: Any) -> Spell | None:
    """How a token's name says its bytes; None where it does not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _with_spaces(_SPACE, with_bytes=True) if hasattr(tokenizer, "sp_model") else None
    steps = list(_steps(json.loads(backend.to_str()).get("decoder")))
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    space = next(filter(None, map(_space_of, steps)), "")
    return _with_spaces(space, with_bytes="ByteFallback" in kinds) if space else None


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    if decoder is not None and decoder["type"] == "Sequence":
        for each in decoder["decoders"]:
            yield from _steps(each)
    elif decoder is not None:
        yield decoder


def _space_of(step: dict[str, Any]) -> str:
    """What a step of a decoder takes for a space; empty where it takes nothing for one."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    if step["type"] == "Replace" and step["content"] == " ":
        return str(step["pattern"].get("String", ""))
    return ""


def _with_spaces(space: str, *, with_bytes: bool) -> Spell:
    def spell(name: str) -> bytes:
        byte = _BYTE.fullmatch(name) if with_bytes else None
        return bytes.fromhex(byte[1]) if byte else name.replace(space, " ").encode()

    return spell


def _byte_level(name: str) -> bytes:
    try:
        return bytes(_BYTE_OF[letter] for letter in name)
    except KeyError:
        # No name of the byte map: the decoder takes it as it is.
        return name.encode()


def _byte_map() -> dict[str, int]:
    """The byte of each letter of byte-level names (GPT-2's): itself where it can be seen, else from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(0x100) if byte not in seen]
    return {**{chr(byte): byte for byte in seen}, **{chr(0x100 + at): byte for at, byte in enumerate(hidden)}}


_BYTE_OF = _byte_map()
