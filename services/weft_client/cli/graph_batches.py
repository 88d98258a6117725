"""`weft graphs batch`: prompts in as JSON lines, graphs out."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.attribution.v1 import batches_pb2, messages_pb2, targets_pb2
from weft_client.cli.output import as_dict, print_fields, print_json, print_list
from weft_client.cli.session import JsonFlag, NoWait, ValidateOnly, connected
from weft_client.cli.waiting import print_started, wait
from weft_client.names import full_name, short_id
from weft_client.sync.client import Client
from weft_common.errors import InvalidArgumentError

_MAX_FILE_BYTES = 64 << 20
_FIELDS = {"prompt": str, "graph": str, "targets": list, "target_token_ids": list, "position": int}


def read_items(path: Path, template: messages_pb2.GraphSpec) -> list[batches_pb2.GraphBatchItem]:
    """
    The graphs that a file of JSON lines asks for.

    Args:
        path: A line a graph: `prompt`, and where wanted `graph` (its id), `targets` (texts), `target_token_ids` and
            `position`. Empty lines are passed over.
        template: What every graph has besides.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path} cannot be read ({error}); give a UTF-8 file", field="file") from error
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidArgumentError(f"{path} has more than {_MAX_FILE_BYTES} bytes; give smaller files", field="file")
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            asked = _line(line, f"{path}:{number}")
            item = batches_pb2.GraphBatchItem(graph_id=asked.get("graph", ""), spec=template)
            item.spec.prompt = asked["prompt"]
            item.spec.targets.extend(targets_pb2.Target(text=text) for text in asked.get("targets", ()))
            item.spec.target_token_ids.extend(asked.get("target_token_ids", ()))
            if "position" in asked:
                item.spec.position = asked["position"]
            found.append(item)
    return found


def _line(line: str, place: str) -> dict[str, Any]:
    """
    One line, checked.

    >>> _line('{"prompt": "Hello"}', "prompts.jsonl:1")
    {'prompt': 'Hello'}
    """
    try:
        asked = json.loads(line)
    except ValueError as error:
        raise InvalidArgumentError(f"{place} is no JSON ({error})", field="file") from error
    if not isinstance(asked, dict) or not asked.get("prompt"):
        raise InvalidArgumentError(
            f'{place} has no prompt; give one object a line, such as {{"prompt": "The capital of France is"}}',
            field="file",
        )
    kinds = {"targets": str, "target_token_ids": int}
    for name, value in asked.items():
        is_right = name in _FIELDS and isinstance(value, _FIELDS[name]) and not isinstance(value, bool)
        if is_right and name in kinds:
            is_right = all(isinstance(each, kinds[name]) for each in value)
        if not is_right:
            raise InvalidArgumentError(
                f"{place}: {name[:40]!r} is unknown or of the wrong type; there are {', '.join(_FIELDS)}", field="file"
            )
    return asked


def create_batch(
    file: Annotated[Path, typer.Argument(help="JSON lines, an object with a prompt each.")],
    transcoder: Annotated[str, typer.Option(help="Id of the transcoder.")],
    batch: Annotated[str, typer.Option(help="Id of the batch; default: made from the file.")] = "",
    model: Annotated[str, typer.Option(help="Id of the model; default: the transcoder's.")] = "",
    max_features: Annotated[int, typer.Option(help="Most features in each graph; 0 means all active ones.")] = 0,
    node_threshold: Annotated[float, typer.Option(help="Share of influence of kept nodes; 0 means 0.8.")] = 0.0,
    edge_threshold: Annotated[float, typer.Option(help="Share of influence of kept edges; 0 means 0.98.")] = 0.0,
    output: Annotated[Path | None, typer.Option(help="Folder for the graphs' JSON, a file each.")] = None,
    no_wait: NoWait = False,
    validate_only: ValidateOnly = False,
    as_json: JsonFlag = False,
) -> None:
    """Explain many prompts: JSON lines in, graphs out; exit 1 where one of them failed."""
    with connected() as client:
        template = messages_pb2.GraphSpec(
            model=full_name("models", model) if model else client.transcoders.get(transcoder).model,
            transcoder=full_name("transcoders", transcoder),
            max_features=max_features,
            node_threshold=node_threshold,
            edge_threshold=edge_threshold,
        )
        items = read_items(file, template)
        parts = b"".join(item.SerializeToString(deterministic=True) for item in items)
        batch = batch or f"b-{hashlib.sha256(parts).hexdigest()[:10]}"
        operation = client.graphs.create_batch(batch, items=items, validate_only=validate_only)
        if no_wait or validate_only:
            print_started(operation, f"graphBatches/{batch}", validated=validate_only, as_json=as_json)
            return
        result = wait(client, operation, "explaining", quiet=as_json)
        assert isinstance(result, batches_pb2.GraphBatch)
        if output is not None:
            _write(client, result, output)
    if as_json:
        print_json(as_dict(result))
    else:
        print_list(
            "graphs",
            result.results,
            {
                "id": lambda each: short_id(each.graph),
                "how": lambda each: each.error_message or ("taken over" if each.reused else "made"),
            },
            as_json=False,
        )
        counts = f"{result.num_succeeded} of {result.num_graphs} graphs, {result.num_reused} taken over"
        print_fields([("batch", counts)])
    if result.num_failed:
        raise typer.Exit(1)


def _write(client: Client, result: batches_pb2.GraphBatch, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each in result.results:
        if not each.error_message:
            (folder / f"{short_id(each.graph)}.json").write_bytes(client.graphs.get(each.graph).json)
