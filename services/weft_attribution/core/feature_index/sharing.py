"""
One index over several replicas: each takes layers that nobody has, for as long as there are some.

    features/{transcoder}/index/{id}/leases/{layer}.json, text.json, manifest.json

A layer is done once its file is there. Who makes one says so by a lease, and how far it is; when it gives no sign of
life any more, another takes the layer over and goes on from what was stored. Two that make the same layer come to the
same bytes, so leases only save work.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress

from weft_attribution.core.feature_index.settings import IndexKeys
from weft_common.errors import WeftError
from weft_common.logging import get_logger
from weft_store.leases import Leases
from weft_store.port import ObjectStore

__all__ = ["MANIFEST", "TEXT", "IndexShare"]

_log = get_logger(__name__)
TEXT, MANIFEST = "text", "manifest"
"""What is made once for all layers, before the first and after the last; layers are named by their numbers."""
_MOST_TAKES = 20


class IndexShare:
    """
    What one replica does of an index.

    Args:
        store: The bucket.
        keys: Where the index lies.
        num_layers: Layers of it.
        lease_s: Seconds without a sign of life after which another replica takes a part over.
        poll_s: Wait between looks at parts that others make.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        keys: IndexKeys,
        num_layers: int,
        *,
        lease_s: float = 20.0,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._keys, self._num_layers = store, keys, num_layers
        self._lease_s, self.poll_s = lease_s, poll_s
        self._leases: Leases[str] = Leases(
            store, keys.leases, uuid.uuid4().hex, lease_s=lease_s, most_takes=_MOST_TAKES, clock=clock
        )
        self._ending = threading.Event()
        self._beating = threading.Thread(target=self._beat_forever, name="weft-index-leases", daemon=True)
        # Changed by single operations only, as several threads look at them.
        self._held: dict[str, float] = {}
        self._elsewhere: dict[str, float] = {}
        self._there: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Give signs of life from now on."""
        self._beating.start()

    def end(self) -> None:
        """Let go of all that is held."""
        self._ending.set()
        if self._beating.is_alive():
            self._beating.join()
        with suppress(WeftError):
            self._leases.give_up(list(self._held))

    def take(self, names: Iterable[str]) -> str | None:
        """Take the first of these that nobody has; None where there is none."""
        name = self._leases.take_first(names)
        if name is not None:
            self._held[name] = 0.0
        return name

    def release(self, name: str) -> None:
        """Let go of what is made; nothing where another has taken it since."""
        if self._held.pop(name, None) is not None:
            self._leases.give_up([name])

    def finish(self, layer: int) -> None:
        """Let go of a layer whose file is there."""
        self._there |= {str(layer)}
        self.release(str(layer))

    def holds(self, layer: int) -> bool:
        """Whether a layer is still this replica's to make."""
        return str(layer) in self._held

    def tell(self, layer: int, share: float) -> None:
        """Say how far a layer is that this replica makes: 0 to 1."""
        name = str(layer)
        if name in self._held:
            self._held[name] = share

    def missing(self) -> list[str]:
        """Look which layers have no file yet, in their order."""
        there = {info.key.removeprefix(self._keys.layers) for info in self._store.list(self._keys.layers)}
        layers = [str(layer) for layer in range(self._num_layers)]
        self._there = frozenset(name for name in layers if f"{name}.parquet" in there)
        return [name for name in layers if name not in self._there]

    def num_done(self) -> float:
        """Layers done by all replicas together, parts of layers included, as of the last look."""
        begun = {**self._elsewhere, **self._held}
        return len(self._there) + sum(
            share for name, share in begun.items() if name not in self._there and name not in (TEXT, MANIFEST)
        )

    def beat(self) -> None:
        """Give a sign of life, and look how far others are."""
        held = dict(self._held)
        for name in self._leases.extend(held, {name: {"share": share} for name, share in held.items()}):
            self._held.pop(name, None)
        leases = self._leases.look(name for name in self.missing() if name not in held)
        self._elsewhere = {name: float(document.get("share", 0.0)) for name, document in leases.items()}

    def _beat_forever(self) -> None:
        while not self._ending.wait(self._lease_s / 4):
            try:
                self.beat()
            except Exception as error:
                # The next one may find the bucket again.
                _log.warning("leases_not_extended", prefix=self._keys.prefix, reason=str(error))
