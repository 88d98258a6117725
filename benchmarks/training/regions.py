"""
Regions of a page that a benchmark fills; the text around them is a person's.

    <!-- begin figures: NAME -->
    <!-- end figures: NAME -->
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["fill"]


def fill(page: str, name: str, lines: Sequence[str]) -> str:
    r"""
    Return a page with other lines in one of its regions.

    Raises:
        SystemExit: It has no such region.

    >>> fill("a\n<!-- begin figures: x -->\nold\n<!-- end figures: x -->\n", "x", ["new"]).splitlines()
    ['a', '<!-- begin figures: x -->', 'new', '<!-- end figures: x -->']
    """
    begin, end = f"<!-- begin figures: {name} -->", f"<!-- end figures: {name} -->"
    region = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if not region.search(page):
        raise SystemExit(f"The page has no region of its own for {name}; put these lines into it:\n{begin}\n{end}")
    text = "\n".join([begin, *lines, end])
    return region.sub(lambda _: text, page, count=1)
