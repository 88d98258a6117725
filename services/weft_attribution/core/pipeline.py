"""
From a prompt to a stored graph: capture, features, sweep, influence, store.

Legend: R rows (features, then logits), N features, P positions, D d_model, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weft_attribution.core.edge_file import EdgeScratch, read_arrays
from weft_attribution.core.features import find_features
from weft_attribution.core.graph_json import GraphNodes
from weft_attribution.core.influence import Edges
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.ports import Capture, ProgressFn, Token
from weft_attribution.core.sweep import NodeTable, make_targets, sweep, target_constants
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import FailedPreconditionError

__all__ = [
    "Stages",
    "WholeGraph",
    "build_graph",
    "capture_hooks",
    "choose_logits",
    "conservation_error",
    "default_batch_size",
    "open_graph",
]

Array = npt.NDArray[Any]


@dataclass
class Stages:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, since: float) -> float:
        """Book the time since `since` on a stage, and return now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


@dataclass(frozen=True)
class WholeGraph:
    """A graph before pruning."""

    edges: Edges
    nodes: GraphNodes
    constant_R: Array
    value_R: Array

    @property
    def logit_weights(self) -> Array:
        return np.array(self.nodes.probabilities)


def capture_hooks(input_hook: str) -> tuple[str, ...]:
    """Streams that a graph needs."""
    per_layer = ("ln1.scale", "attn.pattern", "ln2.scale", input_hook, "mlp_out")
    return (*(f"layers.*.{hook}" for hook in per_layer), "ln_final.scale", "logits")


def choose_logits(
    logits_V: Array, *, max_logits: int, probability: float, token_ids: Sequence[int]
) -> tuple[Array, Array]:
    """
    Which logits to explain, and how likely each is.

    Returns:
        Token ids: the asked ones, or the likeliest until their sum reaches `probability`; and their probabilities.
    """
    logits = logits_V.astype(np.float64)
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    if token_ids:
        chosen = np.array(token_ids, dtype=np.int64)
    else:
        best = np.argsort(-weights, kind="stable")[:max_logits]
        count = int(np.searchsorted(np.cumsum(weights[best]), probability)) + 1
        chosen = best[:count].astype(np.int64)
    return chosen, weights[chosen]


def build_graph(
    weights: LinearWeights,
    transcoder: TranscoderReader,
    capture: Capture,
    *,
    logit_ids: Array,
    batch_size: int,
    workers: int,
    max_features: int,
    memory_bytes: int,
    path: Path,
    stages: Stages,
    progress: ProgressFn,
) -> float:
    """
    Compute every edge and write them to `path`.

    Args:
        weights: Frozen weights of the model.
        transcoder: The transcoder.
        capture: Streams of the prompt.
        logit_ids: Which logits to explain.
        batch_size: Rows of one sweep; 0 has it chosen.
        workers: Sweeps at the same time.
        max_features: Most active features accepted.
        memory_bytes: For the sweep, half of it for gradients and edges; decoders beyond the other half lie in files.
        path: File to write.
        stages: Times are added to it.
        progress: Told how many rows are done.

    Returns:
        The conservation error.

    Raises:
        FailedPreconditionError: Model, transcoder and streams do not fit.
    """
    begun = time.perf_counter()
    positions = len(capture.tokens)
    _check_shapes(weights, transcoder, capture)
    progress("features", 0, 0)
    with torch.no_grad():
        operator = FrozenOperator(weights, capture.tensors, num_positions=positions)
        features = find_features(
            weights,
            transcoder,
            capture.tensors,
            num_positions=positions,
            max_features=max_features,
            max_writer_bytes=memory_bytes // 2,
        )
        token_ids = np.array([token.id for token in capture.tokens], dtype=np.int64)
        logits_V = torch.from_numpy(np.array(capture.tensors["logits"], dtype=np.float64))
        targets = make_targets(operator, features, logit_ids, logits_V[torch.from_numpy(logit_ids)] - logits_V.mean())
        constant_R = target_constants(operator, targets, features.constant_LPD).double().numpy()
    begun = stages.add("features", begun)
    num_rows = len(targets.layer_N)
    sum_R = np.zeros(num_rows)
    with EdgeScratch(num_rows) as scratch:

        def take(rows: Array, dense_RN: Array) -> None:
            scratch.add(rows, dense_RN)
            sum_R[rows] = dense_RN.sum(axis=1, dtype=np.float64)

        sweep(
            operator,
            features,
            targets,
            token_ids,
            batch_size=batch_size or default_batch_size(positions, weights.d_model),
            take=take,
            workers=workers,
            memory_bytes=memory_bytes // 2,
            check=lambda done: progress("sweep", done, num_rows),
        )
        arrays = {
            "layer": features.layer_N.astype("<i4"),
            "position": features.position_N.astype("<i4"),
            "index": features.index_N.astype("<i4"),
            "activation": features.activation_N.float().numpy().astype("<f4"),
            "constant": constant_R.astype("<f4"),
            "value": targets.value_N.double().numpy().astype("<f4"),
        }
        scratch.write(path, arrays)
    stages.add("sweep", begun)
    return conservation_error(targets.value_N.double().numpy(), sum_R, constant_R, num_logits=len(logit_ids))


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
            size = np.maximum(np.abs(value), np.sqrt(np.mean(value**2)))
            missing = np.abs(value - sum_R[kind] - constant_R[kind])
            worst = max(worst, float(np.max(missing / np.maximum(size, np.finfo(np.float64).tiny))))
    return worst


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


def open_graph(
    path: Path, num_layers: int, tokens: tuple[Token, ...], logits: tuple[Token, ...], probabilities: tuple[float, ...]
) -> WholeGraph:
    """Map a stored graph."""
    arrays = read_arrays(path)
    table = NodeTable(len(arrays["layer"]), num_layers, len(tokens), len(logits))
    layer_R = np.concatenate([arrays["layer"], np.full(table.num_logits, table.num_layers)])
    return WholeGraph(
        edges=Edges(table, np.array(arrays["indptr"]), arrays["indices"], arrays["values"], layer_R),
        nodes=GraphNodes(
            table,
            np.array(arrays["layer"]),
            np.array(arrays["position"]),
            np.array(arrays["index"]),
            np.array(arrays["activation"], dtype=np.float64),
            tokens,
            logits,
            probabilities,
        ),
        constant_R=np.array(arrays["constant"]),
        value_R=np.array(arrays["value"]),
    )
