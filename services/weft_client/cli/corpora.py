"""`weft corpora`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from weft.activations.v1 import corpora_pb2, service_pb2
from weft_client.cli.output import print_list, print_one
from weft_client.cli.session import JsonFlag, NoWait, connected
from weft_client.cli.waiting import print_result, print_started, wait
from weft_client.names import short_id
from weft_client.sync.client import Client
from weft_common.errors import InvalidArgumentError, NotFoundError

app = typer.Typer(no_args_is_help=True, help="Text that harvests read.")
CorpusArgument = Annotated[str, typer.Argument(help="Id of the corpus.")]
_NAMES = (".txt", ".jsonl", ".ndjson")
_ENDS = (*(name + compression for name in _NAMES for compression in ("", ".gz", ".zst")), ".parquet", ".arrow")


@app.command("list")
def list_corpora(as_json: JsonFlag = False) -> None:
    """List corpora, by name."""
    with connected() as client:
        print_list(
            "corpora",
            client.corpora.list(),
            {
                "id": lambda each: short_id(each.name),
                "documents": lambda each: f"{each.num_documents:,}",
                "bytes": lambda each: f"{each.size_bytes:,}",
                "source": lambda each: each.origin.spec.source or "uploaded",
            },
            as_json=as_json,
        )


@app.command("get")
def get_corpus(corpus: CorpusArgument, as_json: JsonFlag = False) -> None:
    """Describe one corpus, and what was broken in its files."""
    with connected() as client:
        found = client.corpora.get(corpus)
    fields = [
        ("name", found.name),
        ("documents", f"{found.num_documents:,}"),
        ("bytes", f"{found.size_bytes:,}"),
        ("digest", found.digest),
    ]
    print_one(found, fields + _origin_fields(found), as_json=as_json)


@app.command("import")
def import_corpus(
    corpus: Annotated[str, typer.Argument(help="Id of the new corpus.")],
    paths: Annotated[
        list[Path] | None, typer.Argument(help=f"Files to upload, or folders of files: {', '.join(_ENDS)}.")
    ] = None,
    source: Annotated[
        str,
        typer.Option(help="Read files that are in the bucket: the beginning of their keys, `corpora/notes/files/`."),
    ] = "",
    text_field: Annotated[str, typer.Option(help="Field of a JSON line, or column, that holds the text.")] = "text",
    max_broken: Annotated[int, typer.Option(help="Broken lines and rows to pass over; one more is an error.")] = 0,
    sample_share: Annotated[float, typer.Option(help="Share of the documents to take, above 0 to 1.")] = 1.0,
    sample_seed: Annotated[int, typer.Option(help="Draws another sample.")] = 0,
    max_documents: Annotated[int, typer.Option(help="Stop after so many documents; 0: no limit.")] = 0,
    no_wait: NoWait = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a corpus of text, JSON lines, Parquet or Arrow files."""
    if bool(paths) == bool(source):
        raise InvalidArgumentError(
            "files come from one place: give either paths or --source with a prefix of the bucket", field="source"
        )
    if not 0 < sample_share <= 1:
        raise InvalidArgumentError(f"sample_share is {sample_share}; give more than 0 and at most 1")
    with connected() as client:
        spec = corpora_pb2.CorpusImportSpec(
            source=source or _upload(client, corpus, list(paths or ())),
            text_field=text_field,
            max_broken=max_broken,
            sample_share=sample_share,
            sample_seed=sample_seed,
            max_documents=max_documents,
        )
        operation = client.corpora.import_files(corpus, spec=spec)
        if no_wait:
            print_started(operation, f"corpora/{corpus}", validated=False, as_json=as_json)
            return
        wait(client, operation, "importing", quiet=as_json)
        found = client.corpora.get(corpus)
    line = (
        f"{found.name} has {found.num_documents:,} documents, {found.size_bytes:,} bytes; "
        f"{found.origin.num_broken:,} broken records were left out; harvest it with --corpus {corpus}"
    )
    print_result(found, line, as_json=as_json)


def _origin_fields(corpus: service_pb2.Corpus) -> list[tuple[str, str]]:
    if not corpus.HasField("origin"):
        return [("source", "uploaded")]
    origin = corpus.origin
    fields = [
        ("source", f"{origin.spec.source}, {origin.num_files:,} files, {origin.file_bytes:,} bytes"),
        ("records", f"{origin.num_records:,}, {origin.num_empty:,} of them empty, {origin.num_broken:,} broken"),
        ("sample", f"{origin.spec.sample_share:g}, seed {origin.spec.sample_seed}"),
    ]
    return fields + [("broken", f"{each.file}, record {each.number}: {each.problem}") for each in origin.broken]


def _upload(client: Client, corpus: str, paths: list[Path]) -> str:
    source = ""
    for path, name in _files(paths):
        source = client.corpora.upload_file(corpus, path, name).source
    if not source:
        raise NotFoundError(
            f"there is no file to read in {', '.join(map(str, paths))}; names end in {', '.join(_ENDS)}"
        )
    return source


def _files(paths: list[Path]) -> Iterator[tuple[Path, str]]:
    """Files with their names there: those of a folder keep their place in it."""
    for path in paths:
        if not path.exists():
            raise NotFoundError(f"there is no file {path}")
        if path.is_file():
            yield path, path.name
            continue
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.name.endswith(_ENDS):
                yield file, file.relative_to(path).as_posix()
