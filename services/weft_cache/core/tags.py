"""What people call datasets by: small labels, under the rules of Kubernetes' own, so that they mean the same there."""

import re
from collections.abc import Iterable, Mapping

from weft_common.errors import InvalidArgumentError

__all__ = ["MAX_TAGS", "changed", "check_key", "check_tags"]

MAX_TAGS = 32
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_MAX_DOMAIN = 253
_RULE = "1 to 63 letters, digits, '-', '_' and '.', first and last a letter or digit"


def check_key(key: str, *, field: str) -> str:
    """
    Return the key of a tag, if it is one.

    >>> check_key("team", field="tags"), check_key("example.org/stage", field="tags")
    ('team', 'example.org/stage')
    """
    domain, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and (len(domain) > _MAX_DOMAIN or not _DOMAIN.fullmatch(domain))):
        raise InvalidArgumentError(
            f"{field} has the key {key[:100]!r}; a key is {_RULE}, or such a name after a domain and '/'", field=field
        )
    return key


def check_tags(tags: Mapping[str, str], *, field: str) -> dict[str, str]:
    """
    Return tags as they are, if there are not too many of them and each is one.

    Raises:
        InvalidArgumentError: Says which is not, and the rule.
    """
    if len(tags) > MAX_TAGS:
        raise InvalidArgumentError(f"{field} has {len(tags)} tags, expected at most {MAX_TAGS}", field=field)
    for key, value in tags.items():
        check_key(key, field=field)
        if value and not _NAME.fullmatch(value):
            raise InvalidArgumentError(
                f"{field} gives {key} the value {value[:100]!r}; a value is {_RULE}, or empty", field=field
            )
    return dict(tags)


def changed(present: Mapping[str, str], put: Mapping[str, str], remove: Iterable[str]) -> dict[str, str]:
    """
    Tags after a change; both sides of it were checked.

    Raises:
        InvalidArgumentError: A key is to be set and removed at once, or there would be too many.

    >>> changed({"a": "1", "b": "2"}, {"b": "3"}, ["a", "c"])
    {'b': '3'}
    """
    gone = set(remove)
    both = sorted(gone & set(put))
    if both:
        raise InvalidArgumentError(f"tag {both[0]} is to be set and removed at once; choose one", field="remove_tags")
    tags = {key: value for key, value in {**present, **put}.items() if key not in gone}
    if len(tags) > MAX_TAGS:
        raise InvalidArgumentError(
            f"the dataset would have {len(tags)} tags, expected at most {MAX_TAGS}; remove some", field="set_tags"
        )
    return tags
