"""
What a cluster says of some objects, kept up to date by list and watch.

A thread a kind of object lists, then watches from that version on, and lists again where the server has forgotten the
version (410) or went away. All of it arrives in the event loop, which alone touches the copies.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from weft_common.errors import WeftError
from weft_common.logging import get_logger
from weft_trainer.adapters.kubernetes_api import ClusterApi, Manifest, Resource, WatchExpiredError

__all__ = ["KubernetesMirror"]

_log = get_logger(__name__)

_WATCH_S = 60
_MOST_PAUSE_S = 15.0
_MOST_GONE = 1000


class KubernetesMirror:
    """
    Copies of the objects that carry some labels.

    Args:
        api: The cluster.
        resources: Kinds of object to follow.
        selector: Labels that they carry.
        pause_s: Wait after a failure; doubled for each further one in a row.
    """

    def __init__(self, api: ClusterApi, resources: Sequence[Resource], selector: str, pause_s: float = 1.0) -> None:
        self._api = api
        self._selector = selector
        self._pause_s = pause_s
        self._copies: dict[Resource, dict[str, Manifest]] = {resource: {} for resource in resources}
        self._gone: dict[Resource, dict[str, Manifest]] = {resource: {} for resource in resources}
        self._listed = {resource: asyncio.Event() for resource in resources}
        self._bell = asyncio.Event()
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Begin, and wait until everything was listed once."""
        self._loop = asyncio.get_running_loop()
        for resource in self._copies:
            thread = threading.Thread(
                target=self._follow, args=(resource,), name=f"watch-{resource.plural}", daemon=True
            )
            thread.start()
        for listed in self._listed.values():
            await listed.wait()

    def stop(self) -> None:
        """Follow no longer; a thread that waits for the server ends when its watch does."""
        self._stopping.set()

    def bell(self) -> asyncio.Event:
        """Return what the next change sets; take it before looking, wait for it after."""
        return self._bell

    async def wait(self, bell: asyncio.Event, timeout_s: float) -> None:
        """Wait for a change, or not longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await bell.wait()

    def get(self, resource: Resource, name: str) -> Manifest | None:
        """Return the copy of an object; None where there is none, or none yet."""
        return self._copies[resource].get(name)

    def select(self, resource: Resource, label: str, value: str) -> list[Manifest]:
        """Return the copies that carry a label, by name."""
        return _carrying(self._copies[resource], label, value)

    def gone(self, resource: Resource, label: str, value: str) -> list[Manifest]:
        """Return what carried a label when it was deleted, as it was last seen; of the newest thousand."""
        return _carrying(self._gone[resource], label, value)

    def _ring(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    def _replace(self, resource: Resource, items: Sequence[Manifest]) -> None:
        self._copies[resource] = {item["metadata"]["name"]: item for item in items}
        self._listed[resource].set()
        self._ring()

    def _apply(self, resource: Resource, event: str, item: Manifest) -> None:
        if event == "DELETED":
            self._copies[resource].pop(item["metadata"]["name"], None)
            gone = self._gone[resource]
            gone[item["metadata"]["name"]] = item
            if len(gone) > _MOST_GONE:
                del gone[next(iter(gone))]
        else:
            self._copies[resource][item["metadata"]["name"]] = item
        self._ring()

    # ---- in the threads ----

    def _follow(self, resource: Resource) -> None:
        pause_s = self._pause_s
        # The loop is closed when the process ends.
        with suppress(RuntimeError):
            while not self._stopping.is_set():
                try:
                    items, version = self._api.list(resource, self._selector)
                    self._tell(partial(self._replace, resource, items))
                    pause_s = self._pause_s
                    self._watch(resource, version)
                except WatchExpiredError:
                    _log.info("watch_expired", resource=resource.plural)
                except WeftError as error:
                    _log.warning("watch_failed", resource=resource.plural, error=error.message, retry_in_s=pause_s)
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def _watch(self, resource: Resource, version: str) -> None:
        while not self._stopping.is_set():
            for event, item in self._api.watch(resource, self._selector, version, _WATCH_S):
                version = item["metadata"]["resourceVersion"]
                if event != "BOOKMARK":
                    self._tell(partial(self._apply, resource, event, item))

    def _tell(self, change: Callable[[], None]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(change)


def _carrying(items: Mapping[str, Manifest], label: str, value: str) -> list[Manifest]:
    found = (each for each in items.values() if (each["metadata"].get("labels") or {}).get(label) == value)
    return sorted(found, key=lambda each: str(each["metadata"]["name"]))
