"""`weft labels explain` and `weft labels score`: what a language model makes of features."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer
from google.longrunning import operations_pb2
from google.protobuf.message import Message

from weft.features.v1 import interpretation_pb2, labels_pb2
from weft_client.cli.labels import TranscoderArgument, place
from weft_client.cli.output import as_dict, print_fields, print_json
from weft_client.cli.session import JsonFlag, NoWait, ValidateOnly, connected
from weft_client.cli.waiting import print_started, wait
from weft_client.names import full_name
from weft_client.sync.client import Client


class KindOption(StrEnum):
    """Tests of labels."""

    DETECTION = "detection"
    FUZZING = "fuzzing"
    INTRUDER = "intruder"
    EMBEDDING = "embedding"


Graphs = Annotated[list[str] | None, typer.Option("--graph", help="Features of this graph; repeatable.")]
Features = Annotated[list[str] | None, typer.Option("--feature", help="{layer}-{index}, such as 12-345; repeatable.")]
MaxFeatures = Annotated[int, typer.Option(help="Most features, those of graphs first; 0 means all that are named.")]
MaxCalls = Annotated[int, typer.Option(help="Most calls that may be paid for; the work ends before it goes beyond.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens that may be paid for; 0 means no limit.")]
NumExamples = Annotated[int, typer.Option(help="Most examples of one feature; 0 means the service's default.")]


def explain(
    transcoder: TranscoderArgument,
    max_calls: MaxCalls,
    graphs: Graphs = None,
    features: Features = None,
    max_features: MaxFeatures = 0,
    max_tokens: MaxTokens = 0,
    num_examples: NumExamples = 0,
    prompt: Annotated[str, typer.Option(help="Prompt, such as explain-1; default: the newest.")] = "",
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Have a language model label features by their examples."""
    scope = _scope(transcoder, graphs, features, max_features, max_calls, max_tokens)
    with connected() as client:
        operation = client.labels.explain(
            transcoder, scope=scope, prompt=prompt, num_examples=num_examples, validate_only=validate_only
        )
        done = _done(client, operation, transcoder, "explaining", no_wait or validate_only, validate_only, as_json)
    if isinstance(done, interpretation_pb2.ExplainFeaturesResponse):
        print_fields([
            ("labelled", f"{done.num_labelled} of {done.num_features} features, by {done.explainer} and {done.prompt}"),
            ("kept", f"{done.num_kept} have a label that stays"),
            ("without", f"{done.num_too_few} have too few examples, {done.num_unlabelled} got no usable answer"),
            ("left", f"{done.num_left}, the budget being spent" if done.num_left else "none"),
            *_spent(done.spend),
        ])  # fmt: skip


def score(
    transcoder: TranscoderArgument,
    max_calls: MaxCalls,
    graphs: Graphs = None,
    features: Features = None,
    max_features: MaxFeatures = 0,
    max_tokens: MaxTokens = 0,
    num_examples: NumExamples = 0,
    kinds: Annotated[
        list[KindOption] | None, typer.Option("--kind", help="A test; repeatable. Default: detection and fuzzing.")
    ] = None,
    control: Annotated[bool, typer.Option("--control", help="Test shuffled labels beside.")] = False,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Score the labels that stand on examples that nothing was explained with."""
    scope = _scope(transcoder, graphs, features, max_features, max_calls, max_tokens)
    asked = [labels_pb2.ScoreKind.Value(f"SCORE_KIND_{kind.value.upper()}") for kind in kinds or ()]
    with connected() as client:
        operation = client.labels.score(
            transcoder,
            scope=scope,
            kinds=asked,
            num_examples=num_examples,
            control=control,
            validate_only=validate_only,
        )
        done = _done(client, operation, transcoder, "scoring", no_wait or validate_only, validate_only, as_json)
    if isinstance(done, interpretation_pb2.ScoreFeaturesResponse):
        print_fields([
            *_reports(done.reports),
            ("scored", f"{done.num_scored} of {done.num_features} labels"),
            ("without", f"{done.num_unlabelled} have no label, {done.num_too_few} too few examples, "
             f"{done.num_unanswered} got no usable answer"),
            ("left", f"{done.num_left}, the budget being spent" if done.num_left else "none"),
            *_spent(done.spend),
        ])  # fmt: skip


def _scope(
    transcoder: str,
    graphs: Sequence[str] | None,
    features: Sequence[str] | None,
    max_features: int,
    max_calls: int,
    max_tokens: int,
) -> interpretation_pb2.InterpretationScope:
    places = [place(feature) for feature in features or ()]
    parent = full_name("transcoders", transcoder)
    return interpretation_pb2.InterpretationScope(
        graphs=[full_name("graphs", graph) for graph in graphs or ()],
        features=[f"{parent}/features/{layer}-{index}" for layer, index in places],
        max_features=max_features,
        max_calls=max_calls,
        max_tokens=max_tokens,
    )


def _done(
    client: Client,
    operation: operations_pb2.Operation,
    transcoder: str,
    title: str,
    is_started: bool,
    is_validated: bool,
    as_json: bool,
) -> Message | None:
    """What came of it, where a person reads it here."""
    if is_started:
        print_started(operation, full_name("transcoders", transcoder), validated=is_validated, as_json=as_json)
        return None
    result = wait(client, operation, title, quiet=as_json)
    if as_json:
        print_json(as_dict(result))
        return None
    return result


def _reports(reports: Sequence[interpretation_pb2.ScoreReport]) -> list[tuple[str, str]]:
    rows = []
    for report in reports:
        name = labels_pb2.ScoreKind.Name(report.kind).removeprefix("SCORE_KIND_").lower()
        text = f"{report.mean:.3f} on average over {report.num_features} features"
        if report.HasField("control"):
            control = report.control
            text += f"; shuffled labels {control.value:.3f} ({control.low:.3f} to {control.high:.3f})"
        rows.append((name, text))
    return rows


def _spent(spend: interpretation_pb2.InterpretationSpend) -> list[tuple[str, str]]:
    tokens = spend.question_tokens + spend.answer_tokens
    bad = f"{spend.num_refused} refused, {spend.num_broken} broken, {spend.num_rejected + spend.num_failed} unanswered"
    return [
        ("spent", f"{spend.calls} calls, {tokens} tokens; {spend.num_reused} answers were there already"),
        ("answers", f"{spend.num_answered}; {bad}"),
    ]
