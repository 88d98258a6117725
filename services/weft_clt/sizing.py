"""
What a run takes: parameters, memory of a rank, bytes between ranks, floating-point operations.

Each formula stands for an allocation or a collective of this package; the module named beside it is where it happens.
`docs/operations/sizing.md` derives them, `tests/distributed/test_sizing_measured.py` compares them with measured runs.
Nothing here imports torch, so that a client can plan without it.
Shapes: L layers, D d_model, F features of a layer, P pairs of a source and a target layer, R feature ranks, G groups on
the data axis, T tokens of a group and pass, O tokens of a rank and pass, S = F / R features and C = D / R columns of a
rank, K entries above 0 and E entries listed of a token and layer over all ranks, b bytes of a floating-point number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from weft_clt.buffer_sizes import activation_bytes, entry_bytes
from weft_clt.config import Activation
from weft_common.errors import InvalidArgumentError

__all__ = ["ExportSize", "Flops", "Memory", "Network", "Traffic", "Workload"]

_INDEX_BYTES = 4
_WIDE_BYTES = 8
"""Of float64 and int64."""
_COUNTED_BYTES = 256 * _WIDE_BYTES
"""What ranks tell each other of one group and one byte of a value (`selection.kth_largest`)."""
_CODE_BYTES, _BASIS_BYTES, _AHEAD_BYTES = 2, 2, 64 << 20
_CALIBRATION_TOKENS, _EXPORT_TOKENS = 2048, 512


@dataclass(frozen=True)
class Workload:
    """
    A run, as far as its size goes.

    Args:
        num_layers: L.
        d_model: D.
        num_features: F.
        activation: Decides what is listed and which losses there are.
        active: K: top_k, or L0 of JumpReLU.
        near: For JumpReLU: entries near their threshold beside each active one.
        decoder_span: Layers that a feature writes to, its own included; 0 means all from its own on.
        step_tokens: Tokens of a step over all ranks.
        feature_ranks: R.
        data_ranks: G.
        float_bytes: b; what weft trains in is 4.
        first_moment: Whether Adam's beta1 is above 0.
        preact_loss: Whether the pre-activation loss is on.
        through_threshold: For JumpReLU: whether gradients pass the threshold; otherwise those of entries near it are
            summed by feature.
        linear_skip: Whether there is a linear map beside the features.
        aux_top_k: Dead features that AuxK may list of a token and layer; memory is for as many.
        mixed_row_groups: Row groups that a step's tokens come from, over all ranks.
        row_group_tokens: Tokens of one.
        passes: In which a step's tokens come.
        moment_bytes: Of a number of Adam's moments: 4, or 2 for bfloat16.
        weight_bytes: Of one of the encoder's and decoder's weights: 4, or 2 for bfloat16.
        batches: In memory at once: 2 on a GPU, where the next is made while one is used (`staging`), else 1.
        has_basis: Whether the dataset's codec is `klt`, whose basis the trainer undoes.

    Raises:
        InvalidArgumentError: Features, columns or tokens cannot be split evenly.
    """

    num_layers: int
    d_model: int
    num_features: int
    activation: Activation
    active: float
    near: float
    decoder_span: int
    step_tokens: int
    feature_ranks: int
    data_ranks: int
    float_bytes: int = 4
    first_moment: bool = True
    preact_loss: bool = False
    through_threshold: bool = True
    linear_skip: bool = False
    aux_top_k: int = 0
    mixed_row_groups: int = 16
    row_group_tokens: int = 256
    passes: int = 1
    moment_bytes: int = 4
    weight_bytes: int = 4
    batches: int = 1
    has_basis: bool = False

    def __post_init__(self) -> None:
        ranks = self.feature_ranks
        for what, number in (("features", self.num_features), ("columns of d_model", self.d_model)):
            if number % ranks:
                raise InvalidArgumentError(
                    f"{number} {what} cannot be split evenly over {ranks} feature ranks; give a common divisor of "
                    f"{self.num_features} and {self.d_model}"
                )
        passes = f" in {self.passes} passes" if self.passes > 1 else ""
        if self.step_tokens % (ranks * self.data_ranks * self.passes):
            raise InvalidArgumentError(
                f"{self.step_tokens} tokens a step cannot be split evenly over {ranks} x {self.data_ranks} ranks"
                f"{passes}; give a multiple"
            )
        if self.passes > 1 and self.activation is Activation.BATCH_TOP_K:
            raise InvalidArgumentError(f"{self.activation} chooses among all tokens of a step, not of a micro-batch")
        if not 0 < self.active <= self.num_features:
            raise InvalidArgumentError(f"{self.active:g} of {self.num_features} features cannot be active; give fewer")
        if not 0 <= self.decoder_span <= self.num_layers:
            raise InvalidArgumentError(
                f"a decoder span of {self.decoder_span} does not fit {self.num_layers} layers; 0 means all"
            )

    @property
    def num_pairs(self) -> int:
        """P: decoder blocks."""
        span = self.decoder_span or self.num_layers
        return sum(min(span, self.num_layers - source) for source in range(self.num_layers))

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.feature_ranks * self.data_ranks

    @property
    def jumps(self) -> bool:
        """Whether entries near a threshold are listed too."""
        return self.activation is Activation.JUMP_RELU

    @property
    def weighs(self) -> bool:
        """Whether losses, or the ranking of joint TopK, weigh by decoder norms."""
        return self.activation in (Activation.JUMP_RELU, Activation.RELU, Activation.JOINT_TOP_K)

    @property
    def calibrates(self) -> bool:
        """Whether the first step sets the encoder's biases (`initial.calibrate_biases`)."""
        return not self.activation.counts

    @property
    def group_tokens(self) -> int:
        """T."""
        return self.step_tokens // (self.data_ranks * self.passes)

    @property
    def rank_tokens(self) -> int:
        """O."""
        return self.step_tokens // (self.world_size * self.passes)

    @property
    def rank_features(self) -> int:
        """S."""
        return self.num_features // self.feature_ranks

    @property
    def rank_columns(self) -> int:
        """C."""
        return self.d_model // self.feature_ranks

    @property
    def listed_by_rank(self) -> float:
        """Entries that one rank lists of a token and layer (`step`): TopK lists its own k before the ranks agree."""
        if self.jumps:
            return min(self.active * (1 + self.near), self.num_features) / self.feature_ranks
        if self.activation is Activation.TOP_K:
            return min(self.active, self.rank_features)
        return self.active / self.feature_ranks

    @property
    def listed(self) -> float:
        """E."""
        return self.listed_by_rank * self.feature_ranks

    @property
    def kept(self) -> float:
        """Entries of a token and layer after the ranks agreed (`kernels.merge`)."""
        return self.listed if self.jumps else self.active

    @property
    def num_encoder_parameters(self) -> int:
        """Encoder, its bias, and thresholds where there are any (`parameters`)."""
        return self.num_layers * self.num_features * (self.d_model + 1 + self.activation.has_thresholds)

    @property
    def num_decoder_parameters(self) -> int:
        """All P decoder blocks, the decoder's bias, and the linear skip where there is one."""
        skip = self.num_layers * self.d_model if self.linear_skip else 0
        return (self.num_pairs * self.num_features + self.num_layers + skip) * self.d_model

    @property
    def num_parameters(self) -> int:
        """All of a transcoder's."""
        return self.num_encoder_parameters + self.num_decoder_parameters

    @property
    def rank_parameters(self) -> int:
        """Of one rank; both encoder and decoder are split evenly."""
        return self.num_parameters // self.feature_ranks

    @property
    def rank_decoder_weights(self) -> int:
        """All blocks in this rank's columns."""
        return self.num_pairs * self.num_features * self.rank_columns

    @property
    def rank_parameters_bytes(self) -> int:
        """What they are kept in; biases, thresholds and the linear skip as they are computed with."""
        weights = self.num_layers * self.rank_features * self.d_model + self.rank_decoder_weights
        return self.rank_parameters * self.float_bytes - weights * (self.float_bytes - self.weight_bytes)

    @property
    def keeps_decoder_gradient(self) -> bool:
        """Only a sum over data ranks or passes needs it in memory (`gradients`)."""
        return self.data_ranks > 1 or self.passes > 1

    @property
    def compares(self) -> bool:
        """Whether all pre-activations of a layer have to be there at once (`step.StepEngine.forward`)."""
        return self.activation in (Activation.BATCH_TOP_K, Activation.JOINT_TOP_K) or self.aux_top_k > 0

    @property
    def rank_moments_bytes(self) -> int:
        """Adam's moments; those of thresholds are at least float32."""
        thresholds = self.num_layers * self.rank_features * self.activation.has_thresholds
        others = self.rank_parameters - thresholds
        return (1 + self.first_moment) * (others * self.moment_bytes + thresholds * max(4, self.moment_bytes))

    @property
    def checkpoint_bytes(self) -> int:
        """A checkpoint in the middle of a run: parameters, moments, and in every rank's file the clock of all."""
        clocks = self.feature_ranks * self.num_layers * self.num_features * _WIDE_BYTES
        return self.last_checkpoint_bytes + self.feature_ranks * self.rank_moments_bytes + clocks

    @property
    def last_checkpoint_bytes(self) -> int:
        """The checkpoint of the last step: parameters only."""
        return self.feature_ranks * self.rank_parameters_bytes

    @property
    def transcoder_bytes(self) -> int:
        """An export (`export`): float32, thresholds always."""
        thresholds = 0 if self.activation.has_thresholds else self.num_layers * self.num_features
        return 4 * (self.num_parameters + thresholds)

    def memory(self) -> Memory:
        """Memory of one rank at its peak."""
        return Memory.of(self)

    def network(self) -> Network:
        """Bytes that one rank hands to others in a step."""
        return Network.of(self)

    def flops(self) -> Flops:
        """Floating-point operations of a step over all ranks, a token."""
        return Flops.of(self)

    def traffic(self) -> Traffic:
        """Bytes that a step moves between a rank's processor and its memory."""
        return Traffic.of(self)

    def export(self, train_tokens: int = _CALIBRATION_TOKENS) -> ExportSize:
        """Memory of an export from a dataset of at least so many tokens to train on."""
        return ExportSize.of(self, train_tokens)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by what they are for; the process itself (interpreter, libraries) is not in it."""

    parameters: int
    gradients: int
    moments: int
    clocks: int
    """Tokens since each feature last fired, of all F features on every rank (`metrics.DeadClock`)."""
    activations: int
    """Inputs, targets and errors of the group's tokens, pre-activations, and a target's errors laid out as panels."""
    data: int
    """Batches, the row groups that they are drawn from, as codes of at most 2 bytes, and a basis (`loader`, `data`)."""
    entries: int
    """Active features: own lists, exchanged lists, lists by feature, and what comes back (`exchange`, `kernels`)."""
    transient: int
    """The largest of what a part of a step needs: masks, the first biases, norms, metrics, the evaluation's batch."""
    start: int
    """What drawing the first parameters takes more than training does (`initial`): something where ranks are many."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, name) for name in self.__dataclass_fields__)

    @classmethod
    def of(cls, work: Workload) -> Memory:
        """Add up what `weft_clt` allocates."""
        layers, size = work.num_layers, work.float_bytes
        tensors = work.rank_parameters_bytes
        gradients = work.rank_parameters - (0 if work.keeps_decoder_gradient else work.rank_decoder_weights)
        batch = 2 * layers * work.rank_tokens * work.d_model * 4
        row_group = 2 * layers * work.row_group_tokens * work.d_model * _CODE_BYTES
        mixed = math.ceil(min(work.mixed_row_groups, work.step_tokens) / work.world_size)
        # A step that takes more rows than its streams hold takes further row groups.
        mixed = max(mixed, math.ceil(work.rank_tokens * work.passes / work.row_group_tokens))
        num_row_groups = mixed + max(1, min(mixed, _AHEAD_BYTES // row_group))
        # Of both streams, in float16. On a processor each split has it as it was read, and the batch once more; on a
        # GPU each of the two batches.
        basis = 2 * layers * work.d_model**2 * _BASIS_BYTES if work.has_basis else 0
        bases = basis * (3 if work.batches == 1 else 2)
        masks = 3 * work.group_tokens * work.rank_features if work.compares else 0
        # The first step sorts what every feature makes of all tokens: values, sorted values and their int64 indices.
        calibrated = work.step_tokens // (work.feature_ranks * work.passes)
        biases = calibrated * work.num_features * (2 * size + 8) if work.calibrates else 0
        preacts = work.group_tokens * work.rank_features * size
        # Beside the norms, a layer's entries: coefficient, gradient, their product, and that in float64.
        norms = 4 * layers * work.num_features * size if work.weighs else 0
        norms += round(work.group_tokens * work.listed) * (3 * size + _WIDE_BYTES) if work.weighs else 0
        losses = (2 if work.jumps else 4) * preacts if work.preact_loss else 0
        metrics = work.group_tokens * work.rank_columns * size
        metrics += layers * work.num_features * (_WIDE_BYTES + _INDEX_BYTES + 1)
        # An evaluation ends with every feature's count, its share of tokens and two comparisons, in 64 bits.
        densities = layers * work.num_features * (4 * _WIDE_BYTES + 2)
        parts = cls(
            parameters=tensors,
            gradients=gradients * size,
            moments=work.rank_moments_bytes,
            clocks=layers * work.num_features * _WIDE_BYTES,
            activations=activation_bytes(work),
            data=work.batches * batch + num_row_groups * row_group + bases,
            entries=entry_bytes(work),
            transient=max(masks, biases, norms + losses, metrics, batch + row_group + basis + masks, densities),
            start=0,
        )
        # One layer of all features in float64, and its own rows again; nothing but the parameters is there yet.
        drawing = tensors + _WIDE_BYTES * (work.num_features + work.rank_features) * work.d_model
        return replace(parts, start=max(0, drawing - parts.total))


@dataclass(frozen=True)
class Network:
    """Bytes that one rank hands to others in a step; a reduction counts as a ring's traffic (`mesh`)."""

    inputs: int
    """Inputs to all ranks of the group, targets to the owners of their columns."""
    entries: int
    """Lists of active features, and the gradients of their values."""
    norms: int
    """Norms of decoder rows and their gradients, and for JumpReLU the sums of gradients of entries near a threshold."""
    selection: int
    """Counts by which ranks agree on a bound, for BatchTopK and joint TopK (`selection.kth_largest`)."""
    gradients: int
    """The sum over the data axis."""
    metrics: int
    """Counts and figures."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, name) for name in self.__dataclass_fields__)

    @classmethod
    def of(cls, work: Workload) -> Network:
        """Follow a step through its collectives; some are those of each pass."""
        layers, size, ranks = work.num_layers, work.float_bytes, work.feature_ranks
        others = ranks - 1
        dead_by_rank = min(work.aux_top_k, work.rank_features)
        listed_by_rank = round(layers * work.group_tokens * (work.listed_by_rank + dead_by_rank))
        wire = 2 if work.num_features <= 1 << 16 else 4
        weights = layers * work.num_features
        counts = (2 if dead_by_rank else 1) * layers * work.group_tokens * _INDEX_BYTES * others
        norms = _ring(weights * size, ranks) + weights // ranks * size * others if work.weighs else 0
        near = _ring(weights * size, ranks) if work.jumps and not work.through_threshold else 0
        selection = 0
        if work.activation is Activation.JOINT_TOP_K:
            selection = size * _ring(work.group_tokens * _COUNTED_BYTES, ranks)
        elif work.activation is Activation.BATCH_TOP_K:
            selection = size * sum(_ring(layers * _COUNTED_BYTES, number) for number in (ranks, work.data_ranks))
        return cls(
            inputs=work.passes * layers * work.rank_tokens * others * (work.d_model + work.rank_columns) * size,
            entries=work.passes * (listed_by_rank * others * (wire + 2 * size) + counts),
            norms=work.passes * (norms + near),
            selection=work.passes * selection,
            gradients=_ring(work.rank_parameters * size, work.data_ranks),
            metrics=_ring((weights + layers * (work.rank_columns + 3) + 4) * _WIDE_BYTES, work.data_ranks)
            + _ring((2 * layers + 4) * _WIDE_BYTES, ranks),
        )


def _ring(num_bytes: int, ranks: int) -> int:
    """
    What a rank sends where a tensor is summed over ranks.

    >>> _ring(100, 1), _ring(100, 4)
    (0, 150)
    """
    return 2 * num_bytes * (ranks - 1) // ranks


@dataclass(frozen=True)
class Flops:
    """Floating-point operations a token, over all ranks; a multiply-add is two."""

    encode: float
    """One dense product a layer, 2 L F D."""
    decode: float
    """Rows of active features, the gradients of their values, and twice the rows' own: 8 P K D; the linear skip."""
    encode_backward: float
    """Outer products of listed entries, 2 L K D; dense where the pre-activation loss is on, but for JumpReLU."""
    norms: float
    """Norms of decoder rows and their gradients, once a pass."""
    update: float
    """Clipping and Adam, about 14 a parameter and step."""

    @property
    def total(self) -> float:
        """All parts."""
        return float(sum(getattr(self, name) for name in self.__dataclass_fields__))

    @classmethod
    def of(cls, work: Workload) -> Flops:
        """Count them."""
        dense = 2.0 * work.num_layers * work.num_features * work.d_model
        rows = 2.0 * work.num_pairs * work.d_model
        return cls(
            encode=dense,
            decode=rows * (2 * work.active + 2 * work.kept + 4 * work.aux_top_k)
            + (4.0 * work.num_layers * work.d_model**2 if work.linear_skip else 0.0),
            encode_backward=2.0 * work.num_layers * work.kept * work.d_model
            + (dense if work.preact_loss and not work.jumps else 0.0),
            norms=2 * rows * work.num_features * work.passes / work.step_tokens if work.weighs else 0.0,
            update=14.0 * work.num_parameters * work.data_ranks / work.step_tokens,
        )


@dataclass(frozen=True)
class Traffic:
    """Bytes between a rank's processor and its memory in a step, where nothing stays in a cache."""

    weights: int
    """Rows of the decoder that are read for an active feature, and rows of the error."""
    update: int
    """
    Parameters and moments read and written; gradients in memory written, read for their norm and read again; the
    decoder's read and written by each further pass.
    """

    @property
    def total(self) -> int:
        """All parts."""
        return self.weights + self.update

    @classmethod
    def of(cls, work: Workload) -> Traffic:
        """Add it up."""
        rows = work.num_pairs * work.passes * work.group_tokens * work.rank_columns * work.float_bytes
        gradients = work.rank_parameters - (0 if work.keeps_decoder_gradient else work.rank_decoder_weights)
        states = 2 * (work.rank_parameters_bytes + work.rank_moments_bytes)
        added = 2 * (work.passes - 1) * work.rank_decoder_weights
        return cls(
            weights=round(rows * (2 * work.active + 2 * work.kept)),
            update=(3 * gradients + added) * work.float_bytes + states,
        )


@dataclass(frozen=True)
class ExportSize:
    """Bytes of the one process that writes a transcoder (`weft_trainer.worker.export`), by what comes after what."""

    parameters: int
    """Of all ranks, joined."""
    calibration: int
    """Pre-activations of the tokens that thresholds are found on, and one layer's again, sorted; for TopK."""
    evaluation: int
    """An engine a variant: as trained, and for TopK as exported."""
    writing: int
    """The decoders of one layer, scaled and stacked."""

    @property
    def peak(self) -> int:
        """The largest of the phases, over the parameters."""
        return self.parameters + max(self.calibration, self.evaluation, self.writing)

    @classmethod
    def of(cls, work: Workload, train_tokens: int) -> ExportSize:
        """Add up what an export allocates."""
        layers, features, width = work.num_layers, work.num_features, work.d_model
        parameters = work.last_checkpoint_bytes
        num_tokens = min(_CALIBRATION_TOKENS, train_tokens)
        # The layer, what TopK selects of it, and its sorted values with their int64 indices.
        counted = work.activation in (Activation.TOP_K, Activation.JOINT_TOP_K)
        calibration = (4 * layers + 17) * num_tokens * features
        engine = 4 * work.num_encoder_parameters + _EXPORT_TOKENS * (4 * layers * (1 + 2) * width + 7 * features)
        span = work.decoder_span or layers
        return cls(
            parameters=parameters,
            calibration=calibration if counted else 0,
            evaluation=(2 if counted else 1) * engine,
            writing=4 * 2 * span * features * width,
        )
