"""
Which tokens a harvest left out for their norm, written down lease by lease.

    harvests/{id}/left_out/{n}.bin   rows of lease n that were left out, rising, as 4 bytes each, lowest first

A row is a token that the packing keeps, over the lease's sequences one after the other. A lease that left nothing out
has no such object; of a harvest that was made before these were written, some are missing.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weft_activations.core.plan import Lease
from weft_common.errors import AlreadyExistsError, DataLossError, NotFoundError
from weft_store.port import ObjectStore

__all__ = ["LeftOut"]

Ids = npt.NDArray[np.int64]


class LeftOut:
    """
    What one harvest left out. Calls block.

    Args:
        store: The bucket.
        harvest_id: The harvest.
    """

    def __init__(self, store: ObjectStore, harvest_id: str) -> None:
        self._store, self._folder = store, f"harvests/{harvest_id}/left_out"

    def keep(self, index: int, rows: npt.NDArray[np.intp]) -> None:
        """Write down what a lease left out; all that read it say the same, and the first has said it."""
        if len(rows):
            try:
                self._store.put(self._key(index), rows.astype("<u4").tobytes(), if_absent=True)
            except AlreadyExistsError:
                return

    def positions(self, lease: Lease, num_skipped: int) -> list[Ids] | None:
        """
        The positions that were left out of each sequence of a lease.

        Args:
            lease: The lease.
            num_skipped: How many it is known to have left out.

        Returns:
            One array a sequence, rising; None where it was not written down.

        Raises:
            DataLossError: What was written down is not what was left out.
        """
        if not num_skipped:
            return [np.zeros(0, np.int64) for _ in lease.sequences]
        try:
            data = self._store.get(self._key(lease.index))
        except NotFoundError:
            return None
        if len(data) != 4 * num_skipped:
            raise DataLossError(
                f"{self._key(lease.index)} has {len(data)} bytes, and {num_skipped} tokens were left out; delete it to "
                "have them found again by the model"
            )
        rows = np.frombuffer(data, "<u4").astype(np.int64)
        return _by_sequence(lease, rows)

    def _key(self, index: int) -> str:
        return f"{self._folder}/{index}.bin"


def _by_sequence(lease: Lease, rows: Ids) -> list[Ids]:
    stops: Sequence[int] = np.cumsum([sequence.num_kept for sequence in lease.sequences]).tolist()
    found, start = [], 0
    for sequence, stop in zip(lease.sequences, stops, strict=True):
        here = rows[(rows >= start) & (rows < stop)] - start
        found.append(np.flatnonzero(sequence.kept())[here] + 1)
        start = stop
    return found
