"""
A graph with all of its edges, as it lies in its file.

Legend: R rows (features, then logits).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.edge_file import read_arrays
from weft_attribution.core.graph_json import GraphNodes
from weft_attribution.core.influence import Edges
from weft_attribution.core.ports import Token
from weft_attribution.core.sweep import NodeTable

__all__ = ["WholeGraph", "open_graph"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class WholeGraph:
    """A graph before pruning."""

    edges: Edges
    nodes: GraphNodes
    constant_R: Array
    value_R: Array

    @property
    def logit_weights(self) -> Array:
        return np.array(self.nodes.probabilities)


def open_graph(
    path: Path, num_layers: int, tokens: tuple[Token, ...], logits: tuple[Token, ...], probabilities: tuple[float, ...]
) -> WholeGraph:
    """Map a stored graph."""
    arrays = read_arrays(path)
    table = NodeTable(len(arrays["layer"]), num_layers, len(tokens), len(logits))
    layer_R = np.concatenate([arrays["layer"], np.full(table.num_logits, table.num_layers)])
    return WholeGraph(
        edges=Edges(table, np.array(arrays["indptr"]), arrays["indices"], arrays["values"], layer_R),
        nodes=GraphNodes(
            table,
            np.array(arrays["layer"]),
            np.array(arrays["position"]),
            np.array(arrays["index"]),
            np.array(arrays["activation"], dtype=np.float64),
            tokens,
            logits,
            probabilities,
        ),
        constant_R=np.array(arrays["constant"]),
        value_R=np.array(arrays["value"]),
    )
