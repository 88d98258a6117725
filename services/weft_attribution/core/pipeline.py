"""
From captured streams to a file of rows: features, targets, sweep after sweep as what is there ranks the rest.

Legend: R rows (features, then logits), N features, P positions, D d_model.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.edge_file import EdgeScratch
from weft_attribution.core.features import find_features
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.ports import Capture, ProgressFn
from weft_attribution.core.ranking import next_counts, partial_influence
from weft_attribution.core.shared_rows import SharedRows
from weft_attribution.core.skips import read_skips
from weft_attribution.core.sweep import NodeTable, make_targets, sweep, sweep_order, target_constants
from weft_attribution.core.targets import Target, explain
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import FailedPreconditionError

__all__ = ["Building", "Limits", "capture_hooks", "conservation_error", "default_batch_size"]

Array = npt.NDArray[Any]
# Float32 leaves a ten-thousandth at most; another model, prompt or transcoder leaves much more.
_MOST_MISSING = 0.01
_SHOWN_SHARE = 8
"""Of all features, one in so many is taken by rank, so that a graph is shown early."""


@dataclass(frozen=True)
class Limits:
    """
    What the building of a graph may take.

    Args:
        batch_size: Rows of one sweep; 0 has it chosen.
        workers: Sweeps at the same time.
        max_active: Most active features accepted.
        max_features: Most features that get rows, the most influential; 0 gives rows to all.
        memory_bytes: For the sweep, half of it for gradients and edges; decoders beyond the other half lie in files.
    """

    batch_size: int
    workers: int
    max_active: int
    max_features: int
    memory_bytes: int


def capture_hooks(input_hook: str, *, has_post_norms: bool = False) -> tuple[str, ...]:
    """Streams that a graph needs."""
    after = ("ln1_post.scale",) if has_post_norms else ()
    per_layer = ("ln1.scale", "attn.pattern", *after, "ln2.scale", input_hook, "mlp_out")
    return (*(f"layers.*.{hook}" for hook in per_layer), "ln_final.scale", "ln_final.normed", "logits")


class Building:
    """
    One graph on its way from captured streams to a file.

    Args:
        weights: Frozen weights of the model.
        transcoder: The transcoder.
        capture: Streams of the prompt.
        wanted: What to explain.
        logit_weights: How much each counts where features are ranked.
        limits: What it may take.

    Raises:
        FailedPreconditionError: Model, transcoder and streams do not fit.
        ResourceExhaustedError: Too many features are active, or there is no room for scratch files.
    """

    def __init__(
        self,
        weights: LinearWeights,
        transcoder: TranscoderReader,
        capture: Capture,
        wanted: Sequence[Target],
        logit_weights: Array,
        limits: Limits,
    ) -> None:
        _check_shapes(weights, transcoder, capture)
        positions = len(capture.tokens)
        self._limits, self._logit_weights = limits, logit_weights
        self._batch_size = limits.batch_size or default_batch_size(positions, weights.d_model)
        with torch.no_grad():
            skips = read_skips(weights, transcoder)
            self._operator = FrozenOperator(weights, capture.tensors, num_positions=positions, skips=skips)
            self._features = find_features(
                weights,
                transcoder,
                capture.tensors,
                skips,
                num_positions=positions,
                max_features=limits.max_active,
                max_writer_bytes=limits.memory_bytes // 2,
            )
            self._token_ids = np.array([token.id for token in capture.tokens], dtype=np.int64)
            explained = explain(self._operator, transcoder, capture.tensors, wanted)
            self._targets = make_targets(self._operator, self._features, explained)
            constant_R = target_constants(self._operator, self._targets, self._features.constant_LPD)
        self._constant_R, self._value_R = constant_R.double().numpy(), self._targets.value_N.double().numpy()
        self.table = NodeTable(len(self._features), weights.num_layers, positions, len(wanted))
        features, logits = np.split(self._value_R, [len(self._features)])
        self._size_R = np.concatenate([_sizes(features), _sizes(logits)])
        self._shared: SharedRows | None = None
        self._sum_R = np.zeros(len(self._targets.layer_N))
        self._taken_R = np.zeros(len(self._targets.layer_N), dtype=bool)

    @property
    def num_active(self) -> int:
        """Active features, whether they have rows or not."""
        return self.table.num_features

    @property
    def features_digest(self) -> str:
        """Which features are active, as a SHA-256 in hex."""
        features, digest = self._features, hashlib.sha256()
        for each in (features.layer_N, features.position_N, features.index_N):
            digest.update(each.astype("<i8").tobytes())
        return digest.hexdigest()

    def build(
        self, path: Path, progress: ProgressFn, publish: Callable[[], None], shared: SharedRows | None = None
    ) -> None:
        """
        Compute rows and write them to `path`: logits first, then features as the rows so far rank them.

        Args:
            path: File to write.
            progress: Told how many rows are done; may raise to stop.
            publish: Called when `path` holds what there is so far, from ranking to ranking.
            shared: Hands rows out to others; without it all are computed here.
        """
        self._shared = shared
        active, logits = self.num_active, np.arange(self.num_active, len(self._taken_R))
        wanted = min(self._limits.max_features or active, active)
        # With all of them wanted the order matters for what is shown on the way alone, and costs the sweep its order.
        ranked = wanted if wanted < active else active // _SHOWN_SHARE
        rows_in_all = wanted + len(logits)
        with EdgeScratch(len(self._taken_R)) as scratch:
            self._sweep(scratch, logits, rows_in_all, progress)
            for count in next_counts(wanted, ranked):
                self._write(scratch, path)
                publish()
                self._sweep(scratch, self._next(scratch, count), rows_in_all, progress)
            self._write(scratch, path)

    def conservation_error(self) -> float:
        """`conservation_error` of the rows computed."""
        logits = self.table.num_logits
        rows = np.flatnonzero(self._taken_R)
        return conservation_error(self._value_R[rows], self._sum_R[rows], self._constant_R[rows], num_logits=logits)

    def agrees(self, rows: Array, sum_R: Array) -> bool:
        """Whether rows that somebody else computed add up to what their targets' values and constants leave."""
        missing = np.abs(self._value_R[rows] - sum_R - self._constant_R[rows])
        return bool((missing <= _MOST_MISSING * self._size_R[rows]).all())

    def _next(self, scratch: EdgeScratch, count: int) -> Array:
        """The most influential features that have no row yet; all that are left where that is all."""
        left = np.flatnonzero(~self._taken_R[: self.num_active])
        if count >= len(left):
            return left
        influence = partial_influence(
            scratch, self.table, np.flatnonzero(self._taken_R), self._targets.layer_N, self._logit_weights
        )
        return left[np.argsort(-influence[left], kind="stable")[:count]]

    def _sweep(self, scratch: EdgeScratch, rows: Array, rows_in_all: int, progress: ProgressFn) -> None:
        before = int(self._taken_R.sum())

        def take(done: Array, dense_RN: Array) -> None:
            scratch.add(done, dense_RN)
            self._sum_R[done] = dense_RN.sum(axis=1, dtype=np.float64)

        def check(done: int) -> None:
            progress("sweep", before + done, rows_in_all)

        if self._shared is None:
            self.compute(rows, take, check)
        else:
            self._shared.sweep(sweep_order(self._targets, rows), self.compute, take, check, self.agrees)
        self._taken_R[rows] = True

    def compute(self, rows: Array, take: Callable[[Array, Array], None], check: Callable[[int], None]) -> None:
        """Compute some rows: `take`, `rows` and `check` as of `sweep`."""
        sweep(
            self._operator,
            self._features,
            self._targets,
            self._token_ids,
            batch_size=self._batch_size,
            take=take,
            workers=self._limits.workers,
            memory_bytes=self._limits.memory_bytes // 2,
            rows=rows,
            check=check,
        )

    def _write(self, scratch: EdgeScratch, path: Path) -> None:
        """Write the rows there are, as a graph of the features that have rows."""
        features, active = self._features, self.num_active
        rows = np.flatnonzero(self._taken_R)
        kept = rows[rows < active]
        column_N = np.full(self.table.logit_start, -1)
        column_N[kept] = np.arange(len(kept))
        column_N[active:] = np.arange(len(kept), len(kept) + self.table.logit_start - active)
        arrays = {
            "layer": features.layer_N[kept].astype("<i4"),
            "position": features.position_N[kept].astype("<i4"),
            "index": features.index_N[kept].astype("<i4"),
            "activation": features.activation_N.float().numpy()[kept].astype("<f4"),
            "constant": self._constant_R[rows].astype("<f4"),
            "value": self._value_R[rows].astype("<f4"),
        }
        # The file before may still be mapped.
        fresh = path.with_suffix(".new")
        scratch.write(fresh, arrays, rows, None if len(kept) == active else column_N)
        fresh.replace(path)


def default_batch_size(num_positions: int, d_model: int) -> int:
    """
    Rows of a sweep whose gradients take 16 MiB at most, where that is 16 to 256 rows.

    >>> default_batch_size(6, 576), default_batch_size(64, 576)
    (256, 113)
    """
    return min(256, max(16, (1 << 24) // (4 * num_positions * d_model)))


def conservation_error(value_R: Array, sum_R: Array, constant_R: Array, *, num_logits: int) -> float:
    """
    Largest difference between a target's value and the sum of its edges and its constant, relative to that value.

    A value near zero would blow its rounding up: the divisor is at least the root mean square of the values of its
    kind, features or logits.
    """
    worst = 0.0
    for kind in (slice(0, len(value_R) - num_logits), slice(len(value_R) - num_logits, None)):
        value = value_R[kind]
        if len(value):
            missing = np.abs(value - sum_R[kind] - constant_R[kind])
            worst = max(worst, float(np.max(missing / _sizes(value))))
    return worst


def _sizes(value_R: Array) -> Array:
    """What a target's value is measured against: itself, or the root mean square of its kind where that is larger."""
    if not len(value_R):
        return value_R
    size = np.maximum(np.abs(value_R), np.sqrt(np.mean(value_R**2)))
    return np.asarray(np.maximum(size, np.finfo(np.float64).tiny))


def _check_shapes(weights: LinearWeights, transcoder: TranscoderReader, capture: Capture) -> None:
    name = transcoder.manifest.transcoder
    info = capture.model
    if (info.num_layers, info.d_model) != (weights.num_layers, weights.d_model):
        raise FailedPreconditionError(
            f"the activations service runs {info.name} with {info.num_layers} layers of width {info.d_model}, "
            f"the model folder here has {weights.num_layers} of {weights.d_model}: give both services the same models"
        )
    last = weights.num_layers - 1
    if not transcoder.has_layer(last) or transcoder.has_layer(last + 1):
        raise FailedPreconditionError(f"transcoders/{name} has not the {weights.num_layers} layers of {info.name}")
    if transcoder.encoder_shape(last)[1] != weights.d_model:
        raise FailedPreconditionError(
            f"transcoders/{name} reads width {transcoder.encoder_shape(last)[1]}, {info.name} has {weights.d_model}"
        )
