"""
Why a head attends: its score at two positions as a sum over pairs of what the stream holds there.

    score = scaling * <query, key>;   a query is a sum over what the query position's stream is made of, a key over the
    key position's: features, errors and tokens, each by all frozen ways up to this attention, and a constant

So the score is a sum over pairs. Norm scales are held, those of queries and keys too. What turns with the position is
read off the vectors before and after it, so that it need not be known how a model turns them.

Source: "Tracing attention computation through feature interactions" (Kamath et al. 2025), for the question.
Legend: N sources, their constant last; E head size, P positions, D d_model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.features import ActiveFeatures
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.query_key_weights import HeadSide, QueryKeyWeights
from weft_attribution.core.sweep import NodeTable, Targets, sweep

__all__ = ["AttentionScore", "Pair", "attention_hooks", "explain_score"]

Array = npt.NDArray[Any]
_BLOCK = 512
_BATCH = 64


@dataclass(frozen=True)
class Pair:
    """A source at the query's position, one at the key's, and what they add to the score."""

    query: int
    key: int
    value: float


@dataclass(frozen=True)
class AttentionScore:
    """
    A score and what it is made of.

    Args:
        table: How sources are numbered: those below this attention, and a constant after the last token.
        features: Of all active features those that are sources, in their order.
        score: What the model has, before any cap.
        total: The sum over all pairs.
        pairs: The largest pairs, in absolute values.
        query_N: What each source at the query's position adds, over all keys.
        key_N: What each source at the key's position adds, over all queries.
        kinds: Sums over pairs [4, 4] of features, errors, tokens and the constant, by query and key.
    """

    table: NodeTable
    features: Array
    score: float
    total: float
    pairs: tuple[Pair, ...]
    query_N: Array
    key_N: Array
    kinds: Array


def attention_hooks(layer: int, *, is_rotated: bool) -> tuple[str, ...]:
    """Streams that explaining a score of a layer needs besides a graph's."""
    names = ("q", "k", "q_rot", "k_rot") if is_rotated else ("q", "k")
    return tuple(f"layers.{layer}.attn.{name}" for name in names)


def explain_score(
    operator: FrozenOperator,
    features: ActiveFeatures,
    token_ids: Array,
    head: QueryKeyWeights,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    *,
    layer: int,
    head_index: int,
    query: int,
    key: int,
    max_pairs: int,
) -> AttentionScore:
    """
    Explain the score of one head at two positions.

    Args:
        operator: The frozen model on the prompt.
        features: All features that are active on it.
        token_ids: The prompt's tokens.
        head: The head's weights.
        tensors: What `attention_hooks` names, captured.
        layer: The head's layer.
        head_index: The query head.
        query: The position that attends.
        key: The position that is looked at.
        max_pairs: Most pairs told.
    """
    dtype = operator.weights.dtype
    places = {"q": (head_index, query, head.query), "k": (head.key_head, key, head.key)}
    readers, fixed, seen = [], [], []
    for name, (which, position, side) in places.items():
        before_HPE = torch.tensor(tensors[f"layers.{layer}.attn.{name}"], dtype=dtype)
        rotated = tensors.get(f"layers.{layer}.attn.{name}_rot")
        after_HPE = before_HPE if rotated is None else torch.tensor(rotated, dtype=dtype)
        turn_EE = _turn(before_HPE[:, position], after_HPE[:, position], side, head)
        if side.norm_E is not None:
            turn_EE = turn_EE * (side.norm_E / _rms(before_HPE[which, position], head.epsilon))
        readers.append(turn_EE @ side.project_ED / operator.attention_scale_P[layer][position])
        fixed.append(turn_EE @ side.bias_E)
        seen.append(after_HPE[which, position])
    below, sources = _below(operator, layer), _sources_below(features, layer)
    table = NodeTable(len(sources), layer, operator.num_positions, 0)
    vectors = []
    for reader_ED, fixed_E, position in zip(readers, fixed, (query, key), strict=True):
        streams = _contributions(below, sources, token_ids, reader_ED, position)
        constant_E = fixed_E + reader_ED @ _constant_stream(below, sources)[position]
        vectors.append(np.concatenate([streams, constant_E.double().numpy()[:, None]], axis=1))
    query_EN, key_EN = vectors[0] * head.scaling, vectors[1]
    ends = [table.error_start, table.token_start, table.logit_start]
    kinds = [np.stack([part.sum(axis=1) for part in np.split(side, ends, axis=1)]) for side in (query_EN, key_EN)]
    return AttentionScore(
        table=table,
        features=np.flatnonzero(features.layer_N < layer),
        score=float(seen[0].double() @ seen[1].double()) * head.scaling,
        total=float(query_EN.sum(axis=1) @ key_EN.sum(axis=1)),
        pairs=_largest_pairs(query_EN, key_EN, max_pairs),
        query_N=query_EN.T @ key_EN.sum(axis=1),
        key_N=key_EN.T @ query_EN.sum(axis=1),
        kinds=kinds[0] @ kinds[1].T,
    )


def _rms(vector_E: Tensor, epsilon: float) -> Tensor:
    return (vector_E.square().mean(-1, keepdim=True) + epsilon).sqrt()


def _turn(before_HE: Tensor, after_HE: Tensor, side: HeadSide, head: QueryKeyWeights) -> Tensor:
    """What turns vectors of a position: [E, E], found from all heads' vectors before and after it."""
    size = before_HE.shape[-1]
    turn_EE = torch.eye(size, dtype=before_HE.dtype)
    half = head.num_rotated // 2
    if not half:
        return turn_EE
    normed_HE = before_HE if side.norm_E is None else before_HE / _rms(before_HE, head.epsilon) * side.norm_E
    x = torch.complex(normed_HE[:, :half], normed_HE[:, half : 2 * half])
    y = torch.complex(after_HE[:, :half], after_HE[:, half : 2 * half])
    # Least squares over heads: one factor for each pair of dims.
    factor = (x.conj() * y).sum(dim=0) / x.abs().square().sum(dim=0).clamp(min=torch.finfo(x.real.dtype).tiny)
    first, second = torch.arange(half), torch.arange(half, 2 * half)
    turn_EE[first, first] = turn_EE[second, second] = factor.real
    turn_EE[first, second], turn_EE[second, first] = -factor.imag, factor.imag
    return turn_EE


def _below(operator: FrozenOperator, layer: int) -> FrozenOperator:
    """The frozen model that ends before the attention of `layer`."""
    below = FrozenOperator.__new__(FrozenOperator)
    below.__dict__.update(operator.__dict__)
    below.weights = replace(operator.weights, layers=operator.weights.layers[:layer])
    return below


def _sources_below(features: ActiveFeatures, layer: int) -> ActiveFeatures:
    mask = torch.from_numpy(features.layer_N < layer)
    chosen = mask.numpy()
    return replace(
        features,
        layer_N=features.layer_N[chosen],
        position_N=features.position_N[chosen],
        index_N=features.index_N[chosen],
        value_N=features.value_N[mask],
        activation_N=features.activation_N[mask],
        reader_ND=features.reader_ND[:0],
        offset_N=features.offset_N[mask],
        writers_UD=features.writers_UD[:layer],
        writer_N=features.writer_N[mask],
        error_LPD=features.error_LPD[:layer],
        constant_LPD=features.constant_LPD[:layer],
        mapped=features.mapped[:layer],
    )


def _constant_stream(below: FrozenOperator, sources: ActiveFeatures) -> Tensor:
    """The stream with all sources at zero."""
    return below.forward(below.position_embedding(), sources.constant_LPD, biases=True)[1]


def _contributions(
    below: FrozenOperator, sources: ActiveFeatures, token_ids: Array, reader_ED: Tensor, position: int
) -> Array:
    """What each source puts into vectors that are read of the last stream at a position: float64 [E, N]."""
    table = NodeTable(len(sources), below.weights.num_layers, below.num_positions, 0)
    found = np.zeros((len(reader_ED), table.num_nodes))
    embed_PD = below.weights.embed(torch.from_numpy(token_ids))
    if below.weights.num_layers == 0:
        found[:, table.token_start + position] = (reader_ED @ embed_PD[position]).double().numpy()
        return found
    if position == 0:
        # Position 0 sees itself alone, and nothing but its token writes there.
        embed_PD[1:] = 0
        nothing_LPD = torch.zeros_like(sources.constant_LPD)
        stream_PD = below.forward(embed_PD, nothing_LPD, biases=False)[1]
        found[:, table.token_start] = (reader_ED @ stream_PD[0]).double().numpy()
        return found
    rows = len(reader_ED)
    targets = Targets(
        layer_N=np.full(rows, below.weights.num_layers),
        position_N=np.full(rows, position),
        reader_ND=reader_ED[:0],
        last_reader_KD=reader_ED,
        offset_N=torch.zeros(rows, dtype=reader_ED.dtype),
        value_N=torch.zeros(rows, dtype=reader_ED.dtype),
    )

    def take(done: Array, dense_RN: Array) -> None:
        found[done] = dense_RN

    sweep(below, sources, targets, token_ids, batch_size=_BATCH, take=take)
    return found


def _largest_pairs(query_EN: Array, key_EN: Array, count: int) -> tuple[Pair, ...]:
    """The largest pairs; those that cannot be among them, by the lengths of their vectors, are not looked at."""
    query_length, key_length = np.linalg.norm(query_EN, axis=0), np.linalg.norm(key_EN, axis=0)
    by_query, by_key = np.argsort(-query_length, kind="stable"), np.argsort(-key_length, kind="stable")
    pairs, values = np.zeros((0, 2), dtype=np.int64), np.zeros(0)
    least = 0.0
    for start in range(0, len(by_query), _BLOCK):
        block = by_query[start : start + _BLOCK]
        longest = query_length[block[0]]
        reaching = by_key[: np.searchsorted(-key_length[by_key] * longest, -least, side="right")]
        if longest <= 0 or not len(reaching):
            break
        products = query_EN[:, block].T @ key_EN[:, reaching]
        flat = np.abs(products).ravel()
        best = np.argpartition(-flat, count - 1)[:count] if len(flat) > count else np.arange(len(flat))
        best = best[flat[best] > 0]
        pairs = np.concatenate(
            [pairs, np.stack([block[best // len(reaching)], reaching[best % len(reaching)]], axis=1)]
        )
        values = np.concatenate([values, products.ravel()[best]])
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        pairs, values = pairs[order], values[order]
        least = float(np.abs(values[-1])) if len(values) == count else 0.0
    return tuple(Pair(int(q), int(k), float(value)) for (q, k), value in zip(pairs, values, strict=True))
