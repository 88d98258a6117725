"""What the demo reads in a graph."""

import json

import pytest

from weft_client.demo.graph_json import strongest_feature
from weft_common.errors import FailedPreconditionError


def test_graph_without_features_at_its_target_says_what_to_do() -> None:
    """A weak transcoder leaves only errors in front of the target."""
    graph = {
        "nodes": [
            {"node_id": "E_1_1", "feature_type": "mlp reconstruction error"},
            {"node_id": "30_7_1", "feature_type": "logit", "token_prob": 0.9},
        ],
        "links": [{"source": "E_1_1", "target": "30_7_1", "weight": 0.5}],
    }
    with pytest.raises(FailedPreconditionError, match="more --features"):
        strongest_feature(json.dumps(graph).encode())
