"""Changes to a forward pass, ready for `models.run` and `models.capture`."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weft.activations.v1 import messages_pb2
from weft_common.tensors import tensor_to_proto


def add(hook: str, value: npt.ArrayLike, *, positions: Sequence[int] = ()) -> messages_pb2.Intervention:
    """Add [d_model] or [num_positions, d_model] to what stands at a hook; no positions means all."""
    return _with_value(messages_pb2.INTERVENTION_KIND_ADD, hook, value, positions)


def replace(hook: str, value: npt.ArrayLike, *, positions: Sequence[int] = ()) -> messages_pb2.Intervention:
    """Put [d_model] or [num_positions, d_model] in place of what stands at a hook."""
    return _with_value(messages_pb2.INTERVENTION_KIND_SET, hook, value, positions)


def scale(hook: str, factor: float, *, positions: Sequence[int] = ()) -> messages_pb2.Intervention:
    """
    Multiply what stands at a hook.

    >>> scale("layers.3.mlp_out", 0.5, positions=[1]).factor
    0.5
    """
    return messages_pb2.Intervention(
        hook=hook, kind=messages_pb2.INTERVENTION_KIND_SCALE, positions=positions, factor=factor
    )


def ablate(hook: str, *, positions: Sequence[int] = ()) -> messages_pb2.Intervention:
    """Set what stands at a hook to zero."""
    return messages_pb2.Intervention(hook=hook, kind=messages_pb2.INTERVENTION_KIND_ABLATE, positions=positions)


def _with_value(
    kind: messages_pb2.InterventionKind.ValueType, hook: str, value: npt.ArrayLike, positions: Sequence[int]
) -> messages_pb2.Intervention:
    return messages_pb2.Intervention(
        hook=hook, kind=kind, positions=positions, value=tensor_to_proto(np.asarray(value, dtype=np.float32))
    )
