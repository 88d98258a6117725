"""
One training step, shared by the ranks of a mesh; forward and backward by hand, without autograd.

1. The inputs of the group's tokens are gathered; of the outputs every rank receives its own columns.
2. A rank computes the pre-activations of its features and lists those that are active or near their threshold.
3. The lists are exchanged (`weft_clt.exchange`).
4. A rank decodes all features into its columns, takes the error there, and from it the gradients of its decoder columns
   and its part of every value's gradient.
5. The value gradients return to the features' owners, which compute the encoder's gradients.

With AuxK, what dead features make of the error is a second batch behind the first, from step 2 on (`auxiliary`).

What travels does so while a rank computes what does not need it: later layers' data while a layer is encoded
(`gathering`), squares of norms until the backward pass, the values' gradients while others are written, and over the
data axis the decoder's gradient during the encoder's. Only the time differs from one after the other, not a bit.

Gradients are means over the tokens of all ranks and are summed over the data axis; where a step has several passes,
they are summed over these before. Results depend on neither beyond rounding.
Shapes: T tokens of the group, O tokens of one rank, L layers, D d_model, C columns and S features of this rank,
F features of a layer over all ranks, M entries of this rank; B rows: T, or 2 T with AuxK.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from weft_clt.auxiliary import dead_candidates, stack_tokens
from weft_clt.config import Activation, FeatureConfig, LossConfig
from weft_clt.exchange import Exchanged, OwnEntries, Returning, check_places, exchange_entries
from weft_clt.gathering import Gathering
from weft_clt.gradients import DecoderGradient
from weft_clt.kernels import DecoderPairs, FeatureLists, Kernels
from weft_clt.kernels.sorted_lists import add_entries, entry_tokens
from weft_clt.losses import jump_relu_backward, preact_loss, sparsity_loss
from weft_clt.mesh import Mesh, Pending
from weft_clt.parameters import Parameters
from weft_clt.row_norms import RowNorms
from weft_clt.selection import JointCandidates, batch_candidates, keep_entries, kth_largest
from weft_common.errors import ShapeError

__all__ = ["Forward", "Losses", "StepEngine"]

_FLOOR_SHARE = 0.8
"""Of the smallest value that BatchTopK kept of a layer: where it begins to look in the next step."""


@dataclass(frozen=True)
class Losses:
    """One rank's part of the losses, already divided by the tokens of the step."""

    sparsity: float
    preact: float
    aux: float

    def plus(self, other: Losses) -> Losses:
        """Return the sums with another pass's."""
        return Losses(self.sparsity + other.sparsity, self.preact + other.preact, self.aux + other.aux)


@dataclass(frozen=True)
class Forward:
    """What a forward pass leaves behind; its tensors belong to the engine and live until the next pass."""

    inputs_LTD: Tensor
    targets_LTC: Tensor
    error_LTC: Tensor
    """Prediction minus target, in this rank's columns."""
    error_LBC: Tensor
    """The same and, behind it, what AuxK still leaves of it."""
    own_L: list[OwnEntries]
    exchanged: Exchanged
    lists: FeatureLists
    """The joint lists of all rows, by feature."""
    norms_LF: Tensor | None
    """Norms of decoder rows, where something is weighed by them."""
    bound_L: Tensor | None = None
    """The smallest value that BatchTopK kept of each layer of the step; 0 where it kept all that is positive."""
    dead_own_L: list[OwnEntries] | None = None
    dead: Exchanged | None = None
    """AuxK's lists."""


def _shaped(buffer: Tensor, *shape: int) -> Tensor:
    """Return the first elements of a buffer as a contiguous tensor."""
    return buffer[: math.prod(shape)].view(shape)


class StepEngine:
    """
    Computes losses and gradients of one rank's parameters; keeps its buffers from step to step.

    Args:
        group_tokens: Most tokens of the group in one pass, over its ranks.
        passes: In which a step's tokens come.
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
        passes: int = 1,
    ) -> None:
        self.params, self.mesh, self.kernels = params, mesh, kernels
        self.features, self.loss = features, loss
        self.decoder_grads: DecoderGradient | None = None
        self.entry_bytes = 0
        """Of the bytes sent on the feature axis, those of lists of active features and of their values' gradients."""
        # Only a sum needs the decoder's gradient in memory.
        self._sums_decoder_grads = mesh.data.size > 1 or passes > 1
        share, dtype, device = params.share, params.dtype, params.device
        num_layers, d_model, ranks = share.shape.num_layers, share.shape.d_model, mesh.feature.size
        if group_tokens % ranks:
            raise ShapeError(f"{group_tokens} tokens cannot be split evenly over {ranks} ranks; change one of the two.")
        self._group_tokens = group_tokens
        # One rank works on what it is given.
        gathered_tokens = group_tokens if ranks > 1 else 0
        self._inputs = torch.empty(num_layers * gathered_tokens * d_model, dtype=dtype, device=device)
        self._targets = torch.empty(num_layers * gathered_tokens * share.num_columns, dtype=dtype, device=device)
        rows = group_tokens * (2 if loss.aux_top_k else 1)
        self._error = torch.empty(num_layers * rows * share.num_columns, dtype=dtype, device=device)
        moved = loss.aux_top_k or params.w_skip_LCD is not None
        self._wanted = torch.empty(self._error.shape[0] if moved else 0, dtype=dtype, device=device)
        self._pairs = DecoderPairs.of(
            num_layers, [(source, target) for source in range(num_layers) for target in share.shape.targets(source)]
        )
        self._floor_L = [0.0] * num_layers
        """Below what BatchTopK kept of a layer lately; only a guess, which saves time."""
        self._preact_TS: Tensor | None = None
        self._keeps_preacts = loss.preact_coeff > 0
        kept_layers = num_layers if self._keeps_preacts else 0
        self._preact_LTS = torch.empty(kept_layers, group_tokens, share.num_features, dtype=dtype, device=device)

    @cached_property
    def grads(self) -> Parameters:
        """Gradients, allocated by the first step: whoever only evaluates has none."""
        return self.params.zeros_like(decoder=self._sums_decoder_grads)

    @property
    def _sums_near(self) -> bool:
        """Whether only sums of the gradients of entries at 0 are asked for."""
        return self.features.activation is Activation.JUMP_RELU and not self.features.gradient_through_threshold

    @property
    def _has_norms(self) -> bool:
        return self.loss.sparsity_coeff > 0 or self.loss.preact_coeff > 0

    def gather(self, inputs_LOD: Tensor, targets_LOD: Tensor) -> tuple[Tensor, Tensor]:
        """
        Give every rank all inputs, and its columns of all targets, of its group's tokens.

        Collectives: those of `start_gather`.
        """
        gathering = self.start_gather(inputs_LOD, targets_LOD)
        gathering.wait()
        return gathering.inputs_LTD, gathering.targets_LTC

    def start_gather(self, inputs_LOD: Tensor, targets_LOD: Tensor) -> Gathering:
        """
        Start what `gather` does.

        Collectives: one gather and one exchange a layer, on the feature axis.
        """
        axis, share = self.mesh.feature, self.params.share
        num_layers, rank_tokens, d_model = inputs_LOD.shape
        group_tokens = rank_tokens * axis.size
        if group_tokens > self._group_tokens:
            raise ShapeError(f"{group_tokens} tokens were given; the engine was made for {self._group_tokens}.")
        if axis.size == 1:
            inputs_LTD, targets_LTC = inputs_LOD.contiguous(), targets_LOD.contiguous()
            return Gathering(axis, inputs_LTD, targets_LTC, inputs_LTD, targets_LTC)
        return Gathering(
            axis,
            inputs_LOD,
            targets_LOD,
            _shaped(self._inputs, num_layers, group_tokens, d_model),
            _shaped(self._targets, num_layers, group_tokens, share.num_columns),
        )

    def forward(
        self,
        inputs_LTD: Tensor,
        targets_LTC: Tensor,
        *,
        near: bool = True,
        dead_LF: Tensor | None = None,
        gathering: Gathering | None = None,
    ) -> Forward:
        """
        Encode, exchange and decode.

        Args:
            near: In training: list what only the backward pass needs, and let BatchTopK choose among the step's tokens.
            dead_LF: Features that AuxK is to revive, the same on every rank; None where there are none.
            gathering: What inputs and targets are still on their way in; None where they are there.
        """
        share, shape = self.params.share, self.params.share.shape
        num_tokens, activation = inputs_LTD.shape[1], self.features.activation
        norms, norms_LF = None, None
        if activation is Activation.JOINT_TOP_K or (near and self._has_norms):
            norms = RowNorms.start(self.params, self.kernels, self.mesh.feature)
        if norms is not None and activation is Activation.JOINT_TOP_K:
            norms_LF = norms.wait()
        joint = JointCandidates.empty(num_tokens, self.features.top_k * shape.num_layers, inputs_LTD)
        own_L: list[OwnEntries] = []
        dead_own_L: list[OwnEntries] = []
        compared = activation is Activation.JOINT_TOP_K or (activation is Activation.BATCH_TOP_K and near)
        for layer in range(shape.num_layers):
            if gathering is not None:
                gathering.wait_for(layer)
            inputs_TD = inputs_LTD[layer]
            preact_TS = self._preact_room(layer, num_tokens, near=near, wanted=compared or dead_LF is not None)
            if preact_TS is None or not compared:
                own_L.append(self._encode(layer, inputs_TD, preact_TS, near=near))
            else:
                torch.addmm(self.params.b_enc_LS[layer], inputs_TD, self.params.encoder(layer).T, out=preact_TS)
                if norms_LF is not None and activation is Activation.JOINT_TOP_K:
                    own_L.append(joint.add(preact_TS, norms_LF[layer, share.features]))
                else:
                    own_L.append(self._batch_candidates(layer, preact_TS))
            if dead_LF is not None and preact_TS is not None:
                dead_own_L.append(dead_candidates(preact_TS, dead_LF[layer, share.features], self.loss.aux_top_k))
        bound_L = None
        if activation is Activation.JOINT_TOP_K and norms_LF is not None:
            own_L = self._joint_best(own_L, norms_LF, num_tokens)
        elif activation is Activation.BATCH_TOP_K and near:
            own_L, bound_L = self._batch_best(own_L, num_tokens)
        exchanged = self._exchange(own_L, self.features.top_k if activation is Activation.TOP_K else 0)
        dead = self._exchange(dead_own_L, self.loss.aux_top_k) if dead_LF is not None else None
        layers = exchanged.layers
        if dead is not None:
            # The dead features' slots lie behind the others'.
            num_slots = sum(exchanged.sizes_R)
            check_places(num_slots + sum(dead.sizes_R))
            shifted = [replace(layer, slot_N=layer.slot_N + num_slots) for layer in dead.layers]
            layers = [stack_tokens(*both) for both in zip(exchanged.layers, shifted, strict=True)]
        lists = FeatureLists.of(layers, near_slots=not self._sums_near)
        error_LBC = _shaped(self._error, shape.num_layers, layers[0].num_tokens, share.num_columns)
        self._decode(inputs_LTD, targets_LTC, lists, error_LBC)
        if norms is not None and norms_LF is None:
            norms_LF = norms.wait()
        error_LTC = error_LBC[:, :num_tokens]
        return Forward(
            inputs_LTD, targets_LTC, error_LTC, error_LBC, own_L, exchanged, lists, norms_LF, bound_L, dead_own_L, dead
        )

    def _decode(self, inputs_LTD: Tensor, targets_LTC: Tensor, lists: FeatureLists, error_LBC: Tensor) -> None:
        """Write prediction minus target, then what AuxK predicts plus that: its error against the error's negative."""
        params, num_tokens = self.params, inputs_LTD.shape[1]
        wanted_LBC = targets_LTC
        if self._wanted.shape[0]:
            wanted_LBC = _shaped(self._wanted, *error_LBC.shape)
            wanted_LBC[:, :num_tokens] = targets_LTC
            wanted_LBC[:, num_tokens:] = params.b_dec_LC[:, None]  # so that AuxK predicts without it
            if params.w_skip_LCD is not None:
                for target in range(params.share.shape.num_layers):
                    skip_DC = params.w_skip_LCD[target].T
                    wanted_LBC[target, :num_tokens].addmm_(inputs_LTD[target], skip_DC, alpha=-1)
        self.kernels.decode_pass(lists, self._pairs, params.w_dec_PFC, params.b_dec_LC, wanted_LBC, error_LBC)
        if error_LBC.shape[1] > num_tokens:
            error_LBC[:, num_tokens:] += error_LBC[:, :num_tokens]

    def _exchange(self, own_L: list[OwnEntries], top_k: int) -> Exchanged:
        share, sent_bytes = self.params.share, self.mesh.feature.sent_bytes
        exchanged = exchange_entries(
            own_L,
            self.mesh.feature,
            self.kernels,
            num_features=share.shape.num_features,
            rank_features=share.num_features,
            top_k=top_k,
        )
        self.entry_bytes += self.mesh.feature.sent_bytes - sent_bytes
        return exchanged

    def _return(self, exchanged: Exchanged, grad_slots: Tensor) -> Returning:
        sent_bytes = self.mesh.feature.sent_bytes
        returning = exchanged.return_gradients(grad_slots, self.mesh.feature)
        self.entry_bytes += self.mesh.feature.sent_bytes - sent_bytes
        return returning

    def _preact_room(self, layer: int, num_tokens: int, *, near: bool, wanted: bool) -> Tensor | None:
        """Where all pre-activations of a layer go, if somebody looks at them side by side."""
        if self._keeps_preacts and near:
            return self._preact_LTS[layer, :num_tokens]
        if not wanted:
            return None
        if self._preact_TS is None:
            params = self.params
            self._preact_TS = params.b_enc_LS.new_empty(self._group_tokens, params.share.num_features)
        return self._preact_TS[:num_tokens]

    def _encode(self, layer: int, inputs_TD: Tensor, preact_TS: Tensor | None, *, near: bool) -> OwnEntries:
        """List the entries of a layer where each token and feature decides alone, or each token."""
        params, config = self.params, self.features
        jumps, top_k = config.activation is Activation.JUMP_RELU, config.activation is Activation.TOP_K
        threshold_S = torch.zeros_like(params.b_enc_LS[layer])
        if params.threshold_LS is not None:
            threshold_S = params.threshold_LS[layer]
        bound_S = threshold_S - config.bandwidth / 2 if near and jumps else threshold_S
        weights = params.w_enc_LSD[layer], params.b_enc_LS[layer]
        counts_T, feature_M, value_M = self.kernels.encode(
            inputs_TD, *weights, None if top_k else bound_S, config.top_k, preact_TS
        )
        if not jumps:
            return OwnEntries(counts_T, feature_M, value_M)
        return OwnEntries(counts_T, feature_M, value_M * (value_M > threshold_S[feature_M]), value_M)

    def _batch_candidates(self, layer: int, preact_TS: Tensor) -> OwnEntries:
        """List what may be among the largest of the step's tokens, as far as one rank can tell."""
        most = self.features.top_k * preact_TS.shape[0] * self.mesh.data.size
        own, smallest = batch_candidates(preact_TS, most, self._floor_L[layer])
        self._floor_L[layer] = _FLOOR_SHARE * smallest
        return own

    def _batch_best(self, own_L: list[OwnEntries], num_tokens: int) -> tuple[list[OwnEntries], Tensor]:
        """
        Keep the largest k x tokens of each layer over all ranks; also return the smallest value kept.

        Collectives: one sum of L x 256 counts a byte of a value, on both axes.
        """
        value_M = torch.cat([own.value_M for own in own_L])
        sizes_L = torch.tensor([own.value_M.shape[0] for own in own_L]).to(value_M.device)
        bound_L = kth_largest(
            value_M,
            entry_tokens(sizes_L, value_M.shape[0]),  # of every entry the layer
            self.features.top_k * num_tokens * self.mesh.data.size,
            num_groups=len(own_L),
            sum_=lambda counts: self.mesh.data.sum_(self.mesh.feature.sum_(counts)),
        )
        return [keep_entries(own, own.value_M >= bound) for own, bound in zip(own_L, bound_L, strict=True)], bound_L

    def _joint_best(self, own_L: list[OwnEntries], norms_LF: Tensor, num_tokens: int) -> list[OwnEntries]:
        """
        Keep the largest k x layers of each token over all layers and ranks, by value times norm.

        Collectives: one sum of T x 256 counts a byte of a value, on the feature axis.
        """
        norms_LS = norms_LF[:, self.params.share.features]
        score_L = [own.value_M * norms_S[own.feature_M] for own, norms_S in zip(own_L, norms_LS, strict=True)]
        token_L = [entry_tokens(own.counts_T, own.feature_M.shape[0]) for own in own_L]
        bound_T = kth_largest(
            torch.cat(score_L),
            torch.cat(token_L),
            self.features.top_k * len(own_L),
            num_groups=num_tokens,
            sum_=self.mesh.feature.sum_,
        )
        return [
            keep_entries(own, score_M >= bound_T[token_M])
            for own, score_M, token_M in zip(own_L, score_L, token_L, strict=True)
        ]

    def backward(
        self, forward: Forward, *, step_tokens: int, sparsity_coeff: float, first: bool = True, last: bool = True
    ) -> Losses:
        """
        Write the gradients of the mean loss into `grads`; the forward pass's errors are overwritten.

        Args:
            step_tokens: Tokens of the step over all ranks and passes, which means are taken over.
            sparsity_coeff: Lambda of this step.
            first: Whether the step begins with this pass; otherwise its gradients are added.
            last: Whether it ends with it; then the data ranks' gradients are summed.
        Collectives: one exchange on the feature axis; with norms, two reductions more; in the last pass all gradients
            on the data axis.
        """
        params, grads, shape = self.params, self.grads, self.params.share.shape
        if first:
            for grad in self._encoder_grads():
                grad.zero_()
        error_LTC, inputs_LTD = forward.error_LTC, forward.inputs_LTD
        left_LTC = forward.error_LBC[:, error_LTC.shape[1] :]
        # Sparsity, pre-activation loss and AuxK, where they are computed: the host does not wait for each of them.
        losses_3 = torch.zeros(3, dtype=torch.float64, device=params.device)
        losses_3[2] = self.loss.aux_coeff / step_tokens * left_LTC.square().sum().double()
        error_LTC.mul_(2.0 / step_tokens)
        left_LTC.mul_(2.0 * self.loss.aux_coeff / step_tokens)
        num_slots = sum(forward.exchanged.sizes_R)
        num_dead_slots = sum(forward.dead.sizes_R) if forward.dead is not None else 0
        grad_slots = error_LTC.new_zeros(num_slots + num_dead_slots)
        decoder = DecoderGradient(self.kernels, params, self._pairs, forward.lists, forward.error_LBC)
        grad_b_dec_LC = grads.b_dec_LC if first else torch.empty_like(grads.b_dec_LC)
        near_LF, summing_near = None, None
        if self._sums_near:
            near_LF = error_LTC.new_empty(shape.num_layers, shape.num_features)
        decoder.back_to_values(grad_slots, grad_b_dec_LC, near_LF)
        if near_LF is not None:
            summing_near = self.mesh.feature.start_sum_(near_LF)
        returning = self._return(forward.exchanged, grad_slots[:num_slots])
        returning_dead = self._return(forward.dead, grad_slots[num_slots:]) if forward.dead is not None else None
        if left_LTC.shape[1]:
            torch.sum(error_LTC, 1, out=grad_b_dec_LC)  # what AuxK predicts has no bias
        if not first:
            grads.b_dec_LC.add_(grad_b_dec_LC)
        if grads.w_skip_LCD is not None:
            grads.w_skip_LCD.baddbmm_(error_LTC.transpose(1, 2), inputs_LTD, beta=0 if first else 1)
        norms_LF = forward.norms_LF if self._has_norms else None
        # Norms move the decoder's gradient once more.
        summing = self._start_decoder_sums(decoder, first=first, last=last) if norms_LF is None else []
        grad_norms_LS = torch.zeros_like(params.b_enc_LS)
        grad_own_L = returning.wait()
        if near_LF is not None and summing_near is not None:
            summing_near.wait()
            self._near_backward(near_LF[:, params.share.features])
        for layer in range(shape.num_layers):
            norms_S = norms_LF[layer, params.share.features] if norms_LF is not None else None
            self._encode_backward(
                layer, forward, grad_own_L[layer], norms_S, grad_norms_LS[layer], losses_3, step_tokens, sparsity_coeff
            )
        if norms_LF is not None:
            self._norms_backward(decoder, norms_LF, grad_norms_LS)
            summing += self._start_decoder_sums(decoder, first=first, last=last)
        if returning_dead is not None and forward.dead_own_L is not None:
            for layer, grad_M in enumerate(returning_dead.wait()):
                self._add_encoder_grads(layer, forward.dead_own_L[layer], grad_M, inputs_LTD[layer])
        if last:
            summing += [self.mesh.data.start_sum_(grad) for grad in self._encoder_grads()]
        for pending in summing:
            pending.wait()
        self.decoder_grads = None if self._sums_decoder_grads else decoder
        return Losses(*self.mesh.read(losses_3).tolist())

    def _near_backward(self, near_LS: Tensor) -> None:
        """
        Take the gradients of entries at 0 to the thresholds, summed over each feature's entries.

        Such an entry moves nothing else where JumpReLU's gradient does not pass its threshold, and its threshold by
        -threshold / bandwidth times its gradient: a factor of the feature alone.
        """
        threshold_LS, grad_LS = self.params.threshold_LS, self.grads.threshold_LS
        assert threshold_LS is not None
        assert grad_LS is not None
        grad_LS.addcmul_(threshold_LS, near_LS, value=-1 / self.features.bandwidth)

    def _start_decoder_sums(self, decoder: DecoderGradient, *, first: bool, last: bool) -> list[Pending]:
        """Write or add the decoder's gradient where it is summed; after the last pass start the data axis's sums."""
        if self._sums_decoder_grads:
            decoder.add_to(self.grads.w_dec_PFC, fresh=first)
        if not last or self.mesh.data.size == 1:
            return []
        grads = (self.grads.w_dec_PFC, self.grads.b_dec_LC, self.grads.w_skip_LCD)
        return [self.mesh.data.start_sum_(grad) for grad in grads if grad is not None]

    def _encoder_grads(self) -> list[Tensor]:
        grads = (self.grads.w_enc_LSD, self.grads.b_enc_LS, self.grads.threshold_LS)
        return [grad for grad in grads if grad is not None]

    def _norms_backward(self, decoder: DecoderGradient, norms_LF: Tensor, grad_norms_LS: Tensor) -> None:
        """Take the gradients of the norms to the decoder: d norm / d row = row / norm."""
        grad_norms_LF = self.mesh.feature.gather(grad_norms_LS).transpose(0, 1).reshape(norms_LF.shape)
        decoder.add_norms(norms_LF, grad_norms_LF, self.mesh.feature.size)

    def _encode_backward(
        self,
        layer: int,
        forward: Forward,
        grad_acts_M: Tensor,
        norms_S: Tensor | None,
        grad_norms_S: Tensor,
        losses_3: Tensor,
        step_tokens: int,
        sparsity_coeff: float,
    ) -> None:
        """Add one layer's gradients of the encoder and of norms, and its losses."""
        params, grads, own = self.params, self.grads, forward.own_L[layer]
        inputs_TD, feature_M = forward.inputs_LTD[layer], own.feature_M
        if norms_S is not None and sparsity_coeff > 0:
            loss = sparsity_loss(
                own.value_M, feature_M, norms_S, scale=self.loss.sparsity_scale, coeff=sparsity_coeff / step_tokens
            )
            losses_3[0] += loss.value
            grad_acts_M = grad_acts_M + loss.grad_acts_M
            grad_norms_S += loss.grad_norms_S
        grad_preact_M = grad_acts_M
        if own.preact_M is not None and params.threshold_LS is not None and grads.threshold_LS is not None:
            grad_preact_M, grad_threshold_M = jump_relu_backward(
                own.preact_M,
                params.threshold_LS[layer][feature_M],
                grad_acts_M,
                bandwidth=self.features.bandwidth,
                through_threshold=self.features.gradient_through_threshold,
            )
            add_entries(grads.threshold_LS[layer], feature_M, grad_threshold_M)
        if self._keeps_preacts:
            assert norms_S is not None
            grad_preact_M = grad_preact_M + self._preact_backward(
                layer, own, inputs_TD, norms_S, grad_norms_S, losses_3, step_tokens
            )
        self._add_encoder_grads(layer, own, grad_preact_M, inputs_TD)

    def _preact_backward(
        self,
        layer: int,
        own: OwnEntries,
        inputs_TD: Tensor,
        norms_S: Tensor,
        grad_norms_S: Tensor,
        losses_3: Tensor,
        step_tokens: int,
    ) -> Tensor | float:
        """
        Add the pre-activation loss and its gradients; return what listed entries have of it still to be added.

        JumpReLU lists all entries that are not below their threshold, so that the others' gradients are those of all
        tokens, which are one outer product, less what is listed.
        """
        params, grads, preact_TS = self.params, self.grads, self._preact_LTS[layer, : inputs_TD.shape[0]]
        threshold_S = torch.zeros_like(norms_S) if params.threshold_LS is None else params.threshold_LS[layer]
        part = preact_loss(preact_TS, threshold_S, norms_S, coeff=self.loss.preact_coeff / step_tokens)
        losses_3[1] += part.value
        grad_norms_S += part.grad_norms_S
        if own.preact_M is None or grads.threshold_LS is None:
            below_TS = (preact_TS < threshold_S).to(preact_TS.dtype)
            grads.b_enc_LS[layer] += part.grad_preact_S * below_TS.sum(0)
            grads.w_enc_LSD[layer].addmm_((below_TS * part.grad_preact_S).T, inputs_TD)
            if grads.threshold_LS is not None:
                grads.threshold_LS[layer] -= part.grad_preact_S * below_TS.sum(0)
            return 0.0
        all_S = inputs_TD.shape[0] * part.grad_preact_S
        grads.b_enc_LS[layer] += all_S
        grads.threshold_LS[layer] -= all_S
        grads.w_enc_LSD[layer].addr_(part.grad_preact_S, inputs_TD.sum(0))
        grad_M = -(own.preact_M >= threshold_S[own.feature_M]).to(preact_TS.dtype) * part.grad_preact_S[own.feature_M]
        add_entries(grads.threshold_LS[layer], own.feature_M, -grad_M)
        return grad_M

    def _add_encoder_grads(self, layer: int, own: OwnEntries, grad_preact_M: Tensor, inputs_TD: Tensor) -> None:
        add_entries(self.grads.b_enc_LS[layer], own.feature_M, grad_preact_M)
        self.kernels.encode_backward(
            own.counts_T, own.feature_M, grad_preact_M.contiguous(), inputs_TD, self.grads.w_enc_LSD[layer]
        )
