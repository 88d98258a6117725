"""Runs and operations as the bucket has them; only whether they have ended is read."""

from weft_common.errors import DataLossError, NotFoundError
from weft_store import ObjectStore
from weft_store.documents import read_json

_ENDED_RUNS = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})


class BucketHolders:
    """Looks into `runs/{run}/run.json` and `operations/{service}/{id}.json`, which their services keep."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def ended(self, holder: str) -> bool:
        kind, _, name = holder.partition("/")
        service, _, operation = name.partition("-")
        key = f"runs/{name}/run.json" if kind == "runs" else f"operations/{service}/{operation}.json"
        try:
            document, _ = read_json(self._store, key)
            return bool(document["state"] in _ENDED_RUNS if kind == "runs" else document["done"])
        except NotFoundError:
            return True
        except KeyError as error:
            raise DataLossError(f"{key} does not say whether {holder} has ended; restore it from a backup") from error
