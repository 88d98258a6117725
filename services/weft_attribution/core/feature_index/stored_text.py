"""
The text behind an index, read by stretches: all tokens in memory where they are few, else by ranges, or out of a file.

Legend: W tokens of a window, K stretches of a feature.
"""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.sequences import read_text
from weft_attribution.core.feature_index.settings import IndexKeys, IndexSettings
from weft_attribution.core.feature_index.text import draw_tiles, window_starts
from weft_attribution.core.feature_ports import Window
from weft_common.errors import DataLossError
from weft_store.port import ObjectStore

__all__ = ["StoredText"]

Array = npt.NDArray[Any]
_KEPT_TOKEN_BYTES = 64 << 20
_READS_AT_ONCE = 16
_MARKED_TOKENS = 256
# Reading what lies between is quicker than another request.
_GAP_TOKENS = 16_384
_RUN_TOKENS = 262_144


class StoredText:
    """
    The sequences of one index.

    Args:
        store: The bucket.
        keys: Where the index lies.
        settings: What it keeps of each feature.
    """

    def __init__(self, store: ObjectStore, keys: IndexKeys, settings: IndexSettings) -> None:
        self._store, self._keys, self._settings = store, keys, settings
        self._file: Array | None = None
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Length of all tokens."""
        return int(self._starts[-1]) * 4

    @property
    def held_bytes(self) -> int:
        """What is in memory by now."""
        held = [self.__dict__.get(name) for name in ("_starts", "_tokens", "_pool_starts")]
        return sum(int(array.nbytes) for array in held if array is not None)

    @property
    def is_held(self) -> bool:
        """Whether all tokens are few enough to be in memory."""
        return self._tokens is not None

    def keep_at(self, path: Path) -> None:
        """Read from a file from now on, which is written here; nothing where all tokens are in memory anyway."""
        if not self.is_held:
            self._store.get_to_file(self._keys.text("tokens.bin"), path)
            self._file = np.memmap(path, "<u4", mode="r")

    @property
    def pool_starts(self) -> Array:
        """Where the windows of the pool of quiet ones begin, by their bits. Goes over the whole text, once."""
        with self._lock:
            return self._pool_starts

    @cached_property
    def _pool_starts(self) -> Array:
        found = read_text(self._store, self._keys)
        if found is None:
            raise DataLossError(f"{self._keys.text('plan.json')} is gone; index the transcoder again")
        text, settings = found[0], self._settings
        tiles = draw_tiles(text, settings.window_tokens, settings.pool_windows, settings.seed)
        bases_N = text.tile_bases(settings.window_tokens)
        sequence = np.searchsorted(bases_N, tiles, side="right") - 1
        return np.asarray(text.start_N[sequence] + (tiles - bases_N[sequence]) * settings.window_tokens)

    @cached_property
    def _starts(self) -> Array:
        return np.frombuffer(self._store.get(self._keys.text("starts.bin")), "<i8")

    @cached_property
    def _tokens(self) -> Array | None:
        """All tokens, where they are few enough to be kept."""
        if self.num_bytes > _KEPT_TOKEN_BYTES:
            return None
        return np.frombuffer(self._store.get(self._keys.text("tokens.bin")), "<u4")

    def stretches(self, starts: Sequence[int]) -> list[tuple[int, int, tuple[int, ...]]]:
        """Sequence, place in it, and tokens of the windows that begin at some positions."""
        sequences = [int(np.searchsorted(self._starts, start, side="right")) - 1 for start in starts]
        ends = [
            min(start + self._settings.window_tokens, int(self._starts[sequence + 1]))
            for start, sequence in zip(starts, sequences, strict=True)
        ]
        read = self._read(list(zip(starts, ends, strict=True)))
        return [
            (sequence, start - int(self._starts[sequence]), tuple(ids.tolist()))
            for sequence, start, ids in zip(sequences, starts, read, strict=True)
        ]

    def _marks(self, sequences: Sequence[int]) -> list[str]:
        """For each of some sequences, a hash of what it begins with."""
        places = sorted(set(sequences))
        starts = self._starts[places].tolist()
        ends = np.minimum(self._starts[places] + _MARKED_TOKENS, self._starts[np.array(places, np.int64) + 1]).tolist()
        read = self._read(list(zip(starts, ends, strict=True)))
        mark_of = {
            place: hashlib.sha256(ids.tobytes()).hexdigest()[:16] for place, ids in zip(places, read, strict=True)
        }
        return [mark_of[place] for place in sequences]

    def _read(self, spans: Sequence[tuple[int, int]]) -> list[Array]:
        """The tokens of some spans: from memory, or by as few requests as near ones can share, some at once."""
        tokens, key = self._tokens if self._file is None else self._file, self._keys.text("tokens.bin")
        if tokens is not None:
            found = [tokens[low:high] for low, high in spans]
        else:
            found = [np.zeros(0, "<u4")] * len(spans)
            runs = _runs(spans)

            def get(run: Sequence[int]) -> Array:
                low, high = spans[run[0]][0], max(spans[place][1] for place in run)
                return np.frombuffer(self._store.get(key, offset=4 * low, length=4 * (high - low)), "<u4")

            with ThreadPoolExecutor(_READS_AT_ONCE, "text") as readers:
                for run, data in zip(runs, readers.map(get, runs), strict=True):
                    first = spans[run[0]][0]
                    for place in run:
                        found[place] = data[spans[place][0] - first : spans[place][1] - first]
        if any(len(ids) != high - low for ids, (low, high) in zip(found, spans, strict=True)):
            raise DataLossError(f"{key} is cut short; index the transcoder again")
        return found

    def windows(
        self, positions: Sequence[int], peaks: Sequence[float], ratios: Sequence[float], *, by_quantile: bool
    ) -> tuple[Window, ...]:
        """
        Windows around some positions of one feature, in their order.

        Args:
            positions: K of them.
            peaks: Activation at each.
            ratios: Activations in each window over its peak, K times W.
            by_quantile: Whether they are drawn ones, weakest first, to be told apart by quantile.
        """
        settings = self._settings
        position_K, peak_K = np.array(positions, np.int64), np.array(peaks, np.float32)
        ratio_KW = np.array(ratios, np.float32).reshape(len(position_K), settings.window_tokens)
        start_K = window_starts(self._starts, position_K, settings.window_tokens) if len(position_K) else position_K
        found = []
        read = self.stretches(start_K.tolist())
        # Those by quantile are told apart by their text: some of them explain, others score.
        marks = self._marks([sequence for sequence, _, _ in read]) if by_quantile and read else [""] * len(read)
        for place, (position, start) in enumerate(zip(position_K.tolist(), start_K.tolist(), strict=True)):
            sequence, first, ids = read[place]
            acts = ratio_KW[place, : len(ids)] * peak_K[place]
            acts[position - start] = peak_K[place]
            quantile = place * settings.num_quantiles // len(position_K) if by_quantile else -1
            found.append(
                Window(
                    sequence,
                    first,
                    ids,
                    tuple(acts.tolist()),
                    float(peak_K[place]),
                    position - start,
                    quantile,
                    marks[place],
                )
            )
        return tuple(found)


def _runs(spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """
    Places of the spans that are read together, each time from the one that begins first.

    >>> _runs([(50_000, 50_032), (0, 32), (10_000, 10_032)])
    [[1, 2], [0]]
    """
    runs: list[list[int]] = []
    end = first = 0
    for place in sorted(range(len(spans)), key=lambda place: spans[place]):
        low, high = spans[place]
        if runs and low - end <= _GAP_TOKENS and high - first <= _RUN_TOKENS:
            runs[-1].append(place)
            end = max(end, high)
        else:
            runs.append([place])
            first, end = low, high
    return runs
