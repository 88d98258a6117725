"""Random entries in one type, and the same in float64 for the reference."""

from dataclasses import fields, replace

import hypothesis.strategies as st
import torch
from torch import Tensor

from weft_clt.active import ActiveLayer, active_from_dense

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Sums are in float32 whatever the type, of some 60 terms of size 1. A result in bfloat16 is rounded once, by 2^-9.
CLOSE = {
    torch.float32: {"rtol": 2e-6, "atol": 5e-5},
    torch.bfloat16: {"rtol": 2.0**-8, "atol": 5e-5},
}

Case = tuple[int, int, int, int, float]


@st.composite
def shapes(draw: st.DrawFn) -> Case:
    """Tokens, features, columns (also beyond one block), a seed, and a share of active entries: none to all."""
    return (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 19)),
        draw(st.sampled_from([1, 7, 16, 33, 130, 1030])),
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    )


def random(dtype: torch.dtype, seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def active_of(dtype: torch.dtype, num_tokens: int, num_features: int, seed: int, share: float) -> ActiveLayer:
    """Entries above 0 and, among the rest, some that are listed with 0; the first token of several has none."""
    uniform = torch.rand(num_tokens, num_features, generator=torch.Generator().manual_seed(seed + 1))
    if num_tokens > 2:
        uniform[0] = 1.0
    acts_TF = random(dtype, seed, num_tokens, num_features).abs() * (uniform < share)
    return active_from_dense(acts_TF, uniform < (share + 1) / 2)


def layers_of(dtype: torch.dtype, case: Case, num_layers: int) -> tuple[list[ActiveLayer], int]:
    """One list a layer, and the slots that they take, some of which stay empty."""
    num_tokens, num_features, _, seed, share = case
    layers, slots = [], 0
    for layer in range(num_layers):
        active = active_of(dtype, num_tokens, num_features, seed + 20 * layer, share)
        layers.append(replace(active, slot_N=active.slot_N + slots))
        slots += active.slot_N.shape[0] + 2
    return layers, slots


def wide(active: ActiveLayer) -> ActiveLayer:
    """The same entries in float64."""
    values = {field.name: getattr(active, field.name) for field in fields(ActiveLayer)}
    return ActiveLayer(**{name: each.double() if _floating(each) else each for name, each in values.items()})


def _floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def assert_close(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours.double(), reference.double(), **CLOSE[ours.dtype])
