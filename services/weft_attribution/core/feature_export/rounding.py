"""
Activations as files hold them: four digits, which is one more than the windows of an index are good for.

What is active stays above zero, and of two activations the larger one never becomes the smaller one.
"""

from collections.abc import Iterable

__all__ = ["rounded"]


def rounded(values: Iterable[float]) -> list[float]:
    """
    Round to four digits; whole zeros take one character.

    >>> rounded([0.0, 1.23456, 3e-9])
    [0, 1.235, 3e-09]
    """
    return [float(f"{value:.4g}") if value else 0 for value in values]
