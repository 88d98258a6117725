"""
Path patching: what happens to a prediction when one part alone reads what another wrote on another prompt.

Source: Wang et al. 2022, "Interpretability in the Wild", path patching. With every other part held, what a sender
writes reaches a receiver through the residual stream alone, so the receiver reads its own input plus the difference
that the sender makes; what it then writes is put into an otherwise unchanged pass. Heads receive by their queries, keys
or values alone, or by all three.

Legend: P positions, D d_model, B cells of a batch.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from weft_activations.core.analyses.choosing import choose
from weft_activations.core.analyses.patching import SweepStart, check_components, check_grid, clean_values
from weft_activations.core.analyses.sweeping import Cells, Metric, measure, read_pair, run_cells
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Doubles, Floats, Intervention, InterventionKind, ModelBackend, ModelInfo
from weft_common.errors import FailedPreconditionError, InvalidArgumentError

__all__ = ["BY_HEAD", "RECEIVERS", "RECEIVERS_BY_HEAD", "SENDERS", "sweep_paths"]

SENDERS = ("attn_out", "mlp_out")
BY_HEAD = "attn.result"
RECEIVERS = ("attn_out", "mlp_out")
RECEIVERS_BY_HEAD = ("attn.q", "attn.k", "attn.v", "attn.z")


class _Receiver(NamedTuple):
    """A component of a layer; of one by head, some of its heads."""

    layer: int
    component: str
    heads: tuple[int, ...]

    def hold(self, written: Floats) -> Intervention:
        """Put in what it wrote in another pass."""
        value = written[list(self.heads)] if self.heads else written
        return Intervention(self.layer, self.component, InterventionKind.SET, (), value, heads=self.heads)


async def sweep_paths(
    inference: Inference,
    model_id: str,
    *,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    receiver: str,
    senders: Sequence[str] = (),
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    positions: Sequence[int] = (),
    receiver_heads: Sequence[int] = (),
) -> AsyncGenerator[SweepStart | Cells, None]:
    """
    Patch the path from every sender of a grid to one receiver; first the grid, then cells as they are done.

    Args:
        inference: Has the models' thread.
        model_id: The model.
        clean: Where senders' values come from.
        corrupted: The prompt that runs.
        metric: What is measured.
        receiver: `logits`, or `layers.{l}.X` with X of RECEIVERS or RECEIVERS_BY_HEAD.
        senders: Of SENDERS, none means all; or BY_HEAD alone.
        layers: Of the senders, all below the receiver's; none means all of these.
        heads: Of BY_HEAD; none means all.
        positions: None means all.
        receiver_heads: Of a receiver by head; none means all.

    Raises:
        InvalidArgumentError: The prompts differ in length, something chosen is not there, or the grid is too large.
        FailedPreconditionError: Heads were to send, in a model that norms what attention returns.
        ResourceExhaustedError: The prompts' values are more than a pass may hold.
    """
    chosen = check_components(senders, heads, among=SENDERS, by_head=BY_HEAD, field="senders")
    info = await inference.describe(model_id)
    to = _read_receiver(receiver, receiver_heads, info)
    if chosen == (BY_HEAD,) and "layers.*.ln1_post.scale" in info.components:
        raise FailedPreconditionError(
            f"{info.architecture} norms what attention returns, so a head's share of it cannot be sent alone; send "
            "attn_out",
            field="senders",
        )

    def open_grid(backend: ModelBackend) -> tuple[SweepStart, dict[str, Floats]]:
        pair = read_pair(backend, model_id, clean, corrupted)
        metric.check(pair.info)
        below = pair.info.num_layers if to is None else to.layer
        grid = (
            choose(layers, below, "layer below the receiver's", "layers"),
            choose(heads, info.num_heads, "head", "heads") if chosen == (BY_HEAD,) else (),
            choose(positions, len(pair.clean), "position", "positions"),
        )
        check_grid(len(chosen), *(len(dim) or 1 for dim in grid))
        hooks = [f"layers.{layer}.{name}" for name in chosen for layer in grid[0]]
        values = clean_values(inference, backend, pair, hooks)
        own = backend.forward(model_id, pair.corrupted_ids, [*hooks, "logits"])
        start = SweepStart(
            pair,
            chosen,
            *grid,
            clean_metric=float(measure(metric, values["logits"][None])[0]),
            corrupted_metric=float(measure(metric, own["logits"][None])[0]),
        )
        return start, {hook: values[hook] - own[hook] for hook in hooks}

    start, differences = await inference.on_model_thread(open_grid)
    yield start
    corrupted_ids = start.pair.corrupted_ids
    layer, read = (info.num_layers - 1, "resid_post") if to is None else (to.layer, _read_by(to.component, info))

    def send(index: int) -> list[Intervention]:
        sender, of_layer, head, position = start.cell(index)
        difference_D = differences[f"layers.{of_layer}.{sender}"][(*head, position)]
        return [Intervention(layer, read, InterventionKind.ADD, (position,), difference_D)]

    def run(backend: ModelBackend, indices: Sequence[int]) -> Doubles:
        rows = [send(index) for index in indices]
        if to is not None:
            rows = [[to.hold(row)] for row in backend.forward_rows(model_id, corrupted_ids, rows, [receiver])[receiver]]
        return measure(metric, backend.forward_rows(model_id, corrupted_ids, rows, ["logits"])["logits"])

    async for cells in run_cells(inference, info, len(corrupted_ids), start.num_cells, run):
        yield cells


def _read_receiver(receiver: str, heads: Sequence[int], info: ModelInfo) -> _Receiver | None:
    """Return the receiver, None for the logits."""
    by_head = receiver.endswith(tuple(f".{name}" for name in RECEIVERS_BY_HEAD))
    if heads and not by_head:
        raise InvalidArgumentError(
            f"receiver_heads are named, and {receiver[:80]!r} has none; name heads of {', '.join(RECEIVERS_BY_HEAD)}",
            field="receiver_heads",
        )
    if receiver == "logits":
        return None
    names = [name for name in (*RECEIVERS, *RECEIVERS_BY_HEAD) if f"layers.*.{name}" in info.components]
    for layer in range(1, info.num_layers):
        for name in names:
            if receiver == f"layers.{layer}.{name}":
                size = info.num_kv_heads if name in ("attn.k", "attn.v") else info.num_heads
                chosen = choose(heads, size, f"head of {name}", "receiver_heads") if by_head else ()
                return _Receiver(layer, name, chosen)
    raise InvalidArgumentError(
        f"{receiver[:80]!r} cannot receive; give logits, or layers.{{l}}.X with X one of {', '.join(names)} and l "
        f"from 1 to {info.num_layers - 1}, since senders are of lower layers",
        field="receiver",
    )


def _read_by(component: str, info: ModelInfo) -> str:
    """Return the stream that a component reads; attention and MLP side by side both read the layer's own."""
    between = component == "mlp_out" and "layers.*.resid_mid" in info.components
    return "resid_mid" if between else "resid_pre"
