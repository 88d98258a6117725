"""
The text behind an index, read by stretches: all tokens in memory where they are few, else by ranges, or out of a file.

Legend: W tokens of a window, K stretches of a feature.
"""

from collections.abc import Sequence
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

    @property
    def num_bytes(self) -> int:
        """Length of all tokens."""
        return int(self._starts[-1]) * 4

    @property
    def is_held(self) -> bool:
        """Whether all tokens are few enough to be in memory."""
        return self._tokens is not None

    def keep_at(self, path: Path) -> None:
        """Read from a file from now on, which is written here; nothing where all tokens are in memory anyway."""
        if not self.is_held:
            self._store.get_to_file(self._keys.text("tokens.bin"), path)
            self._file = np.memmap(path, "<u4", mode="r")

    @cached_property
    def pool_starts(self) -> Array:
        """Where the windows of the pool of quiet ones begin, by their bits."""
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

    def stretch(self, start: int) -> tuple[int, int, tuple[int, ...]]:
        """Sequence, place in it, and tokens of the window that begins at a position."""
        sequence = int(np.searchsorted(self._starts, start, side="right")) - 1
        count = min(self._settings.window_tokens, int(self._starts[sequence + 1]) - start)
        key = self._keys.text("tokens.bin")
        tokens = self._tokens if self._file is None else self._file
        if tokens is not None:
            ids = tokens[start : start + count]
        else:
            ids = np.frombuffer(self._store.get(key, offset=4 * start, length=4 * count), "<u4")
        if len(ids) != count:
            raise DataLossError(f"{key} is cut short; index the transcoder again")
        return sequence, start - int(self._starts[sequence]), tuple(ids.tolist())

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
        for place, (position, start) in enumerate(zip(position_K.tolist(), start_K.tolist(), strict=True)):
            sequence, first, ids = self.stretch(start)
            acts = ratio_KW[place, : len(ids)] * peak_K[place]
            acts[position - start] = peak_K[place]
            quantile = place * settings.num_quantiles // len(position_K) if by_quantile else -1
            found.append(
                Window(sequence, first, ids, tuple(acts.tolist()), float(peak_K[place]), position - start, quantile)
            )
        return tuple(found)
