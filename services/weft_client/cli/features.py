"""`weft features`: an index of a transcoder's features, and what is asked of it."""

from collections.abc import Iterable
from enum import StrEnum
from itertools import islice
from typing import Annotated, TypeVar

import typer

from weft.features.v1 import index_pb2, queries_pb2, service_pb2
from weft_client.cli.output import as_dict, print_fields, print_json, print_list, print_one, time
from weft_client.cli.session import JsonFlag, NoWait, ValidateOnly, connected
from weft_client.cli.waiting import print_result, print_started, wait
from weft_client.names import short_id
from weft_common.errors import InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="Features: where they are active, and which are like them.")

T = TypeVar("T")
TranscoderArgument = Annotated[str, typer.Argument(help="Id of the transcoder.")]
FeatureArgument = Annotated[str, typer.Argument(help="The feature, LAYER-INDEX, such as 12-345.")]
Limit = Annotated[int, typer.Option(help="Most features shown.")]
_MARK = 0.5
_RULES = {
    index_pb2.ACTIVITY_RULE_THRESHOLD: "threshold",
    index_pb2.ACTIVITY_RULE_THRESHOLD_FOR_COUNT: "threshold for count",
}


class State(StrEnum):
    """By how often it is active."""

    ACTIVE = "active"
    DEAD = "dead"
    DENSE = "dense"


_STATES = {
    State.ACTIVE: index_pb2.FEATURE_STATE_ACTIVE,
    State.DEAD: index_pb2.FEATURE_STATE_DEAD,
    State.DENSE: index_pb2.FEATURE_STATE_DENSE,
}
_STATE_NAMES = {value: name.value for name, value in _STATES.items()}


@app.command("index")
def index_features(
    transcoder: TranscoderArgument,
    dataset: Annotated[str, typer.Option(help="Id of a sealed dataset that was harvested for it.")],
    index: Annotated[str, typer.Option(help="Id of the index; default: the dataset's.")] = "",
    held_out: Annotated[bool, typer.Option("--held-out", help="Take the held-out split.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Stop after so many tokens; 0 means all.")] = 0,
    window_tokens: Annotated[int, typer.Option(help="Tokens of an example; 0 means 32.")] = 0,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Go over a dataset once and gather where every feature is active; the same command again goes on."""
    index = index or short_id(dataset)
    with connected() as client:
        operation = client.features.index(
            transcoder,
            index,
            dataset=dataset,
            held_out=held_out,
            max_tokens=max_tokens,
            settings=index_pb2.FeatureIndexSettings(window_tokens=window_tokens),
            validate_only=validate_only,
        )
        if no_wait or validate_only:
            name = f"transcoders/{short_id(transcoder)}/indexes/{index}"
            print_started(operation, name, validated=validate_only, as_json=as_json)
            return
        result = wait(client, operation, "indexing", quiet=as_json)
    assert isinstance(result, index_pb2.FeatureIndex)
    line = (
        f"{result.name} is ready: {sum(result.num_features)} features over {result.num_tokens} tokens, "
        f"{result.num_dead} of them dead and {result.num_dense} dense"
    )
    if result.activity_rule == index_pb2.ACTIVITY_RULE_THRESHOLD_FOR_COUNT:
        line += (
            "; the transcoder keeps the largest of a token, and here a feature is active above the threshold by which "
            "it fires as often"
        )
    print_result(result, line, as_json=as_json)


@app.command("indexes")
def list_indexes(transcoder: TranscoderArgument, as_json: JsonFlag = False) -> None:
    """List the indexes of a transcoder; the first one answers."""
    with connected() as client:
        print_list(
            "indexes",
            client.features.indexes(transcoder),
            {
                "id": lambda each: short_id(each.name),
                "dataset": lambda each: short_id(each.dataset) + (" (held out)" if each.held_out else ""),
                "tokens": lambda each: str(each.num_tokens),
                "features": lambda each: str(sum(each.num_features)),
                "dead": lambda each: str(each.num_dead),
                "dense": lambda each: str(each.num_dense),
                "active by": lambda each: _RULES.get(each.activity_rule, "not told"),
                "created": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


@app.command("get")
def get_feature(
    transcoder: TranscoderArgument,
    feature: FeatureArgument,
    examples: Annotated[int, typer.Option(help="Most examples shown.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Describe one feature, with text where it is strongest; tokens above half the peak stand in [[ ]]."""
    layer, index = _place(feature)
    with connected() as client:
        found = client.features.get(transcoder, layer=layer, index=index)
    figures = found.statistics
    fields = [
        ("name", found.name),
        ("label", f"{found.label.text} ({'person' if found.label.is_human else 'model'})" if found.label.text else ""),
        ("active", f"on {figures.density:.3%} of tokens, {_STATE_NAMES.get(figures.state, 'no index')}"),
        ("activation", f"at most {figures.max_activation:.3g}, {figures.mean_activation:.3g} in the mean"),
        ("writes", f"to layers {figures.first_layer} to {figures.last_layer}, norm {figures.decoder_norm:.3g}"),
        ("raises", ", ".join(f"{each.text!r} {each.weight:+.2f}" for each in found.top_logits)),
        ("lowers", ", ".join(f"{each.text!r} {each.weight:+.2f}" for each in found.bottom_logits)),
        ("writes alike", ", ".join(f"{layer}-{each.index} {each.cosine:.2f}" for each in found.neighbours)),
        ("active with", ", ".join(f"{layer}-{each.index} {each.share:.2f}" for each in found.partners)),
        *(
            (f"{each.peak:.3g}" + (f", quantile {each.quantile}" if each.quantile >= 0 else ""), _marked(each))
            for each in found.examples[:examples]
        ),
    ]
    print_one(found, [field for field in fields if field[1]], as_json=as_json)


@app.command("list")
def list_features(
    transcoder: TranscoderArgument,
    layer: Annotated[list[int] | None, typer.Option(help="Layer; may be repeated.")] = None,
    state: Annotated[list[State] | None, typer.Option(help="State; may be repeated.")] = None,
    min_density: Annotated[float | None, typer.Option(help="Least share of tokens on which it is active.")] = None,
    max_density: Annotated[float | None, typer.Option(help="Largest such share.")] = None,
    order: Annotated[str, typer.Option(help="For example 'density desc' or 'max_activation'.")] = "",
    limit: Limit = 50,
    as_json: JsonFlag = False,
) -> None:
    """List features by their figures."""
    wanted = _filter(layer, state, min_density, max_density)
    with connected() as client:
        found = client.features.list(transcoder, wanted=wanted, order_by=order, page_size=min(limit, 1000))
        _print_features(_first(found, limit), as_json=as_json)


@app.command("search")
def search_features(
    transcoder: TranscoderArgument,
    label: Annotated[str | None, typer.Option(help="Words that its label has in it.")] = None,
    token: Annotated[str | None, typer.Option(help="Token that it is strongest on.")] = None,
    token_id: Annotated[int | None, typer.Option(help="The same as an index into the vocabulary.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Layer; may be repeated.")] = None,
    order: Annotated[str, typer.Option(help="As of list.")] = "",
    limit: Limit = 50,
    as_json: JsonFlag = False,
) -> None:
    """Find features by the words of their labels, or by the token that they are strongest on."""
    if sum(each is not None for each in (label, token, token_id)) != 1:
        raise InvalidArgumentError("give one of --label, --token and --token-id", field="query")
    with connected() as client:
        found = client.features.search(
            transcoder,
            label=label,
            token=token,
            token_id=token_id,
            wanted=_filter(layer, None, None, None),
            order_by=order,
            page_size=min(limit, 1000),
        )
        _print_features([each.feature for each in _first(found, limit)], as_json=as_json)


@app.command("prompt")
def show_prompt(
    transcoder: TranscoderArgument,
    prompt: Annotated[str, typer.Option(help="The text.")],
    layer: Annotated[list[int] | None, typer.Option(help="Layer; may be repeated.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="Feature, LAYER-INDEX; may be repeated.")] = None,
    limit: Limit = 20,
    as_json: JsonFlag = False,
) -> None:
    """Run a text and show which features fire where."""
    with connected() as client:
        found = client.features.on_prompt(
            transcoder,
            prompt,
            layers=layer or (),
            features=[_place(each) for each in feature or ()],
            max_features=limit,
        )
    if as_json:
        print_json(as_dict(found))
        return
    print_list(
        "features",
        found.features,
        {
            "id": lambda each: short_id(each.name),
            "of its largest": lambda each: f"{each.relative_max:.0%}" if each.relative_max else "",
            "where": lambda each: " ".join(
                f"{found.tokens[position]!r}:{value:.3g}"
                for position, value in zip(each.positions, each.activations, strict=True)
            ),
            "label": lambda each: each.label.text,
        },
        as_json=False,
    )
    print_fields([("active", f"{found.num_active_features} features on {len(found.tokens)} tokens")])


@app.command("graph")
def list_graph_features(
    graph: Annotated[str, typer.Argument(help="Id of the graph.")], limit: Limit = 50, as_json: JsonFlag = False
) -> None:
    """List the features of a graph, the most influential first."""
    with connected() as client:
        found = _first(client.features.of_graph(graph), limit)
    print_list(
        "features",
        found,
        {
            "id": lambda each: short_id(each.feature.name),
            "influence": lambda each: f"{each.influence:.3g}",
            "positions": lambda each: " ".join(map(str, each.positions)),
            "density": lambda each: _density(each.feature),
            "label": lambda each: each.feature.label.text,
        },
        as_json=as_json,
    )


@app.command("graphs")
def list_feature_graphs(
    transcoder: TranscoderArgument, feature: FeatureArgument, limit: Limit = 50, as_json: JsonFlag = False
) -> None:
    """List the graphs that a feature is a node of, newest first."""
    layer, index = _place(feature)
    with connected() as client:
        found = _first(client.features.in_graphs(transcoder, layer=layer, index=index), limit)
    print_list(
        "graphs",
        found,
        {
            "id": lambda each: short_id(each.graph),
            "positions": lambda each: " ".join(map(str, each.positions)),
            "largest": lambda each: f"{max(each.activations):.3g}",
            "created": lambda each: time(each.create_time),
            "prompt": lambda each: each.prompt,
        },
        as_json=as_json,
    )


@app.command("match")
def match_features(
    transcoder: TranscoderArgument,
    other: Annotated[str, typer.Argument(help="Id of the transcoder to look in.")],
    layer: Annotated[int, typer.Option(help="Layer of both.")],
    min_cosine: Annotated[float, typer.Option(help="Least cosine of their decoders.")] = 0.5,
    limit: Limit = 50,
    as_json: JsonFlag = False,
) -> None:
    """Find for the features of a layer the most alike of another transcoder."""
    with connected() as client:
        found = _first(client.features.match(transcoder, other, layer=layer, min_cosine=min_cosine), limit)
    print_list(
        "matches",
        found,
        {
            "feature": lambda each: f"{layer}-{each.index}",
            "other": lambda each: f"{layer}-{each.other_index}",
            "cosine": lambda each: f"{each.cosine:.3f}",
            "mutual": lambda each: "yes" if each.is_mutual else "",
        },
        as_json=as_json,
    )


def _place(feature: str) -> tuple[int, int]:
    """
    Layer and index.

    >>> _place("12-345")
    (12, 345)
    """
    layer, _, index = feature.partition("-")
    if not (layer.isdecimal() and index.isdecimal()):
        raise InvalidArgumentError(f"{feature!r} is no feature; give LAYER-INDEX, such as 12-345", field="feature")
    return int(layer), int(index)


def _first(found: Iterable[T], limit: int) -> list[T]:
    return list(islice(found, max(0, limit)))


def _filter(
    layers: list[int] | None, states: list[State] | None, least: float | None, most: float | None
) -> queries_pb2.FeatureFilter:
    return queries_pb2.FeatureFilter(
        layers=layers,
        states=[_STATES[state] for state in states or ()],
        density=queries_pb2.Bounds(min=least, max=most),
    )


def _density(feature: service_pb2.Feature) -> str:
    return f"{feature.statistics.density:.3%}" if feature.HasField("statistics") else ""


def _print_features(found: list[service_pb2.Feature], *, as_json: bool) -> None:
    print_list(
        "features",
        found,
        {
            "id": lambda each: short_id(each.name),
            "density": _density,
            "largest": lambda each: f"{each.statistics.max_activation:.3g}",
            "norm": lambda each: f"{each.statistics.decoder_norm:.3g}",
            "writes to": lambda each: f"{each.statistics.first_layer}-{each.statistics.last_layer}",
            "state": lambda each: _STATE_NAMES.get(each.statistics.state, ""),
            "label": lambda each: each.label.text,
        },
        as_json=as_json,
    )


def _marked(example: index_pb2.FeatureExample) -> str:
    """The text on one line, with marks around tokens on which the feature is strong."""
    parts = [
        f"[[{text}]]" if value > _MARK * example.peak else text
        for text, value in zip(example.tokens, example.activations, strict=True)
    ]
    return " ".join("".join(parts).split("\n"))
