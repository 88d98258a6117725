"""
Draws that depend on what is drawn alone, never on when: SplitMix64's finaliser over (seed, parts).

Source: Steele, Lea, Flood 2014. So a sample is the same whoever takes it, in whichever order, killed or not.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["draw"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def draw(seed: int, *parts: npt.NDArray[Any] | int) -> npt.NDArray[np.uint64]:
    """
    One 64-bit number for each element of the parts, which are whole numbers of one shape, or single ones.

    >>> draw(1, 5, np.array([7, 8])).tolist() == [int(draw(1, 5, 7)), int(draw(1, 5, 8))]
    True
    """
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(seed & 0xFFFFFFFFFFFFFFFF, np.uint64))
        for part in parts:
            state = _mix(state ^ np.asarray(part).astype(np.uint64))
    return state


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = z + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return np.asarray(z ^ (z >> np.uint64(31)))
