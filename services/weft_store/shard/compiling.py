"""Compiles loops at their first call, to run without Python's lock, and keeps them where there is a folder for it."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """
    Return a decorator for a function that calls compiled functions of its own file only, as numba's cache looks at
    no other.

    Args:
        options: Of `numba.njit`.
    """

    def decorate(function: F) -> F:
        try:
            made: F = numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # numba found no folder that it may write to: compiled anew in each process
            made = numba.njit(nogil=True, **options)(function)
        return made

    return decorate
