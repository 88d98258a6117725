"""
The local replacement model: a base model on one prompt with patterns and scales frozen, hence linear.

Source: Ameisen et al. 2025, methods, "local replacement model". Deviations: none.
Forward it says what the stream is for given MLP outputs and embeddings; transposed it takes gradients down one layer.

Legend: B rows swept at once, P positions, D d_model, H query heads, K key-value heads times head size,
Z query heads times head size, N readers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weft_attribution.core.skips import Skip
from weft_attribution.core.weights import LinearWeights
from weft_common.errors import ShapeError

__all__ = ["FrozenOperator"]


class FrozenOperator:
    """
    One model on one prompt, linear in the embeddings and the MLP outputs.

    Args:
        weights: The model's frozen weights.
        tensors: Captured `layers.{l}.ln1.scale`, `layers.{l}.ln2.scale`, `layers.{l}.attn.pattern`, `ln_final.scale`,
            and `layers.{l}.ln1_post.scale` where what attention returns is normed.
        num_positions: P.
        skips: The transcoder's linear skips by layer, if it has any.

    Raises:
        ShapeError: A stream has not the shape that the model's configuration asks for.
    """

    def __init__(
        self,
        weights: LinearWeights,
        tensors: Mapping[str, npt.NDArray[np.float32]],
        *,
        num_positions: int,
        skips: Sequence[Skip | None] = (),
    ) -> None:
        self.weights = weights
        self._skips = skips or [None] * weights.num_layers
        self.num_positions = num_positions
        heads, positions, dtype = weights.num_heads, num_positions, weights.dtype

        def stream(name: str, shape: tuple[int, ...]) -> Tensor:
            value = tensors[name]
            if value.shape != shape:
                raise ShapeError(
                    f"stream {name} has shape {list(value.shape)}, expected {list(shape)}: "
                    "the activations service runs another model"
                )
            return torch.tensor(value, dtype=dtype)

        layers = range(weights.num_layers)
        self.pattern_HPP = [stream(f"layers.{i}.attn.pattern", (heads, positions, positions)) for i in layers]
        self.output_scale_P = [torch.ones(positions, dtype=dtype) for _ in layers]
        """What the norm after attention divides by."""
        if weights.has_post_norms:
            self.output_scale_P = [stream(f"layers.{i}.ln1_post.scale", (positions,)) for i in layers]
        self.attention_scale_P = [stream(f"layers.{i}.ln1.scale", (positions,)) for i in layers]
        self.mlp_scale_P = [stream(f"layers.{i}.ln2.scale", (positions,)) for i in layers]
        self.final_scale_P = stream("ln_final.scale", (positions,))

    def attention(self, layer: int, resid_PD: Tensor, *, biases: bool) -> Tensor:
        """What the frozen attention of `layer` writes for a given residual stream before it."""
        weights = self.weights.layers[layer]
        heads, kv_heads = self.weights.num_heads, self.weights.num_kv_heads
        value_PK = (resid_PD / self.attention_scale_P[layer][:, None]) @ weights.value_KD.T
        if biases:
            value_PK = value_PK + weights.value_bias_K
        value_HPE = value_PK.view(self.num_positions, kv_heads, -1).transpose(0, 1)
        value_HPE = value_HPE.repeat_interleave(heads // kv_heads, dim=0)
        mixed_PZ = (self.pattern_HPP[layer] @ value_HPE).transpose(0, 1).reshape(self.num_positions, -1)
        out_PD = mixed_PZ @ weights.output_ZD
        return (out_PD + weights.output_bias_D if biases else out_PD) / self.output_scale_P[layer][:, None]

    def forward(self, embed_PD: Tensor, mlp_out_LPD: Tensor, *, biases: bool) -> tuple[list[Tensor], Tensor]:
        """
        Run the linear model for given sources.

        Args:
            embed_PD: What enters the residual stream at the bottom.
            mlp_out_LPD: What every layer's MLP adds besides the transcoder's linear skip.
            biases: Whether the model's own biases take part; without them the map is strictly linear.

        Returns:
            The residual stream that every MLP reads, and that the final norm does.
        """
        resid_PD = embed_PD
        mids = []
        for layer in range(self.weights.num_layers):
            before_PD = resid_PD
            resid_PD = resid_PD + self.attention(layer, resid_PD, biases=biases)
            mids.append(before_PD if self.weights.is_parallel else resid_PD)
            resid_PD = resid_PD + mlp_out_LPD[layer]
            if self._skips[layer] is not None:
                resid_PD = resid_PD + self.skip(layer, mids[-1])
        return mids, resid_PD

    def skip(self, layer: int, mid_PD: Tensor) -> Tensor:
        """What the linear skip of `layer` writes at the first positions for the stream that its MLP reads there."""
        skip = self._skips[layer]
        if skip is None:
            return torch.zeros_like(mid_PD)
        return (mid_PD / self._skip_scale(skip, layer)[: len(mid_PD), None]) @ skip.matrix_DD.T

    def transposed_skip(self, layer: int, grad_PD: Tensor) -> Tensor:
        """Gradients with respect to what the MLP of `layer` reads at all positions, through its skip alone."""
        skip = self._skips[layer]
        if skip is None:
            return torch.zeros_like(grad_PD)
        return (grad_PD @ skip.matrix_DD) / self._skip_scale(skip, layer)[:, None]

    def _skip_scale(self, skip: Skip, layer: int) -> Tensor:
        return self.mlp_scale_P[layer] if skip.reads_norm else torch.ones_like(self.mlp_scale_P[layer])

    def _sweep_skip(self, layer: int, grad_PBD: Tensor) -> Tensor:
        """Gradients with respect to what the MLP of `layer` reads, through its skip alone; positions from 1."""
        skip = self._skips[layer]
        assert skip is not None
        scale_P = self._skip_scale(skip, layer)[1 : len(grad_PBD) + 1]
        return (grad_PBD @ skip.matrix_DD).div_(scale_P[:, None, None])

    def position_embedding(self) -> Tensor:
        """The part of the embedding that is no token's: a constant."""
        table = self.weights.position_embedding_PD
        if table is None:
            return torch.zeros(self.num_positions, self.weights.d_model, dtype=self.weights.dtype)
        return table[: self.num_positions]

    def first_values(self, embed_D: Tensor) -> Tensor:
        """
        What each layer's heads read at position 0 of the token there, and of nothing else: [L, kv heads, head size].

        Position 0 sees itself alone and has no other source, so that gradients need not go down there: what reaches
        it meets these values, and adds up to the edge of its token.
        """
        values = []
        resid_D = embed_D
        kv_heads = self.weights.num_kv_heads
        group = self.weights.num_heads // kv_heads
        for layer, weights in enumerate(self.weights.layers):
            value_K = (resid_D / self.attention_scale_P[layer][0]) @ weights.value_KD.T
            value_HE = value_K.view(kv_heads, -1).repeat_interleave(group, dim=0)
            mixed_HE = self.pattern_HPP[layer][:, 0, 0, None] * value_HE / self.output_scale_P[layer][0]
            before_D = resid_D
            resid_D = resid_D + mixed_HE.flatten() @ weights.output_ZD
            if self._skips[layer] is not None:
                resid_D = resid_D + self.skip(layer, (before_D if self.weights.is_parallel else resid_D)[None])[0]
            values.append(value_K.view(kv_heads, -1) * self.attention_scale_P[layer][0])
        return torch.stack(values)

    def transposed_patterns(self, layer: int, num_positions: int) -> Tensor:
        """
        The pattern of `layer` among the first positions, ready for `sweep_attention`, divided by the norms' scales.

        Returns:
            [kv heads, P, group * (P - 1)]: what each position hands down of the gradients after each position but 0.
        """
        kv_heads = self.weights.num_kv_heads
        group = self.weights.num_heads // kv_heads
        pattern_HPP = self.pattern_HPP[layer][:, 1:num_positions, :num_positions]
        pattern_HPP = pattern_HPP / self.attention_scale_P[layer][:num_positions]
        pattern_HPP = pattern_HPP / self.output_scale_P[layer][1:num_positions, None]
        grouped = pattern_HPP.view(kv_heads, group, num_positions - 1, num_positions).permute(0, 3, 1, 2)
        return grouped.reshape(kv_heads, num_positions, group * (num_positions - 1))

    def sweep_attention(
        self, layer: int, grad_PBD: Tensor, joining_JD: Tensor, at_J: Tensor, pattern: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Take gradients from after `layer` to before it, through its skip and its attention.

        Args:
            layer: Which attention.
            grad_PBD: Gradients with respect to the residual stream after it, at positions from 1; changed.
            joining_JD: Gradients of rows that join, each at one position alone, with respect to what the MLP reads:
                the stream after attention, or the one before it in a model whose MLPs stand beside it.
            at_J: Their positions, less 1.
            pattern: From `transposed_patterns` for positions one more.

        Returns:
            Gradients before it, [positions, B + J, D], and what attention hands to the values at position 0,
            [kv heads, B + J, head size].
        """
        weights = self.weights.layers[layer]
        kv_heads = self.weights.num_kv_heads
        group = self.weights.num_heads // kv_heads
        positions, before, d_model = grad_PBD.shape
        rows, joining = before + len(joining_JD), torch.arange(before, before + len(joining_JD))
        skipped_PBD = self._sweep_skip(layer, grad_PBD) if before and self._skips[layer] is not None else None
        if skipped_PBD is not None and not self.weights.is_parallel:
            grad_PBD, skipped_PBD = grad_PBD.add_(skipped_PBD), None
        by_head = grad_PBD.new_empty(kv_heads, group, positions, rows, len(weights.output_ZD) // (kv_heads * group))
        size = by_head.shape[-1]
        if before:
            heads = grad_PBD.view(positions * before, d_model) @ weights.output_ZD.T
            by_head[:, :, :, :before] = heads.view(positions, before, kv_heads, group, size).permute(2, 3, 0, 1, 4)
        if rows > before:
            by_head[:, :, :, before:] = 0
            if not self.weights.is_parallel:
                heads = (joining_JD @ weights.output_ZD.T).view(-1, kv_heads, group, size)
                by_head[:, :, at_J, joining] = heads.permute(1, 2, 0, 3)
            whole_PBD = grad_PBD.new_empty(positions, rows, d_model)
            whole_PBD[:, :before] = grad_PBD
            whole_PBD[:, before:] = 0
            whole_PBD[at_J, joining] = joining_JD
            grad_PBD = whole_PBD
        mixed = torch.bmm(pattern, by_head.view(kv_heads, group * positions, rows * size))
        mixed = mixed.view(kv_heads, positions + 1, rows, size)
        values = mixed[:, 1:].permute(1, 2, 0, 3).reshape(positions * rows, kv_heads * size)
        grad_PBD.view(positions * rows, d_model).addmm_(values, weights.value_KD)
        if skipped_PBD is not None:
            grad_PBD[:, :before] += skipped_PBD
        return grad_PBD, mixed[:, 0]
