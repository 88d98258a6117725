"""`weft graphs score`, `paths`, `summary` and `compare`: finished graphs, read."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.attribution.v1 import reading_pb2
from weft_client.cli.output import as_dict, print_fields, print_json, print_list, print_one
from weft_client.cli.session import JsonFlag, connected
from weft_common.errors import InvalidArgumentError

GraphArgument = Annotated[str, typer.Argument(help="Id of the graph.")]


class Likeness(StrEnum):
    """What makes two features alike."""

    BOTH = "both"
    DECODER = "decoder"
    GRAPH = "graph"


def _scores(scores: reading_pb2.GraphScores) -> str:
    return f"replacement {scores.replacement_score:.3f}, completeness {scores.completeness_score:.3f}"


def score_part(
    graph: GraphArgument,
    pin: Annotated[list[str] | None, typer.Option(help="Node of the part, such as 12_345_4; may be repeated.")] = None,
    pins: Annotated[Path | None, typer.Option(help="A graph's JSON whose pinned nodes are the part.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score the part of a graph that pinned nodes make up; other features count as errors."""
    node_ids = list(pin or ())
    if pins is not None:
        node_ids += _pinned(pins)
    with connected() as client:
        found = client.graphs.score(graph, node_ids=node_ids)
    fields = [
        ("whole graph", _scores(found.whole)),
        ("this part", _scores(found.subgraph)),
        ("holds", f"{found.influence_share:.1%} of the features' influence with {found.num_features} features"),
    ]
    print_one(found, fields, as_json=as_json)


def _pinned(path: Path) -> list[str]:
    """What is pinned in a graph's file."""
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))["qParams"]["pinnedIds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            f"{path} is no graph with pinned nodes ({error}); give a file such as "
            "`weft graphs summary GRAPH --output FILE` writes",
            field="pins",
        ) from error


def find_paths(
    graph: GraphArgument,
    source: Annotated[str, typer.Argument(help="Node where paths begin: a feature, an error or a token.")],
    target: Annotated[str, typer.Argument(help="Node where they end: a feature or a logit.")],
    num_paths: Annotated[int, typer.Option(help="Most paths, 1 to 100.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Find the strongest paths between two nodes."""
    with connected() as client:
        found = client.graphs.paths(graph, source=source, target=target, num_paths=num_paths)
    if as_json:
        print_json(as_dict(found))
        return
    print_list(
        "paths",
        found.paths,
        {
            "strength": lambda path: f"{path.strength:.3%}",
            "sign": lambda path: "-" if sum(weight < 0 for weight in path.weights) % 2 else "+",
            "name": lambda path: " > ".join(path.node_ids),
        },
        as_json=False,
    )
    print_fields([("all paths", f"{found.total_strength:.3%} of the target's input")])


def summarize(
    graph: GraphArgument,
    max_supernodes: Annotated[int, typer.Option(help="Most groups of features, 1 to 12.")] = 12,
    likeness: Annotated[Likeness, typer.Option(help="What makes features alike.")] = Likeness.BOTH,
    node_threshold: Annotated[float, typer.Option(help="Share of the features' influence that is grouped.")] = 0.8,
    output: Annotated[
        Path | None, typer.Option(help="Write the graph's JSON with its supernodes pinned and grouped, for viewers.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a graph as a few groups of nodes and what flows between them."""
    with connected() as client:
        found = client.graphs.summarize(
            graph,
            max_supernodes=max_supernodes,
            likeness=reading_pb2.Likeness.Value(f"LIKENESS_{likeness.name}"),
            node_threshold=node_threshold,
        )
        whole = json.loads(client.graphs.get(graph).json) if output is not None else {}
    if output is not None:
        output.write_text(json.dumps(with_supernodes(whole, found)), encoding="utf-8")
    if as_json:
        print_json(as_dict(found))
        return
    print_list(
        "groups",
        found.supernodes,
        {
            "name": lambda group: group.label,
            "nodes": lambda group: f"{group.num_nodes:,}",
            "influence": lambda group: f"{group.influence:.4f}",
        },
        as_json=False,
    )
    print_list(
        "flows",
        found.flows[:_FLOWS_SHOWN],
        {
            "from": lambda flow: found.supernodes[flow.source].label,
            "to": lambda flow: found.supernodes[flow.target].label,
            "influence": lambda flow: f"{flow.influence:.4f}",
            "net": lambda flow: f"{flow.net:+.4f}",
        },
        as_json=False,
    )
    print_fields(
        [
            ("supernodes hold", f"{found.influence_share:.1%} of the features' influence"),
            ("named groups hold", f"{found.flow_share:.1%} of the flow"),
            ("whole graph", _scores(found.whole)),
            ("summary", _scores(found.summary)),
        ]
    )


_FLOWS_SHOWN = 20


def with_supernodes(content: dict[str, Any], found: reading_pb2.SummarizeGraphResponse) -> dict[str, Any]:
    """A graph's JSON whose viewer shows the supernodes: as far as their nodes are in it."""
    there = {node["node_id"] for node in content["nodes"]}
    groups = [
        [group.label, *(node for node in group.node_ids if node in there)]
        for group in found.supernodes
        if group.kind == reading_pb2.SUPERNODE_KIND_FEATURES
    ]
    groups = [group for group in groups if len(group) > 1]
    ends = [node["node_id"] for node in content["nodes"] if node["feature_type"] in ("embedding", "logit")]
    pinned = [*(node for _, *nodes in groups for node in nodes), *ends]
    return {**content, "qParams": {**content["qParams"], "pinnedIds": pinned, "supernodes": groups}}


def compare(
    graph: GraphArgument,
    other: Annotated[str, typer.Argument(help="Id of another graph of the same model and transcoder.")],
    max_nodes: Annotated[int, typer.Option(help="Most nodes to show, 1 to 500.")] = 30,
    max_edges: Annotated[int, typer.Option(help="Most edges to show, 1 to 20,000.")] = 30,
    as_json: JsonFlag = False,
) -> None:
    """Hold two graphs side by side; what differs most comes first."""
    with connected() as client:
        found = client.graphs.compare(graph, other, max_nodes=max_nodes, max_edges=max_edges)
    if as_json:
        print_json(as_dict(found))
        return
    names = [node.node_id or node.other_node_id for node in found.nodes]
    print_list(
        "nodes",
        found.nodes,
        {
            "name": lambda node: node.node_id or "-",
            "in the other": lambda node: node.other_node_id or "-",
            "influence": lambda node: f"{node.influence:.2%}",
            "other's": lambda node: f"{node.other_influence:.2%}",
            "activation": lambda node: f"{node.activation:.3f}",
            "other's activation": lambda node: f"{node.other_activation:.3f}",
        },
        as_json=False,
    )
    print_list(
        "edges",
        found.edges,
        {
            "from": lambda edge: names[edge.source],
            "to": lambda edge: names[edge.target],
            "weight": lambda edge: f"{edge.weight:+.4f}",
            "other's": lambda edge: f"{edge.other_weight:+.4f}",
        },
        as_json=False,
    )
    print_fields(
        [
            ("influence in common", f"{found.overlap:.1%}"),
            (
                "features",
                f"{found.num_common:,} in both, {found.num_first_only:,} in {graph} alone, "
                f"{found.num_other_only:,} in {other} alone",
            ),
        ]
    )
