"""
The sweep: every edge of a graph, without autograd.

Targets are taken by (position, layer); a batch of gradients [P, B, D] goes down the layers by hand. At each layer the
inner products with the decoders active there are added up unscaled; activations multiply once at the end. Layers above
a target and positions after it are never touched. Batches are independent, so that threads take one each: within a
batch torch should run on one thread, since waiting for each other in every small product costs more than it gains.

Source: Ameisen et al. 2025, methods, "attribution"; the sweep itself is ours.
Legend: B rows of a batch, P positions, D d_model, N active features, L layers. Nodes are numbered features, errors
(layer-major, positions from 1), tokens, logits.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.features import ActiveFeatures
from weft_attribution.core.operator import FrozenOperator

__all__ = ["NodeTable", "Targets", "make_targets", "sweep", "target_constants"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NodeTable:
    """
    How the nodes of a graph are numbered.

    >>> NodeTable(num_features=5, num_layers=2, num_positions=3, num_logits=1).error(1, 2)
    8
    """

    num_features: int
    num_layers: int
    num_positions: int
    num_logits: int

    @property
    def error_start(self) -> int:
        return self.num_features

    @property
    def token_start(self) -> int:
        return self.num_features + self.num_layers * (self.num_positions - 1)

    @property
    def logit_start(self) -> int:
        return self.token_start + self.num_positions

    @property
    def num_nodes(self) -> int:
        return self.logit_start + self.num_logits

    def error(self, layer: int, position: int) -> int:
        return self.error_start + layer * (self.num_positions - 1) + position - 1


@dataclass(frozen=True)
class Targets:
    """
    Rows of the graph: features in their order, then logits.

    Args:
        layer_N: Layer whose stream a target reads; the number of layers for a logit.
        position_N: Where it reads.
        reader_ND: The vector that reads the stream, divided by the frozen scale.
        offset_N: What it sees whatever the stream is.
        value_N: What the model really gives it.
    """

    layer_N: Array
    position_N: Array
    reader_ND: Tensor
    offset_N: Tensor
    value_N: Tensor


def make_targets(
    operator: FrozenOperator, features: ActiveFeatures, token_ids: Array, demeaned_logits: Tensor
) -> Targets:
    """The features and logits of a prompt as rows."""
    readers_ND, offset_N = operator.weights.logit_readers(torch.from_numpy(token_ids))
    count, last = len(token_ids), operator.num_positions - 1
    return Targets(
        layer_N=np.concatenate([features.layer_N, np.full(count, operator.weights.num_layers)]),
        position_N=np.concatenate([features.position_N, np.full(count, last)]),
        reader_ND=torch.cat(
            [features.reader_ND / features.scale_N[:, None], readers_ND / operator.final_scale_P[last]]
        ),
        offset_N=torch.cat([features.offset_N, offset_N]),
        value_N=torch.cat([features.value_N, demeaned_logits.to(features.value_N.dtype)]),
    )


def target_constants(operator: FrozenOperator, targets: Targets, constant_LPD: Tensor) -> Tensor:
    """What every target reads with all sources at zero, by running the frozen model forward."""
    mids, final_PD = operator.forward(operator.position_embedding(), constant_LPD, biases=True)
    streams_LPD = torch.stack([*mids, final_PD])
    seen_ND = streams_LPD[torch.from_numpy(targets.layer_N), torch.from_numpy(targets.position_N)]
    return (seen_ND * targets.reader_ND).sum(-1) + targets.offset_N


def sweep(
    operator: FrozenOperator,
    features: ActiveFeatures,
    targets: Targets,
    token_ids: Array,
    *,
    batch_size: int,
    workers: int = 1,
    rows: Array | None = None,
    check: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[Array, Array]]:
    """
    Compute rows of the graph.

    Args:
        operator: The frozen model on the prompt.
        features: Its active features.
        targets: From `make_targets`.
        token_ids: The prompt's tokens.
        batch_size: Rows swept at once; the result does not depend on it.
        workers: Batches swept at the same time, each by a thread.
        rows: Which targets, all by default; rows are independent.
        check: Called with the rows done before each batch; may raise to stop.

    Yields:
        Indices of targets, and their edges [B, nodes up to the logits].
    """
    wanted = np.arange(len(targets.layer_N)) if rows is None else rows
    order = wanted[np.lexsort((-targets.layer_N[wanted], targets.position_N[wanted]))]
    sources = _Sources(operator, features, token_ids)
    starts = iter(range(0, len(order), batch_size))

    def take(start: int) -> tuple[Array, Array]:
        batch = order[start : start + batch_size]
        batch = batch[np.argsort(-targets.layer_N[batch], kind="stable")]
        with torch.no_grad():
            return batch, _sweep_batch(operator, sources, targets, batch)

    done = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="sweep") as pool:
        waiting = deque(pool.submit(take, start) for start in islice(starts, workers + 1))
        try:
            while waiting:
                check(done)
                batch, dense_BN = waiting.popleft().result()
                waiting.extend(pool.submit(take, start) for start in islice(starts, 1))
                done += len(batch)
                yield batch, dense_BN
        finally:
            for future in waiting:
                future.cancel()


class _Sources:
    """Sources grouped by position, so that what writes to a layer at a position is one slice."""

    def __init__(self, operator: FrozenOperator, features: ActiveFeatures, token_ids: Array) -> None:
        self.features = features
        self.embed_PD = operator.weights.embedding_VD[torch.from_numpy(token_ids)]
        self.num_positions = operator.num_positions
        self.num_layers = operator.weights.num_layers
        by_position = np.lexsort((features.layer_N, features.position_N))
        position, layer = features.position_N[by_position], features.layer_N[by_position]
        self.column_N = torch.from_numpy(np.argsort(by_position))
        self.writer_N = features.writer_N[torch.from_numpy(by_position)]
        key = position * self.num_layers + layer
        starts = np.arange(self.num_positions) * self.num_layers
        self.start_P = np.searchsorted(key, starts)
        ends = starts[None, :] + np.arange(self.num_layers)[:, None]
        self.end_LP = np.searchsorted(key, ends, side="right")

    def writers(self, layer: int, position: int) -> tuple[slice, Tensor]:
        """Columns of the features that write to `layer` at `position`, and their decoders."""
        columns = slice(int(self.start_P[position]), int(self.end_LP[layer, position]))
        return columns, self.features.writers_UD[layer].index_select(0, self.writer_N[columns])


def _sweep_batch(operator: FrozenOperator, sources: _Sources, targets: Targets, batch: Array) -> Array:
    layer_B, position_B = targets.layer_N[batch], targets.position_N[batch]
    reach = int(position_B.max()) + 1
    readers_BD = targets.reader_ND[torch.from_numpy(batch)]
    num_rows, dtype = len(batch), readers_BD.dtype
    by_position_BN = torch.zeros(num_rows, len(sources.features), dtype=dtype)
    error_BLP = torch.zeros(num_rows, sources.num_layers, sources.num_positions, dtype=dtype)
    grad_PBD = torch.zeros(reach, 0, operator.weights.d_model, dtype=dtype)
    swept = 0
    for layer in range(int(layer_B[0]), -1, -1):
        if swept and layer < sources.num_layers:
            _read_layer(sources, layer, grad_PBD, by_position_BN[:swept], error_BLP[:swept])
        upto = int(np.searchsorted(-layer_B, -layer, side="right"))
        if upto > swept:
            fresh = torch.zeros(reach, upto - swept, operator.weights.d_model, dtype=dtype)
            fresh[torch.from_numpy(position_B[swept:upto]), torch.arange(upto - swept)] = readers_BD[swept:upto]
            grad_PBD = torch.cat([grad_PBD, fresh], dim=1)
            swept = upto
        if layer < sources.num_layers:
            operator.sweep_attention(layer, grad_PBD, operator.transposed_patterns(layer, reach))
    token_BP = torch.zeros(num_rows, sources.num_positions, dtype=dtype)
    token_BP[:, :reach] = torch.einsum("pbd,pd->bp", grad_PBD, sources.embed_PD[:reach])
    feature_BN = by_position_BN[:, sources.column_N] * sources.features.activation_N
    return torch.cat([feature_BN, error_BLP[:, :, 1:].flatten(1), token_BP], dim=1).numpy()


def _read_layer(sources: _Sources, layer: int, grad_PBD: Tensor, feature_BN: Tensor, error_BLP: Tensor) -> None:
    """Add what the MLP output of `layer` gives to each row: gradients are those after that layer."""
    reach = grad_PBD.shape[0]
    for position in range(1, reach):
        columns, writers_WD = sources.writers(layer, position)
        if len(writers_WD):
            feature_BN[:, columns].addmm_(grad_PBD[position], writers_WD.T)
    error_PD = sources.features.error_LPD[layer, :reach]
    error_BLP[:, layer, :reach] = torch.bmm(grad_PBD, error_PD[:, :, None])[:, :, 0].T
