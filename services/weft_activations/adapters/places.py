"""
Where a component lies among transformers' modules: in what a module is given, or in what it returns.

Legend: B sequences, P positions, H heads, E head width, D d_model, W width of a module's output.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = [
    "FusedHeads",
    "Heads",
    "Located",
    "Norm",
    "OpenAttention",
    "Place",
    "Result",
    "Site",
    "Transposed",
    "View",
    "final_places",
    "layer_places",
]


class View(Protocol):
    """How a component lies in a tensor."""

    def read(self, tensor: Tensor) -> Tensor:
        """Return the component, [B, ...] in the order of its dims."""
        ...

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        """Return the tensor with another value of the component."""
        ...


class Whole:
    """The component is the tensor."""

    def read(self, tensor: Tensor) -> Tensor:
        return tensor

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        return value


@dataclass(frozen=True)
class Heads:
    """[B, P, H * E] read as [B, H, P, E]."""

    num_heads: int

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(*tensor.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        return value.transpose(1, 2).flatten(-2)


class Transposed:
    """[B, N, S] read as [B, S, N]."""

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(1, 2)

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        return value.transpose(1, 2)


@dataclass(frozen=True)
class FusedHeads:
    """
    One of queries, keys and values of one product.

    Attributes:
        index: 0 queries, 1 keys, 2 values.
        by_head: Whether the three of a head lie together; otherwise all heads' queries come first.
    """

    num_heads: int
    index: int
    by_head: bool

    def _split(self, tensor: Tensor) -> Tensor:
        """Return a view [B, P, H, 3, E]."""
        if self.by_head:
            return tensor.view(*tensor.shape[:-1], self.num_heads, 3, -1)
        return tensor.view(*tensor.shape[:-1], 3, self.num_heads, -1).transpose(2, 3)

    def read(self, tensor: Tensor) -> Tensor:
        return self._split(tensor)[..., self.index, :].transpose(1, 2)

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        changed = tensor.clone()
        self._split(changed)[..., self.index, :] = value.transpose(1, 2)
        return changed


_WHOLE = Whole()


@dataclass(frozen=True)
class Site:
    """
    What a module is given or returns.

    Attributes:
        module: The module.
        is_input: Its first argument; otherwise its output, or the first of several.
        view: How the component lies in it.
        in_place: The block goes on with the very tensor that the module is given, so a change is written into it.
    """

    module: nn.Module
    is_input: bool
    view: View = _WHOLE
    in_place: bool = False


@dataclass(frozen=True)
class Norm:
    """
    What a norm divides by.

    Attributes:
        module: The norm.
        weight_offset: Added to its weight: 1 in Gemma.
    """

    module: nn.Module
    weight_offset: float = 0.0


@dataclass(frozen=True)
class OpenAttention:
    """
    Something inside attention proper.

    Attributes:
        module: The module that transformers hands to its attention function.
        inner: `q_rot`, `k_rot`, `scores` or `pattern`.
    """

    module: nn.Module
    inner: str


@dataclass(frozen=True)
class Result:
    """
    Each head's share of what an output projection returns.

    Attributes:
        projection: Linear, or GPT-2's Conv1D.
        num_heads: Heads in its input.
    """

    projection: nn.Module
    num_heads: int

    def heads(self, mixed_BPW: Tensor) -> Tensor:
        """Return [B, H, P, D] of the projection's input, without the bias."""
        weight: Any = self.projection.weight
        weight_WD: Tensor = weight.T if isinstance(self.projection, nn.Linear) else weight
        weight_HED = weight_WD.reshape(self.num_heads, -1, weight_WD.shape[-1])
        return Heads(self.num_heads).read(mixed_BPW) @ weight_HED

    def total(self, result_BHPD: Tensor) -> Tensor:
        """Return what the projection returns for these shares."""
        bias: Any = self.projection.bias
        total_BPD = result_BHPD.sum(1)
        if bias is not None:
            total_BPD += bias
        return total_BPD


Place = Site | Norm | OpenAttention | Result


Call = Callable[[Any, Tensor, bool, Any, Tensor | None], Tensor | None]
"""Takes a model, token ids [B, P], whether all logits are wanted, a cache, and what a model of speech reads besides;
returns logits, None where the model has no head."""


def call_decoder(
    model: Any, tokens_BP: Tensor, all_logits: bool, cache: Any, features_BNS: Tensor | None
) -> Tensor | None:
    """Read tokens after those of the cache; logits of all positions, or of the last alone."""
    logits_BPV: Tensor = model(
        tokens_BP, use_cache=cache is not None, past_key_values=cache, logits_to_keep=0 if all_logits else 1
    ).logits
    return logits_BPV


@dataclass(frozen=True)
class Located:
    """
    A model whose components are found.

    Attributes:
        model: transformers' own.
        places: By component, with the layer, in the order in which a pass reaches them.
        always_open: The fused kernels leave out a part of this model's attention (a soft cap).
        call: Runs the model.
    """

    model: Any
    places: Mapping[str, Place]
    always_open: bool = False
    call: Call = call_decoder
    open_modules: Mapping[nn.Module, Mapping[str, str]] = field(init=False)
    """Of each attention module, the components inside it by `OpenAttention.inner`."""

    def __post_init__(self) -> None:
        found: dict[nn.Module, dict[str, str]] = {}
        for name, place in self.places.items():
            if isinstance(place, OpenAttention):
                found.setdefault(place.module, {})[place.inner] = name
        object.__setattr__(self, "open_modules", found)


def final_places(norm: Norm) -> dict[str, Place]:
    """Return what lies at a model's last norm."""
    return {
        "resid_final": Site(norm.module, is_input=True),
        "ln_final.scale": norm,
        "ln_final.normed": Site(norm.module, is_input=False),
    }


def layer_places(
    layer: int,
    *,
    block: nn.Module,
    ln1: Norm,
    heads: Mapping[str, Site],
    attention: nn.Module,
    rotated: bool,
    projection: nn.Module,
    num_heads: int,
    attn_out: nn.Module,
    ln2: Norm,
    mlp: nn.Module,
    pre: nn.Module,
    down: nn.Module,
    mlp_out: nn.Module,
    pre_linear: nn.Module | None = None,
    ln1_post: Norm | None = None,
    ln2_post: Norm | None = None,
    parallel: bool = False,
) -> dict[str, Place]:
    """
    Name the places of one layer.

    Args:
        layer: From 0.
        block: Takes and returns the residual stream.
        ln1: Norm before attention.
        heads: `q`, `k` and `v`.
        attention: The module that transformers hands to its attention function.
        rotated: Queries and keys are rotated.
        projection: Attention's output projection.
        num_heads: Query heads.
        attn_out: Returns what attention adds to the stream.
        ln2: Norm before the MLP.
        mlp: Takes what the MLP reads.
        pre: Returns what the activation function is applied to.
        down: Takes the MLP's hidden layer.
        mlp_out: Returns what the MLP adds to the stream.
        pre_linear: Returns what a gated MLP multiplies by.
        ln1_post: Norm of what attention adds.
        ln2_post: Norm of what the MLP adds.
        parallel: The MLP reads the stream as it was before attention.
    """
    places: dict[str, Place | None] = {
        "resid_pre": Site(block, is_input=True),
        "ln1.scale": ln1,
        "ln1.normed": Site(ln1.module, is_input=False),
        **{f"attn.{name}": site for name, site in heads.items()},
        "attn.q_rot": OpenAttention(attention, "q_rot") if rotated else None,
        "attn.k_rot": OpenAttention(attention, "k_rot") if rotated else None,
        "attn.scores": OpenAttention(attention, "scores"),
        "attn.pattern": OpenAttention(attention, "pattern"),
        "attn.z": Site(projection, is_input=True, view=Heads(num_heads)),
        "attn.result": Result(projection, num_heads),
        "ln1_post.scale": ln1_post,
        "attn_out": Site(attn_out, is_input=False),
        "resid_mid": None if parallel else Site(ln2.module, is_input=True, in_place=True),
        "ln2.scale": ln2,
        "ln2.normed": Site(ln2.module, is_input=False),
        "mlp_in": Site(mlp, is_input=True),
        "mlp.pre": Site(pre, is_input=False),
        "mlp.pre_linear": Site(pre_linear, is_input=False) if pre_linear is not None else None,
        "mlp.post": Site(down, is_input=True),
        "ln2_post.scale": ln2_post,
        "mlp_out": Site(mlp_out, is_input=False),
        "resid_post": Site(block, is_input=False),
    }
    return {f"layers.{layer}.{name}": place for name, place in places.items() if place is not None}
