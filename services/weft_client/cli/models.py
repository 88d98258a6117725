"""`weft models`."""

from typing import Annotated

import typer

from weft.activations.v1 import messages_pb2
from weft_client.cli.output import as_dict, print_json, print_list, print_one
from weft_client.cli.session import JsonFlag, connected
from weft_client.names import short_id

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
