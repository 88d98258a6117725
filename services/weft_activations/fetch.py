"""
Puts base models into a folder before a service starts: from a prefix of the bucket, or from the Hugging Face hub.

    python -m weft_activations.fetch MODELS_DIR --bucket-prefix=models/
    python -m weft_activations.fetch MODELS_DIR --hub=small=HuggingFaceTB/SmolLM2-135M@COMMIT

WEFT_ACTIVATIONS_BUCKET_* name the bucket, HF_TOKEN holds the hub's token. Each model's folder appears by one rename,
and one that is there is kept: a start that was cut off is begun again where it stood.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from weft_common.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError, WeftError
from weft_common.resource_names import check_id
from weft_common.settings import BucketSettings, load_settings
from weft_store import ObjectStore, open_bucket

Snapshot = Callable[..., object]
"""`huggingface_hub.snapshot_download`."""

__all__ = ["HubModel", "copy_models", "download_model", "hub_snapshot", "main", "open_configured_bucket"]

_PARALLEL_FILES = 4
# What transformers reads of a folder; pickled weights are never fetched.
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


class _FetchSettings(BucketSettings):
    model_config = SettingsConfigDict(
        env_prefix="WEFT_ACTIVATIONS_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )


@dataclass(frozen=True)
class HubModel:
    """
    One model of the hub.

    Args:
        name: Id of the model here, and name of its folder.
        repository: Id on the hub.
        revision: Commit.
    """

    name: str
    repository: str
    revision: str

    @classmethod
    def parse(cls, text: str) -> "HubModel":
        """
        Read `NAME=REPOSITORY@REVISION`.

        Raises:
            InvalidArgumentError: It has another form.

        >>> HubModel.parse("small=HuggingFaceTB/SmolLM2-135M@93efa2f")
        HubModel(name='small', repository='HuggingFaceTB/SmolLM2-135M', revision='93efa2f')
        """
        name, equals, place = text.partition("=")
        repository, at, revision = place.partition("@")
        if not (equals and at and repository and revision):
            raise InvalidArgumentError(f"{text!r} is no model of the hub; give NAME=REPOSITORY@REVISION", field="hub")
        return cls(check_id(name, field="hub"), repository, revision)


def copy_models(store: ObjectStore, prefix: str, models_dir: Path) -> list[str]:
    """
    Copy every model below a prefix.

    Args:
        store: The bucket.
        prefix: Ends in a slash; each folder right below it is a model.
        models_dir: Gets one folder a model.

    Returns:
        The models that were copied now; those that were there are left as they are.

    Raises:
        NotFoundError: There is no folder below the prefix.
        FailedPreconditionError: A folder is no model.
        DataLossError: A file did not come whole.
    """
    names = list(store.list_folders(prefix))
    if not names:
        raise NotFoundError(
            f"there is no folder below {prefix!r} in the bucket; put one Hugging Face folder a model there, such as "
            f"{prefix}my-model/config.json, or name another prefix"
        )
    return [name for name in names if _copy_model(store, f"{prefix}{name}/", models_dir / check_id(name))]


def download_model(model: HubModel, models_dir: Path, snapshot: Snapshot) -> bool:
    """
    Fetch a model of the hub.

    Args:
        model: Which.
        models_dir: Gets its folder.
        snapshot: What downloads.

    Returns:
        Whether it was fetched now; False where its folder was there.

    Raises:
        FailedPreconditionError: What came is no model.
    """
    target = models_dir / model.name
    if target.exists():
        return False
    with _appearing(target) as folder:
        snapshot(model.repository, revision=model.revision, local_dir=folder, allow_patterns=_HUB_FILES)
        # The hub's client keeps its notes there.
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        _check_model(folder, f"{model.repository} at {model.revision}")
    return True


def _copy_model(store: ObjectStore, prefix: str, target: Path) -> bool:
    if target.exists():
        return False
    with _appearing(target) as folder, ThreadPoolExecutor(_PARALLEL_FILES) as pool:

        def copy(key: str, size_bytes: int) -> None:
            path = folder / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            store.get_to_file(key, path)
            if path.stat().st_size != size_bytes:
                raise DataLossError(
                    f"{key} has {path.stat().st_size} bytes, expected {size_bytes}; it is being written, so try again"
                )

        copies = [pool.submit(copy, info.key, info.size_bytes) for info in store.list(prefix)]
        for each in copies:
            each.result()
        _check_model(folder, prefix)
    return True


def _check_model(folder: Path, shown: str) -> None:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise FailedPreconditionError(
            f"{shown} is no model: config.json and weights in *.safetensors are expected; convert it with "
            "save_pretrained of transformers"
        )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Give a folder that gets its name when all went well, and is gone otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def open_configured_bucket() -> ObjectStore:
    """Open the bucket that the environment names."""
    return open_bucket(load_settings(_FetchSettings))


def hub_snapshot() -> Snapshot:
    """Return what downloads from the hub."""
    from huggingface_hub import snapshot_download

    return snapshot_download


def main(
    arguments: Sequence[str] | None = None,
    open_bucket: Callable[[], ObjectStore] = open_configured_bucket,
    hub_snapshot: Callable[[], Snapshot] = hub_snapshot,
) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m weft_activations.fetch", description=__doc__.splitlines()[1])
    parser.add_argument("models_dir", type=Path, metavar="MODELS_DIR", help="folder that gets one folder a model")
    parser.add_argument("--bucket-prefix", metavar="PREFIX/", help="folder of the bucket with one folder a model")
    parser.add_argument("--hub", action="append", default=[], metavar="NAME=REPOSITORY@REVISION", help="of the hub")
    options = parser.parse_args(arguments)
    if bool(options.bucket_prefix) == bool(options.hub):
        parser.error("models come from one place: give either --bucket-prefix or --hub")
    models_dir: Path = options.models_dir
    try:
        if options.bucket_prefix:
            for name in copy_models(open_bucket(), options.bucket_prefix, models_dir):
                sys.stdout.write(f"fetch: {name} copied\n")
        for model in [HubModel.parse(text) for text in options.hub]:
            fetched = download_model(model, models_dir, hub_snapshot())
            sys.stdout.write(f"fetch: {model.name} {'fetched' if fetched else 'is there, kept'}\n")
    except (WeftError, OSError, ValueError) as error:
        sys.stderr.write(f"fetch: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
