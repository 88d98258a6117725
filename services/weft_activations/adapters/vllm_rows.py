"""
Rows of one request: where they go, what is changed in them, and the proof that all of them came.

vLLM cuts prompts into chunks, so rows come in pieces. Each goes straight to its place in the request's result. That
nothing is missing is counted: a hook must see a request's positions in order, each once, from 0 to the last; what was
preempted begins at 0 again.

Legend: N rows of a piece, P positions of a prompt, D d_model, H heads, E head width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from weft_activations.adapters.changed import changed
from weft_activations.core.components import component_at
from weft_activations.core.ports import Intervention

__all__ = ["Asked", "change_rows", "laid_out"]


def laid_out(hook: str, rows: Tensor, d_head: int) -> Tensor:
    """View rows [N, ...] in the order of a component's dims; what is by head comes as [N, H * E]."""
    if component_at(hook).dims[0] in "HK":
        return rows.view(rows.shape[0], -1, d_head).transpose(0, 1)
    return rows


def change_rows(value: Tensor, first: int, change: Intervention) -> None:
    """
    Change a piece of a component in place.

    Args:
        value: In the order of the component's dims; its first position is `first`.
        first: Position in the prompt.
        change: For the whole prompt.
    """
    dim = component_at(change.name).dims.index("P")
    count = value.shape[dim]
    if change.positions:
        picks = [index for index, at in enumerate(change.positions) if first <= at < first + count]
        if not picks:
            return
        positions = tuple(change.positions[index] - first for index in picks)
    else:
        picks, positions = list(range(first, first + count)), ()
    given = change.value
    # Values broadcast from behind, and positions are the last dim but one of every component that is changed here.
    if given is not None and given.ndim > 1 and given.shape[-2] > 1:
        given = given.take(picks, axis=-2)
    value.copy_(changed(value[None], replace(change, positions=positions, value=given))[0])


@dataclass
class Asked:
    """
    One request.

    Attributes:
        token_ids: [P].
        sinks: By hook, where its rows go: of the component's shape, positions without the first `skipped`.
        skipped: First positions that are not kept.
        changes: By hook, in order.
        problem: Why what was captured is not the whole prompt; empty while nothing is amiss.
    """

    token_ids: Tensor
    sinks: Mapping[str, Tensor]
    skipped: int = 0
    changes: Mapping[str, Sequence[Intervention]] = field(default_factory=dict)
    problem: str = ""
    _seen: dict[str, int] = field(default_factory=dict)

    def keep(self, hook: str, first: int, value: Tensor) -> None:
        """Take a piece of a hook, in the order of its dims; its first position is `first`."""
        dim = component_at(hook).dims.index("P")
        count = value.shape[dim]
        self.count(hook, first, count)
        left_out = min(max(self.skipped - first, 0), count)
        start = max(first - self.skipped, 0)
        if left_out < count and first + count <= len(self.token_ids):
            kept = value.narrow(dim, left_out, count - left_out)
            self.sinks[hook].narrow(dim, start, count - left_out).copy_(kept)

    def count(self, hook: str, first: int, num_rows: int) -> None:
        """Note that a hook saw positions."""
        expected = 0 if first == 0 else self._seen.get(hook, 0)
        if first != expected:
            self.problem = self.problem or f"{hook} went on at position {first} and not at {expected}"
        self._seen[hook] = first + num_rows

    def missing(self) -> str:
        """Say what is missing now that the request is done; empty where every hook saw every position."""
        num_tokens = len(self.token_ids)
        short = [hook for hook in self.sinks if self._seen.get(hook) != num_tokens]
        if short and not self.problem:
            return f"{short[0]} saw {self._seen.get(short[0], 0)} of {num_tokens} positions"
        return self.problem
