"""
Groups of what is alike: average linkage by chains of nearest neighbours.

Source: Murtagh 1983, "A survey of recent advances in hierarchical clustering algorithms". Deviations: none.
Average linkage never makes two clusters closer by merging others, so that the order of merges does not matter and n
items take n^2 steps.

Legend: n items.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["average_linkage", "cosines"]

Array = npt.NDArray[Any]


def cosines(vectors_nD: Array) -> Array:
    """
    Cosine between all pairs; 0 where one of them is all zero.

    >>> cosines(np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])).round(2).tolist()
    [[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    lengths = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    units = np.divide(vectors_nD, lengths, out=np.zeros_like(vectors_nD), where=lengths > 0)
    found: Array = np.clip(units @ units.T, -1.0, 1.0)
    return found


def average_linkage(distance_nn: Array, num_groups: int) -> Array:
    """
    Group items until so many groups are left.

    Args:
        distance_nn: Distance between all pairs, symmetric.
        num_groups: At least 1.

    Returns:
        The group of each item, numbered as they first occur.
    """
    count = len(distance_nn)
    distance = distance_nn.astype(np.float64)
    np.fill_diagonal(distance, np.inf)
    size = np.ones(count)
    merges: list[tuple[float, int, int]] = []
    alive = np.ones(count, dtype=bool)
    chain: list[int] = []
    while len(merges) < count - 1:
        if not chain:
            chain.append(int(np.flatnonzero(alive)[0]))
        last = chain[-1]
        near = int(np.argmin(distance[last]))
        # Of equals the one that the chain came from, or it would never end.
        if len(chain) > 1 and distance[last, chain[-2]] <= distance[last, near]:
            near = chain[-2]
            del chain[-2:]
            kept, gone = min(last, near), max(last, near)
            merges.append((float(distance[last, near]), kept, gone))
            joined = (size[kept] * distance[kept] + size[gone] * distance[gone]) / (size[kept] + size[gone])
            joined[kept] = np.inf
            distance[kept], distance[:, kept] = joined, joined
            distance[gone], distance[:, gone] = np.inf, np.inf
            size[kept] += size[gone]
            alive[gone] = False
        else:
            chain.append(near)
    leader = np.arange(count)
    for _, kept, gone in sorted(merges, key=lambda merge: merge[0])[: max(0, count - num_groups)]:
        leader[leader == leader[gone]] = leader[kept]
    _, first, group = np.unique(leader, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.asarray(order[group])
