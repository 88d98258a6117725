"""`weft features steer`: a text with changed features beside the same text undisturbed."""

from typing import Annotated

import typer

from weft.features.v1 import steering_pb2
from weft_client.cli.output import as_dict, print_fields, print_json, print_list
from weft_client.cli.session import JsonFlag, connected
from weft_client.names import full_name, short_id
from weft_common.errors import InvalidArgumentError

__all__ = ["steer"]

_FEATURE = "LAYER-INDEX, or LAYER-INDEX@POSITION,POSITION,..."


def steer(
    transcoder: Annotated[str, typer.Argument(help="Id of the transcoder.")],
    prompt: Annotated[str, typer.Option(help="The text.")],
    ablate: Annotated[list[str] | None, typer.Option(help=f"{_FEATURE}, to set to zero.")] = None,
    scale: Annotated[list[str] | None, typer.Option(help=f"{_FEATURE}, then =FACTOR.")] = None,
    set_value: Annotated[list[str] | None, typer.Option("--set", help=f"{_FEATURE}, then =VALUE.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(help=f"{_FEATURE}, then =VALUE; without positions at generated tokens too.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that each run goes on for.")] = 20,
    top: Annotated[int, typer.Option(help="Next tokens told of each run.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Change features on a text; the continuation and the next token's probabilities, before and after."""
    changes = [_change(transcoder, place, "--ablate", "factor", 0.0) for place in ablate or ()]
    for place, amount in (_pair(given, "--scale") for given in scale or ()):
        changes.append(_change(transcoder, place, "--scale", "factor", amount))
    for place, amount in (_pair(given, "--set") for given in set_value or ()):
        changes.append(_change(transcoder, place, "--set", "value", amount))
    for place, amount in (_pair(given, "--add") for given in add or ()):
        changes.append(_change(transcoder, place, "--add", "add", amount))
    if not changes:
        raise InvalidArgumentError(
            "nothing to change: give --ablate, --scale, --set or --add with a feature", field="changes"
        )
    with connected() as client:
        found = client.features.steer(transcoder, prompt, changes=changes, max_new_tokens=tokens, num_top_tokens=top)
    if as_json:
        print_json(as_dict(found))
        return
    print_list(
        "features",
        found.features,
        {
            "id": lambda each: short_id(each.feature),
            "positions": lambda each: " ".join(map(str, each.positions)) or "none",
            "before": lambda each: " ".join(f"{value:.3g}" for value in each.before),
            "after": lambda each: " ".join(f"{value:.3g}" for value in each.after),
            "label": lambda each: each.label.text,
        },
        as_json=False,
    )
    print_list(
        "next tokens",
        found.next_tokens,
        {
            "token": lambda each: repr(each.text),
            "probability": lambda each: f"{each.probability_before:.3f} to {each.probability_after:.3f}",
            "logit": lambda each: f"{each.logit_change:+.3f}",
        },
        as_json=False,
    )
    print_fields(
        [
            ("KL divergence", f"{found.kl_divergence:.4f} nats"),
            ("undisturbed", repr("".join(each.text for each in found.undisturbed))),
            ("changed", repr("".join(each.text for each in found.changed))),
        ]
    )


def _change(transcoder: str, place: str, option: str, kind: str, amount: float) -> steering_pb2.PromptChange:
    feature, _, positions = place.partition("@")
    listed = [each for each in positions.split(",") if each]
    if not feature or not all(each.isdecimal() for each in listed):
        raise InvalidArgumentError(f"{option} is {place!r}; give {_FEATURE}", field="changes")
    name = f"{full_name('transcoders', transcoder)}/features/{feature}"
    change = steering_pb2.PromptChange(feature=name, positions=[int(each) for each in listed])
    setattr(change, kind, amount)
    return change


def _pair(given: str, option: str) -> tuple[str, float]:
    """
    A feature and the number after it.

    >>> _pair("12-345@2,3=0.5", "--scale")
    ('12-345@2,3', 0.5)
    """
    place, _, text = given.rpartition("=")
    try:
        return place, float(text)
    except ValueError:
        raise InvalidArgumentError(
            f"{option} is {given!r}; give LAYER-INDEX=NUMBER, such as 12-345=0.5", field="changes"
        ) from None
