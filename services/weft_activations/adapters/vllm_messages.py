"""Interventions in plain data, as workers in other processes are told them: text, numbers and bytes."""

from typing import Any

import numpy as np

from weft_activations.core.ports import Floats, Intervention, InterventionKind

__all__ = ["from_plain", "to_plain"]

_ARRAYS = ("value", "direction")
_FIELDS = ("layer", "hook", "kind", "positions", "value", "factor", "heads", "neurons", "direction")


def to_plain(change: Intervention) -> dict[str, Any]:
    """Say an intervention of one request; arrays are their shape and float32 bytes."""
    plain = {name: getattr(change, name) for name in _FIELDS}
    return plain | {"kind": change.kind.value} | {name: _packed(plain[name]) for name in _ARRAYS}


def from_plain(plain: dict[str, Any]) -> Intervention:
    """Return the intervention that was said."""
    arrays = {name: _unpacked(plain[name]) for name in _ARRAYS}
    return Intervention(**plain | {"kind": InterventionKind(plain["kind"])} | arrays)


def _packed(value: Floats | None) -> tuple[tuple[int, ...], bytes] | None:
    return None if value is None else (value.shape, np.ascontiguousarray(value, np.float32).tobytes())


def _unpacked(packed: tuple[tuple[int, ...], bytes] | None) -> Floats | None:
    # A copy, since torch warns of arrays that it may not write to.
    return None if packed is None else np.frombuffer(packed[1], np.float32).reshape(packed[0]).copy()
