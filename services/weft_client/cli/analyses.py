"""`weft analyses`: what goes on inside one forward pass, as tables."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from weft.activations.v1 import analyses_pb2
from weft_client.analysis import Analysis
from weft_client.cli.output import print_json, stdout
from weft_client.cli.session import JsonFlag, connected
from weft_client.metrics import logit_difference, probability
from weft_client.sync.client import Client
from weft_common.errors import InvalidArgumentError

app = typer.Typer(no_args_is_help=True, help="What goes on inside one forward pass of a base model.")

Model = Annotated[str, typer.Argument(help="Id of the model.")]
PromptText = Annotated[str, typer.Option("--prompt", help="What the model reads.")]
Clean = Annotated[str, typer.Option(help="Prompt that values come from.")]
Corrupted = Annotated[str, typer.Option(help="Prompt that runs; as many tokens as the clean one.")]
Token = Annotated[str, typer.Option(help="Token that is measured, as text: ' Paris'.")]
Other = Annotated[str, typer.Option(help="Token whose logit is taken off; without it the probability is measured.")]
_HEADS_SHOWN = 5
_PARTS_SHOWN = 12
_ROWS_SHOWN = 20


@app.command("lens")
def show_lens(
    model: Model,
    prompt: PromptText,
    position: Annotated[int, typer.Option(help="Position to read; -1 is the last.")] = -1,
    target: Annotated[str, typer.Option(help="Token to follow through the depths, as text.")] = "",
    num_top_tokens: Annotated[int, typer.Option(help="Most likely tokens to show, 1 to 20.")] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Show what the model would predict if it ended at each depth."""
    with connected() as client:
        asked = position if position >= 0 else _last(client, model, prompt)
        found = client.analyses.logit_lens(
            model,
            prompt,
            positions=[asked],
            num_top_tokens=num_top_tokens,
            target_token_id=_token_id(client, model, target, "target") if target else None,
        )
    if as_json:
        print_json(document(found))
        return
    headings = ["depth", "most likely", "KL", *(["rank", "probability"] if target else [])]
    rows = []
    for row, depth in enumerate(found.coords["depth"][1]):
        tops = zip(found["top_token"][row, 0], found["top_probability"][row, 0], strict=True)
        cells = [
            str(depth),
            ", ".join(f"{str(text)!r} {share:.2f}" for text, share in tops),
            f"{found['kl'][row, 0]:.2f}",
        ]
        if target:
            cells += [str(found["target_rank"][row, 0]), f"{found['target_probability'][row, 0]:.3f}"]
        rows.append(cells)
    _print_table(headings, rows)


@app.command("logits")
def show_logits(
    model: Model,
    prompt: PromptText,
    token: Annotated[list[str], typer.Option(help="Token whose logit is taken apart, as text; may be given again.")],
    level: Annotated[str, typer.Option(help="layer, head or neuron.")] = "layer",
    as_json: JsonFlag = False,
) -> None:
    """Show which parts of the model wrote a logit, the largest first."""
    with connected() as client:
        ids = [_token_id(client, model, text, "token") for text in token]
        found = client.analyses.attribute_logits(model, prompt, token_ids=ids, level=level)
    if as_json:
        print_json(document(found))
        return
    parts, values = found.coords["part"][1], found["contribution"]
    order = np.argsort(-np.abs(values[:, 0]), kind="stable")
    shown, rest = order[:_PARTS_SHOWN], order[_PARTS_SHOWN:]
    rows = [[str(parts[part]), *(f"{value:+.3f}" for value in values[part])] for part in shown]
    if len(rest):
        rows.append([f"{len(rest)} more", *(f"{value:+.3f}" for value in values[rest].sum(0))])
    rows.append(["logit", *(f"{value:+.3f}" for value in found["logit"])])
    _print_table(["part", *(repr(text) for text in found.coords["target"][1])], rows)


@app.command("patterns")
def show_patterns(
    model: Model,
    prompt: PromptText,
    layer: Annotated[int, typer.Option(help="Layer to read.")],
    head: Annotated[int, typer.Option(help="Head to read.")],
    as_json: JsonFlag = False,
) -> None:
    """Show where each token attends in one head."""
    with connected() as client:
        found = client.analyses.attention_patterns(model, prompt, layers=[layer], heads=[head])
    if as_json:
        print_json(document(found))
        return
    words = found.coords["source_token"][1]
    rows = []
    for position, weights in enumerate(found["pattern"][0, 0]):
        order = np.argsort(-weights, kind="stable")[:3]
        most = ", ".join(f"{at} {words[at]!r} {weights[at]:.2f}" for at in order if weights[at] > 0)
        rows.append([str(position), repr(words[position]), most])
    _print_table(["position", "token", "attends most to"], rows)


@app.command("heads")
def show_heads(
    model: Model,
    num_tokens: Annotated[int, typer.Option(help="Random tokens before they repeat.")] = 50,
    num_sequences: Annotated[int, typer.Option(help="Sequences to average over.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens.", min=0)] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Show the heads that most attend as induction, previous-token and duplicate-token heads do."""
    with connected() as client:
        found = client.analyses.score_heads(model, num_tokens=num_tokens, num_sequences=num_sequences, seed=seed)
    if as_json:
        print_json(document(found))
        return
    columns = []
    for scores in found.values():
        order = np.argsort(-scores, axis=None, kind="stable")[:_HEADS_SHOWN]
        columns.append([f"{at // scores.shape[1]}.{at % scores.shape[1]}  {scores.flat[at]:.3f}" for at in order])
    _print_table([name.replace("_", " ") for name in found], list(zip(*columns, strict=True)))


@app.command("patch")
def show_patches(
    model: Model,
    clean: Clean,
    corrupted: Corrupted,
    token: Token,
    other: Other = "",
    component: Annotated[
        str, typer.Option(help="resid_pre, attn_out or mlp_out; attn.z shows single heads.")
    ] = "resid_pre",
    as_json: JsonFlag = False,
) -> None:
    """Show how much of the clean prediction comes back, patching each layer and position by itself."""
    with connected() as client:
        found = client.analyses.sweep_patches(
            model,
            clean=clean,
            corrupted=corrupted,
            metric=_metric(client, model, token, other),
            components=[component],
            progress=_progress,
        )
    _print_sweep(found, as_json=as_json)


@app.command("paths")
def show_paths(
    model: Model,
    clean: Clean,
    corrupted: Corrupted,
    token: Token,
    receiver: Annotated[
        str, typer.Option(help="logits, or layers.{l}. and attn_out, mlp_out, attn.q, attn.k, attn.v or attn.z.")
    ],
    other: Other = "",
    receiver_head: Annotated[
        list[int] | None, typer.Option(help="Of attn.q, attn.k, attn.v or attn.z; once a head, none means all.")
    ] = None,
    sender: Annotated[str, typer.Option(help="attn_out or mlp_out; attn.result shows single heads.")] = "attn_out",
    as_json: JsonFlag = False,
) -> None:
    """Show how much of the clean prediction comes back when one receiver alone reads what a sender wrote."""
    with connected() as client:
        found = client.analyses.sweep_paths(
            model,
            clean=clean,
            corrupted=corrupted,
            metric=_metric(client, model, token, other),
            receiver=receiver,
            receiver_heads=receiver_head or (),
            senders=[sender],
            progress=_progress,
        )
    _print_sweep(found, as_json=as_json)


def document(found: Analysis) -> dict[str, Any]:
    """An analysis as JSON: what stands along each dim, and the arrays; what is not a number is null."""
    return {
        "model": found.model.name,
        "attrs": found.attrs,
        "coords": {name: {"dim": dim, "values": values} for name, (dim, values) in found.coords.items()},
        "arrays": {name: {"dims": list(found.dims(name)), "values": _plain(found[name])} for name in found},
    }


def _plain(array: Any) -> Any:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.tolist()
    plain: npt.NDArray[Any] = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()


def _token_id(client: Client, model: str, text: str, field: str) -> int:
    tokens = client.models.tokenize(model, text, without_special_tokens=True)
    if len(tokens) != 1:
        raise InvalidArgumentError(
            f"{text!r} is {len(tokens)} tokens; give the text of one token, with the space before it if it has one",
            field=field,
        )
    return tokens[0].id


def _last(client: Client, model: str, prompt: str) -> int:
    return len(client.models.tokenize(model, prompt)) - 1


def _metric(client: Client, model: str, token: str, other: str) -> analyses_pb2.PatchMetric:
    token_id = _token_id(client, model, token, "token")
    return logit_difference(token_id, _token_id(client, model, other, "other")) if other else probability(token_id)


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {total} cells" + ("\n" if done == total else ""))


def _print_sweep(found: Analysis, *, as_json: bool) -> None:
    if as_json:
        print_json(document(found))
        return
    words, changed = found.coords["token"][1], found.coords["clean_token"][1]
    headings = [
        repr(now) if now == before else f"{before!r}→{now!r}" for now, before in zip(words, changed, strict=True)
    ]
    shares, names = found["restored"][0], [str(layer) for layer in found.coords["layer"][1]]
    if shares.ndim == 3:
        names = [f"{layer}.{head}" for layer in names for head in found.coords["head"][1]]
        shares = shares.reshape(len(names), -1)
        most = np.argsort(-np.abs(np.nan_to_num(shares)).max(-1), kind="stable")[:_ROWS_SHOWN]
        names, shares = [names[at] for at in most], shares[most]
    rows = [[name, *(f"{share:.2f}" for share in row)] for name, row in zip(names, shares, strict=True)]
    _print_table(["head" if "head" in found.coords else "layer", *headings], rows)
    stdout().print(
        f"share of the metric that comes back: clean {found.attrs['clean_metric']:.3f}, "
        f"corrupted {found.attrs['corrupted_metric']:.3f}"
    )


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
