"""Real text that comes with every Python: the demo's help topics, and behind them the library's docstrings."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from weft_client.demo.corpus import python_topics

__all__ = ["library_docstrings", "topics_and_docstrings"]

_LEFT_OUT = frozenset(("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"))
_MIN_CHARACTERS = 200
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def library_docstrings() -> Iterator[tuple[str, bytes]]:
    """
    Yield the docstrings of each module of the standard library as a document, in order of path.

    Tests and vendored packages are left out, and modules with less than 200 characters. The text depends on Python's
    version.

    >>> "library-argparse.txt" in dict(library_docstrings())
    True
    """
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if _LEFT_OUT.intersection(module.parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some modules of the library are there to be wrong
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
        docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
        text = "\n\n".join(docstring for docstring in docstrings if docstring)
        if len(text) >= _MIN_CHARACTERS:
            yield f"library-{'.'.join(module.with_suffix('').parts)}.txt", text.encode("utf-8", "replace")


def topics_and_docstrings() -> list[tuple[str, bytes]]:
    """Return name and UTF-8 text of every document: about a million tokens."""
    return [*python_topics(), *library_docstrings()]
