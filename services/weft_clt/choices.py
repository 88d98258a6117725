"""What a training config chooses among, with the names of weft.training.v1; nothing here imports torch."""

from enum import StrEnum

__all__ = ["Activation", "Moments", "ParameterType", "Scales"]


class Activation(StrEnum):
    """How features are selected."""

    JUMP_RELU = "ACTIVATION_JUMP_RELU"
    """A learned threshold a feature."""
    TOP_K = "ACTIVATION_TOP_K"
    """The largest k of a layer, where they are positive."""
    RELU = "ACTIVATION_RELU"
    """All that are positive."""
    BATCH_TOP_K = "ACTIVATION_BATCH_TOP_K"
    """The largest k x tokens of a layer and step; outside of training all above the layer's running threshold."""
    JOINT_TOP_K = "ACTIVATION_JOINT_TOP_K"
    """The largest k x layers of a token over all layers, ranked by value times decoder norm."""

    @property
    def counts(self) -> bool:
        """Whether `top_k` decides how many features are active, and no loss does."""
        return self in (Activation.TOP_K, Activation.BATCH_TOP_K, Activation.JOINT_TOP_K)

    @property
    def has_thresholds(self) -> bool:
        """Whether a threshold a feature is learnt or kept."""
        return self in (Activation.JUMP_RELU, Activation.BATCH_TOP_K)


class Scales(StrEnum):
    """Which activations share a scale."""

    SEPARATE = "SCALES_SEPARATE"
    """Each layer has one for its inputs and one for its outputs."""
    TIED = "SCALES_TIED"
    """Inputs and outputs of a layer share one."""
    ACROSS_LAYERS = "SCALES_ACROSS_LAYERS"
    """The inputs of all layers share one, and so do the outputs."""


class Moments(StrEnum):
    """What Adam's moments are kept in."""

    FLOAT32 = "MOMENTS_FLOAT32"
    """As precise as the parameters."""
    BFLOAT16 = "MOMENTS_BFLOAT16"
    """Half the memory; rounded at random, so that they are right in the mean."""


class ParameterType(StrEnum):
    """What the encoder's and decoder's weights are kept in; biases, thresholds and the linear skip are float32."""

    FLOAT32 = "PARAMETER_TYPE_FLOAT32"
    """As they are computed with."""
    BFLOAT16 = "PARAMETER_TYPE_BFLOAT16"
    """Half the memory; a step rounds them at random, so that small steps count in the mean."""
