"""
The best few stretches of text of each feature, kept while a dataset goes by.

A stretch has a key, the smaller the better, and of equal keys the one that came first stays. So what is kept is the
first K of all in the order of (key, position), in whatever pieces they came. Windows stay where they were put: it is
their places that are in order.

Legend: F features, K kept for each, C candidates, c of them kept, W tokens of a window.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_attribution.core.feature_index.loops import insert_best

__all__ = ["BestStretches"]

Array = npt.NDArray[Any]


class BestStretches:
    """
    Kept stretches of F features.

    Args:
        num_features: F.
        num_kept: K, at most 256: a place takes a byte.
        window_tokens: W.
        worst_key: Larger than any key; its type is that of the keys.
    """

    def __init__(self, num_features: int, num_kept: int, window_tokens: int, worst_key: np.generic) -> None:
        self._key_FK: Array = np.full((num_features, num_kept), worst_key)
        self._place_FK = _unmoved(num_features, num_kept)
        self._position_FK: Array = np.full((num_features, num_kept), -1, np.int64)
        self._peak_FK: Array = np.zeros((num_features, num_kept), np.float32)
        self._window_FKW: Array = np.zeros((num_features, num_kept, window_tokens), np.float16)

    def arrays(self) -> Mapping[str, Array]:
        """
        What is kept, by name.

        Returns:
            `key`, rising, the worst where there is none; `position` of the strongest token among all positions of the
            dataset, -1 where there is none; `peak`, the activation there: each [F, K]. `window`, activations around it
            over the peak: float16 [F, K, W].
        """
        return {
            "key": self._key_FK,
            "position": np.take_along_axis(self._position_FK, self._place_FK, axis=1),
            "peak": np.take_along_axis(self._peak_FK, self._place_FK, axis=1),
            "window": np.take_along_axis(self._window_FKW, self._place_FK[:, :, None], axis=1),
        }

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what `arrays` gave."""
        self._key_FK, self._position_FK = arrays["key"].copy(), arrays["position"].copy()
        self._peak_FK, self._window_FKW = arrays["peak"].copy(), arrays["window"].copy()
        self._place_FK = _unmoved(*self._key_FK.shape)

    def add(
        self, feature_C: Array, key_C: Array, position_C: Array, peak_C: Array, windows: Callable[[Array], Array]
    ) -> None:
        """
        Offer stretches, all at positions after those that were offered before.

        Args:
            feature_C: Whose each is, rising.
            key_C: How good.
            position_C: Where, rising within a feature.
            peak_C: How strong.
            windows: Gives the windows [c, W] of some of them, by their numbers among the candidates.
        """
        if not (len(feature_C) and self._key_FK.shape[1]):
            return
        low, high = int(feature_C[0]), int(feature_C[-1]) + 1
        taken_FK = np.full((high - low, self._key_FK.shape[1]), -1, np.int32)
        insert_best(feature_C, key_C, low, self._key_FK, self._place_FK, taken_FK)
        feature_c, place_c = np.nonzero(taken_FK >= 0)
        chosen_c = taken_FK[feature_c, place_c]
        feature_c += low
        self._position_FK[feature_c, place_c] = position_C[chosen_c]
        self._peak_FK[feature_c, place_c] = peak_C[chosen_c]
        self._window_FKW[feature_c, place_c] = windows(chosen_c)


def _unmoved(num_features: int, num_kept: int) -> Array:
    return np.tile(np.arange(num_kept, dtype=np.uint8), (num_features, 1))
