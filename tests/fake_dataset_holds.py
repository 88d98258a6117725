"""The catalog's holds as attribution takes them, over a bucket, without a cache service."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from weft_common.errors import NotFoundError, WeftError
from weft_store.documents import read_json
from weft_store.port import ObjectStore


@dataclass
class FakeDatasetHolds:
    """
    The port DatasetHolds.

    Args:
        store: The bucket.
        failures: Raised one after the other, before anything is held; the last one stays where `fails_on` is set.
        fails_on: The last failure is raised for ever.
        asked: Called with each call.
    """

    store: ObjectStore
    failures: list[WeftError] = field(default_factory=list)
    fails_on: bool = False
    asked: Callable[[], None] = lambda: None
    taken: list[tuple[str, str]] = field(default_factory=list)

    async def hold(self, dataset: str, holder: str) -> None:
        self.asked()
        if self.failures:
            raise self.failures[0] if self.fails_on and len(self.failures) == 1 else self.failures.pop(0)
        manifest, _ = read_json(self.store, f"datasets/{dataset}/manifest.json")
        if manifest["state"] == "deleting":
            raise NotFoundError(f"no datasets/{dataset}")
        self.taken.append((dataset, holder))

    async def holders(self, dataset: str) -> list[str]:
        """Who holds a dataset and has not ended."""

        def goes_on(holder: str) -> bool:
            service, _, operation = holder.removeprefix("operations/").partition("-")
            return not json.loads(self.store.get(f"operations/{service}/{operation}.json"))["done"]

        return sorted({holder for name, holder in self.taken if name == dataset and goes_on(holder)})
