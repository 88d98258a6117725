"""
The best few stretches of text of each feature, kept while a dataset goes by.

A stretch has a key, the smaller the better, and of equal keys the one that came first stays. So what is kept is the
first K of all in the order of (key, position), in whatever pieces they came.

Legend: F features, K kept for each, C candidates, W tokens of a window.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BestStretches"]

Array = npt.NDArray[Any]


class BestStretches:
    """
    Kept stretches of F features.

    Args:
        num_features: F.
        num_kept: K.
        window_tokens: W.
        worst_key: Larger than any key; its type is that of the keys.

    Attributes:
        key_FK: Rising; `worst_key` where there is none.
        position_FK: Of the strongest token, among all positions of the dataset; -1 where there is none.
        peak_FK: Activation there.
        window_FKW: Activations around it over the peak, float16.
    """

    def __init__(self, num_features: int, num_kept: int, window_tokens: int, worst_key: np.generic) -> None:
        self.key_FK: Array = np.full((num_features, num_kept), worst_key)
        self.position_FK: Array = np.full((num_features, num_kept), -1, np.int64)
        self.peak_FK: Array = np.zeros((num_features, num_kept), np.float32)
        self.window_FKW: Array = np.zeros((num_features, num_kept, window_tokens), np.float16)

    def bytes_of_one(self) -> int:
        """Bytes that one feature takes."""
        arrays = (self.key_FK, self.position_FK, self.peak_FK, self.window_FKW)
        return sum(array.nbytes for array in arrays) // max(1, len(self.key_FK))

    def arrays(self) -> Mapping[str, Array]:
        """What is kept, by name, to be stored."""
        return {
            "key": self.key_FK,
            "position": self.position_FK,
            "peak": self.peak_FK,
            "window": self.window_FKW,
        }

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what `arrays` gave."""
        self.key_FK, self.position_FK = arrays["key"].copy(), arrays["position"].copy()
        self.peak_FK, self.window_FKW = arrays["peak"].copy(), arrays["window"].copy()

    def add(
        self, feature_C: Array, key_C: Array, position_C: Array, peak_C: Array, windows: Callable[[Array], Array]
    ) -> None:
        """
        Offer stretches, all at positions after those that were offered before.

        Args:
            feature_C: Whose each is.
            key_C: How good.
            position_C: Where.
            peak_C: How strong.
            windows: Gives the windows [c, W] of some of them, by their places among the candidates.
        """
        num_kept = self.key_FK.shape[1]
        if not num_kept:
            return
        chosen_C = np.flatnonzero(key_C < self.key_FK[feature_C, -1])
        if not len(chosen_C):
            return
        chosen_C = chosen_C[np.lexsort((position_C[chosen_C], key_C[chosen_C], feature_C[chosen_C]))]
        features_A, first_A, row_C = np.unique(feature_C[chosen_C], return_index=True, return_inverse=True)
        rank_C = np.arange(len(chosen_C)) - first_A[row_C]
        fits_C = rank_C < num_kept
        chosen_C, row_C, rank_C = chosen_C[fits_C], row_C[fits_C], rank_C[fits_C]
        shape = (len(features_A), num_kept)
        fresh_key = np.full(shape, _worst(self.key_FK))
        fresh_key[row_C, rank_C] = key_C[chosen_C]
        order = np.argsort(np.concatenate([self.key_FK[features_A], fresh_key], axis=1), axis=1, kind="stable")
        order = order[:, :num_kept]
        for kept_FK, given in (
            (self.key_FK, key_C[chosen_C]),
            (self.position_FK, position_C[chosen_C]),
            (self.peak_FK, peak_C[chosen_C]),
            (self.window_FKW, windows(chosen_C)),
        ):
            old = kept_FK[features_A]
            fresh = np.full_like(old, _worst(kept_FK) if kept_FK is self.key_FK else 0)
            fresh[row_C, rank_C] = given
            places = order if old.ndim == 2 else order[:, :, None]
            kept_FK[features_A] = np.take_along_axis(np.concatenate([old, fresh], axis=1), places, axis=1)
        self.position_FK[features_A] = np.where(
            self.key_FK[features_A] == _worst(self.key_FK), -1, self.position_FK[features_A]
        )


def _worst(key_FK: Array) -> Any:
    return np.iinfo(key_FK.dtype).max if key_FK.dtype.kind == "u" else np.inf
