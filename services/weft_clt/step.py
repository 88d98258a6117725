"""
One training step, shared by the ranks of a mesh; forward and backward by hand, without autograd.

1. The inputs of the group's tokens are gathered; of the outputs every rank receives its own columns.
2. A rank computes the pre-activations of its features and lists those that are active or near their threshold.
3. The lists are exchanged (`weft_clt.exchange`).
4. A rank decodes all features into its columns, takes the error there, and from it the gradients of its decoder columns
   and its part of every value's gradient.
5. The value gradients return to the features' owners, which compute the encoder's gradients.

Gradients are means over the tokens of all ranks and are summed over the data axis; results do not depend on the mesh
beyond rounding.
Shapes: T tokens of the group, O tokens of one rank, L layers, D d_model, C columns and S features of this rank,
F features of a layer over all ranks, M entries of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weft_clt.config import Activation, FeatureConfig, LossConfig
from weft_clt.exchange import Exchanged, OwnEntries, exchange_entries
from weft_clt.kernels import Kernels
from weft_clt.losses import jump_relu_backward, preact_loss, sparsity_loss
from weft_clt.mesh import Mesh
from weft_clt.parameters import Parameters
from weft_common.errors import ShapeError

__all__ = ["Forward", "Losses", "StepEngine"]


@dataclass(frozen=True)
class Losses:
    """One rank's part of the losses, already divided by the tokens of the step."""

    sparsity: float
    preact: float


@dataclass(frozen=True)
class Forward:
    """What a forward pass leaves behind; its tensors belong to the engine and live until the next pass."""

    inputs_LTD: Tensor
    targets_LTC: Tensor
    error_LTC: Tensor
    """Prediction minus target, in this rank's columns."""
    own_L: list[OwnEntries]
    exchanged: Exchanged


class StepEngine:
    """
    Computes losses and gradients of one rank's parameters; keeps its buffers from step to step.

    Args:
        group_tokens: Most tokens of the group in one pass, over its ranks.
    """

    def __init__(
        self,
        params: Parameters,
        mesh: Mesh,
        kernels: Kernels,
        features: FeatureConfig,
        loss: LossConfig,
        *,
        group_tokens: int,
    ) -> None:
        self.params, self.mesh, self.kernels = params, mesh, kernels
        self.features, self.loss = features, loss
        share, dtype = params.share, params.w_enc_LSD.dtype
        num_layers, d_model, ranks = share.shape.num_layers, share.shape.d_model, mesh.feature.size
        if group_tokens % ranks:
            raise ShapeError(f"{group_tokens} tokens cannot be split evenly over {ranks} ranks; change one of the two.")
        self._inputs_LTD = torch.empty(num_layers, group_tokens, d_model, dtype=dtype)
        self._targets_LTC = torch.empty(num_layers, group_tokens, share.num_columns, dtype=dtype)
        self._error_LTC = torch.empty_like(self._targets_LTC)
        self._preact_TS = torch.empty(group_tokens, share.num_features, dtype=dtype)
        self._keeps_preacts = loss.preact_coeff > 0
        kept_layers = num_layers if self._keeps_preacts else 0
        self._preact_LTS = torch.empty(kept_layers, group_tokens, share.num_features, dtype=dtype)

    @cached_property
    def grads(self) -> Parameters:
        """Gradients, allocated by the first step: whoever only evaluates has none."""
        return self.params.zeros_like()

    @property
    def _has_norms(self) -> bool:
        return self.loss.sparsity_coeff > 0 or self.loss.preact_coeff > 0

    def gather(self, inputs_LOD: Tensor, targets_LOD: Tensor) -> tuple[Tensor, Tensor]:
        """
        Give every rank all inputs, and its columns of all targets, of its group's tokens.

        Collectives: one gather and one exchange a layer, on the feature axis.
        """
        axis, share = self.mesh.feature, self.params.share
        rank_tokens = inputs_LOD.shape[1]
        group_tokens = rank_tokens * axis.size
        if group_tokens > self._inputs_LTD.shape[1]:
            raise ShapeError(f"{group_tokens} tokens were given; the engine was made for {self._inputs_LTD.shape[1]}.")
        inputs_LTD, targets_LTC = self._inputs_LTD[:, :group_tokens], self._targets_LTC[:, :group_tokens]
        rows = [rank_tokens] * axis.size
        for layer in range(inputs_LOD.shape[0]):
            axis.gather_into(inputs_LTD[layer], inputs_LOD[layer].contiguous())
            by_rank_ROC = targets_LOD[layer].view(rank_tokens, axis.size, share.num_columns).transpose(0, 1)
            axis.exchange(
                targets_LTC[layer],
                by_rank_ROC.reshape(group_tokens, share.num_columns),
                rows,
                rows,
            )
        return inputs_LTD, targets_LTC

    def forward(self, inputs_LTD: Tensor, targets_LTC: Tensor, *, near: bool = True) -> Forward:
        """
        Encode, exchange and decode.

        Args:
            near: Also list the entries near their threshold, which only the backward pass needs.
        """
        share, shape = self.params.share, self.params.share.shape
        own_L = [self._encode(layer, inputs_LTD[layer], near=near) for layer in range(shape.num_layers)]
        exchanged = exchange_entries(
            own_L,
            self.mesh.feature,
            self.kernels,
            num_features=shape.num_features,
            rank_features=share.num_features,
            top_k=self.features.top_k if self.features.activation is Activation.TOP_K else 0,
        )
        error_LTC = self._error_LTC[:, : inputs_LTD.shape[1]]
        for target in range(shape.num_layers):
            torch.sub(self.params.b_dec_LC[target], targets_LTC[target], out=error_LTC[target])
            for source in range(target + 1):
                self.kernels.decode(exchanged.layers[source], self.params.decoder(source, target), error_LTC[target])
        return Forward(inputs_LTD, targets_LTC, error_LTC, own_L, exchanged)

    def _encode(self, layer: int, inputs_TD: Tensor, *, near: bool) -> OwnEntries:
        params, config = self.params, self.features
        keep = self._keeps_preacts and near
        preact_TS = (self._preact_LTS[layer] if keep else self._preact_TS)[: inputs_TD.shape[0]]
        torch.addmm(params.b_enc_LS[layer], inputs_TD, params.w_enc_LSD[layer].T, out=preact_TS)
        if params.threshold_LS is None:
            most = min(config.top_k, preact_TS.shape[1])
            smallest_T1 = torch.topk(preact_TS, most, dim=1, sorted=False).values.amin(1, keepdim=True)
            listed_TS = (preact_TS >= smallest_T1) & (preact_TS > 0)
        else:
            bound_S = params.threshold_LS[layer]
            listed_TS = preact_TS > (bound_S - config.bandwidth / 2 if near else bound_S)
        counts_T = listed_TS.sum(1, dtype=torch.int32)
        _, feature_M = torch.nonzero(listed_TS, as_tuple=True)
        value_M = preact_TS[listed_TS]
        if params.threshold_LS is None:
            return OwnEntries(counts_T, feature_M, value_M)
        active_M = value_M > params.threshold_LS[layer][feature_M]
        return OwnEntries(counts_T, feature_M, value_M * active_M, value_M)

    def backward(self, forward: Forward, *, step_tokens: int, sparsity_coeff: float) -> Losses:
        """
        Write the gradients of the mean loss into `grads`; the forward pass's errors are overwritten.

        Args:
            step_tokens: Tokens of the step over all ranks, which means are taken over.
            sparsity_coeff: Lambda of this step.
        Collectives: one exchange on the feature axis; with norms, two reductions more; all gradients on the data axis.
        """
        params, grads, shape = self.params, self.grads, self.params.share.shape
        forward.error_LTC.mul_(2.0 / step_tokens)
        grad_value_L = [torch.zeros_like(layer.value_N) for layer in forward.exchanged.layers]
        for target in range(shape.num_layers):
            torch.sum(forward.error_LTC[target], 0, out=grads.b_dec_LC[target])
            for source in range(target + 1):
                self.kernels.decode_backward(
                    forward.exchanged.layers[source],
                    params.decoder(source, target),
                    forward.error_LTC[target],
                    grad_value_L[source],
                    grads.decoder(source, target),
                )
        grad_own_L = forward.exchanged.return_gradients(grad_value_L, self.mesh.feature)
        norms_LF = self._norms() if self._has_norms else None
        grad_norms_LS = torch.zeros_like(params.b_enc_LS)
        losses = Losses(0.0, 0.0)
        grads.w_enc_LSD.zero_()
        for layer in range(shape.num_layers):
            norms_S = norms_LF[layer, params.share.features] if norms_LF is not None else None
            part = self._encode_backward(
                layer, forward, grad_own_L[layer], norms_S, grad_norms_LS[layer], step_tokens, sparsity_coeff
            )
            losses = Losses(losses.sparsity + part.sparsity, losses.preact + part.preact)
        if norms_LF is not None:
            self._norms_backward(norms_LF, grad_norms_LS)
        for _, grad in grads.named():
            self.mesh.data.sum_(grad)
        return losses

    def _norms(self) -> Tensor:
        """Norms of all decoder rows over all targets and columns: one reduction of L x F squares."""
        shape = self.params.share.shape
        squares_LF = self.params.w_dec_PFC.new_zeros(shape.num_layers, shape.num_features)
        for source in range(shape.num_layers):
            for target in range(source, shape.num_layers):
                self.kernels.add_row_squares(self.params.decoder(source, target), squares_LF[source])
        return self.mesh.feature.sum_(squares_LF).sqrt_()

    def _norms_backward(self, norms_LF: Tensor, grad_norms_LS: Tensor) -> None:
        """Take the gradients of the norms to the decoder: d norm / d row = row / norm."""
        num_layers = norms_LF.shape[0]
        grad_norms_LF = self.mesh.feature.gather(grad_norms_LS).transpose(0, 1).reshape(norms_LF.shape)
        coeff_LF = torch.where(norms_LF > 0, grad_norms_LF / norms_LF, torch.zeros_like(norms_LF))
        for source in range(num_layers):
            for target in range(source, num_layers):
                self.kernels.add_scaled_rows(
                    coeff_LF[source], self.params.decoder(source, target), self.grads.decoder(source, target)
                )

    def _encode_backward(
        self,
        layer: int,
        forward: Forward,
        grad_acts_M: Tensor,
        norms_S: Tensor | None,
        grad_norms_S: Tensor,
        step_tokens: int,
        sparsity_coeff: float,
    ) -> Losses:
        params, grads, own = self.params, self.grads, forward.own_L[layer]
        inputs_TD, feature_M = forward.inputs_LTD[layer], own.feature_M
        grad_preact_M, sparsity, preact = grad_acts_M, 0.0, 0.0
        if params.threshold_LS is not None and grads.threshold_LS is not None and own.preact_M is not None:
            if norms_S is not None and sparsity_coeff > 0:
                loss = sparsity_loss(
                    own.value_M, feature_M, norms_S, scale=self.loss.sparsity_scale, coeff=sparsity_coeff / step_tokens
                )
                sparsity = float(loss.value)
                grad_acts_M = grad_acts_M + loss.grad_acts_M
                grad_norms_S += loss.grad_norms_S
            grad_preact_M, grad_threshold_M = jump_relu_backward(
                own.preact_M,
                params.threshold_LS[layer][feature_M],
                grad_acts_M,
                bandwidth=self.features.bandwidth,
                through_threshold=self.features.gradient_through_threshold,
            )
            grads.threshold_LS[layer].zero_().index_add_(0, feature_M, grad_threshold_M)
        grads.b_enc_LS[layer].zero_().index_add_(0, feature_M, grad_preact_M)
        self.kernels.encode_backward(
            own.counts_T, feature_M, grad_preact_M.contiguous(), inputs_TD, grads.w_enc_LSD[layer]
        )
        if self._keeps_preacts and params.threshold_LS is not None and grads.threshold_LS is not None:
            assert norms_S is not None
            part = preact_loss(
                self._preact_LTS[layer, : inputs_TD.shape[0]],
                params.threshold_LS[layer],
                norms_S,
                coeff=self.loss.preact_coeff / step_tokens,
            )
            preact = float(part.value)
            grads.threshold_LS[layer] += part.grad_threshold_S
            grads.b_enc_LS[layer] += part.grad_preact_TS.sum(0)
            grads.w_enc_LSD[layer].addmm_(part.grad_preact_TS.T, inputs_TD)
            grad_norms_S += part.grad_norms_S
        return Losses(sparsity, preact)
