"""
The sweep: every edge of a graph, without autograd.

Targets are taken by (position, layer); a batch of gradients [P, B, D] goes down the layers by hand. At each layer the
inner products with the decoders active there are added up unscaled; activations multiply once at the end. Layers above
a target and positions after it are never touched. Batches are independent, so that threads take one each: within a
batch torch should run on one thread, since waiting for each other in every small product costs more than it gains.
A wave of batches goes down together, so that decoders which lie in files are read once a wave, a layer at a time; as
many batches are a wave as the memory for gradients and edges allows.

Source: Ameisen et al. 2025, methods, "attribution"; the sweep itself is ours.
Legend: B rows of a batch, P positions, D d_model, N active features, L layers. Nodes are numbered features, errors
(layer-major, positions from 1), tokens, logits.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.features import ActiveFeatures
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.targets import Explained

__all__ = ["NodeTable", "Targets", "make_targets", "sweep", "sweep_order", "target_constants"]

Array = npt.NDArray[Any]
_ROWS_AT_ONCE = 4096
_MOST_BATCHES = 64
_COPIES = 4
"""Of a batch's gradients, and of its edges, that a worker holds while it takes a step."""


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
    Rows of the graph: features in their order, then what is explained.

    Args:
        layer_N: Layer whose MLP's input a target reads; the number of layers for the final stream.
        position_N: Where it reads.
        reader_ND: The vectors of features that read the stream, divided by the frozen scale.
        last_reader_KD: Those of the last K rows.
        offset_N: What it sees whatever the stream is.
        value_N: What the model really gives it.
    """

    layer_N: Array
    position_N: Array
    reader_ND: Tensor
    last_reader_KD: Tensor
    offset_N: Tensor
    value_N: Tensor

    def readers(self, rows: Array) -> Tensor:
        """The vectors of some rows."""
        features = len(self.reader_ND)
        found = self.reader_ND.new_empty(len(rows), self.reader_ND.shape[1])
        is_last = rows >= features
        found[torch.from_numpy(~is_last)] = self.reader_ND[torch.from_numpy(rows[~is_last])]
        found[torch.from_numpy(is_last)] = self.last_reader_KD[torch.from_numpy(rows[is_last] - features)]
        return found


def make_targets(operator: FrozenOperator, features: ActiveFeatures, explained: Explained) -> Targets:
    """The features of a prompt, and what is explained, as rows."""
    last = operator.num_positions - 1
    return Targets(
        layer_N=np.concatenate([features.layer_N, explained.layer_K]),
        position_N=np.concatenate([features.position_N, np.full(len(explained.layer_K), last)]),
        reader_ND=features.reader_ND,
        last_reader_KD=explained.reader_KD,
        offset_N=torch.cat([features.offset_N, explained.offset_K]),
        value_N=torch.cat([features.value_N, explained.value_K]),
    )


def target_constants(operator: FrozenOperator, targets: Targets, constant_LPD: Tensor) -> Tensor:
    """What every target reads with all sources at zero, by running the frozen model forward."""
    mids, final_PD = operator.forward(operator.position_embedding(), constant_LPD, biases=True)
    streams_LPD = torch.stack([*mids, final_PD])
    seen_N = targets.offset_N.clone()
    for start in range(0, len(seen_N), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(seen_N)))
        stream_ND = streams_LPD[torch.from_numpy(targets.layer_N[rows]), torch.from_numpy(targets.position_N[rows])]
        seen_N[start : start + len(rows)] += (stream_ND * targets.readers(rows)).sum(-1)
    return seen_N


def sweep_order(targets: Targets, rows: Array) -> Array:
    """Rows in the order of a sweep: by position, then from the top layer down."""
    ordered: Array = rows[np.lexsort((-targets.layer_N[rows], targets.position_N[rows]))]
    return ordered


def sweep(
    operator: FrozenOperator,
    features: ActiveFeatures,
    targets: Targets,
    token_ids: Array,
    *,
    batch_size: int,
    take: Callable[[Array, Array], None],
    workers: int = 1,
    memory_bytes: int = 1 << 30,
    rows: Array | None = None,
    check: Callable[[int], None] = lambda done: None,
) -> None:
    """
    Compute rows of the graph.

    Args:
        operator: The frozen model on the prompt.
        features: Its active features.
        targets: From `make_targets`.
        token_ids: The prompt's tokens.
        batch_size: Rows swept at once, at most; the result does not depend on it.
        take: Given indices of targets, and their edges [B, nodes up to the logits]; called by several threads at once.
        workers: Batches swept at the same time, each by a thread.
        memory_bytes: For gradients and edges of the batches on their way, as far as single rows fit.
        rows: Which targets, all by default; rows are independent.
        check: Called with the rows done, in parts too, at every layer of a wave; may raise to stop.
    """
    order = sweep_order(targets, np.arange(len(targets.layer_N)) if rows is None else rows)
    sources = _Sources(operator, features, token_ids)
    d_model, item = operator.weights.d_model, targets.reader_ND.dtype.itemsize
    with ThreadPoolExecutor(workers, thread_name_prefix="sweep") as pool:
        done = 0
        while done < len(order):
            # Rows are sorted by position: none of a wave reaches further than the last that may be in it.
            ahead = order[min(len(order), done + _MOST_BATCHES * batch_size) - 1]
            reach = int(targets.position_N[ahead]) + 1
            row_bytes = item * (reach * d_model + sources.num_columns)
            in_batch = max(1, min(batch_size, memory_bytes // (row_bytes * (1 + _COPIES) * workers)))
            spare = memory_bytes - _COPIES * workers * in_batch * row_bytes
            num_batches = min(_MOST_BATCHES, max(workers, spare // (in_batch * row_bytes)))
            wave = order[done : done + in_batch * num_batches]
            batches = [
                _Batch(operator, sources, targets, wave[start : start + in_batch])
                for start in range(0, len(wave), in_batch)
            ]
            for layer in range(sources.num_layers, -1, -1):
                check(done + len(wave) * (sources.num_layers - layer) // (sources.num_layers + 1))
                if layer < sources.num_layers:
                    moving = [batch for batch in batches if batch.moving]
                    list(pool.map(partial(_read, sources, moving, layer), range(1, operator.num_positions)))
                    features.release(layer)
                list(pool.map(partial(_Batch.down, layer=layer), batches))
            list(pool.map(lambda batch: take(batch.rows, batch.finish()), batches))
            done += len(wave)


class _Sources:
    """Sources grouped by position, so that what writes to a layer at a position is one slice."""

    def __init__(self, operator: FrozenOperator, features: ActiveFeatures, token_ids: Array) -> None:
        self.features = features
        self.embed_PD = operator.weights.embed(torch.from_numpy(token_ids))
        self.first_LKE = operator.first_values(self.embed_PD[0])
        self.num_positions = operator.num_positions
        self.num_layers = operator.weights.num_layers
        self.num_columns = NodeTable(len(features), self.num_layers, self.num_positions, 0).num_nodes
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


def _read(sources: _Sources, batches: Sequence["_Batch"], layer: int, position: int) -> None:
    """Add what features write to `layer` at `position` to every row of the batches that reaches there."""
    reaching = [batch for batch in batches if batch.reach > position]
    if reaching:
        columns, writers_WD = sources.writers(layer, position)
        for batch in reaching if len(writers_WD) else []:
            batch.read_features(position, columns, writers_WD)


class _Batch:
    """Rows on their way down, top layer first: a row joins at the layer that its target reads."""

    def __init__(self, operator: FrozenOperator, sources: _Sources, targets: Targets, rows: Array) -> None:
        self.rows = rows[np.argsort(-targets.layer_N[rows], kind="stable")]
        self._operator, self._sources, self._targets = operator, sources, targets
        self._layer_B, self._position_B = targets.layer_N[self.rows], targets.position_N[self.rows]
        self.reach = int(self._position_B.max()) + 1
        dtype = targets.reader_ND.dtype
        self._feature_BN = torch.zeros(len(rows), len(sources.features), dtype=dtype)
        self._error_BLP = torch.zeros(len(rows), sources.num_layers, sources.num_positions, dtype=dtype)
        self._token_BP = torch.zeros(len(rows), sources.num_positions, dtype=dtype)
        # Positions from 1: nothing but a token writes to position 0.
        self._grad_PBD = torch.zeros(self.reach - 1, 0, operator.weights.d_model, dtype=dtype)

    @property
    def moving(self) -> bool:
        """Whether a row has joined."""
        return self._grad_PBD.shape[1] > 0

    def read_features(self, position: int, columns: slice, writers_WD: Tensor) -> None:
        """Add what features write at one position to the layer that rows have come down to."""
        with torch.no_grad():
            grad_BD = self._grad_PBD[position - 1]
            self._feature_BN[: len(grad_BD), columns].addmm_(grad_BD, writers_WD.T)

    def down(self, layer: int) -> None:
        """Read the errors of `layer`, let its targets join, and go down through its attention."""
        num_layers, swept = self._sources.num_layers, self._grad_PBD.shape[1]
        upto = int(np.searchsorted(-self._layer_B, -layer, side="right"))
        if not upto:
            return
        with torch.no_grad():
            joining_JD = self._targets.readers(self.rows[swept:upto])
            at_J = torch.from_numpy(self._position_B[swept:upto] - 1)
            if layer == num_layers:
                self._grad_PBD = self._grad_PBD.new_zeros(self.reach - 1, upto, joining_JD.shape[1])
                self._grad_PBD[at_J, torch.arange(upto)] = joining_JD
                return
            error_PD = self._sources.features.error_LPD[layer, 1 : self.reach]
            errors_PB = torch.bmm(self._grad_PBD, error_PD[:, :, None])[:, :, 0]
            self._error_BLP[:swept, layer, 1 : self.reach] = errors_PB.T
            pattern = self._operator.transposed_patterns(layer, self.reach)
            self._grad_PBD, first_KBE = self._operator.sweep_attention(layer, self._grad_PBD, joining_JD, at_J, pattern)
            self._token_BP[:upto, 0] += torch.einsum("kbe,ke->b", first_KBE, self._sources.first_LKE[layer])

    def finish(self) -> Array:
        """The rows' edges [B, nodes up to the logits]; what they were computed from goes."""
        with torch.no_grad():
            sources, count = self._sources, len(self._sources.features)
            tokens = self._token_BP
            tokens[:, 1 : self.reach] = torch.einsum("pbd,pd->bp", self._grad_PBD, sources.embed_PD[1 : self.reach])
            self._grad_PBD = tokens
            edges_BN = tokens.new_empty(len(self.rows), sources.num_columns)
            torch.index_select(self._feature_BN, 1, sources.column_N, out=edges_BN[:, :count])
            self._feature_BN = tokens
            edges_BN[:, :count] *= sources.features.activation_N
            edges_BN[:, count : -sources.num_positions] = self._error_BLP[:, :, 1:].flatten(1)
            edges_BN[:, -sources.num_positions :] = tokens
            return edges_BN.numpy()
