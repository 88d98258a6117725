"""`weft graphs edge` and `attention`: from an edge to its heads, and why a head attends."""

from typing import Annotated

import typer

from weft.attribution.v1 import attention_pb2
from weft_client.cli.output import as_dict, print_fields, print_json, print_list
from weft_client.cli.session import JsonFlag, connected

GraphArgument = Annotated[str, typer.Argument(help="Id of the graph.")]


def split_edge(
    graph: GraphArgument,
    source: Annotated[str, typer.Argument(help="Node where the edge begins: a feature, an error or a token.")],
    target: Annotated[str, typer.Argument(help="Node where it ends: a feature or a logit.")],
    max_parts: Annotated[int, typer.Option(help="Most parts to show, 1 to 10,000.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Split an edge over the attention heads and positions that it goes through."""
    with connected() as client:
        found = client.graphs.split_edge(graph, source=source, target=target, max_parts=max_parts)
    if as_json:
        print_json(as_dict(found))
        return
    print_list(
        "parts",
        found.parts,
        {
            "layer": lambda part: str(part.layer),
            "last head": lambda part: str(part.head),
            "reads position": lambda part: str(part.position),
            "part": lambda part: f"{part.value:+.5f}",
        },
        as_json=False,
    )
    print_fields(
        [
            ("through no head", f"{found.direct:+.5f}"),
            ("other parts", f"{found.rest:+.5f}"),
            ("all parts", f"{found.total:+.5f}"),
            ("edge of the graph", f"{found.weight:+.5f}"),
        ]
    )


def explain_attention(
    graph: GraphArgument,
    layer: Annotated[int, typer.Option(help="Layer of the head.")],
    head: Annotated[int, typer.Option(help="The query head.")],
    query: Annotated[int, typer.Option(help="Position that attends.")],
    key: Annotated[int, typer.Option(help="Position that is looked at.")],
    max_pairs: Annotated[int, typer.Option(help="Most pairs to show, 1 to 10,000.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Explain an attention score by pairs of nodes, one in the query and one in the key."""
    with connected() as client:
        found = client.graphs.explain_attention(
            graph, layer=layer, head=head, query_position=query, key_position=key, max_pairs=max_pairs
        )
    if as_json:
        print_json(as_dict(found))
        return
    print_list(
        "pairs",
        found.pairs,
        {
            "in the query": lambda pair: pair.query_node_id,
            "in the key": lambda pair: pair.key_node_id,
            "adds": lambda pair: f"{pair.value:+.4f}",
        },
        as_json=False,
    )
    print_list(
        "kinds",
        sorted(found.kinds, key=lambda kinds: -abs(kinds.value)),
        {
            "queries of": lambda kinds: _kind(kinds.query),
            "keys of": lambda kinds: _kind(kinds.key),
            "add": lambda kinds: f"{kinds.value:+.4f}",
        },
        as_json=False,
    )
    print_fields(
        [
            ("other pairs", f"{found.rest:+.4f}"),
            ("all pairs", f"{found.total:+.4f}"),
            ("score", f"{found.score:+.4f}"),
            ("attention paid", f"{found.pattern:.1%}"),
        ]
    )


def _kind(kind: "attention_pb2.ScoreKind.ValueType") -> str:
    """
    What a kind is called.

    >>> _kind(attention_pb2.SCORE_KIND_FEATURE)
    'feature'
    """
    return attention_pb2.ScoreKind.Name(kind).removeprefix("SCORE_KIND_").lower()
