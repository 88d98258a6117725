"""Changes to a forward pass, ready for `models.run`, `models.capture` and `models.generate`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weft.activations.v1 import messages_pb2
from weft_common.tensors import tensor_to_proto

Source = str | Sequence[int] | messages_pb2.Prompt
"""Text, token ids that are taken as they are, or what `weft_client.speech.heard` makes of a recording."""


def add(hook: str, value: npt.ArrayLike, **where: Any) -> messages_pb2.Intervention:
    """Add to what stands at a hook: [d_model], [num_positions, d_model] and so on; `where` as in `at`."""
    return at(hook, messages_pb2.INTERVENTION_KIND_ADD, value=value, **where)


def replace(hook: str, value: npt.ArrayLike, **where: Any) -> messages_pb2.Intervention:
    """Put a value in place of what stands at a hook; `where` as in `at`."""
    return at(hook, messages_pb2.INTERVENTION_KIND_SET, value=value, **where)


def scale(hook: str, factor: float, **where: Any) -> messages_pb2.Intervention:
    """
    Multiply what stands at a hook; `where` as in `at`.

    >>> scale("layers.3.mlp.post", 0.5, positions=[1], neurons=[7]).factor
    0.5
    """
    made = at(hook, messages_pb2.INTERVENTION_KIND_SCALE, **where)
    made.factor = factor
    return made


def ablate(hook: str, **where: Any) -> messages_pb2.Intervention:
    """Set what stands at a hook to zero; `where` as in `at`."""
    return at(hook, messages_pb2.INTERVENTION_KIND_ABLATE, **where)


def mean_ablate(hook: str, mean: npt.ArrayLike | None = None, **where: Any) -> messages_pb2.Intervention:
    """Set what stands at a hook to a given mean, or to its own over the prompt's positions; `where` as in `at`."""
    return at(hook, messages_pb2.INTERVENTION_KIND_MEAN, value=mean, **where)


def patch(
    hook: str, source: Source, *, source_positions: Sequence[int] = (), **where: Any
) -> messages_pb2.Intervention:
    """Set what stands at a hook to what stands there in another prompt, text or token ids; `where` as in `at`."""
    made = at(hook, messages_pb2.INTERVENTION_KIND_PATCH, **where)
    made.source.CopyFrom(_prompt(source))
    made.source_positions.extend(source_positions)
    return made


def resample(hook: str, source: Source, *, seed: int = 0, **where: Any) -> messages_pb2.Intervention:
    """Set each position to what stands at a drawn position of another prompt; `where` as in `at`."""
    made = at(hook, messages_pb2.INTERVENTION_KIND_RESAMPLE, **where)
    made.source.CopyFrom(_prompt(source))
    made.seed = seed
    return made


def at(
    hook: str,
    kind: messages_pb2.InterventionKind.ValueType,
    *,
    value: npt.ArrayLike | None = None,
    positions: Sequence[int] = (),
    heads: Sequence[int] = (),
    neurons: Sequence[int] = (),
    direction: npt.ArrayLike | None = None,
) -> messages_pb2.Intervention:
    """
    Make an intervention.

    Args:
        hook: A component with its layer, `layers.3.attn.z`.
        kind: What is done.
        value: For ADD, SET and MEAN.
        positions: Token positions, none for all.
        heads: Heads, none for all.
        neurons: Entries of the last dim, none for all.
        direction: Along the last dim: only the change's part along it is made.
    """
    return messages_pb2.Intervention(
        hook=hook,
        kind=kind,
        positions=positions,
        heads=heads,
        neurons=neurons,
        value=None if value is None else tensor_to_proto(np.asarray(value, dtype=np.float32)),
        direction=None if direction is None else tensor_to_proto(np.asarray(direction, dtype=np.float32)),
    )


def _prompt(prompt: Source) -> messages_pb2.Prompt:
    if isinstance(prompt, messages_pb2.Prompt):
        return prompt
    if isinstance(prompt, str):
        return messages_pb2.Prompt(text=prompt)
    return messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=prompt))
