"""
Makes a transcoder of files in another layout, or writes one for others: `python -m weft_trainer.worker.convert`.

One process; in memory are one layer's encoder, at most twice in float64, and a few blocks of 32 MiB; on disk one file.
"""

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weft_clt.formats.circuit_tracer import CircuitTracerFiles, write_circuit_tracer
from weft_clt.formats.opening import open_transcoder, write_transcoder
from weft_common.errors import AlreadyExistsError
from weft_common.logging import configure_logging, get_logger
from weft_common.settings import load_settings
from weft_store import ObjectStore, open_bucket
from weft_store.documents import create_json
from weft_trainer.core.bucket_files import BucketFiles
from weft_trainer.core.circuit_tracer_layout import activation_of
from weft_trainer.core.format_jobs import formats_prefix
from weft_trainer.core.scratch import ScratchFolder
from weft_trainer.core.transcoder_transfer import is_uploaded
from weft_trainer.worker.settings import ConvertSettings
from weft_trainer.worker.signals import exit_when_terminated
from weft_trainer.worker.starting import exit_code, prepare_process

__all__ = ["main", "take_in", "write_out"]

_log = get_logger(__name__)


def take_in(store: ObjectStore, settings: ConvertSettings) -> None:
    """Write the transcoder that files stand for, its manifest last, and delete them where they were uploaded."""
    files = BucketFiles(store, settings.source_prefix)
    source = open_transcoder(files, settings.layout, input_hook=settings.input_hook)
    facts, prefix = source.facts, f"transcoders/{settings.transcoder}/"
    with ScratchFolder() as scratch:
        written = write_circuit_tracer(source, scratch.path, settings.model.removeprefix("models/"), padded=False)
        sizes = _upload(store, prefix, scratch.path, written)
    manifest = {
        "name": f"transcoders/{settings.transcoder}",
        "model": settings.model,
        "model_revision": settings.model_revision,
        "dataset": "",
        "run": "",
        "num_layers": facts.num_layers,
        "num_features": facts.num_features,
        "d_model": facts.d_model,
        "input_hook": facts.input_hook,
        "output_hook": facts.output_hook,
        "activation": activation_of(facts),
        **({"top_k": facts.top_k} if facts.top_k else {}),
        "window": facts.window,
        "imported_from": settings.source_prefix,
        "imported_format": settings.layout,
        "size_bytes": sum(sizes.values()),
        "files": sorted(sizes),
        "prefix": prefix,
        "create_time": _now(),
    }
    _commit(store, f"{prefix}manifest.json", manifest)
    if is_uploaded(files.where, settings.transcoder):
        for name in files.sizes():
            store.delete(files.where + name)


def write_out(store: ObjectStore, settings: ConvertSettings) -> None:
    """Write a transcoder in another layout, and last the document that lists its files."""
    source = CircuitTracerFiles(BucketFiles(store, settings.source_prefix))
    prefix = formats_prefix(settings.transcoder, settings.layout)
    with ScratchFolder() as scratch:
        written = write_transcoder(source, settings.layout, scratch.path, settings.model.removeprefix("models/"))
        sizes = _upload(store, prefix, scratch.path, written)
    document = {
        "transcoder": f"transcoders/{settings.transcoder}",
        "format": settings.layout,
        "files": [{"path": name, "size_bytes": sizes[name]} for name in sorted(sizes)],
        "create_time": _now(),
    }
    _commit(store, f"{prefix}manifest.json", document)


def _upload(store: ObjectStore, prefix: str, folder: Path, names: Iterator[str]) -> dict[str, int]:
    """Move each file into the bucket once it is whole."""
    sizes = {}
    for name in names:
        path = folder / name
        sizes[name] = path.stat().st_size
        store.put_file(prefix + name, path)
        path.unlink()
        _log.info("written", key=prefix + name, size_bytes=sizes[name])
    return sizes


def _commit(store: ObjectStore, key: str, document: dict[str, Any]) -> None:
    try:
        create_json(store, key, document)
    except AlreadyExistsError:
        _log.info("already_written", key=key)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def main() -> int:
    """Convert once and return the exit code."""
    exit_when_terminated()
    settings = load_settings(ConvertSettings)
    configure_logging("trainer-convert", settings.log_level)
    prepare_process(os.environ, 1)

    def work() -> None:
        (take_in if settings.direction == "in" else write_out)(open_bucket(settings), settings)

    return exit_code(work, lambda message: None)


if __name__ == "__main__":
    sys.exit(main())
