"""What the demo reads in a graph."""

import json

from weft_common.errors import FailedPreconditionError


def strongest_feature(document: bytes) -> str:
    """
    Return the feature with the largest direct edge, by magnitude, to the most likely logit.

    Raises:
        FailedPreconditionError: The pruned graph has no such edge: errors say more of the logit than features do.

    >>> strongest_feature(
    ...     json.dumps(
    ...         {
    ...             "nodes": [
    ...                 {"node_id": "0_1_1", "feature_type": "cross layer transcoder"},
    ...                 {"node_id": "0_2_1", "feature_type": "cross layer transcoder"},
    ...                 {"node_id": "3_7_1", "feature_type": "logit", "token_prob": 0.9},
    ...             ],
    ...             "links": [
    ...                 {"source": "0_1_1", "target": "3_7_1", "weight": 0.5},
    ...                 {"source": "0_2_1", "target": "3_7_1", "weight": -0.7},
    ...             ],
    ...         }
    ...     ).encode()
    ... )
    '0_2_1'
    """
    graph = json.loads(document)
    kind = {node["node_id"]: node["feature_type"] for node in graph["nodes"]}
    logits = [node for node in graph["nodes"] if node["feature_type"] == "logit"]
    target = max(logits, key=lambda node: node["token_prob"])["node_id"]
    edges = [
        link
        for link in graph["links"]
        if link["target"] == target and kind.get(link["source"]) == "cross layer transcoder"
    ]
    if not edges:
        raise FailedPreconditionError(
            "No feature was kept that leads to the predicted token, so little does the transcoder explain: "
            "give `weft demo` more --features, --steps or --tokens."
        )
    return str(max(edges, key=lambda link: abs(link["weight"]))["source"])
