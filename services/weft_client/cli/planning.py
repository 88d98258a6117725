"""The command `weft plan`."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from weft_client.cli.output import print_json, size, stdout
from weft_client.cli.session import JsonFlag
from weft_client.plan.devices import find_device
from weft_client.plan.estimate import BITS, Plan
from weft_client.plan.models import PRESETS, find_shape
from weft_clt.config import Activation
from weft_clt.recipes import RunSize, find_recipe
from weft_clt.sizing import Workload
from weft_common.errors import InvalidArgumentError

_ACTIVATIONS = {each.removeprefix("ACTIVATION_").lower().replace("_", "-"): each for each in Activation}
_FLOAT_BYTES = {"float32": 4, "bfloat16": 2}


def _number(text: str) -> int:
    """A whole number, also as 1e9."""
    try:
        value = float(text.replace("_", ""))
        if value < 1 or not value.is_integer():
            raise ValueError
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no whole number above 0, such as 40000 or 1e9") from None
    return int(value)


def plan(
    model: Annotated[str, typer.Argument(help=f"config.json, a folder with one, or {', '.join(PRESETS)}.")],
    num_features: Annotated[
        int, typer.Option(parser=_number, metavar="NUMBER", help="Features a layer, over all ranks.")
    ],
    tokens: Annotated[int, typer.Option(parser=_number, metavar="NUMBER", help="Tokens to train on, over all epochs.")],
    recipe: Annotated[str, typer.Option(help="A published recipe, `weft recipes`, in place of --activation.")] = "",
    activation: Annotated[str, typer.Option(help=f"{', '.join(_ACTIVATIONS)}.")] = "top-k",
    top_k: Annotated[int, typer.Option(help="For those that count: features kept a token and layer.")] = 32,
    l0: Annotated[float, typer.Option(help="For relu and jump-relu: active features a token and layer.")] = 50.0,
    near: Annotated[float, typer.Option(help="For jump-relu: entries near a threshold beside each active one.")] = 1.0,
    preact_loss: Annotated[bool, typer.Option(help="For jump-relu: the pre-activation loss is on.")] = True,
    linear_skip: Annotated[bool, typer.Option(help="A linear map from each layer's input to its output.")] = False,
    aux_top_k: Annotated[int, typer.Option(help="Dead features that AuxK lists of a token and layer; 0: none.")] = 0,
    decoder_span: Annotated[int, typer.Option(help="Layers that a feature writes to; 0 means all from its own.")] = 0,
    step_tokens: Annotated[int, typer.Option(help="Tokens of one step, over all ranks.")] = 4_096,
    micro_batches: Annotated[int, typer.Option(help="Passes in which a step takes its tokens.")] = 1,
    feature_ranks: Annotated[int, typer.Option(help="Ranks on the feature axis; 0 takes the fewest that fit.")] = 1,
    data_ranks: Annotated[int, typer.Option(help="Ranks on the data axis.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    moments: Annotated[str, typer.Option(help="Of Adam: float32 or bfloat16; by default as --dtype.")] = "",
    parameters: Annotated[
        str, typer.Option(help="Encoder's and decoder's weights: float32 or bfloat16; by default as --dtype.")
    ] = "",
    codec: Annotated[str, typer.Option(help="uniform, klt or bf16.")] = "uniform",
    bits: Annotated[float, typer.Option(help="Bits of a stored value; 0 takes the codec's measured figure.")] = 0.0,
    epochs: Annotated[float, typer.Option(help="Times that the training split is read.")] = 1.0,
    held_out_share: Annotated[float, typer.Option(help="Share of the dataset kept for evaluation.")] = 0.1,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps between checkpoints; 0 keeps only the last.")] = 1_000,
    device: Annotated[str, typer.Option(help="What a rank runs on: cpu-core, l4, a100-80gb, h100, ...")] = "cpu-core",
    network_gbit: Annotated[float, typer.Option(help="Gigabits a second that one rank can send.")] = 100.0,
    tokens_per_s: Annotated[float, typer.Option(help="A rate that you measured, over all ranks.")] = 0.0,
    price: Annotated[float, typer.Option(help="Of one rank's hour.")] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Work out memory, bucket, network, time and cost of a training run; nothing is started or asked."""
    for name, value, known in (
        ("activation", activation, _ACTIVATIONS),
        ("dtype", dtype, _FLOAT_BYTES),
        ("moments", moments or dtype, _FLOAT_BYTES),
        ("parameters", parameters or dtype, _FLOAT_BYTES),
        ("codec", codec, BITS),
    ):
        if value not in known:
            raise InvalidArgumentError(f"--{name} is {value!r}, expected {' or '.join(known)}", field=name)
    for name, number in (("step-tokens", step_tokens), ("micro-batches", micro_batches), ("data-ranks", data_ranks),
                         ("epochs", epochs), ("l0", l0), ("network-gbit", network_gbit)):  # fmt: skip
        if not number > 0:
            raise InvalidArgumentError(f"--{name} is {number:g}; give a number above 0")
    for name, number in (("feature-ranks", feature_ranks), ("bits", bits), ("near", near), ("price", price),
                         ("tokens-per-s", tokens_per_s), ("aux-top-k", aux_top_k),
                         ("checkpoint-steps", checkpoint_steps)):  # fmt: skip
        if not number >= 0:
            raise InvalidArgumentError(f"--{name} is {number:g}; give 0 or more")
    if not 0 <= held_out_share < 1:
        raise InvalidArgumentError(f"--held-out-share is {held_out_share}; give a share from 0 up to 1")
    shape = find_shape(model)
    chosen, first_moment, through_threshold = _ACTIVATIONS[activation], True, True
    counts = chosen.counts
    preact_loss = preact_loss and chosen is Activation.JUMP_RELU
    if recipe:
        config = find_recipe(recipe).make(RunSize("datasets/plan", num_features=num_features, top_k=top_k))
        chosen, first_moment = config.features.activation, config.optimizer.beta1 > 0
        counts, preact_loss = chosen.counts, config.loss.preact_coeff > 0
        through_threshold = config.features.gradient_through_threshold
        aux_top_k, decoder_span = config.loss.aux_top_k, decoder_span or config.features.decoder_span

    def planned(ranks: int) -> Plan:
        work = Workload(
            num_layers=shape.num_layers,
            d_model=shape.d_model,
            num_features=num_features,
            activation=chosen,
            active=top_k if counts else l0,
            near=near if chosen is Activation.JUMP_RELU else 0.0,
            decoder_span=decoder_span,
            step_tokens=step_tokens,
            feature_ranks=ranks,
            data_ranks=data_ranks,
            float_bytes=_FLOAT_BYTES[dtype],
            preact_loss=preact_loss,
            through_threshold=through_threshold,
            first_moment=first_moment,
            linear_skip=linear_skip,
            aux_top_k=min(aux_top_k, num_features),
            passes=micro_batches,
            moment_bytes=_FLOAT_BYTES[moments or dtype],
            weight_bytes=_FLOAT_BYTES[parameters or dtype],
            batches=1 if find_device(device).measured else 2,
            has_basis=codec == "klt",
        )
        return Plan(
            model=shape,
            work=work,
            tokens=tokens,
            epochs=epochs,
            held_out_share=held_out_share,
            bits=bits or BITS[codec],
            checkpoint_steps=checkpoint_steps,
            device=find_device(device),
            network_gbit=network_gbit,
            tokens_per_s=tokens_per_s,
            price=price,
        )

    found = planned(feature_ranks or 1)
    if not feature_ranks:
        found = planned(found.smallest_fit() or found.leanest())
    if as_json:
        print_json(found.document())
    else:
        _show(found)


def _show(plan: Plan) -> None:
    """Everything as one table: what, how much, and the parts of it."""
    table = Table("", "", "", box=None, pad_edge=False, show_header=False)
    work, memory, network, storage, flops = (
        plan.work,
        plan.work.memory(),
        plan.work.network(),
        plan.storage,
        plan.work.flops(),
    )
    span = f", span {work.decoder_span}" if work.decoder_span else ""
    ranks = f"{work.feature_ranks} on the feature axis x {work.data_ranks} on the data axis"
    step = plan.step
    rows = [
        ("model", plan.model.name, f"{work.num_layers} layers of {work.d_model}"),
        ("transcoder", f"{work.num_features:,} features", f"{work.num_pairs:,} decoder blocks{span}"),
        (
            "parameters",
            count(work.num_parameters),
            f"encoder {count(work.num_encoder_parameters)}, decoder {count(work.num_decoder_parameters)}",
        ),
        ("ranks", f"{work.world_size:,}", ranks),
        ("memory a rank", size(plan.rank_bytes), _parts(asdict(memory), plan.rank_bytes - memory.total)),
        ("memory of the export", size(work.export().peak), "one process, on a CPU"),
        (
            "bucket",
            size(storage.total),
            f"dataset {size(storage.dataset)}, checkpoints {size(storage.checkpoints)}, "
            f"transcoder {size(storage.transcoder)}",
        ),
        ("a checkpoint", size(storage.checkpoint), f"{size(storage.checkpoint / work.feature_ranks)} a feature rank"),
        ("network a rank and step", size(network.total), _parts(asdict(network))),
        ("network a token", size(network.total / work.step_tokens), "sent_bytes_per_token of the metrics"),
        (
            "operations a token",
            f"{count(flops.total)}FLOP",
            ", ".join(f"{name.replace('_', ' ')} {value / flops.total:.0%}" for name, value in asdict(flops).items()),
        ),
        ("tokens a second", f"{plan.rate:,.0f}", plan.basis),
        ("steps", f"{plan.num_steps:,}", f"{count(plan.tokens)}tokens, {work.step_tokens:,} a step"),
    ]
    if not plan.tokens_per_s:
        parts = ", ".join(f"{name} {value / step.total:.0%}" for name, value in asdict(step).items())
        rows.insert(-2, ("a step", f"{step.total:.3g} s", parts))
    rows.append(("hours", f"{plan.hours:,.1f}", f"{plan.hours * work.world_size:,.0f} hours of ranks"))
    if plan.price:
        rows.append(("cost", f"{plan.cost:,.0f}", f"{plan.price:g} a rank and hour"))
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
    for note in plan.notes():
        stdout().print(f"note: {note}", soft_wrap=True)


def _parts(parts: dict[str, Any], process: int = 0) -> str:
    """The parts that are not next to nothing, largest first."""
    named = {**parts, "process": process}
    total = sum(named.values())
    large = sorted(((value, name) for name, value in named.items() if value > total / 200), reverse=True)
    return ", ".join(f"{name} {size(value)}" for value, name in large)


def count(number: float) -> str:
    """
    A large number for people; what is counted follows.

    >>> count(1_500), count(27.8e12), count(5)
    ('1.50 k', '27.8 T', '5 ')
    """
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or unit == "E":
            return f"{number:.3g} {unit}" if unit == "" else f"{_digits(number)} {unit}"
        number /= 1000
    raise AssertionError


def _digits(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"
