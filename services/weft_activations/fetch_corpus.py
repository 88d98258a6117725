"""
Puts the files of a data set of the Hugging Face hub into the bucket, for an import to read.

    python -m weft_activations.fetch_corpus notes=org/notes@COMMIT --files 'data/train-*.parquet'
    weft corpora import notes --source corpora/notes/files/

WEFT_ACTIVATIONS_BUCKET_* name the bucket, HF_TOKEN holds the hub's token. Only files of the repository itself are
fetched, at that commit, and only text, JSON lines, Parquet and Arrow: no script is run and no address is followed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from weft_activations.adapters.arrow_records import ArrowFiles
from weft_activations.adapters.parquet_records import ParquetFiles
from weft_activations.adapters.text_records import JsonLines, TextFiles
from weft_activations.fetch import HubModel, Snapshot, hub_snapshot, open_configured_bucket
from weft_common.errors import NotFoundError, WeftError
from weft_store import ObjectStore

__all__ = ["fetch_files", "main"]

_ENDS = (*TextFiles.suffixes, *JsonLines.suffixes, *ParquetFiles.suffixes, *ArrowFiles.suffixes)


def fetch_files(wanted: HubModel, patterns: Sequence[str], store: ObjectStore, snapshot: Snapshot) -> list[str]:
    """
    Fetch files of a data set.

    Args:
        wanted: Its corpus here, its repository and commit.
        patterns: Which files, as the hub's client matches names; those that no import reads are left out.
        store: The bucket.
        snapshot: What downloads.

    Returns:
        The keys that were written.

    Raises:
        NotFoundError: The repository has no such file.
    """
    with tempfile.TemporaryDirectory(prefix="weft-hub-") as folder:
        snapshot(
            wanted.repository,
            repo_type="dataset",
            revision=wanted.revision,
            local_dir=folder,
            allow_patterns=list(patterns),
        )
        keys = []
        for path in sorted(Path(folder).rglob("*")):
            name = path.relative_to(folder).as_posix()
            # The hub's client keeps its notes in `.cache`; a link could lead out of the folder.
            if name.startswith(".cache/") or path.is_symlink() or not path.is_file() or not name.endswith(_ENDS):
                continue
            key = f"corpora/{wanted.name}/files/{name}"
            store.put_file(key, path)
            keys.append(key)
    if not keys:
        raise NotFoundError(
            f"{wanted.repository} at {wanted.revision} has no file that an import reads and that {', '.join(patterns)} "
            f"names; names end in {', '.join(_ENDS)}"
        )
    return keys


def main(
    arguments: Sequence[str] | None = None,
    open_bucket: Callable[[], ObjectStore] = open_configured_bucket,
    find_snapshot: Callable[[], Snapshot] = hub_snapshot,
) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m weft_activations.fetch_corpus", description=(__doc__ or "").splitlines()[1]
    )
    parser.add_argument("data_set", metavar="CORPUS=REPOSITORY@REVISION", help="id of the corpus, and where it is from")
    parser.add_argument("--files", action="append", metavar="PATTERN", help="files to fetch; default: all of a kind")
    options = parser.parse_args(arguments)
    patterns = options.files or [f"*{end}" for end in _ENDS]
    try:
        for key in fetch_files(HubModel.parse(options.data_set), patterns, open_bucket(), find_snapshot()):
            sys.stdout.write(f"fetch_corpus: {key}\n")
    except (WeftError, OSError, ValueError) as error:
        sys.stderr.write(f"fetch_corpus: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
