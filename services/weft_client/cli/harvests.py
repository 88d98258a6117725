"""`weft harvests`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from weft.activations.v1 import messages_pb2, packing_pb2
from weft_client.cli.output import print_list, print_one, state, time
from weft_client.cli.session import JsonFlag, NoWait, ValidateOnly, connected
from weft_client.cli.waiting import print_result, print_started, wait
from weft_client.names import full_name, short_id
from weft_client.specs import harvest_spec
from weft_client.sync.client import Client
from weft_common.errors import InvalidArgumentError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Corpora read through a model into datasets.")
HarvestArgument = Annotated[str, typer.Argument(help="Id of the harvest.")]
ModelOption = Annotated[str, typer.Option(help="Id of the model.")]
CorpusOption = Annotated[str | None, typer.Option(help="Id of a corpus that is in the bucket.")]
TextOption = Annotated[
    list[Path] | None,
    typer.Option(help="UTF-8 file, or folder of .txt files, to upload as the corpus; may be repeated."),
]
NumTokensOption = Annotated[int, typer.Option(help="Tokens to harvest, held-out ones included.")]
HeldOutOption = Annotated[float, typer.Option(help="Share of documents kept for evaluation, 0 to 0.5.")]
CodecOption = Annotated[str, typer.Option(help="bf16 (lossless), uniform or klt (smaller, slower to read).")]
_STREAMS = "mlp_in:mlp_out"
TargetFvuOption = Annotated[float, typer.Option(help="For uniform and klt: wanted fraction of variance unexplained.")]


def _state(harvest: messages_pb2.Harvest) -> str:
    return state(messages_pb2.HarvestState.Name(harvest.state))


@app.command("list")
def list_harvests(as_json: JsonFlag = False) -> None:
    """List harvests, newest first."""
    with connected() as client:
        print_list(
            "harvests",
            client.harvests.list(),
            {
                "id": lambda each: short_id(each.name),
                "state": _state,
                "dataset": lambda each: short_id(each.spec.dataset),
                "tokens": lambda each: f"{each.tokens_committed:,} of {each.spec.num_tokens:,}",
                "tokens/s": lambda each: f"{each.tokens_per_s:.0f}",
                "created": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


@app.command("get")
def get_harvest(harvest: HarvestArgument, as_json: JsonFlag = False) -> None:
    """Describe one harvest."""
    with connected() as client:
        found = client.harvests.get(harvest)
    fields = [
        ("name", found.name),
        ("state", f"{_state(found)} {found.error_message}".strip()),
        ("dataset", found.spec.dataset),
        ("model", found.spec.model),
        ("corpus", found.spec.corpus),
        ("tokens", f"{found.tokens_committed:,} of {found.spec.num_tokens:,}, {found.tokens_held_out:,} held out"),
        ("left out", f"{found.tokens_skipped:,} tokens for their norm"),
        ("broken", f"{found.corpus_broken_records:,} records of the corpus's files"),
        ("leases", f"{found.num_leases_done} of {found.num_leases}"),
        ("speed", f"{found.tokens_per_s:.0f} tokens/s"),
        ("created", time(found.create_time)),
    ]
    print_one(found, fields, as_json=as_json)


@app.command("create")
def create_harvest(
    harvest: Annotated[str, typer.Argument(help="Id of the new harvest.")],
    model: ModelOption,
    dataset: Annotated[str, typer.Option(help="Id of the dataset that is written; default: the harvest's.")] = "",
    corpus: CorpusOption = None,
    text: TextOption = None,
    num_tokens: NumTokensOption = 40_000,
    held_out_share: HeldOutOption = 0.1,
    codec: CodecOption = "uniform",
    target_fvu: TargetFvuOption = 1e-3,
    sequence_tokens: Annotated[int, typer.Option(help="Longest sequence, its start token included.")] = 256,
    cross_documents: Annotated[bool, typer.Option(help="Sequences go on in the next document.")] = False,
    separator: Annotated[int, typer.Option(help="Token id between two documents of a sequence; -1: none.")] = -1,
    start: Annotated[
        str, typer.Option(help="Where the start token stands: model (as its tokenizer), sequence, document or none.")
    ] = "model",
    max_document_tokens: Annotated[int, typer.Option(help="Most tokens of one document; 0: all.")] = 0,
    skip_token: Annotated[
        list[int] | None, typer.Option(help="Id of a token that is read and not kept; may be repeated.")
    ] = None,
    streams: Annotated[str, typer.Option(help="What is kept of every layer, INPUT_HOOK:OUTPUT_HOOK.")] = _STREAMS,
    also: Annotated[
        list[str] | None,
        typer.Option(help="DATASET=INPUT_HOOK:OUTPUT_HOOK: kept in the same passes; may be repeated."),
    ] = None,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Read a corpus, or text files, through a model into a new dataset."""
    create(
        harvest,
        dataset=dataset or harvest,
        model=model,
        corpus=corpus,
        text=list(text or ()),
        num_tokens=num_tokens,
        held_out_share=held_out_share,
        codec=codec,
        target_fvu=target_fvu,
        no_wait=no_wait,
        validate_only=validate_only,
        as_json=as_json,
        sequence_tokens=sequence_tokens,
        packing=_packing(cross_documents, separator, start, max_document_tokens, list(skip_token or ())),
        streams=_streams(streams, "spec.streams"),
        also=[_also(given) for given in also or ()],
    )


@app.command("pause")
def pause_harvest(harvest: HarvestArgument, as_json: JsonFlag = False) -> None:
    """Take no more of a corpus until `resume`; what is committed stays."""
    with connected() as client:
        _print_state(client.harvests.pause(harvest), as_json=as_json)


@app.command("resume")
def resume_harvest(harvest: HarvestArgument, as_json: JsonFlag = False) -> None:
    """Go on with a harvest that was paused, failed or was cancelled."""
    with connected() as client:
        _print_state(client.harvests.resume(harvest), as_json=as_json)


@app.command("cancel")
def cancel_harvest(harvest: HarvestArgument, as_json: JsonFlag = False) -> None:
    """Stop a harvest; what is committed stays in its open dataset."""
    with connected() as client:
        _print_state(client.harvests.cancel(harvest), as_json=as_json)


def _print_state(found: messages_pb2.Harvest, *, as_json: bool) -> None:
    fields = [("name", found.name), ("state", _state(found)), ("tokens", f"{found.tokens_committed:,} committed")]
    print_one(found, fields, as_json=as_json)


def create(
    harvest: str,
    *,
    dataset: str,
    model: str,
    corpus: str | None,
    text: list[Path],
    num_tokens: int,
    held_out_share: float,
    codec: str,
    target_fvu: float,
    no_wait: bool,
    validate_only: bool,
    as_json: bool,
    sequence_tokens: int = 256,
    packing: packing_pb2.Packing | None = None,
    streams: messages_pb2.Streams | None = None,
    also: Sequence[messages_pb2.AlsoKept] = (),
) -> None:
    """Upload the text if there is any, then start the harvest and wait for it."""
    if (corpus is None) == (not text):
        raise InvalidArgumentError(
            "a harvest reads one corpus: give either --corpus with an id or --text with files", field="corpus"
        )
    with connected() as client:
        spec = harvest_spec(
            model=full_name("models", model),
            dataset=full_name("datasets", dataset),
            corpus=full_name("corpora", corpus) if corpus else _upload(client, text),
            num_tokens=num_tokens,
            held_out_share=held_out_share,
            codec=messages_pb2.Codec(kind=codec, target_fvu=0 if codec == "bf16" else target_fvu),
            sequence_tokens=sequence_tokens,
            packing=packing,
            streams=streams or _streams(_STREAMS, "spec.streams"),
            also=also,
        )
        operation = client.harvests.create(harvest, spec=spec, validate_only=validate_only)
        if no_wait or validate_only:
            print_started(operation, f"harvests/{harvest}", validated=validate_only, as_json=as_json)
            return
        wait(client, operation, "harvesting", quiet=as_json)
        found = client.harvests.get(harvest)
    datasets = " and ".join((found.spec.dataset, *(pair.dataset for pair in found.spec.also)))
    line = f"{found.tokens_committed:,} tokens are in {datasets}; train on them with `weft runs create`"
    print_result(found, line, as_json=as_json)


def _streams(given: str, field: str) -> messages_pb2.Streams:
    """
    Read two hooks.

    >>> _streams("resid_mid:mlp_out", "").input_hook
    'resid_mid'
    """
    input_hook, colon, output_hook = given.partition(":")
    if not (input_hook and colon and output_hook):
        raise InvalidArgumentError(f"{given!r} is not INPUT_HOOK:OUTPUT_HOOK, such as {_STREAMS}", field=field)
    return messages_pb2.Streams(input_hook=input_hook, output_hook=output_hook)


def _also(given: str) -> messages_pb2.AlsoKept:
    """
    Read a further pair.

    >>> _also("r=resid_mid:mlp_out").dataset
    'datasets/r'
    """
    dataset, equals, streams = given.partition("=")
    if not (dataset and equals):
        raise InvalidArgumentError(f"{given!r} is not DATASET=INPUT_HOOK:OUTPUT_HOOK", field="spec.also")
    return messages_pb2.AlsoKept(dataset=full_name("datasets", dataset), streams=_streams(streams, "spec.also"))


def _packing(
    cross_documents: bool, separator: int, start: str, max_document_tokens: int, skipped: list[int]
) -> packing_pb2.Packing | None:
    rules = {
        "model": packing_pb2.START_RULE_UNSPECIFIED,
        "sequence": packing_pb2.START_RULE_SEQUENCE,
        "document": packing_pb2.START_RULE_DOCUMENT,
        "none": packing_pb2.START_RULE_NONE,
    }
    if start not in rules:
        raise InvalidArgumentError(f"--start is {start!r}; give {', '.join(rules)}", field="spec.packing.start_rule")
    packing = packing_pb2.Packing(
        cross_documents=cross_documents,
        start_rule=rules[start],
        separator_token_id=None if separator < 0 else separator,
        max_document_tokens=max_document_tokens,
        skipped_token_ids=skipped,
    )
    return packing if packing.ByteSize() else None


def _upload(client: Client, paths: list[Path]) -> str:
    files = [file for path in paths for file in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise NotFoundError(
            f"there is no file {missing[0]}" if missing else f"there is no .txt file in {', '.join(map(str, paths))}"
        )
    documents = [(file.name, file.read_bytes()) for file in files]
    digest = hashlib.sha256()
    for name, data in documents:
        digest.update(f"{len(name)} {name} {len(data)} ".encode() + data)
    return client.corpora.upload(f"text-{digest.hexdigest()[:12]}", documents).name
