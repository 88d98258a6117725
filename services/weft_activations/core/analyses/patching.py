"""
Activation patching: what happens to a prediction when one place of the pass is as it was on another prompt.

Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", with another prompt in the place of noise;
Heimersheim and Nanda 2024, "How to use and interpret activation patching". The corrupted prompt runs; a cell holds one
component, of one layer and at one position, at its value on the clean prompt.

Legend: C components, L layers, H heads, P positions, B cells of a batch.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np

from weft_activations.core.analyses.choosing import choose
from weft_activations.core.analyses.sweeping import CELLS_LIMIT, Cells, Metric, Pair, measure, read_pair, run_cells
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Doubles, Floats, Intervention, InterventionKind, ModelBackend
from weft_common.errors import InvalidArgumentError

__all__ = ["BY_HEAD", "COMPONENTS", "SweepStart", "check_components", "check_grid", "clean_values", "sweep_patches"]

COMPONENTS = ("resid_pre", "attn_out", "mlp_out")
BY_HEAD = "attn.z"


@dataclass(frozen=True)
class SweepStart:
    """The grid [C, L, P], or [C, L, H, P] where there are heads, and the metric of both prompts without a patch."""

    pair: Pair
    components: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    positions: tuple[int, ...]
    clean_metric: float
    corrupted_metric: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the grid."""
        dims = (self.components, self.layers, self.heads, self.positions)
        return tuple(len(dim) for dim in dims if dim is not self.heads or self.heads)

    @property
    def num_cells(self) -> int:
        """Cells in the grid."""
        return int(np.prod(self.shape))

    def cell(self, index: int) -> tuple[str, int, tuple[int, ...], int]:
        """Return the component, layer, heads (one or none) and position of a cell."""
        component, layer, *head, position = (int(at) for at in np.unravel_index(index, self.shape))
        heads = tuple(self.heads[at] for at in head)
        return self.components[component], self.layers[layer], heads, self.positions[position]


async def sweep_patches(
    inference: Inference,
    model_id: str,
    *,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    components: Sequence[str] = (),
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    positions: Sequence[int] = (),
) -> AsyncGenerator[SweepStart | Cells, None]:
    """
    Patch every cell of a grid; first the grid, then cells as they are done.

    Raises:
        InvalidArgumentError: The prompts differ in length, something chosen is not there, or the grid is too large.
        ResourceExhaustedError: The clean prompt's values are more than a pass may hold.
    """
    chosen = check_components(components, heads, among=COMPONENTS, by_head=BY_HEAD, field="components")

    def open_grid(backend: ModelBackend) -> tuple[SweepStart, dict[str, Floats]]:
        pair = read_pair(backend, model_id, clean, corrupted)
        metric.check(pair.info)
        grid = (
            choose(layers, pair.info.num_layers, "layer", "layers"),
            choose(heads, pair.info.num_heads, "head", "heads") if chosen == (BY_HEAD,) else (),
            choose(positions, len(pair.clean), "position", "positions"),
        )
        check_grid(len(chosen), *(len(dim) or 1 for dim in grid))
        values = clean_values(inference, backend, pair, [f"layers.{at}.{name}" for name in chosen for at in grid[0]])
        corrupted_V = backend.forward(model_id, pair.corrupted_ids, ["logits"])["logits"]
        start = SweepStart(
            pair,
            chosen,
            *grid,
            clean_metric=float(measure(metric, values.pop("logits")[None])[0]),
            corrupted_metric=float(measure(metric, corrupted_V[None])[0]),
        )
        return start, values

    start, values = await inference.on_model_thread(open_grid)
    yield start
    corrupted_ids = start.pair.corrupted_ids

    def patch(index: int) -> list[Intervention]:
        component, layer, head, position = start.cell(index)
        value = values[f"layers.{layer}.{component}"][(*head, position)]
        return [Intervention(layer, component, InterventionKind.SET, (position,), value, heads=head)]

    def run(backend: ModelBackend, indices: Sequence[int]) -> Doubles:
        rows = [patch(index) for index in indices]
        return measure(metric, backend.forward_rows(model_id, corrupted_ids, rows, ["logits"])["logits"])

    async for cells in run_cells(inference, start.pair.info, len(corrupted_ids), start.num_cells, run):
        yield cells


def check_components(
    asked: Sequence[str], heads: Sequence[int], *, among: tuple[str, ...], by_head: str, field: str
) -> tuple[str, ...]:
    """
    Return the components asked for, all of those without heads where none are.

    Raises:
        InvalidArgumentError: One is not among them, stands there twice, or heads are named where there are none.
    """
    if list(asked) == [by_head]:
        return (by_head,)
    if heads:
        raise InvalidArgumentError(f"heads are named; that goes with {by_head} alone, in {field}", field="heads")
    for name in asked:
        if name not in among:
            raise InvalidArgumentError(
                f"{name[:80]!r} cannot stand here; give some of {', '.join(among)}, or {by_head} alone", field=field
            )
    if len(set(asked)) != len(asked):
        raise InvalidArgumentError("a component is named twice; name each once", field=field)
    return tuple(asked) or among


def check_grid(*sizes: int) -> None:
    """Raise InvalidArgumentError where a grid has more cells than are allowed."""
    num_cells = int(np.prod(sizes, dtype=np.int64))
    if num_cells > CELLS_LIMIT:
        raise InvalidArgumentError(
            f"the grid has {num_cells} cells, a forward pass each; {CELLS_LIMIT} are allowed, so name fewer layers, "
            "positions or components",
            field="positions",
        )


def clean_values(inference: Inference, backend: ModelBackend, pair: Pair, hooks: Sequence[str]) -> dict[str, Floats]:
    """Run the clean prompt and return what lies at the hooks, and its `logits`."""
    wanted = [*hooks, "logits"]
    inference.check_size(wanted, pair.info, len(pair.clean))
    return backend.forward(pair.info.model_id, pair.clean_ids, wanted)
