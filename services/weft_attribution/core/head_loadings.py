"""
What of an edge goes through which attention head.

A source writes into the residual stream, and attention moves that on from position to position, layer by layer, until
the target reads it. Every way has a last head, or none: an edge is the sum over last heads and the positions that they
read, plus what comes through the residual stream and a transcoder's linear skips alone. That split is exact. Beside it
stands how much of the edge goes through each head at all; over the heads of one layer, and past them, these add up to
the edge again.

Legend: L layers, P positions, D d_model, H heads, E head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_attribution.core.frozen_graphs import FrozenGraph
from weft_attribution.core.operator import FrozenOperator

__all__ = ["EdgeSplit", "Reading", "Written", "reading_of", "split_edge", "written_by"]


@dataclass(frozen=True)
class Written:
    """What a source writes: into the embeddings [P, D], or to MLP outputs of some layers at one position [D]."""

    embed_PD: Tensor
    mlp_out_D: Mapping[int, Tensor]
    position: int


@dataclass(frozen=True)
class Reading:
    """What a target reads: a vector at a position of the stream that the MLP of a layer reads, or of the final one."""

    vector_D: Tensor
    layer: int
    position: int


@dataclass(frozen=True)
class EdgeSplit:
    """
    An edge in parts.

    Args:
        direct: What goes through no head.
        last_LHP: By the last head on the way and the position that it reads.
        through_LH: By any head on the way; over one layer's heads and what passes them by, the whole edge.
    """

    direct: float
    last_LHP: Tensor
    through_LH: Tensor

    @property
    def total(self) -> float:
        """The edge."""
        return self.direct + float(self.last_LHP.sum(dtype=torch.float64))


def written_by(frozen: FrozenGraph, node: int) -> Written:
    """What a feature, error or token writes."""
    table, operator, features = frozen.opened.graph.edges.table, frozen.operator, frozen.features
    weights = operator.weights
    embed_PD = torch.zeros(table.num_positions, weights.d_model, dtype=weights.dtype)
    if node >= table.token_start:
        position = node - table.token_start
        embed_PD[position] = weights.embed(torch.from_numpy(frozen.token_ids[position : position + 1]))[0]
        return Written(embed_PD, {}, position)
    if node >= table.error_start:
        layer, before = divmod(node - table.error_start, table.num_positions - 1)
        return Written(embed_PD, {layer: features.error_LPD[layer, before + 1]}, before + 1)
    feature = frozen.feature(node)
    place, amount = int(features.writer_N[feature]), features.activation_N[feature]
    above = range(int(features.layer_N[feature]), table.num_layers)
    written = {layer: amount * features.writers_UD[layer][place] for layer in above}
    for layer in above:
        features.release(layer)
    return Written(embed_PD, written, int(features.position_N[feature]))


def reading_of(frozen: FrozenGraph, node: int) -> Reading:
    """What a feature or logit reads."""
    table, targets = frozen.opened.graph.edges.table, frozen.targets
    if node >= table.logit_start:
        row = len(frozen.features) + node - table.logit_start
        vector_D = targets.last_reader_KD[node - table.logit_start]
    else:
        row = frozen.feature(node)
        vector_D = targets.reader_ND[row]
    return Reading(vector_D, int(targets.layer_N[row]), int(targets.position_N[row]))


def split_edge(operator: FrozenOperator, source: Written, target: Reading) -> EdgeSplit:
    """
    Split the edge from a source to a target.

    Args:
        operator: The frozen model on the prompt.
        source: From `written_by`.
        target: From `reading_of`.
    """
    weights = operator.weights
    num_layers, heads = weights.num_layers, weights.num_heads
    # A target of an MLP beside attention does not see the attention of its own layer.
    reached = min(num_layers, target.layer + (0 if weights.is_parallel else 1))
    values = []
    stream_PD = source.embed_PD
    for layer in range(reached):
        values.append(_values(operator, layer, stream_PD))
        after_PD = stream_PD + operator.attention(layer, stream_PD, biases=False)
        stream_PD = after_PD + operator.skip(layer, stream_PD if weights.is_parallel else after_PD)
        if layer in source.mlp_out_D:
            stream_PD[source.position] += source.mlp_out_D[layer]
    direct = 0.0
    last_LHP = torch.zeros(num_layers, heads, operator.num_positions, dtype=weights.dtype)
    through_LH = torch.zeros(num_layers, heads, dtype=weights.dtype)
    # Gradients by all ways, and by those through no head, which stay at the target's position.
    grad_PD = torch.zeros_like(source.embed_PD)
    grad_PD[target.position] = target.vector_D
    plain_PD = grad_PD.clone()
    for layer in reversed(range(reached)):
        before_PD, plain_before_PD = torch.zeros_like(grad_PD), torch.zeros_like(plain_PD)
        if layer < target.layer:
            if layer in source.mlp_out_D:
                direct += float(plain_PD[source.position] @ source.mlp_out_D[layer])
            skipped_PD, plain_skipped_PD = (operator.transposed_skip(layer, each) for each in (grad_PD, plain_PD))
            if weights.is_parallel:
                before_PD, plain_before_PD = skipped_PD, plain_skipped_PD
            else:
                grad_PD, plain_PD = grad_PD + skipped_PD, plain_PD + plain_skipped_PD
        pattern_HPP, value_PHE = operator.pattern_HPP[layer], values[layer]
        asked_HE = _outputs(operator, layer, plain_PD)[target.position]
        last_LHP[layer] = pattern_HPP[:, target.position] * torch.einsum("phe,he->hp", value_PHE, asked_HE)
        handed_PHE = torch.einsum("hqk,qhe->khe", pattern_HPP, _outputs(operator, layer, grad_PD))
        through_LH[layer] = (handed_PHE * value_PHE).sum(dim=(0, 2))
        # Key-value heads are shared: what their query heads hand down adds up.
        shared = handed_PHE.reshape(operator.num_positions, weights.num_kv_heads, -1, handed_PHE.shape[-1]).sum(dim=2)
        down_PD = shared.flatten(1) @ weights.layers[layer].value_KD
        grad_PD = grad_PD + before_PD + down_PD / operator.attention_scale_P[layer][:, None]
        plain_PD = plain_PD + plain_before_PD
    direct += float((plain_PD * source.embed_PD).sum())
    return EdgeSplit(direct, last_LHP, through_LH)


def _values(operator: FrozenOperator, layer: int, stream_PD: Tensor) -> Tensor:
    """What each query head finds at each position: [P, H, E]."""
    weights = operator.weights
    value_PK = (stream_PD / operator.attention_scale_P[layer][:, None]) @ weights.layers[layer].value_KD.T
    value_PKE = value_PK.view(operator.num_positions, weights.num_kv_heads, -1)
    return value_PKE.repeat_interleave(weights.num_heads // weights.num_kv_heads, dim=1)


def _outputs(operator: FrozenOperator, layer: int, grad_PD: Tensor) -> Tensor:
    """Gradients with respect to what each head mixes: [P, H, E]."""
    scaled_PD = grad_PD / operator.output_scale_P[layer][:, None]
    out_PZ = scaled_PD @ operator.weights.layers[layer].output_ZD.T
    return out_PZ.view(len(grad_PD), operator.weights.num_heads, -1)
