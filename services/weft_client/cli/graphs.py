"""`weft graphs`."""

import hashlib
import re
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from weft.attribution.v1 import messages_pb2, targets_pb2
from weft_client.cli import graph_steering
from weft_client.cli.output import as_dict, print_json, print_list, print_one, state, stdout, time
from weft_client.cli.session import JsonFlag, NoWait, ValidateOnly, connected
from weft_client.cli.waiting import print_started, wait
from weft_client.names import full_name, short_id
from weft_common.errors import InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="Attribution graphs.")
GraphArgument = Annotated[str, typer.Argument(help="Id of the graph.")]


def _state(graph: messages_pb2.Graph) -> str:
    return state(messages_pb2.GraphState.Name(graph.state))


@app.command("list")
def list_graphs(as_json: JsonFlag = False) -> None:
    """List graphs, newest first."""
    with connected() as client:
        print_list(
            "graphs",
            client.graphs.list(),
            {
                "id": lambda graph: short_id(graph.name),
                "state": _state,
                "prompt": lambda graph: graph.spec.prompt,
                "nodes": lambda graph: f"{graph.statistics.num_nodes_kept} of {graph.statistics.num_nodes}",
                "replacement": lambda graph: f"{graph.statistics.replacement_score:.3f}",
                "completeness": lambda graph: f"{graph.statistics.completeness_score:.3f}",
                "created": lambda graph: time(graph.create_time),
            },
            as_json=as_json,
        )


@app.command("get")
def get_graph(
    graph: GraphArgument,
    output: Annotated[Path | None, typer.Option(help="Write the graph's JSON, for viewers, to this file.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the graph's page.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Describe one graph."""
    with connected() as client:
        found = client.graphs.get(graph)
        page = client.endpoints.page(page_path(found.name)) if open_page else ""
    if output is not None:
        output.write_bytes(found.json)
    if as_json:
        document = as_dict(found)
        document["json"] = found.json.decode()
        print_json(document)
    else:
        print_one(found, _fields(found), as_json=False)
    if page:
        webbrowser.open(page)


def page_path(name: str) -> str:
    """
    Where the console shows a graph.

    >>> page_path("graphs/g1")
    'graphs/g1'
    """
    return f"graphs/{short_id(name)}"


def _fields(graph: messages_pb2.Graph) -> list[tuple[str, str]]:
    figures = graph.statistics
    return [
        ("name", graph.name),
        ("state", f"{_state(graph)} {graph.error_message}".strip()),
        ("prompt", graph.spec.prompt),
        ("model", graph.spec.model),
        ("transcoder", graph.spec.transcoder),
        ("nodes", f"{figures.num_nodes_kept:,} kept of {figures.num_nodes:,}, {figures.num_features:,} features"),
        ("edges", f"{figures.num_edges_kept:,} kept of {figures.num_edges:,}"),
        ("scores", f"replacement {figures.replacement_score:.3f}, completeness {figures.completeness_score:.3f}"),
        ("conservation", f"largest relative error {figures.conservation_error:.1e}"),
        ("seconds", f"{figures.seconds:.1f}"),
        *graph_steering.faithfulness_fields(graph.faithfulness),
        ("created", time(graph.create_time)),
    ]


_TARGET = (
    "What to explain: text that follows the prompt, such as ' Paris', 'TEXT - TEXT' for the difference of two logits, "
    "'@LAYER_INDEX' for a feature, or 'direction:FILE' for numbers in a file; may be repeated."
)
_FEATURE = re.compile(r"@(\d{1,6})_(\d{1,9})")
_MAX_DIRECTION_BYTES = 1 << 20


def _target(text: str) -> targets_pb2.Target:
    """
    Read a target of the command line.

    >>> _target(" Paris - Rome").difference.minus_text
    ' Rome'
    """
    feature = _FEATURE.fullmatch(text)
    if feature:
        place = targets_pb2.FeatureOfLayer(layer=int(feature[1]), index=int(feature[2]))
        return targets_pb2.Target(feature=place)
    if text.startswith("direction:"):
        return targets_pb2.Target(
            direction=targets_pb2.Direction(values=_numbers(Path(text.removeprefix("direction:"))))
        )
    first, minus, second = text.partition(" -")
    if minus and second.startswith(" "):
        return targets_pb2.Target(difference=targets_pb2.TokenDifference(text=first, minus_text=second))
    return targets_pb2.Target(text=text)


def _numbers(path: Path) -> list[float]:
    try:
        with path.open("rb") as file:
            words = file.read(_MAX_DIRECTION_BYTES).decode().replace(",", " ").split()
        return [float(word) for word in words]
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"{path} holds no numbers ({error}); give a text file of numbers with spaces or commas between them",
            field="target",
        ) from error


@app.command("create")
def create_graph(
    graph: Annotated[str, typer.Argument(help="Id of the new graph; default: made from prompt and transcoder.")] = "",
    prompt: Annotated[str, typer.Option(help="Text whose next token is explained.")] = ...,  # type: ignore[assignment]
    transcoder: Annotated[str, typer.Option(help="Id of the transcoder.")] = ...,  # type: ignore[assignment]
    model: Annotated[str, typer.Option(help="Id of the model; default: the transcoder's.")] = "",
    target_token_id: Annotated[list[int] | None, typer.Option(help="Token to explain; may be repeated.")] = None,
    target: Annotated[list[str] | None, typer.Option(help=_TARGET)] = None,
    position: Annotated[int | None, typer.Option(help="Position explained, from 0; default: the last.")] = None,
    max_logits: Annotated[int, typer.Option(help="Most logits to explain; 0 means 10.")] = 0,
    max_features: Annotated[int, typer.Option(help="Most features in the graph; 0 means all active ones.")] = 0,
    node_threshold: Annotated[float, typer.Option(help="Share of influence of kept nodes; 0 means 0.8.")] = 0.0,
    edge_threshold: Annotated[float, typer.Option(help="Share of influence of kept edges; 0 means 0.98.")] = 0.0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the graph's page once it is there.")] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Explain the next token of a prompt."""
    with connected() as client:
        spec = messages_pb2.GraphSpec(
            model=full_name("models", model) if model else client.transcoders.get(transcoder).model,
            transcoder=full_name("transcoders", transcoder),
            prompt=prompt,
            max_logits=max_logits,
            target_token_ids=target_token_id or (),
            targets=[_target(text) for text in target or ()],
            position=position,
            max_features=max_features,
            node_threshold=node_threshold,
            edge_threshold=edge_threshold,
        )
        graph = graph or f"g-{hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()[:10]}"
        page = client.endpoints.page(page_path(graph)) if open_page else ""
        operation = client.graphs.create(graph, spec=spec, validate_only=validate_only)
        if no_wait or validate_only:
            print_started(operation, f"graphs/{graph}", validated=validate_only, as_json=as_json)
            return
        result = wait(client, operation, "attributing", quiet=as_json)
    assert isinstance(result, messages_pb2.Graph)
    if as_json:
        print_json(as_dict(result))
    else:
        print_one(result, _fields(result), as_json=False)
    if page:
        webbrowser.open(page)


@app.command("prune")
def prune_graph(
    graph: GraphArgument,
    node_threshold: Annotated[float, typer.Option(help="Share of influence of kept nodes.")] = 0.8,
    edge_threshold: Annotated[float, typer.Option(help="Share of influence of kept edges.")] = 0.98,
    output: Annotated[Path | None, typer.Option(help="Write the pruned JSON to this file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Prune the stored graph to other thresholds; what is stored stays."""
    with connected() as client:
        found = client.graphs.prune(graph, node_threshold=node_threshold, edge_threshold=edge_threshold)
    if output is not None:
        output.write_bytes(found.json)
    print_one(found, _fields(found), as_json=as_json)


@app.command("intervene")
def intervene(
    graph: GraphArgument,
    ablate: Annotated[list[str] | None, typer.Option(help="Node to set to zero, such as 12_345_4.")] = None,
    scale: Annotated[list[str] | None, typer.Option(help="NODE=FACTOR, to multiply its activation.")] = None,
    set_value: Annotated[list[str] | None, typer.Option("--set", help="NODE=VALUE, to set its activation.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change features in the model and compare the logits with what the graph says."""
    changes = [messages_pb2.FeatureIntervention(node_id=node, factor=0) for node in ablate or ()]
    for node, number in (_node_and_number(given, "--scale") for given in scale or ()):
        changes.append(messages_pb2.FeatureIntervention(node_id=node, factor=number))
    for node, number in (_node_and_number(given, "--set") for given in set_value or ()):
        changes.append(messages_pb2.FeatureIntervention(node_id=node, value=number))
    if not changes:
        raise InvalidArgumentError(
            "nothing to change: give --ablate, --scale or --set with a node", field="interventions"
        )
    with connected() as client:
        result = client.graphs.intervene(graph, interventions=changes)
    if as_json:
        print_json(as_dict(result))
        return
    print_list(
        "effects",
        result.effects,
        {
            "token": lambda effect: repr(effect.text),
            "predicted": lambda effect: f"{effect.predicted:+.4f}",
            "measured, frozen": lambda effect: f"{effect.measured_frozen:+.4f}",
            "predicted, all paths": lambda effect: f"{effect.predicted_total:+.4f}",
            "measured": lambda effect: f"{effect.measured:+.4f}",
            "probability": lambda effect: f"{effect.probability_before:.3f} to {effect.probability_after:.3f}",
        },
        as_json=False,
    )


def _node_and_number(given: str, option: str) -> tuple[str, float]:
    """
    Node and number of an option.

    >>> _node_and_number("12_345_4=0.5", "--scale")
    ('12_345_4', 0.5)
    """
    node, separator, number = given.partition("=")
    try:
        if not (node and separator):
            raise ValueError
        return node, float(number)
    except ValueError:
        raise InvalidArgumentError(
            f"{option} is {given!r}, expected NODE=NUMBER such as 12_345_4=0.5", field="interventions"
        ) from None


@app.command("delete")
def delete_graph(graph: GraphArgument, as_json: JsonFlag = False) -> None:
    """Delete a graph."""
    with connected() as client:
        client.graphs.delete(graph)
    if as_json:
        print_json({"deleted": graph})
    else:
        stdout().print(f"{graph} is deleted")
