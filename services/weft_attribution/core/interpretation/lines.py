r"""
Text of a corpus as lines of a prompt.

Every window is one line. Marks are `<<` and `>>`, and nothing in the text can be taken for one, nor for the end of its
line: `\`, `<` and `>` get a backslash, what is no printable character is written as an escape.
"""

import unicodedata
from collections.abc import Sequence

__all__ = ["escaped", "line", "numbered"]

_SHORT = {"\\": "\\\\", "<": "\\<", ">": "\\>", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    r"""
    Text that stays within its line and outside of marks.

    >>> escaped("a<<b\nc")
    'a\\<\\<b\\nc'
    """
    return "".join(_SHORT.get(character) or _visible(character) for character in text)


def _visible(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\\u{{{ord(character):x}}}"
    return character


def line(texts: Sequence[str], marked: Sequence[bool]) -> str:
    r"""
    One window as a line; neighbours that are marked stand between one pair of marks, tokens without text between none.

    >>> line(["a", "b", "c<"], [False, True, True])
    'a<<bc\\<>>'
    """
    parts, within = [], False
    for text, mark in zip(texts, marked, strict=True):
        if not text:
            continue
        if mark != within:
            parts.append("<<" if mark else ">>")
            within = mark
        parts.append(escaped(text))
    return "".join(parts) + (">>" if within else "")


def numbered(lines: Sequence[str], notes: Sequence[str] = ()) -> str:
    """
    Lines with their numbers from 1, and a note behind each number where there are notes.

    >>> print(numbered(["a", "b"]))
    1: a
    2: b
    """
    heads = [f" ({note})" for note in notes] or [""] * len(lines)
    return "\n".join(f"{number}{head}: {text}" for number, (head, text) in enumerate(zip(heads, lines, strict=True), 1))
