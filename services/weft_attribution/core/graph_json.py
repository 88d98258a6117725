"""
The graph as JSON, in the form that circuit-tracer's and Neuronpedia's viewers read.

Source: circuit-tracer's `frontend`, Neuronpedia's draft-07 schema. Deviations: error nodes are `{l}_error_mlp_{pos}`,
since circuit-tracer's `0_{l}_{pos}` collides with features of layer 0; nodes carry `token`, errors `feature: null`.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.influence import Pruned
from weft_attribution.core.ports import Token
from weft_attribution.core.sweep import NodeTable

__all__ = ["GraphNodes", "cantor_pair", "graph_json", "node_id", "scan_name"]

Array = npt.NDArray[Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class GraphNodes:
    """What the nodes of a graph are, beside their numbers."""

    table: NodeTable
    layer_N: Array
    position_N: Array
    index_N: Array
    activation_N: Array
    tokens: tuple[Token, ...]
    logits: tuple[Token, ...]
    probabilities: tuple[float, ...]


def cantor_pair(layer: int, index: int) -> int:
    """
    The number that stands for a feature of a cross-layer transcoder.

    >>> cantor_pair(1, 2)
    8
    """
    return (layer + index) * (layer + index + 1) // 2 + index


def scan_name(model: str) -> str:
    """
    A model's name as Neuronpedia accepts it.

    >>> scan_name("org/model x")
    'org-model-x'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", model)


def node_id(nodes: GraphNodes, node: int) -> str:
    """The id of a node; no two nodes of a graph share one."""
    table = nodes.table
    if node < table.error_start:
        return f"{nodes.layer_N[node]}_{nodes.index_N[node]}_{nodes.position_N[node]}"
    if node < table.token_start:
        layer, position = divmod(node - table.error_start, table.num_positions - 1)
        return f"{layer}_error_mlp_{position + 1}"
    if node < table.logit_start:
        position = node - table.token_start
        return f"E_{nodes.tokens[position].id}_{position}"
    return f"{table.num_layers + 1}_{nodes.logits[node - table.logit_start].id}_{table.num_positions - 1}"


def graph_json(nodes: GraphNodes, pruned: Pruned, influence_share: Array, metadata: Json) -> Json:
    """
    Write the pruned graph.

    Args:
        nodes: What the nodes are.
        pruned: Which nodes and edges stay.
        influence_share: Cumulative share of each node, low means important.
        metadata: The `metadata` object.
    """
    kept = np.flatnonzero(pruned.node_mask)
    ids = {int(node): node_id(nodes, int(node)) for node in kept}
    # Six digits: what the float32 behind a weight is good for, in half the bytes.
    links = [
        {"source": ids[int(source)], "target": ids[int(target)], "weight": float(f"{weight:.6g}")}
        for source, target, weight in zip(pruned.sources, pruned.targets, pruned.weights, strict=True)
    ]
    return {
        "metadata": metadata,
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_node(nodes, int(node), ids[int(node)], float(influence_share[node])) for node in kept],
        "links": links,
    }


def _node(nodes: GraphNodes, node: int, name: str, influence: float) -> Json:
    table = nodes.table
    fields: Json = {
        "node_id": name,
        "clerp": "",
        "influence": influence,
        "activation": None,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
    }
    if node < table.error_start:
        layer, index, position = int(nodes.layer_N[node]), int(nodes.index_N[node]), int(nodes.position_N[node])
        fields.update(
            feature=cantor_pair(layer, index),
            layer=str(layer),
            ctx_idx=position,
            feature_type="cross layer transcoder",
            jsNodeId=f"{layer}_{index}-{position}",
            activation=float(nodes.activation_N[node]),
            feature_index=index,
        )
    elif node < table.token_start:
        layer, before = divmod(node - table.error_start, table.num_positions - 1)
        position = before + 1
        fields.update(
            # circuit-tracer's page counts on a number.
            feature=-1,
            layer=str(layer),
            ctx_idx=position,
            feature_type="mlp reconstruction error",
            jsNodeId=f"{layer}_error_mlp-{position}",
            clerp=f"Error: layer {layer}",
        )
    elif node < table.logit_start:
        position = node - table.token_start
        token = nodes.tokens[position]
        fields.update(
            feature=position,
            layer="E",
            ctx_idx=position,
            feature_type="embedding",
            jsNodeId=f"E_{token.id}-{position}",
            clerp=f'Token "{token.text}"',
        )
    else:
        place = node - table.logit_start
        token, probability, position = nodes.logits[place], nodes.probabilities[place], table.num_positions - 1
        layer = table.num_layers + 1
        fields.update(
            feature=token.id,
            layer=str(layer),
            ctx_idx=position,
            feature_type="logit",
            jsNodeId=f"{layer}_{token.id}-{position}",
            clerp=f'Output "{token.text}" (p={probability:.3f})',
            token_prob=probability,
            is_target_logit=place == 0,
        )
    fields["token"] = nodes.tokens[fields["ctx_idx"]].text
    fields["reverse_ctx_idx"] = table.num_positions - 1 - fields["ctx_idx"]
    return fields
