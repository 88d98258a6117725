"""
Pagination after AIP-158: a page size, an opaque token, and an order that stays while things come and go.

A token holds the key of the last item shown, so that an item made or deleted between two pages neither repeats nor
hides another one.
"""

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import TypeVar

from weft_common.errors import InvalidArgumentError

__all__ = ["DEFAULT_PAGE_SIZE", "MAX_PAGE_SIZE", "newest_first", "paginate"]

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

T = TypeVar("T")


def paginate(
    items: Iterable[T],
    page_size: int,
    page_token: str,
    key: Callable[[T], str] = str,
    *,
    default_size: int = DEFAULT_PAGE_SIZE,
    max_size: int = MAX_PAGE_SIZE,
) -> tuple[list[T], str]:
    """
    Cut one page out of all items.

    Args:
        items: Everything there is, in any order.
        page_size: As asked; 0 means `default_size`, more than `max_size` means `max_size`.
        page_token: Empty for the first page, then what the page before gave.
        key: What items are sorted by; unique.

    Returns:
        The page, sorted by key, and the token of the next page ("" after the last).

    Raises:
        InvalidArgumentError: page_size is negative, or page_token is not one of ours.

    >>> page, token = paginate(["b", "a", "c"], 2, "")
    >>> page, paginate(["b", "a", "c"], 2, token)
    (['a', 'b'], (['c'], ''))
    """
    if page_size < 0:
        raise InvalidArgumentError(
            f"page_size is {page_size}; give 0 for the default of {default_size}, or up to {max_size}",
            field="page_size",
        )
    size = min(page_size or default_size, max_size)
    ordered = sorted(items, key=key)
    if page_token:
        after = _decode(page_token)
        ordered = [item for item in ordered if key(item) > after]
    page = ordered[:size]
    return page, _encode(key(page[-1])) if len(ordered) > size else ""


def newest_first(create_s: float, name: str) -> str:
    """
    A key for `paginate` by which what was made last comes first, and what was made in one microsecond by name.

    Args:
        create_s: When it was made, as seconds since 1970.
        name: Of it alone.

    >>> sorted(["old", "new"], key=lambda name: newest_first({"old": 1.0, "new": 1.5}[name], name))
    ['new', 'old']
    """
    return f"{10**18 - round(create_s * 1e6):019d} {name}"


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(b"\x01" + key.encode()).decode()


def _decode(token: str) -> str:
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        if raw[:1] != b"\x01":
            raise ValueError
        return raw[1:].decode()
    except (ValueError, binascii.Error):
        raise InvalidArgumentError(
            "page_token is not one that a list call returned; leave it empty to begin at the first page",
            field="page_token",
        ) from None
