"""`weft models`."""

from typing import Annotated

import numpy as np
import typer

from weft.activations.v1 import messages_pb2
from weft_client import interventions
from weft_client.cli.output import as_dict, print_json, print_list, print_one
from weft_client.cli.session import JsonFlag, connected
from weft_client.names import short_id
from weft_common.errors import InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="Base models that the activations service runs.")


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List models."""
    with connected() as client:
        print_list(
            "models",
            client.models.list(),
            {
                "id": lambda model: short_id(model.name),
                "architecture": lambda model: model.architecture,
                "layers": lambda model: str(model.num_layers),
                "d_model": lambda model: str(model.d_model),
                "vocabulary": lambda model: str(model.vocab_size),
            },
            as_json=as_json,
        )


@app.command("get")
def get_model(model: Annotated[str, typer.Argument(help="Id of the model.")], as_json: JsonFlag = False) -> None:
    """Describe one model."""
    with connected() as client:
        found = client.models.get(model)
    fields = [
        ("name", found.name),
        ("architecture", found.architecture),
        ("layers", str(found.num_layers)),
        ("d_model", str(found.d_model)),
        ("heads", f"{found.num_heads}, key and value heads {found.num_kv_heads}"),
        ("vocabulary", str(found.vocab_size)),
        ("longest prompt", f"{found.max_tokens} tokens"),
        ("revision", found.revision),
        ("hooks", ", ".join(found.hooks)),
    ]
    print_one(found, fields, as_json=as_json)


@app.command("run")
def run_model(
    model: Annotated[str, typer.Argument(help="Id of the model.")],
    prompt: Annotated[str, typer.Option(help="Text to complete.")],
    num_top_tokens: Annotated[int, typer.Option(help="Most likely next tokens to show.")] = 10,
    as_json: JsonFlag = False,
) -> None:
    """Show the most likely next tokens of a prompt."""
    with connected() as client:
        answer = client.models.run(model, prompt, num_top_tokens=num_top_tokens)
    if as_json:
        print_json(as_dict(answer))
        return
    columns = {
        "token": lambda top: repr(top.token.text),
        "id": lambda top: str(top.token.id),
        "probability": lambda top: f"{top.probability:.3f}",
        "logit": lambda top: f"{top.logit:.3f}",
    }
    tops: list[messages_pb2.TokenProbability] = list(answer.top_tokens)
    print_list("tokens", tops, columns, as_json=False)


@app.command("generate")
def generate(
    model: Annotated[str, typer.Argument(help="Id of the model.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens.")] = 32,
    temperature: Annotated[float, typer.Option(help="Divides logits before a token is drawn; 0 draws nothing.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many tokens; 0 means all.")] = 0,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.")] = 0,
    ablate: Annotated[list[str] | None, typer.Option(help="Component to set to zero, `layers.3.mlp_out`.")] = None,
    scale: Annotated[list[str] | None, typer.Option(help="COMPONENT=FACTOR.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="COMPONENT=FILE.npy, a vector to add.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Go on from a prompt, with changes made at every token."""
    changes = [interventions.ablate(hook) for hook in ablate or ()]
    changes += [interventions.scale(hook, _number(value)) for hook, value in map(_assignment, scale or ())]
    changes += [interventions.add(hook, _vector(value)) for hook, value in map(_assignment, add or ())]
    with connected() as client:
        tokens = client.models.generate(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            interventions=changes,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )
        for generated in tokens:
            if as_json:
                print_json(as_dict(generated))
            else:
                typer.echo(generated.token.token.text, nl=False)
    if not as_json:
        typer.echo()


def _assignment(text: str) -> tuple[str, str]:
    hook, equals, value = text.partition("=")
    if not (hook and equals and value):
        raise InvalidArgumentError(f"{text!r} is no change; give COMPONENT=VALUE", field="interventions")
    return hook, value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is no number; give a factor like 0.5", field="interventions") from error


def _vector(path: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"{path!r} cannot be read as an array ({error}); give a file that numpy.save wrote", field="interventions"
        ) from error
