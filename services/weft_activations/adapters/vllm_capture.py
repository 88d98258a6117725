"""
What is read and changed in a model of vLLM's, row by row, whatever the batch it runs in.

vLLM puts chunks of several requests into one pass, so a row of a pass belongs to a request and a position of it.

The hooks stand where a layer shaped like Llama's adds to the stream: vLLM keeps the stream as two addends, whose sum
the next norm takes, so it is read, and changed, in front of that norm.

Legend: N rows of a pass, D d_model, M MLP width, H heads, E head width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weft_activations.adapters.vllm_models import ARCHITECTURES
from weft_activations.adapters.vllm_rows import Asked, change_rows, laid_out

__all__ = ["CHANGED", "CHANGED_ON_ONE_RANK", "SHOWN", "SHOWN_ON_ONE_RANK", "Recorder"]

CHANGED = (
    "embed",
    "resid_final",
    "resid_pre",
    "attn_out",
    "resid_mid",
    "ln2.normed",
    "mlp_in",
    "mlp_out",
    "resid_post",
)
SHOWN = (*CHANGED, "ln1.scale", "ln1.normed", "ln2.scale", "ln_final.scale", "ln_final.normed", "logits")
# Ranks share what lies inside attention and MLPs; each has a part.
CHANGED_ON_ONE_RANK = ("attn.q", "attn.k", "attn.v", "attn.z", "mlp.pre", "mlp.pre_linear", "mlp.post")
SHOWN_ON_ONE_RANK = (*CHANGED_ON_ONE_RANK, "attn.q_rot", "attn.k_rot")


@dataclass(frozen=True)
class _Part:
    """Rows of a pass that are one request's: `rows` of the batch are the positions from `first` on."""

    asked: Asked
    rows: slice
    first: int


class Recorder:
    """
    Reads and changes passes of one model; its calls come from the thread that the model runs on.

    Args:
        model: A causal language model of vLLM's.
        architecture: One of `ARCHITECTURES`.
        num_layers: Layers that its configuration names.

    Raises:
        ValueError: It is of another architecture, or its layers are not all here.
    """

    def __init__(self, model: Any, architecture: str, num_layers: int) -> None:
        if architecture not in ARCHITECTURES:
            raise ValueError(f"{architecture} cannot be captured from in vLLM; what can: {', '.join(ARCHITECTURES)}")
        layers = list(model.model.layers)
        whole = [layer for layer in layers if isinstance(getattr(layer, "mlp", None), nn.Module)]
        if len(whole) != num_layers:
            raise ValueError(f"{len(whole)} layers with an MLP were found where the model has {num_layers}")
        self._d_head = int(layers[0].self_attn.head_dim)
        self._asked: dict[str, Asked] = {}
        self._wanting: dict[str, list[_Part]] = {}
        self._changing: dict[str, list[_Part]] = {}
        self._parts: list[_Part] = []
        for index, layer in enumerate(layers):
            self._hook_layer(index, layer)
            self._hook_inside(f"layers.{index}.", layer)
        model.model.norm.register_forward_pre_hook(lambda norm, args: self._at_final_norm(len(layers), norm, args))
        model.model.norm.register_forward_hook(lambda _, args, out: self._visit(_first(out), "ln_final.normed"))
        own_logits = model.compute_logits

        def compute_logits(hidden_ND: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
            logits_NV: Tensor | None = own_logits(hidden_ND, *args, **kwargs)
            self._at_logits(logits_NV)
            return logits_NV

        model.compute_logits = compute_logits

    def begin(self, request_id: str, asked: Asked) -> None:
        """Know a request before its first row comes."""
        self._asked[request_id] = asked

    def end(self, request_id: str) -> Asked | None:
        """Forget a request, and return it; None where there is none."""
        return self._asked.pop(request_id, None)

    def start_pass(self, scheduled: Sequence[tuple[str, int, int]], token_ids_N: Tensor, positions_N: Tensor) -> None:
        """
        Prepare for a pass.

        Args:
            scheduled: Of each request in the batch's order: its id, its first position and how many there are.
            token_ids_N: What the model is about to read.
            positions_N: Where it says that it stands.
        """
        self.end_pass()
        start = 0
        for request_id, first, count in scheduled:
            rows = slice(start, start + count)
            start += count
            asked = self._asked.get(request_id)
            if asked is None:
                # Aborted, and on its way out.
                asked = Asked(torch.empty(0, dtype=torch.int64), {})
            part = _Part(asked, rows, first)
            self._parts.append(part)
            if asked.sinks or asked.changes:
                self._check_rows(part, token_ids_N, positions_N)
            for hook in asked.sinks:
                self._wanting.setdefault(hook, []).append(part)
            for hook in asked.changes:
                self._changing.setdefault(hook, []).append(part)

    def end_pass(self) -> None:
        """Let go of the pass."""
        self._parts, self._wanting, self._changing = [], {}, {}

    def _check_rows(self, part: _Part, token_ids_N: Tensor, positions_N: Tensor) -> None:
        """Compare what the model reads with what was asked for: the proof that rows are those of these positions."""
        count = part.rows.stop - part.rows.start
        wanted_N = part.asked.token_ids[part.first : part.first + count].to(token_ids_N)
        at_N = torch.arange(part.first, part.first + count).to(positions_N)
        if not torch.equal(token_ids_N[part.rows], wanted_N) or not torch.equal(positions_N[part.rows], at_N):
            part.asked.problem = part.asked.problem or f"other tokens than the prompt's were run from {part.first} on"

    def _hook_layer(self, index: int, layer: Any) -> None:
        name = f"layers.{index}."
        layer.input_layernorm.register_forward_pre_hook(lambda norm, args: self._before_attention(index, norm, args))
        layer.input_layernorm.register_forward_hook(lambda _, args, out: self._visit(_first(out), name + "ln1.normed"))
        layer.self_attn.register_forward_hook(lambda _, args, out: self._visit(out, name + "attn_out"))
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda norm, args: self._stream(args, norm, (name + "resid_mid",), name + "ln2.scale")
        )
        layer.mlp.register_forward_pre_hook(lambda _, args: self._visit(args[0], name + "ln2.normed", name + "mlp_in"))
        layer.mlp.register_forward_hook(lambda _, args, out: self._visit(out, name + "mlp_out"))

    def _hook_inside(self, name: str, layer: Any) -> None:
        """Hook what ranks share; with several ranks nobody asks for it."""
        attention, mlp = layer.self_attn, layer.mlp

        def projected(_: Any, args: Any, out: Any) -> None:
            sizes = [attention.q_size, attention.kv_size, attention.kv_size]
            for part, kind in zip(torch.split(_first(out), sizes, dim=-1), "qkv", strict=True):
                self._visit(part, f"{name}attn.{kind}")

        def gated(_: Any, args: Any, out: Any) -> None:
            gate_NM, up_NM = _first(out).chunk(2, dim=-1)
            self._visit(gate_NM, name + "mlp.pre")
            self._visit(up_NM, name + "mlp.pre_linear")

        def rotated(_: Any, args: Any) -> None:
            self._visit(args[0].flatten(1), name + "attn.q_rot")
            self._visit(args[1].flatten(1), name + "attn.k_rot")

        attention.qkv_proj.register_forward_hook(projected)
        attention.attn.register_forward_pre_hook(rotated)
        attention.o_proj.register_forward_pre_hook(lambda _, args: self._visit(args[0], name + "attn.z"))
        mlp.gate_up_proj.register_forward_hook(gated)
        mlp.down_proj.register_forward_pre_hook(lambda _, args: self._visit(args[0], name + "mlp.post"))

    def _before_attention(self, index: int, norm: Any, args: tuple[Tensor, ...]) -> None:
        before = "embed" if index == 0 else f"layers.{index - 1}.resid_post"
        self._stream(args, norm, (before, f"layers.{index}.resid_pre"), f"layers.{index}.ln1.scale")

    def _at_final_norm(self, num_layers: int, norm: Any, args: tuple[Tensor, ...]) -> None:
        self._stream(args, norm, (f"layers.{num_layers - 1}.resid_post", "resid_final"), "ln_final.scale")

    def _visit(self, value_N: Tensor, *names: str) -> None:
        """Change and read what lies in one tensor [N, ...]; what changes at a name is seen by those after it."""
        for name in names:
            for part in self._changing.get(name, ()):
                for change in part.asked.changes[name]:
                    change_rows(laid_out(name, value_N[part.rows], self._d_head), part.first, change)
            for part in self._wanting.get(name, ()):
                part.asked.keep(name, part.first, laid_out(name, value_N[part.rows], self._d_head))

    def _stream(self, addends: tuple[Tensor, ...], norm: Any, names: tuple[str, ...], scale_hook: str) -> None:
        """
        Read and change the stream that a norm is about to take.

        Args:
            addends: One [N, D], or two whose sum it is.
            norm: The norm.
            names: Hooks of this place; what changes at one is seen by those after it.
            scale_hook: Of what the norm divides by.
        """
        for name in names:
            for part in self._changing.get(name, ()):
                # A request's later hooks of this place are read from what its changes leave behind.
                x_ND = _total(addends, part.rows)
                for change in part.asked.changes[name]:
                    change_rows(x_ND, part.first, change)
                addends[-1][part.rows] = x_ND
                if len(addends) == 2:
                    addends[0][part.rows] = 0
            for part in self._wanting.get(name, ()):
                part.asked.keep(name, part.first, _total(addends, part.rows))
        for part in self._wanting.get(scale_hook, ()):
            wide_ND = _total(addends, part.rows).float()
            scale_N = (wide_ND.square().mean(-1) + float(norm.variance_epsilon)).sqrt()
            part.asked.keep(scale_hook, part.first, scale_N)

    def _at_logits(self, logits_NV: Tensor | None) -> None:
        """Keep the last position's logits; a pass has one row a request, those that are not done yet included."""
        if logits_NV is None or not self._parts:
            return
        for row, part in enumerate(self._parts):
            sink_V = part.asked.sinks.get("logits")
            end = part.first + part.rows.stop - part.rows.start
            if sink_V is None:
                continue
            if logits_NV.shape[0] != len(self._parts):
                part.asked.problem = f"{logits_NV.shape[0]} rows of logits came for {len(self._parts)} requests"
                continue
            part.asked.count("logits", part.first, end - part.first)
            if end == len(part.asked.token_ids):
                sink_V.copy_(logits_NV[row, : sink_V.shape[0]])


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _total(addends: tuple[Tensor, ...], rows: slice) -> Tensor:
    """Return the stream's rows, in memory of their own."""
    return addends[0][rows] + addends[1][rows] if len(addends) == 2 else addends[0][rows].clone()
