"""
Which features to explain next: those that the rows so far say have most influence on the logits.

Source: circuit-tracer's `compute_partial_influences`. Deviations: exact back-substitution in place of iteration; the
ranking is taken again when a third of the rows are new, so that all rankings together cost as much as three of the
last.

Legend: R rows (features, then logits), N features, n nodes.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from weft_attribution.core.edge_file import EdgeScratch
from weft_attribution.core.sweep import NodeTable

__all__ = ["next_counts", "partial_influence"]

_FIRST_ROWS = 256


def next_counts(wanted: int, ranked: int) -> Iterator[int]:
    """
    How many rows to take, from ranking to ranking.

    Args:
        wanted: All rows that are to be taken.
        ranked: Of them, as many are ranked; what is left is one last step.

    >>> list(next_counts(1000, 600)), list(next_counts(100, 100))
    ([256, 256, 488], [100])
    """
    done = 0
    while done < wanted:
        count = max(_FIRST_ROWS, done // 2)
        count = min(count, wanted - done) if done + count <= ranked or done == 0 else wanted - done
        yield count
        done += count


def partial_influence(
    scratch: EdgeScratch,
    table: NodeTable,
    rows: npt.NDArray[np.int64],
    layer_R: npt.NDArray[np.int64],
    logit_weights: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """
    Influence of every node over the paths whose targets are among `rows`.

    Args:
        scratch: Holds their edges.
        table: The nodes.
        rows: Rows so far.
        layer_R: Each row's layer.
        logit_weights: One weight a logit.
    """
    total_n = np.zeros(table.num_nodes)
    total_n[table.logit_start :] = logit_weights
    for row in rows[np.argsort(-layer_R[rows], kind="stable")].tolist():
        own = total_n[row if row < table.num_features else row - table.num_features + table.logit_start]
        if own > 0:
            columns, values = scratch.row(row)
            weights = np.abs(values, dtype=np.float64)
            whole = weights.sum()
            if whole > 0:
                total_n[columns] += weights * (own / whole)
    return total_n
