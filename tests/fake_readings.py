# ruff: noqa: N802  the names of RPCs are given
"""Answers to questions on graphs, worked out of the file that the world holds, simple enough to be foreseen."""

import json
from typing import Any

from weft.attribution.v1 import attention_pb2, reading_pb2, steering_pb2
from weft_common.errors import InvalidArgumentError

__all__ = ["FakeReadings"]


class FakeReadings:
    """The RPCs that read finished graphs; `world` has the file's bytes and keeps what was asked."""

    world: Any

    async def ScoreSubgraph(self, request: Any, context: Any) -> reading_pb2.ScoreSubgraphResponse:
        """A hundredth a node."""
        self.world.scored.append(list(request.node_ids))
        count = len(request.node_ids)
        return reading_pb2.ScoreSubgraphResponse(
            whole=reading_pb2.GraphScores(replacement_score=0.412, completeness_score=0.713),
            subgraph=reading_pb2.GraphScores(replacement_score=count / 100, completeness_score=0.3 + count / 100),
            influence_share=count / 50,
            num_features=count,
        )

    async def FindPaths(self, request: Any, context: Any) -> reading_pb2.FindPathsResponse:
        """The direct way, and one over the first feature between the two."""
        nodes = {node["node_id"]: node for node in json.loads(self.world.json)["nodes"]}
        source, target = nodes[request.source_node_id], nodes[request.target_node_id]
        if depth(source) >= depth(target):
            raise InvalidArgumentError(f"{request.source_node_id} does not stand below {request.target_node_id}")
        between = next(
            node["node_id"]
            for node in nodes.values()
            if node["feature_type"] == "cross layer transcoder" and depth(source) < depth(node) < depth(target)
        )
        ends = [request.source_node_id, request.target_node_id]
        return reading_pb2.FindPathsResponse(
            paths=[
                reading_pb2.GraphPath(node_ids=[ends[0], between, ends[1]], weights=[1.5, -0.25], strength=0.04),
                reading_pb2.GraphPath(node_ids=ends, weights=[0.9], strength=0.02),
            ],
            total_strength=0.31,
        )

    async def SplitEdge(self, request: Any, context: Any) -> attention_pb2.SplitEdgeResponse:
        """Half of an edge of 0.8 goes through two heads, one of them against it."""
        self.world.split.append((request.source_node_id, request.target_node_id))
        return attention_pb2.SplitEdgeResponse(
            weight=0.8,
            total=0.8,
            direct=0.3,
            parts=[
                attention_pb2.HeadPart(layer=11, head=2, position=4, value=0.6),
                attention_pb2.HeadPart(layer=9, head=0, position=2, value=-0.2),
            ],
            rest=0.1,
        )

    async def ExplainAttention(self, request: Any, context: Any) -> attention_pb2.ExplainAttentionResponse:
        """The first feature against the first token, a token against what is no node's, and a rest."""
        self.world.attention.append((request.layer, request.head, request.query_position, request.key_position))
        nodes = json.loads(self.world.json)["nodes"]
        feature = next(node["node_id"] for node in nodes if node["feature_type"] == "cross layer transcoder")
        token = next(node["node_id"] for node in nodes if node["feature_type"] == "embedding")
        pairs = [(feature, token, 1.2), (token, "constant", -0.4), ("3_99_4", token, 0.1)]
        return attention_pb2.ExplainAttentionResponse(
            score=0.7,
            pattern=0.432,
            total=0.7,
            pairs=[
                attention_pb2.ScorePair(query_node_id=query, key_node_id=key, value=value)
                for query, key, value in pairs
            ],
            rest=-0.2,
        )

    async def Steer(self, request: Any, context: Any) -> steering_pb2.SteerResponse:
        """Every feature of the file changes by a tenth of its place; half of it is measured, all where it is held."""
        self.world.steered.append(request)
        nodes = json.loads(self.world.json)["nodes"]
        features = [node for node in nodes if node["feature_type"] == "cross layer transcoder"]
        logits = [node for node in nodes if node["feature_type"] == "logit"]
        share = 1.0 if request.HasField("held") else 0.5
        return steering_pb2.SteerResponse(
            nodes=[
                steering_pb2.NodeEffect(
                    node_id=node["node_id"],
                    before=1.0,
                    predicted=place / 10,
                    measured=share * place / 10,
                    activation_after=1.0 + share * place / 10,
                )
                for place, node in enumerate(features)
            ],
            logits=[
                steering_pb2.SteeredLogit(
                    token_id=int(node["node_id"].split("_")[1]), text=" Paris", predicted=-0.3, measured=-0.2,
                    probability_before=0.4, probability_after=0.3,
                )
                for node in logits[:1]
            ],
            rank_agreement=0.721,
        )  # fmt: skip

    async def SummarizeGraph(self, request: Any, context: Any) -> reading_pb2.SummarizeGraphResponse:
        """Features by layers, tokens, errors, logits, the rest; flows by the file's weights."""
        graph = json.loads(self.world.json)
        most = request.max_supernodes or 12
        self.world.summarized.append((most, request.likeness))
        features = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]
        features.sort(key=lambda node: int(node["layer"]))
        taken, rest = features[: 8 * most], features[8 * most :]
        groups: list[tuple[int, str, list[dict[str, Any]]]] = []
        for at in range(0, len(taken), 8):
            part = taken[at : at + 8]
            label = f"L{part[0]['layer']}-{part[-1]['layer']} at ' France': ' Paris', ' Lyon'"
            groups.append((reading_pb2.SUPERNODE_KIND_FEATURES, label, part))
        kinds = {name: [n for n in graph["nodes"] if n["feature_type"] == name] for name in _KINDS}
        for node in kinds["embedding"]:
            token = graph["metadata"]["prompt_tokens"][node["ctx_idx"]]
            groups.append((reading_pb2.SUPERNODE_KIND_TOKENS, repr(token), [node]))
        groups.append((reading_pb2.SUPERNODE_KIND_ERRORS, "errors", kinds["mlp reconstruction error"]))
        groups.append((reading_pb2.SUPERNODE_KIND_LOGITS, "' Paris', ' the'", kinds["logit"]))
        groups.append((reading_pb2.SUPERNODE_KIND_OTHERS, "other features", rest))
        place = {node["node_id"]: index for index, (_, _, part) in enumerate(groups) for node in part}
        flow: dict[tuple[int, int], list[float]] = {}
        total = sum(abs(link["weight"]) for link in graph["links"])
        for link in graph["links"]:
            pair = flow.setdefault((place[link["source"]], place[link["target"]]), [0.0, 0.0])
            pair[0] += abs(link["weight"]) / total
            pair[1] += link["weight"] / total
        return reading_pb2.SummarizeGraphResponse(
            supernodes=[
                reading_pb2.Supernode(
                    kind=kind,
                    label=label,
                    node_ids=[node["node_id"] for node in part] if kind in _NAMED else [],
                    num_nodes=len(part),
                    influence=0.3 / (index + 2),
                    first_layer=int(part[0]["layer"]) if kind == reading_pb2.SUPERNODE_KIND_FEATURES else 0,
                    last_layer=int(part[-1]["layer"]) if kind == reading_pb2.SUPERNODE_KIND_FEATURES else 0,
                    raised_tokens=[" Paris", " Lyon"] if kind == reading_pb2.SUPERNODE_KIND_FEATURES else [],
                )
                for index, (kind, label, part) in enumerate(groups)
            ],
            flows=[
                reading_pb2.Flow(source=source, target=target, influence=size, net=net)
                for (source, target), (size, net) in sorted(flow.items(), key=lambda item: -item[1][0])
            ],
            influence_share=0.874,
            flow_share=0.912,
            whole=reading_pb2.GraphScores(replacement_score=0.412, completeness_score=0.713),
            summary=reading_pb2.GraphScores(replacement_score=0.377, completeness_score=0.688),
        )

    async def CompareGraphs(self, request: Any, context: Any) -> reading_pb2.CompareGraphsResponse:
        """Every tenth feature alone here, every other tenth alone there; the fifth token is another one."""
        graph = json.loads(self.world.json)
        features = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"][:30]
        compared = []
        for index, node in enumerate(features):
            here, there = index % 10 != 3, index % 10 != 7
            compared.append(
                reading_pb2.ComparedNode(
                    node_id=node["node_id"] if here else "",
                    other_node_id=node["node_id"] if there else "",
                    influence=0.08 / (index + 1) if here else 0.0,
                    other_influence=0.06 / (30 - index) if there else 0.0,
                    activation=node["activation"],
                    other_activation=node["activation"] / 2,
                )
            )
        return reading_pb2.CompareGraphsResponse(
            positions=list(range(len(graph["metadata"]["prompt_tokens"]))),
            overlap=0.643,
            num_common=210,
            num_first_only=31,
            num_other_only=24,
            nodes=compared,
            edges=[
                reading_pb2.ComparedEdge(source=0, target=5, weight=0.4, influence=0.031, other_influence=0.0),
                reading_pb2.ComparedEdge(source=1, target=2, weight=0.2, influence=0.004, other_influence=0.02),
            ],
        )


_KINDS = ("embedding", "mlp reconstruction error", "logit")
_NAMED = (
    reading_pb2.SUPERNODE_KIND_FEATURES,
    reading_pb2.SUPERNODE_KIND_TOKENS,
    reading_pb2.SUPERNODE_KIND_LOGITS,
)


def depth(node: dict[str, Any]) -> int:
    """The layer that a node stands in; tokens stand below all."""
    return -1 if node["layer"] == "E" else int(node["layer"])
