"""
An import from its first file to the seal, which goes on where an earlier one was cut short.

Shards are cut in the same way each time, so the catalog itself knows which are there.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from weft.cache.v1 import messages_pb2
from weft_client.importing.sources import Part, digest_of, files_of, open_part
from weft_client.sync.client import Client
from weft_common.errors import DataLossError, InvalidArgumentError
from weft_store.shard import CodecSpec, EncodedShard, encode_shard

__all__ = ["import_dataset"]

# Of one shard in float32; encoding takes a few times as much.
_SHARD_BYTES = 64 << 20
_ROW_GROUP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of one file that become one shard."""

    index: int
    path: Path
    start: int
    stop: int
    held_out: bool


def import_dataset(
    client: Client,
    dataset: str,
    folder: Path,
    *,
    model: str,
    model_revision: str,
    input_hook: str,
    output_hook: str,
    codec: str = "uniform",
    target_fvu: float = 1e-3,
    held_out_share: float = 0.1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> messages_pb2.Dataset:
    """
    Make a sealed dataset of files.

    Args:
        client: Takes them.
        dataset: Id of the new dataset; the same import again goes on with it.
        folder: With files that `weft datasets export` or CLT-Forge wrote.
        model: `models/{model}` that they are of.
        model_revision: Its revision, as GetModel tells it.
        input_hook: Where inputs were taken, without the layer.
        output_hook: Where outputs were taken.
        codec: `bf16` or `uniform`.
        target_fvu: Of `uniform`.
        held_out_share: Share of shards kept from training, at least one where there are two; below one half, 0 keeps
            none. Folders named `train` and `held_out` say it themselves.
        progress: Called with the tokens that are committed and those there are.

    Raises:
        InvalidArgumentError: The folder holds no such files, the codec is another, or an argument is out of range.
        DataLossError: A file is damaged, not finite, or of another shape than the first; names it.
        AlreadyExistsError: There is a dataset of this id that is made of something else.
    """
    if not 0 <= held_out_share < 0.5:
        raise InvalidArgumentError(
            f"held_out_share is {held_out_share}, expected 0 to below 0.5", field="held_out_share"
        )
    if codec == "klt":
        raise InvalidArgumentError(
            "an import writes 'uniform' or 'bf16': the basis of 'klt' lies beside a dataset's shards, where a harvest "
            "puts it",
            field="codec",
        )
    files = files_of(folder)
    shapes = _shapes(files)
    num_layers, _, d_model = shapes[0]
    pieces = _pieces(folder, files, shapes, held_out_share)
    spec = messages_pb2.DatasetSpec(
        model=model,
        model_revision=model_revision,
        num_layers=num_layers,
        d_model=d_model,
        input_hook=input_hook,
        output_hook=output_hook,
        codec=codec,
        target_fvu=target_fvu if codec == "uniform" else 0.0,
        corpus=f"import of {folder.name[:80]}, held out {held_out_share:g}",
        corpus_digest=digest_of(folder, files),
    )
    client.datasets.create(dataset, spec)
    total, done = sum(tokens for _, tokens, _ in shapes), 0
    for path in files:
        part: Part | None = None
        try:
            for piece in pieces[path]:
                progress(done, total)
                upload = client.datasets.begin_shard(dataset, piece.index)
                if not upload.HasField("committed"):
                    part = part or open_part(path)
                    _commit(client, dataset, piece, part, CodecSpec(codec, target_fvu if codec == "uniform" else 0.0))
                done += piece.stop - piece.start
        finally:
            if part is not None:
                part.close()
    progress(done, total)
    return client.datasets.seal(dataset, sum(map(len, pieces.values())))


def _shapes(files: list[Path]) -> list[tuple[int, int, int]]:
    """Layers, tokens and d_model of each file; all are of one model."""
    shapes: list[tuple[int, int, int]] = []
    for path in files:
        part = open_part(path)
        part.close()
        shapes.append(part.shape)
        if (part.shape[0], part.shape[2]) != (shapes[0][0], shapes[0][2]):
            raise DataLossError(
                f"{path} has {part.shape[0]} layers of {part.shape[2]}, and {files[0]} has {shapes[0][0]} of "
                f"{shapes[0][2]}: leave one of them out"
            )
    return shapes


def _pieces(
    folder: Path, files: list[Path], shapes: list[tuple[int, int, int]], held_out_share: float
) -> dict[Path, list[_Piece]]:
    """How files are cut into shards; the same files and share are cut in the same way."""
    num_layers, _, d_model = shapes[0]
    most = max(1, _SHARD_BYTES // (8 * num_layers * d_model))
    if most > _ROW_GROUP_TOKENS:
        most -= most % _ROW_GROUP_TOKENS
    pieces: dict[Path, list[_Piece]] = {}
    index = 0
    splits = _splits(held_out_share)
    last: _Piece | None = None
    for path, (_, tokens, _) in zip(files, shapes, strict=True):
        pieces[path] = []
        named = set(path.relative_to(folder).parts[:-1]) & {"train", "held_out"}
        for start in range(0, tokens, most):
            drawn = next(splits)
            held_out = "held_out" in named if named else drawn
            last = _Piece(index, path, start, min(start + most, tokens), held_out)
            pieces[path].append(last)
            index += 1
    if last and index > 1 and held_out_share and not any(each.held_out for each in chain(*pieces.values())):
        # Too few for the share: still, a run wants something to be evaluated on.
        pieces[last.path][-1] = replace(last, held_out=True)
    return pieces


def _splits(share: float) -> Iterator[bool]:
    """Whether each shard is held out: evenly spread, and as many of them as the share says."""
    number = 0
    while True:
        yield int((number + 1) * share + 0.5) > int(number * share + 0.5)
        number += 1


def _commit(client: Client, dataset: str, piece: _Piece, part: Part, codec: CodecSpec) -> None:
    inputs, outputs = part.read(piece.start, piece.stop)
    try:
        encoded = encode_shard(
            {"input": inputs, "output": outputs},
            codec,
            row_group_tokens=_ROW_GROUP_TOKENS,
            attributes={"source": piece.path.name},
        )
    except InvalidArgumentError as error:
        raise DataLossError(f"tokens {piece.start} to {piece.stop} of {piece.path}: {error.message}") from error
    upload = client.datasets.upload_shard(dataset, piece.index, encoded.data)
    if not upload.HasField("committed"):
        client.datasets.commit_shard(dataset, _message(encoded, upload.key, piece))


def _message(encoded: EncodedShard, key: str, piece: _Piece) -> messages_pb2.Shard:
    return messages_pb2.Shard(
        index=piece.index,
        key=key,
        sha256=encoded.sha256,
        size_bytes=len(encoded.data),
        num_tokens=piece.stop - piece.start,
        split=messages_pb2.SPLIT_HELD_OUT if piece.held_out else messages_pb2.SPLIT_TRAIN,
        row_group_tokens=_ROW_GROUP_TOKENS,
        statistics=[
            messages_pb2.LayerStatistics(
                layer=each.layer,
                input=messages_pb2.StreamStatistics(**asdict(each.input)),
                output=messages_pb2.StreamStatistics(**asdict(each.output)),
            )
            for each in encoded.statistics
        ],
    )
