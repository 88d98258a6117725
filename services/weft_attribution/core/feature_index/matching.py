"""
Features of two transcoders that write alike: by the cosine of their summed decoders, layer by layer.

Legend: F features of the first, G of the other, D d_model.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.opened import OpenIndex
from weft_common.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError

__all__ = ["FeatureMatching", "Match"]

_ROWS = 1024
_PRODUCTS_A_CALL = 1 << 37
"""Multiplications of one call, some seconds of them; a page ends after those."""
_DEFAULT_PAGE = 50
_MAX_PAGE = 1000
_DEFAULT_COSINE = 0.5


@dataclass(frozen=True)
class Match:
    """A feature, the most alike of the other transcoder, and whether it is that one's most alike as well."""

    index: int
    other: int
    cosine: float
    is_mutual: bool


class FeatureMatching:
    """
    Matches by decoders.

    Args:
        indexes: Whole indexes.
        memory_bytes: What the directions of both layers may take, and what may be kept of them for the next page.
    """

    def __init__(self, indexes: OpenIndexes, *, memory_bytes: int) -> None:
        self._indexes, self._memory_bytes = indexes, memory_bytes
        # Of the pages before: the pages that follow ask for the same.
        self._kept: OrderedDict[tuple[str, str, float, int], torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def page(
        self, transcoder: str, other: str, layer: int, *, min_cosine: float, page_size: int, first: int
    ) -> tuple[Sequence[Match], int]:
        """
        Matches of the features from `first` on, and where the next page begins; 0 after the last. Blocks.

        A page may have fewer than are asked for, since a call goes over so many features at most.

        Raises:
            ResourceExhaustedError: The directions of these layers do not fit into memory.
            NotFoundError: No such transcoder or layer.
            FailedPreconditionError: One has no index.
            InvalidArgumentError: They are not of one model and size, or something is out of its range.
        """
        least = min_cosine or _DEFAULT_COSINE
        if not -1 <= least <= 1:
            raise InvalidArgumentError(f"min_cosine is {min_cosine}; give -1 to 1, or 0 for .5", field="min_cosine")
        if page_size < 0:
            raise InvalidArgumentError(f"page_size is {page_size}; give 0 for {_DEFAULT_PAGE}", field="page_size")
        size = min(page_size or _DEFAULT_PAGE, _MAX_PAGE)
        mine, theirs = self._indexes.open(transcoder), self._indexes.open(other)
        for each in (mine, theirs):
            if not 0 <= layer < each.num_layers:
                raise NotFoundError(
                    f"transcoders/{each.transcoder} has no layer {layer}; its layers are 0 to {each.num_layers - 1}"
                )
        kinds = [(each.model, each.manifest["d_model"]) for each in (mine, theirs)]
        if kinds[0] != kinds[1]:
            raise InvalidArgumentError(
                f"transcoders/{transcoder} is for models/{kinds[0][0]} of d_model {kinds[0][1]}, transcoders/{other} "
                f"for models/{kinds[1][0]} of {kinds[1][1]}; decoders are alike only within one model",
                field="other",
            )
        self._check_size(mine, theirs, layer)
        unit_FD, unit_GD = (self._directions(each, layer) for each in (mine, theirs))
        found: list[Match] = []
        most_rows = max(_ROWS, _PRODUCTS_A_CALL // max(1, unit_GD.numel()))
        stop = min(len(unit_FD), first + most_rows)
        while first < stop and len(found) < size:
            rows_fD = unit_FD[first : first + _ROWS]
            cosine_f, other_f = (rows_fD @ unit_GD.T).max(dim=1)
            chosen = (cosine_f >= least).nonzero().flatten()[: size - len(found)]
            back_c = (unit_GD[other_f[chosen]] @ unit_FD.T).argmax(dim=1)
            found += [
                Match(first + place, int(other_f[place]), float(cosine_f[place]), back == first + place)
                for place, back in zip(chosen.tolist(), back_c.tolist(), strict=True)
            ]
            first = found[-1].index + 1 if len(found) == size else first + len(rows_fD)
        return found, first if first < len(unit_FD) else 0

    def _directions(self, index: OpenIndex, layer: int) -> torch.Tensor:
        """[F, D]: kept as long as those asked for later leave room for it."""
        key = (index.transcoder, index.index_id, float(index.manifest["create_s"]), layer)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        unit_FD = torch.from_numpy(index.directions(layer))
        with self._lock:
            self._kept[key] = unit_FD
            while sum(each.nbytes for each in self._kept.values()) > self._memory_bytes:
                self._kept.popitem(last=False)
        return unit_FD

    def _check_size(self, mine: OpenIndex, theirs: OpenIndex, layer: int) -> None:
        needed = sum(4 * each.num_features(layer) * int(each.manifest["d_model"]) for each in (mine, theirs))
        if needed > self._memory_bytes:
            raise ResourceExhaustedError(
                f"the decoders of layer {layer} of both transcoders take {needed >> 20} MiB, more than the "
                f"{self._memory_bytes >> 20} MiB that are for them; raise WEFT_ATTRIBUTION_MEMORY_BYTES"
            )
