"""
What features are to each other within a layer, and where they write.

Legend: F features of the layer, S target layers, D d_model, K kept for each, E (position, feature) entries.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.transcoder import TranscoderReader

__all__ = ["Decoders", "Partners", "find_neighbours", "find_partners", "read_decoders"]

Array = npt.NDArray[Any]
_ROWS = 1024
_WRITES_SHARE = 0.01
"""A feature writes to a layer where its decoder has at least this share of its largest norm."""


@dataclass(frozen=True)
class Decoders:
    """
    Where features write.

    Args:
        norm_FS: Norm of the decoder by target layer, from the features' own on.
        first_F: First layer written to.
        last_F: Last layer written to.
        direction_FD: The sum of its decoders, of length 1, float16; zero where there is none, or what is no number.
    """

    norm_FS: Array
    first_F: Array
    last_F: Array
    direction_FD: Array


def read_decoders(transcoder: TranscoderReader, layer: int) -> Decoders:
    """Read all decoders of a layer once."""
    num_features, _ = transcoder.encoder_shape(layer)
    norms, directions = [], []
    for _, rows_FSD in transcoder.decoders(layer, np.arange(num_features, dtype=np.int64)):
        rows_FSD = rows_FSD.astype(np.float32, copy=False)
        # One that holds what is no number writes nothing that could be told, and is nobody's neighbour.
        rows_FSD = np.where(np.isfinite(rows_FSD).all(axis=(1, 2), keepdims=True), rows_FSD, np.float32(0))
        norms.append(np.sqrt(np.einsum("fsd,fsd->fs", rows_FSD, rows_FSD)))
        summed_FD = rows_FSD.sum(axis=1)
        length_F1 = np.linalg.norm(summed_FD, axis=1, keepdims=True)
        directions.append((summed_FD / np.where(length_F1 > 0, length_F1, 1)).astype(np.float16))
    norm_FS = np.concatenate(norms)
    writes_FS = norm_FS >= _WRITES_SHARE * norm_FS.max(axis=1, keepdims=True)
    # A decoder of zeros writes nowhere; its own layer is told for want of another.
    last_F = np.where(norm_FS.any(axis=1), norm_FS.shape[1] - 1 - writes_FS[:, ::-1].argmax(axis=1), 0)
    return Decoders(norm_FS, layer + writes_FS.argmax(axis=1), layer + last_F, np.concatenate(directions))


def find_neighbours(direction_FD: Array, count: int) -> tuple[Array, Array]:
    """Find the features whose summed decoders point most alike: indices and cosines, [F, K], highest first."""
    units_FD = torch.from_numpy(direction_FD.astype(np.float32))
    count = min(count, len(units_FD) - 1)
    indices, cosines = [], []
    for low in range(0, len(units_FD), _ROWS):
        cosine_fF = units_FD[low : low + _ROWS] @ units_FD.T
        cosine_fF[torch.arange(len(cosine_fF)), torch.arange(low, low + len(cosine_fF))] = -torch.inf
        index_fK, cosine_fK = largest(cosine_fF, count)
        indices.append(index_fK)
        cosines.append(cosine_fK)
    return np.concatenate(indices), np.concatenate(cosines)


def largest(value_fF: Tensor, count: int) -> tuple[Array, Array]:
    """Places and values of the largest of each row, largest first; of equals the lower place, whatever `topk` does."""
    found_fK, place_fK = (each.numpy() for each in value_fF.topk(count, dim=1))
    order = np.lexsort((place_fK, -found_fK), axis=1)
    return np.take_along_axis(place_fK, order, axis=1), np.take_along_axis(found_fK, order, axis=1)


@dataclass(frozen=True)
class Partners:
    """
    What is active together with each feature; -1 where there are fewer than K.

    Args:
        index_FK: The other feature.
        count_FK: Drawn positions on which both are active.
        share_FK: That over those on which either is (Jaccard).
    """

    index_FK: Array
    count_FK: Array
    share_FK: Array


def find_partners(entries_E2: Array, num_features: int, count: int) -> Partners:
    """
    Count what is active together.

    Args:
        entries_E2: Place of a position, and a feature active on it; each pair once.
        num_features: F.
        count: K.
    """
    index_FK = np.full((num_features, count), -1, np.int32)
    count_FK = np.zeros((num_features, count), np.int32)
    share_FK = np.zeros((num_features, count), np.float32)
    by_position = entries_E2[np.argsort(entries_E2[:, 0], kind="stable")]
    by_feature = entries_E2[np.argsort(entries_E2[:, 1], kind="stable")]
    num_places = int(entries_E2[:, 0].max()) + 1 if len(entries_E2) else 0
    first_place = np.searchsorted(by_position[:, 0], np.arange(num_places + 1))
    first_feature = np.searchsorted(by_feature[:, 1], np.arange(num_features + 1))
    active_F = np.diff(first_feature)
    for feature in np.flatnonzero(active_F):
        places = by_feature[first_feature[feature] : first_feature[feature + 1], 0]
        others = np.concatenate([by_position[first_place[place] : first_place[place + 1], 1] for place in places])
        there, both = np.unique(others, return_counts=True)
        mine = there != feature
        there, both = there[mine], both[mine]
        share = both / (active_F[feature] + active_F[there] - both)
        best = np.lexsort((there, -share))[:count]
        index_FK[feature, : len(best)] = there[best]
        count_FK[feature, : len(best)] = both[best]
        share_FK[feature, : len(best)] = share[best]
    return Partners(index_FK, count_FK, share_FK)
