"""A graph as viewers read it: pruned, with what it was made of beside it."""

from typing import Any

import numpy.typing as npt

from weft_attribution.core.graph_json import graph_json, scan_name
from weft_attribution.core.influence import compute_influence, cumulative_share, prune
from weft_attribution.core.records import GraphRequest
from weft_attribution.core.whole_graph import WholeGraph

__all__ = ["pruned_content", "shown_so_far"]

Json = dict[str, Any]
Array = npt.NDArray[Any]
_GENERATOR = {"name": "weft", "version": "0.1.0", "url": "", "email": ""}


def pruned_content(
    request: GraphRequest, graph: WholeGraph, influence: Array, node_threshold: float, edge_threshold: float
) -> tuple[Json, Json]:
    """A graph pruned, as viewers read it, and how much of it that is."""
    settings = request.settings
    pruned = prune(
        graph.edges, influence, graph.logit_weights, node_threshold=node_threshold, edge_threshold=edge_threshold
    )
    metadata = {
        "slug": request.graph_id,
        "scan": scan_name(settings.model),
        "prompt": settings.prompt,
        "prompt_tokens": [token.text for token in graph.nodes.tokens],
        "transcoder_list": [settings.transcoder],
        "schema_version": 1,
        "node_threshold": node_threshold,
        "feature_details": {"feature_json_base_url": "", "neuronpedia_source_set": ""},
        "info": {
            "description": "",
            "creator_name": "weft",
            "creator_url": "",
            "source_urls": [],
            "generator": _GENERATOR,
            "create_time_ms": int(request.create_s * 1000),
        },
        "generation_settings": {
            "max_n_logits": settings.max_logits,
            "desired_logit_prob": settings.logit_probability,
            "batch_size": settings.batch_size,
            "max_feature_nodes": graph.edges.table.num_features,
        },
        "pruning_settings": {
            "node_threshold": node_threshold,
            "edge_threshold": edge_threshold,
            "node_share": pruned.node_share,
            "edge_share": pruned.edge_share,
        },
    }
    content = graph_json(graph.nodes, pruned, cumulative_share(influence), metadata)
    return content, {"num_nodes_kept": len(content["nodes"]), "num_edges_kept": len(content["links"])}


def shown_so_far(request: GraphRequest, graph: WholeGraph) -> Json:
    """What a graph shows before all of its rows are there."""
    influence, _ = compute_influence(graph.edges, graph.logit_weights)
    settings = request.settings
    content, kept = pruned_content(request, graph, influence, settings.node_threshold, settings.edge_threshold)
    return {
        "tokens": [[token.id, token.text] for token in graph.nodes.tokens],
        "statistics": {"num_features": graph.edges.table.num_features, **kept},
        "json": content,
    }
