"""Vectors of texts, read strictly out of an answer."""

import json
import math
from collections.abc import Sequence

import numpy as np

__all__ = ["cosine", "read_vectors"]


def read_vectors(text: str, count: int) -> list[list[float]] | None:
    """So many vectors of one length, or None where the answer is broken."""
    try:
        vectors = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(vectors, list) or len(vectors) != count:
        return None
    return vectors if all(_is_vector(vector, len(vectors[0])) for vector in vectors) else None


def _is_vector(vector: object, size: int) -> bool:
    if not isinstance(vector, list) or not vector or len(vector) != size:
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in vector) and any(vector)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of two vectors, neither of them zero."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
