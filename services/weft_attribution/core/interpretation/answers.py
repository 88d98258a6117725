"""
Answers of a language model, read strictly: one JSON object with the one key that was asked for.

Nothing else in an answer has any effect. What is not of that form is a broken answer, which is counted.
"""

import json
from typing import Any

from weft_attribution.core.labels import is_plain

__all__ = [
    "EXPLAIN_TOKENS",
    "FLAGS",
    "INTRUDER",
    "LABEL",
    "SCORE_TOKENS",
    "read_flags",
    "read_intruder",
    "read_label",
    "schema",
]

LABEL, FLAGS, INTRUDER = "label", "answers", "intruder"
_MAX_ANSWER = 4_000
_MAX_LABEL = 300
_MAX_SCHEMA_LABEL = 200
EXPLAIN_TOKENS = 3 * _MAX_SCHEMA_LABEL + 40
"""
Longest answer that explains, where nobody says otherwise. A label that the schema allows does not reach it: at worst a
tokenizer takes a token a byte, which is 3 for a character of nearly every script; 13 bytes of JSON and some blanks come
with it. A character beyond U+FFFF has 4, so that a label of nothing but emojis may be cut off.
"""
SCORE_TOKENS = 60
"""Longest answer that scores: five decisions are 28 bytes with their JSON."""
_FENCE = "```"


def read_label(text: str) -> str | None:
    """
    The label in an answer, or None where the answer is broken.

    >>> read_label('{"label": "digits"}'), read_label("digits")
    ('digits', None)
    """
    label = _value(text, LABEL)
    if not isinstance(label, str):
        return None
    label = label.strip()
    return label if 1 <= len(label) <= _MAX_LABEL and all(is_plain(each) for each in label) else None


def read_flags(text: str, count: int) -> tuple[bool, ...] | None:
    """
    So many decisions, or None where the answer is broken.

    >>> read_flags('{"answers": [1, 0]}', 2), read_flags('{"answers": [1]}', 2)
    ((True, False), None)
    """
    flags = _value(text, FLAGS)
    if not isinstance(flags, list) or len(flags) != count:
        return None
    if not all(type(each) is int and each in (0, 1) for each in flags):
        return None
    return tuple(each == 1 for each in flags)


def read_intruder(text: str, count: int) -> int | None:
    """
    The place of a line among so many, from 0, or None where the answer is broken.

    >>> read_intruder('{"intruder": 2}', 3), read_intruder('{"intruder": 4}', 3)
    (1, None)
    """
    number = _value(text, INTRUDER)
    return number - 1 if type(number) is int and 1 <= number <= count else None


def schema(kind: str, count: int = 0) -> str:
    """What an answer has to be as a JSON schema, for endpoints that hold their models to one."""
    values: dict[str, dict[str, Any]] = {
        # A small model that may go on does; without an end its answer is broken.
        LABEL: {"type": "string", "minLength": 1, "maxLength": _MAX_SCHEMA_LABEL},
        FLAGS: {"type": "array", "items": {"type": "integer", "enum": [0, 1]}, "minItems": count, "maxItems": count},
        INTRUDER: {"type": "integer", "enum": list(range(1, count + 1))},
    }
    return json.dumps(
        {"type": "object", "properties": {kind: values[kind]}, "required": [kind], "additionalProperties": False},
        sort_keys=True,
    )


def _value(text: str, key: str) -> Any:
    text = text.strip()
    if len(text) > _MAX_ANSWER:
        return None
    if text.startswith(_FENCE) and text.endswith(_FENCE) and "\n" in text:
        # Many models cannot write JSON without one.
        text = text[text.index("\n") : -len(_FENCE)]
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document[key] if isinstance(document, dict) and list(document) == [key] else None
