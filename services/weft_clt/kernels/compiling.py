"""
Compiles loops, and keeps what came of it on the disk until anything that it was made of changes.

Numba's own cache asks for the bytes of the file that a loop stands in. What that file imports is compiled into the loop
as well, so here its bytes are a part of the key too.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

__all__ = ["compiled", "sources_of"]


F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """
    Return a decorator that compiles a function at its first call, without Python's lock, and keeps the outcome.

    Args:
        options: Of `numba.njit`.
    """

    def decorate(function: F) -> F:
        made: Any = numba.njit(nogil=True, **options)(function)
        # With NUMBA_DISABLE_JIT it is the function itself.
        if isinstance(made, Dispatcher):
            made._cache = _SourcesCache(function)  # type: ignore[attr-defined]  # what enable_caching sets
        dispatcher: F = made
        return dispatcher

    return decorate


def sources_of(file: Path, package: Path) -> list[Path]:
    """
    Return a file of a package and all files of the package that it imports, one through the other, in order.

    Args:
        file: Of a module.
        package: The package's outermost folder.
    """
    found, waiting = set[Path](), [file]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        waiting += [package.parent / f"{name.replace('.', '/')}.py" for name in _imports(path.read_bytes())]
    return sorted(path for path in found if path.is_relative_to(package))


@lru_cache(maxsize=64)
def _imports(source: bytes) -> frozenset[str]:
    """Name the modules that a source may import; `from a import b` may mean a module of the name `a.b`."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(names)


class _SourcesCache(FunctionCache):
    """A cache whose key has the bytes of all that a function's file imports from its own package."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        file = Path(inspect.getfile(function)).resolve()
        package = file.parents[max(0, function.__module__.count(".") - 1)]
        digest = hashlib.sha256()
        for path in sources_of(file, package):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(package)} {len(data)}\n".encode())
            digest.update(data)
        self._sources = digest.hexdigest()

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), self._sources)  # type: ignore[no-untyped-call]
