"""`weft graphs steer` and `faithfulness`: a graph held against the model that it explains."""

from typing import Annotated

import typer

from weft.attribution.v1 import steering_pb2
from weft_client.cli.output import as_dict, print_fields, print_json, print_list
from weft_client.cli.session import JsonFlag, NoWait, connected
from weft_client.cli.waiting import print_started, wait
from weft_common.errors import InvalidArgumentError

GraphArgument = Annotated[str, typer.Argument(help="Id of the graph.")]
_NODES = "NODE, or NODE,NODE,... for a supernode"


def steer(
    graph: GraphArgument,
    ablate: Annotated[list[str] | None, typer.Option(help=f"{_NODES}, to set to zero.")] = None,
    scale: Annotated[list[str] | None, typer.Option(help=f"{_NODES}, then =FACTOR.")] = None,
    set_value: Annotated[list[str] | None, typer.Option("--set", help=f"{_NODES}, then =VALUE.")] = None,
    patch: Annotated[
        list[str] | None, typer.Option(help=f"{_NODES}, then =PROMPT, whose activations are taken.")
    ] = None,
    patch_position: Annotated[
        int | None, typer.Option(help="Position of the prompts of --patch; default: each node's own.")
    ] = None,
    hold: Annotated[str, typer.Option(help="FIRST-LAST: layers whose MLPs are held; default: none.")] = "",
    freeze_attention: Annotated[bool, typer.Option(help="Hold attention patterns and norm scales too.")] = False,
    show: Annotated[
        list[str] | None, typer.Option(help="Feature node to measure, may be repeated; default: those of the file.")
    ] = None,
    max_nodes: Annotated[int, typer.Option(help="Most nodes to print, the largest changes first.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Change features and supernodes in the model; predicted beside measured for every node shown."""
    changes = [steering_pb2.FeatureChange(node_ids=nodes.split(","), factor=0) for nodes in ablate or ()]
    for nodes, text in (_pair(given, "--scale") for given in scale or ()):
        changes.append(steering_pb2.FeatureChange(node_ids=nodes, factor=_number(text, "--scale")))
    for nodes, text in (_pair(given, "--set") for given in set_value or ()):
        changes.append(steering_pb2.FeatureChange(node_ids=nodes, value=_number(text, "--set")))
    for nodes, text in (_pair(given, "--patch") for given in patch or ()):
        source = steering_pb2.PatchFrom(prompt=text, position=patch_position)
        changes.append(steering_pb2.FeatureChange(node_ids=nodes, patch=source))
    if not changes:
        raise InvalidArgumentError(
            "nothing to change: give --ablate, --scale, --set or --patch with nodes", field="changes"
        )
    with connected() as client:
        found = client.graphs.steer(
            graph,
            changes=changes,
            held=_layers(hold) if hold else None,
            freeze_attention=freeze_attention,
            shown_node_ids=show or (),
        )
    if as_json:
        print_json(as_dict(found))
        return
    print_list(
        "nodes",
        sorted(found.nodes, key=lambda node: -abs(node.measured))[:max_nodes],
        {
            "name": lambda node: node.node_id,
            "before": lambda node: f"{node.before:.4f}",
            "predicted": lambda node: f"{node.predicted:+.4f}",
            "measured": lambda node: f"{node.measured:+.4f}",
        },
        as_json=False,
    )
    print_list(
        "logits",
        found.logits,
        {
            "token": lambda logit: repr(logit.text),
            "predicted": lambda logit: f"{logit.predicted:+.4f}",
            "measured": lambda logit: f"{logit.measured:+.4f}",
            "probability": lambda logit: f"{logit.probability_before:.3f} to {logit.probability_after:.3f}",
        },
        as_json=False,
    )
    agreement = f"{found.rank_agreement:.3f}" if found.HasField("rank_agreement") else "none: one side does not vary"
    print_fields([("rank agreement", agreement)])


def _pair(given: str, option: str) -> tuple[list[str], str]:
    """
    Nodes and what follows them.

    >>> _pair("1_2_3,4_5_6=0.5", "--scale")
    (['1_2_3', '4_5_6'], '0.5')
    """
    nodes, separator, text = given.partition("=")
    if not (nodes and separator and text):
        raise InvalidArgumentError(f"{option} is {given!r}, expected NODES=... such as 12_345_4=0.5", field="changes")
    return nodes.split(","), text


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidArgumentError(f"{option} ends in {text!r}; give a number after =", field="changes") from None


def _layers(text: str) -> tuple[int, int]:
    """
    The first and last of some layers.

    >>> _layers("3-7"), _layers("4")
    ((3, 7), (4, 4))
    """
    first, _, last = text.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise InvalidArgumentError(f"--hold is {text!r}, expected FIRST-LAST such as 3-7", field="held") from None


def measure_faithfulness(
    graph: GraphArgument,
    num_nodes: Annotated[int, typer.Option(help="Features to ablate, the most influential ones, 3 to 500.")] = 64,
    no_wait: NoWait = False,
    as_json: JsonFlag = False,
) -> None:
    """Ablate the most influential features one by one, and hold the effects against their influence."""
    with connected() as client:
        operation = client.graphs.measure_faithfulness(graph, num_nodes=num_nodes)
        if no_wait:
            print_started(operation, f"graphs/{graph}", validated=False, as_json=as_json)
            return
        result = wait(client, operation, "ablating", quiet=as_json)
    assert isinstance(result, steering_pb2.Faithfulness)
    if as_json:
        print_json(as_dict(result))
        return
    print_list(
        "nodes",
        result.nodes[:_NODES_SHOWN],
        {
            "name": lambda node: node.node_id,
            "influence": lambda node: f"{node.influence:.4f}",
            "effect": lambda node: f"{node.effect:.4f}",
            "frozen": lambda node: f"{node.effect_frozen:.4f}",
            "direct": lambda node: f"{node.effect_direct:.4f}",
            "direct, predicted": lambda node: f"{node.predicted_direct:.4f}",
        },
        as_json=False,
    )
    print_fields(faithfulness_fields(result))


_NODES_SHOWN = 20


def faithfulness_fields(found: steering_pb2.Faithfulness) -> list[tuple[str, str]]:
    """How far a graph can be trusted, where that was measured."""
    if not found.num_nodes:
        return []

    def figure(name: str) -> str:
        return f"{getattr(found, name):.3f}" if found.HasField(name) else "none"  # type: ignore[arg-type]

    return [
        (
            "faithfulness",
            f"rank agreement {figure('spearman')} with the model left free, {figure('spearman_frozen')} frozen, "
            f"{figure('spearman_direct')} of direct edges, over {found.num_nodes} ablations",
        )
    ]
