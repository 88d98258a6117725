"""
Leases of a harvest: who reads which sequences now, and which are done.

    harvests/{id}/leases/{n}.json

Two replicas that read the same lease write the same shard, and the first commit wins.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from weft_store.leases import Leases
from weft_store.port import ObjectStore

__all__ = ["DoneLease", "LeaseBoard"]


@dataclass(frozen=True)
class DoneLease:
    """What a finished lease left behind; times in seconds since 1970."""

    index: int
    split: str
    num_tokens: int
    num_skipped: int
    start_s: float
    end_s: float


class LeaseBoard(Leases[int]):
    """
    The leases of one harvest as one replica sees them. Calls block.

    Args:
        store: The bucket.
        harvest_id: Whose leases.
        num_leases: How many there are.
        owner: Unique to this process.
        lease_s: How long a lease holds.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        harvest_id: str,
        num_leases: int,
        owner: str,
        *,
        lease_s: float = 20.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(store, f"harvests/{harvest_id}/leases", owner, lease_s=lease_s, clock=clock)
        self._num_leases = num_leases

    def take(self, order: Iterable[int] | None = None) -> int | None:
        """Take the first lease of an order, by default by index, that nobody holds; None where all are done or held."""
        return self.take_first(range(self._num_leases) if order is None else order)

    def finish(self, index: int, *, split: str, num_tokens: int, num_skipped: int) -> None:
        """Mark a lease whose shard is committed; whoever comes first says so, and all say the same."""
        said = {"split": split, "num_tokens": num_tokens, "num_skipped": num_skipped, "end_s": self._clock()}
        self.mark_done(index, said)

    def refresh(self) -> list[DoneLease]:
        """Read what others have done since, and list all that is done."""
        self.look(range(self._num_leases))
        return self.known()

    def known(self) -> list[DoneLease]:
        """List the leases that are known to be done, without looking."""
        return [
            DoneLease(
                index=index,
                split=str(document["split"]),
                num_tokens=int(document["num_tokens"]),
                num_skipped=int(document["num_skipped"]),
                start_s=float(document["start_s"]),
                end_s=float(document["end_s"]),
            )
            for index, document in sorted(self.done.items())
        ]

    def all_done(self) -> bool:
        """Whether every lease is known to be done."""
        return len(self.done) == self._num_leases
