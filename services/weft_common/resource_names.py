"""
Resource names after AIP-122: `datasets/{dataset}`, `runs/{run}/checkpoints/{step}`.

An id is what stands between the slashes: letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most
63 of them, no two dots in a row; it is safe as a folder name and as a part of an object's key.
"""

import re

from weft_common.errors import InvalidArgumentError

__all__ = ["check_id", "parse_child_name", "parse_name"]

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,62}")
_RULE = "letters, digits, '.', '_' and '-', first a letter or digit, at most 63 in all, no '..'"


def check_id(value: str, *, field: str = "id") -> str:
    """
    Return the id as it is, if it is one.

    Raises:
        InvalidArgumentError: It breaks the rule above; `field` says where it stood.

    >>> check_id("pydoc-40k")
    'pydoc-40k'
    """
    if not value:
        raise InvalidArgumentError(f"{field} is empty; give an id of {_RULE}", field=field)
    if not _ID.fullmatch(value):
        raise InvalidArgumentError(f"{field} is {_shown(value)}, which is no id; an id is {_RULE}", field=field)
    return value


def parse_name(name: str, collection: str, *, field: str = "name") -> str:
    """
    Take the id out of `{collection}/{id}`.

    Raises:
        InvalidArgumentError: The name has another form.

    >>> parse_name("datasets/pydoc-40k", "datasets")
    'pydoc-40k'
    """
    return _parse(name, (collection,), field)[0]


def parse_child_name(name: str, collection: str, child: str, *, field: str = "name") -> tuple[str, str]:
    """
    Take both ids out of `{collection}/{id}/{child}/{id}`.

    Raises:
        InvalidArgumentError: The name has another form.

    >>> parse_child_name("runs/r1/checkpoints/200", "runs", "checkpoints")
    ('r1', '200')
    """
    parent_id, child_id = _parse(name, (collection, child), field)
    return parent_id, child_id


def _parse(name: str, collections: tuple[str, ...], field: str) -> list[str]:
    wanted = "/".join(f"{collection}/{{id}}" for collection in collections)
    if not name:
        raise InvalidArgumentError(f"{field} is empty; give a name of the form {wanted}", field=field)
    parts = name.split("/")
    if len(parts) != 2 * len(collections) or tuple(parts[0::2]) != collections:
        raise InvalidArgumentError(f"{field} is {_shown(name)}; a name of the form {wanted} is needed", field=field)
    for part in parts[1::2]:
        if not _ID.fullmatch(part):
            raise InvalidArgumentError(
                f"{field} is {_shown(name)}, whose id {_shown(part)} is not of {_RULE}", field=field
            )
    return parts[1::2]


def _shown(text: str) -> str:
    """Quote what a caller sent, cut where it is long, so that a message stays a message."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}... ({len(text)} characters)"
