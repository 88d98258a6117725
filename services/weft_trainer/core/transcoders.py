"""Finished transcoders in the bucket: `transcoders/{transcoder}/manifest.json` and the files it stands for."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from weft_common.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from weft_common.resource_names import parse_name
from weft_store import ObjectStore
from weft_store.documents import create_json, list_ids, read_json
from weft_trainer.core.admission import check_new_id
from weft_trainer.core.circuit_tracer_layout import inspect_layout
from weft_trainer.core.records import now

__all__ = ["Transcoders", "check_model"]

_REVISION_CHARACTERS = frozenset("0123456789abcdef")


def check_model(model: str, model_revision: str) -> None:
    """Refuse what names no checkpoint of a model. InvalidArgumentError."""
    parse_name(model, "models", field="model")
    if len(model_revision) != 64 or not set(model_revision) <= _REVISION_CHARACTERS:
        raise InvalidArgumentError(
            f"model_revision is {model_revision[:80]!r}: give the 64 hex digits that GetModel names.",
            field="model_revision",
        )


class Transcoders:
    """
    The transcoders of a bucket.

    Args:
        store: The bucket.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def get(self, transcoder: str) -> dict[str, Any]:
        """Read a manifest. NotFoundError."""
        return await asyncio.to_thread(self._get, transcoder)

    async def all(self) -> list[dict[str, Any]]:
        """Read all manifests."""
        return await asyncio.to_thread(
            lambda: [self._get(name) for name in list_ids(self._store, "transcoders/", "/manifest.json")]
        )

    async def take_over(self, transcoder: str, prefix: str, model: str, model_revision: str) -> Mapping[str, Any]:
        """
        Check files in circuit-tracer's layout and make them a transcoder; the files stay where they lie.

        Raises:
            InvalidArgumentError: A field of the request is malformed.
            AlreadyExistsError: The id is taken by another transcoder.
            NotFoundError, FailedPreconditionError, DataLossError: See `inspect_layout`.
        """
        check_new_id(transcoder, "transcoder_id")
        check_model(model, model_revision)
        folder = prefix.strip("/")
        if not folder:
            raise InvalidArgumentError("prefix is empty: give the folder of the files in the bucket.", field="prefix")
        facts = asdict(await asyncio.to_thread(inspect_layout, self._store, folder))
        if not facts["top_k"]:
            del facts["top_k"]
        manifest = {
            **facts,
            "files": list(facts["files"]),
            "name": f"transcoders/{transcoder}",
            "model": model,
            "model_revision": model_revision,
            "dataset": "",
            "run": "",
            "prefix": f"{folder}/",
            "create_time": now(),
        }
        try:
            await asyncio.to_thread(create_json, self._store, _manifest_key(transcoder), manifest)
        except AlreadyExistsError:
            there = await self.get(transcoder)
            if _without_time(there) == _without_time(manifest):
                return there
            raise AlreadyExistsError(
                f"there is another transcoders/{transcoder} already: choose another transcoder_id.",
                field="transcoder_id",
            ) from None
        return manifest

    def _get(self, transcoder: str) -> dict[str, Any]:
        try:
            manifest, _ = read_json(self._store, _manifest_key(transcoder))
        except NotFoundError:
            raise NotFoundError(
                f"there is no 'transcoders/{transcoder}': list them with ListTranscoders.", field="name"
            ) from None
        name = f"transcoders/{transcoder}"
        return {"prefix": f"{name}/", **manifest, "name": name}


def _manifest_key(transcoder: str) -> str:
    return f"transcoders/{transcoder}/manifest.json"


def _without_time(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest.items() if name != "create_time"}
