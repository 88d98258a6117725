"""
How a cross-layer transcoder is trained: frozen, nested by concern, checked when it is made.

Nothing here is ever filled in or rewritten; derive another one with `dataclasses.replace`. Nothing here imports
torch, so that a controller can check a request with it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from weft_clt.choices import Activation, Moments, ParameterType, Scales
from weft_clt.piecewise import Pieces, check_pieces, parse_pieces
from weft_common.errors import InvalidArgumentError

__all__ = [
    "Activation",
    "BatchConfig",
    "FeatureConfig",
    "LossConfig",
    "MeshConfig",
    "Moments",
    "OptimizerConfig",
    "ParameterType",
    "RecordConfig",
    "Scales",
    "TrainingConfig",
]


def _check(ok: bool, field: str, message: str) -> None:
    if not ok:
        raise InvalidArgumentError(f"{field}: {message}", field=f"spec.{field}")


def _check_share(value: float, field: str) -> None:
    _check(0.0 <= value <= 1.0, field, f"{value} is no share; give a number from 0 to 1.")


def _check_not_negative(value: float, field: str) -> None:
    _check(math.isfinite(value) and value >= 0, field, f"{value} is refused; give a finite number of at least 0.")


@dataclass(frozen=True)
class FeatureConfig:
    """The features of a layer and how they are selected."""

    num_features: int
    activation: Activation
    top_k: int
    threshold_init: float
    bandwidth: float
    gradient_through_threshold: bool
    decoder_span: int = 0
    linear_skip: bool = False

    def __post_init__(self) -> None:
        _check(self.num_features >= 1, "num_features", f"{self.num_features} features a layer; give at least 1.")
        _check(self.decoder_span >= 0, "decoder_span", f"{self.decoder_span} layers; give at least 0, which means all.")
        if self.activation.counts:
            _check(
                1 <= self.top_k <= self.num_features,
                "top_k",
                f"{self.top_k} of {self.num_features} features cannot be kept; give 1 to num_features.",
            )
            return
        if self.activation is Activation.RELU:
            _check(self.top_k == 0, "top_k", f"{self.top_k} has no meaning with {self.activation}; give 0.")
            _check(
                self.threshold_init == 0,
                "threshold_init",
                f"{self.threshold_init} has no meaning with {self.activation}, whose threshold is 0; give 0.",
            )
            return
        _check(
            math.isfinite(self.threshold_init) and self.threshold_init > 0,
            "threshold_init",
            f"{self.threshold_init} is refused; a threshold starts above 0, 0.03 to 0.1 are usual.",
        )
        _check(
            math.isfinite(self.bandwidth) and self.bandwidth > 0,
            "bandwidth",
            f"{self.bandwidth} is refused; the pseudo-derivative needs a width above 0, 0.01 to 2 are usual.",
        )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses beside reconstruction."""

    sparsity_coeff: float
    sparsity_scale: float
    sparsity_ramp_share: float
    preact_coeff: float
    aux_top_k: int = 0
    aux_coeff: float = 0.0
    sparsity_schedule: Pieces = ()

    def __post_init__(self) -> None:
        _check_not_negative(self.sparsity_coeff, "sparsity_coeff")
        _check_not_negative(self.sparsity_scale, "sparsity_scale")
        _check_share(self.sparsity_ramp_share, "sparsity_ramp_share")
        _check_not_negative(self.preact_coeff, "preact_coeff")
        _check(self.aux_top_k >= 0, "aux_top_k", f"{self.aux_top_k} features; give at least 0, 512 is usual.")
        _check_not_negative(self.aux_coeff, "aux_coeff")
        _check(
            (self.aux_top_k > 0) == (self.aux_coeff > 0),
            "aux_coeff" if self.aux_top_k else "aux_top_k",
            "AuxK needs aux_top_k and aux_coeff, usually 512 and 0.03125; give both above 0, or neither.",
        )
        check_pieces(self.sparsity_schedule, "sparsity_schedule")
        _check(
            not self.sparsity_schedule or self.sparsity_ramp_share == 0,
            "sparsity_ramp_share",
            f"{self.sparsity_ramp_share} is given beside sparsity_schedule, which says it all; give 0.",
        )
        _check(
            not self.sparsity_schedule or self.sparsity_coeff > 0,
            "sparsity_schedule",
            "its factors are of sparsity_coeff, which is 0; give one above 0, or no schedule.",
        )
        _check(
            self.sparsity_coeff == 0 or self.sparsity_scale > 0,
            "sparsity_scale",
            "0 switches the sparsity loss off although sparsity_coeff is set; give its scale c, usually 4.",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, its schedule and clipping, and what its states and the weights are kept in."""

    learning_rate: float
    warmup_steps: int
    decay_share: float
    beta1: float
    beta2: float
    clip_norm: float
    schedule: Pieces = ()
    moments: Moments = Moments.FLOAT32
    parameters: ParameterType = ParameterType.FLOAT32

    def __post_init__(self) -> None:
        _check(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            "learning_rate",
            f"{self.learning_rate} is refused; give a finite rate above 0.",
        )
        _check(self.warmup_steps >= 0, "warmup_steps", f"{self.warmup_steps} steps; give at least 0.")
        _check_share(self.decay_share, "decay_share")
        _check(0.0 <= self.beta1 < 1.0, "adam_beta1", f"{self.beta1} is refused; give 0 up to, not including, 1.")
        _check(0.0 < self.beta2 < 1.0, "adam_beta2", f"{self.beta2} is refused; give a number between 0 and 1.")
        _check_not_negative(self.clip_norm, "clip_norm")
        check_pieces(self.schedule, "learning_rate_schedule")
        for field in ("warmup_steps", "decay_share"):
            value = getattr(self, field)
            _check(
                not self.schedule or value == 0,
                field,
                f"{value} is given beside learning_rate_schedule, which says it all; give 0.",
            )


@dataclass(frozen=True)
class BatchConfig:
    """What data a step takes, and how many steps there are."""

    dataset: str
    num_steps: int
    step_tokens: int
    dead_after_tokens: int
    seed: int
    scales: Scales = Scales.SEPARATE
    micro_batches: int = 0
    snapshot: int = 0
    take_snapshot: bool = False

    def __post_init__(self) -> None:
        _check(
            self.dataset.startswith("datasets/") and len(self.dataset) > len("datasets/"),
            "dataset",
            f"'{self.dataset}' names no dataset; give `datasets/{{dataset}}`.",
        )
        _check(self.num_steps >= 1, "num_steps", f"{self.num_steps} steps; give at least 1.")
        _check(self.step_tokens >= 1, "step_tokens", f"{self.step_tokens} tokens a step; give at least 1.")
        _check(
            self.dead_after_tokens >= 1,
            "dead_after_tokens",
            f"{self.dead_after_tokens} tokens; give at least 1, 10,000,000 is usual in long runs.",
        )
        _check(0 <= self.seed < 1 << 64, "seed", f"{self.seed} does not fit 64 bits without sign.")
        _check(self.micro_batches >= 0, "micro_batches", f"{self.micro_batches} micro-batches; give at least 0.")
        _check(
            self.snapshot >= 0, "snapshot", f"{self.snapshot} is no snapshot; give its number, or 0 for the dataset."
        )
        _check(
            not (self.snapshot and self.take_snapshot),
            "snapshot",
            f"{self.snapshot} is given beside take_snapshot, which takes another; give one of them.",
        )

    @property
    def passes(self) -> int:
        """In which a step's tokens come."""
        return max(1, self.micro_batches)


@dataclass(frozen=True)
class MeshConfig:
    """How ranks are laid out: `data_ranks` groups of `feature_ranks`."""

    feature_ranks: int
    data_ranks: int

    def __post_init__(self) -> None:
        _check(self.feature_ranks >= 1, "feature_ranks", f"{self.feature_ranks} ranks; give at least 1.")
        _check(self.data_ranks >= 1, "data_ranks", f"{self.data_ranks} ranks; give at least 1.")

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.feature_ranks * self.data_ranks


@dataclass(frozen=True)
class RecordConfig:
    """When the run is saved and evaluated."""

    checkpoint_steps: int
    evaluation_steps: int
    evaluation_tokens: int

    def __post_init__(self) -> None:
        for field in ("checkpoint_steps", "evaluation_steps", "evaluation_tokens"):
            value = getattr(self, field)
            _check(value >= 0, field, f"{value} is refused; give at least 0.")


_FIELDS: dict[str, tuple[str, str]] = {
    "dataset": ("batch", "dataset"),
    "num_features": ("features", "num_features"),
    "activation": ("features", "activation"),
    "top_k": ("features", "top_k"),
    "num_steps": ("batch", "num_steps"),
    "step_tokens": ("batch", "step_tokens"),
    "feature_ranks": ("mesh", "feature_ranks"),
    "data_ranks": ("mesh", "data_ranks"),
    "learning_rate": ("optimizer", "learning_rate"),
    "warmup_steps": ("optimizer", "warmup_steps"),
    "decay_share": ("optimizer", "decay_share"),
    "adam_beta1": ("optimizer", "beta1"),
    "adam_beta2": ("optimizer", "beta2"),
    "clip_norm": ("optimizer", "clip_norm"),
    "sparsity_coeff": ("loss", "sparsity_coeff"),
    "sparsity_scale": ("loss", "sparsity_scale"),
    "sparsity_ramp_share": ("loss", "sparsity_ramp_share"),
    "preact_coeff": ("loss", "preact_coeff"),
    "threshold_init": ("features", "threshold_init"),
    "bandwidth": ("features", "bandwidth"),
    "gradient_through_threshold": ("features", "gradient_through_threshold"),
    "dead_after_tokens": ("batch", "dead_after_tokens"),
    "checkpoint_steps": ("records", "checkpoint_steps"),
    "evaluation_steps": ("records", "evaluation_steps"),
    "evaluation_tokens": ("records", "evaluation_tokens"),
    "seed": ("batch", "seed"),
    "decoder_span": ("features", "decoder_span"),
    "linear_skip": ("features", "linear_skip"),
    "aux_top_k": ("loss", "aux_top_k"),
    "aux_coeff": ("loss", "aux_coeff"),
    "learning_rate_schedule": ("optimizer", "schedule"),
    "sparsity_schedule": ("loss", "sparsity_schedule"),
    "scales": ("batch", "scales"),
    "micro_batches": ("batch", "micro_batches"),
    "moments": ("optimizer", "moments"),
    "parameters": ("optimizer", "parameters"),
    "snapshot": ("batch", "snapshot"),
    "take_snapshot": ("batch", "take_snapshot"),
}
"""Field of weft.training.v1.TrainingSpec -> where it lies here."""

_LATER = (
    "decoder_span",
    "linear_skip",
    "aux_top_k",
    "aux_coeff",
    "learning_rate_schedule",
    "sparsity_schedule",
    "scales",
    "moments",
    "parameters",
    "snapshot",
    "take_snapshot",
)
"""Fields that came later; at their default they are no part of the digest, so that older checkpoints keep theirs."""

_WITHOUT_EFFECT = (
    "feature_ranks",
    "data_ranks",
    "checkpoint_steps",
    "evaluation_steps",
    "evaluation_tokens",
    "micro_batches",
)
"""Fields that decide nothing of what is learnt, so that a run may go on with others."""

_CONCERNS: dict[str, type] = {
    "features": FeatureConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "batch": BatchConfig,
    "mesh": MeshConfig,
    "records": RecordConfig,
}


def _integer(value: object, field: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, str) and value.lstrip("-").isdigit():
        return int(value)  # the JSON form of a 64-bit protobuf integer
    _check(whole and not isinstance(value, bool), field, f"{value!r} is no whole number.")
    return int(value)  # type: ignore[call-overload,no-any-return]


def _number(value: object, field: str) -> float:
    _check(isinstance(value, (int, float)) and not isinstance(value, bool), field, f"{value!r} is no number.")
    return float(value)  # type: ignore[arg-type]


def _parse(value: object, kind: str, field: str) -> object:
    match kind:
        case "int":
            return _integer(value, field)
        case "float":
            return _number(value, field)
        case "bool":
            _check(isinstance(value, bool), field, f"{value!r} is neither true nor false.")
            return value
        case "str":
            _check(isinstance(value, str), field, f"{value!r} is no text.")
            return value
        case "Pieces":
            return parse_pieces(value, field)
        case "Scales":
            return _member(Scales, Scales.SEPARATE if value == "SCALES_UNSPECIFIED" else value, field)
        case "Moments":
            return _member(Moments, Moments.FLOAT32 if value == "MOMENTS_UNSPECIFIED" else value, field)
        case "ParameterType":
            chosen = ParameterType.FLOAT32 if value == "PARAMETER_TYPE_UNSPECIFIED" else value
            return _member(ParameterType, chosen, field)
    return _member(Activation, value, field)


def _member(kind: type[StrEnum], value: object, field: str) -> StrEnum:
    names = ", ".join(kind)
    _check(isinstance(value, str) and value in set(kind), field, f"{value!r} is unknown; give one of {names}.")
    return kind(str(value))


_UNSET: dict[str, object] = {
    "int": 0,
    "float": 0.0,
    "bool": False,
    "str": "",
    "Activation": "ACTIVATION_UNSPECIFIED",
    "Scales": "SCALES_UNSPECIFIED",
    "Moments": "MOMENTS_UNSPECIFIED",
    "ParameterType": "PARAMETER_TYPE_UNSPECIFIED",
    "Pieces": (),
}
"""What protobuf means by a field that is not there."""


@dataclass(frozen=True)
class TrainingConfig:
    """
    Everything that decides what a run computes.

    Raises:
        InvalidArgumentError: A value, or two of them together, make no sense; `field` names the first.
    """

    features: FeatureConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    batch: BatchConfig
    mesh: MeshConfig
    records: RecordConfig

    def __post_init__(self) -> None:
        ranks, num_features = self.mesh.feature_ranks, self.features.num_features
        _check(
            num_features % ranks == 0,
            "num_features",
            f"{num_features} features cannot be split evenly over {ranks} feature ranks; "
            f"give a multiple of {ranks}, for example {-(-num_features // ranks) * ranks}.",
        )
        tokens, world = self.batch.step_tokens, self.mesh.world_size
        _check(
            tokens % world == 0,
            "step_tokens",
            f"{tokens} tokens a step cannot be split evenly over {world} ranks; "
            f"give a multiple of {world}, for example {-(-tokens // world) * world}.",
        )
        passes, activation = self.batch.passes, self.features.activation
        for ok, why in (
            (tokens // world % passes == 0, f"parts of {tokens // world} tokens of a rank are uneven; give a divisor."),
            (
                passes == 1 or activation is not Activation.BATCH_TOP_K,
                f"parts would cut {activation}'s selection among all tokens of a step; give 1.",
            ),
        ):
            _check(ok, "micro_batches", f"{passes} {why}")
        if activation.counts:
            for field, why in (
                ("sparsity_coeff", "whose sparsity is top_k"),
                ("preact_coeff", "which learns no threshold"),
            ):
                value = getattr(self.loss, field)
                _check(value == 0, field, f"{value} has no meaning with {activation}, {why}; give 0.")
        _check(
            self.loss.aux_top_k <= num_features,
            "aux_top_k",
            f"{self.loss.aux_top_k} of {num_features} features cannot be kept; give at most num_features.",
        )
        _check(
            self.optimizer.warmup_steps <= self.batch.num_steps,
            "warmup_steps",
            f"{self.optimizer.warmup_steps} steps of warm-up do not fit into {self.batch.num_steps} steps.",
        )

    def check_shape(self, num_layers: int, d_model: int) -> None:
        """
        Check that a dataset of this shape can be trained on.

        Raises:
            InvalidArgumentError: The decoder's columns cannot be split evenly.
        """
        _check(num_layers >= 1, "dataset", f"{self.batch.dataset} has {num_layers} layers; at least 1 is needed.")
        ranks = self.mesh.feature_ranks
        _check(
            d_model % ranks == 0,
            "feature_ranks",
            f"the {d_model} columns of {self.batch.dataset} cannot be split evenly over {ranks} feature ranks; "
            f"give a divisor of {d_model}.",
        )
        span = self.features.decoder_span
        _check(
            span <= num_layers,
            "decoder_span",
            f"a feature cannot write to {span} of {num_layers} layers; give 1 to {num_layers}, or 0 for all.",
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> TrainingConfig:
        """
        Read the JSON form of weft.training.v1.TrainingSpec, with the names of proto fields and enum values.

        Args:
            spec: A field that is missing has protobuf's default. 64-bit integers may be decimal strings.

        Raises:
            InvalidArgumentError: An unknown field, a wrong type, or a value that is refused.
        """
        for field in spec:
            _check(field in _FIELDS, field, "no field of TrainingSpec has this name.")
        values: dict[str, dict[str, object]] = {concern: {} for concern in _CONCERNS}
        for field, (concern, name) in _FIELDS.items():
            kind = str(_CONCERNS[concern].__dataclass_fields__[name].type)  # type: ignore[attr-defined]
            values[concern][name] = _parse(spec.get(field, _UNSET[kind]), kind, field)
        return cls(**{concern: _CONCERNS[concern](**values[concern]) for concern in _CONCERNS})

    def to_spec(self) -> dict[str, object]:
        """Return the JSON form that `from_spec` reads, every field written out."""
        spec: dict[str, object] = {}
        for field, (concern, name) in _FIELDS.items():
            value = getattr(getattr(self, concern), name)
            if isinstance(value, tuple):
                spec[field] = [piece.to_document() for piece in value]
            else:
                spec[field] = str(value) if isinstance(value, StrEnum) else value
        return spec

    def digest(self) -> str:
        """Return the hex SHA-256 of all that decides what is learnt, by which a checkpoint knows its run's."""
        spec = {field: value for field, value in self.to_spec().items() if field not in _WITHOUT_EFFECT}
        for field in _LATER:
            if not spec[field] or spec[field] in (Scales.SEPARATE, Moments.FLOAT32, ParameterType.FLOAT32):
                del spec[field]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
