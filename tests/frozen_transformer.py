"""
Any small model as transformers has it, in float64, with every part that a graph freezes in our hands: an oracle.

    FrozenTransformer(family, folder)    a random model of `tiny_models.FAMILIES`, saved to the folder
        .embed, .run, .streams           as `attribution_rig.ReferenceModel` has them

Attention patterns, norm scales and MLP outputs of a pass are its own, or are held at given values. Nothing here comes
from weft's packages. Norms and attention are written anew; everything else is transformers' own code.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_models import FAMILIES
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import eager_mask

VOCAB = 40
_FROZEN = "weft_tests_frozen"
_SOFT_CAPS = {"attn_logit_softcapping": 2.0}

Written = Tensor | Callable[[Mapping[str, Tensor]], Tensor]
"""What an MLP returns, or what makes it from the streams so far."""


class FrozenTransformer:
    """
    A random model.

    Args:
        family: A key of `tiny_models.FAMILIES`.
        folder: Where it is saved.
        num_layers: Its layers.
        seed: Of its weights.
    """

    def __init__(self, family: str, folder: Path, *, num_layers: int = 3, seed: int = 0) -> None:
        kind, others = FAMILIES[family]
        sizes = {
            "hidden_size": 16, "num_hidden_layers": num_layers, "num_attention_heads": 4, "intermediate_size": 24,
        }  # fmt: skip
        config = AutoConfig.for_model(
            kind,
            vocab_size=VOCAB,
            max_position_embeddings=64,
            pad_token_id=0,
            **(sizes if kind != "gpt2" else {"n_embd": 16, "n_layer": num_layers, "n_head": 4}),
            **others,
            **(_SOFT_CAPS if kind == "gemma2" else {}),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: Any = AutoModelForCausalLM.from_config(config).double().eval()
            with torch.no_grad():
                for name, value in self.model.named_parameters():
                    flat = value.dim() == 1
                    value.copy_(value * flat + torch.randn_like(value) * (1.0 if "emb" in name else 0.25))
        self.model.save_pretrained(folder)
        self.model.requires_grad_(requires_grad=False)
        self.folder, self.num_layers, self.d_model = folder, num_layers, 16
        self.is_parallel = bool(getattr(config, "use_parallel_residual", False))
        self.cap = getattr(config, "final_logit_softcapping", None)
        self._out: dict[str, Tensor] = {}
        self._held: Mapping[str, Tensor] | None = None
        self._mlp_out: Sequence[Written] | None = None
        self._added: Mapping[int, Tensor] = {}
        self._embed = torch.empty(0)
        self._stand()

    def _stand(self) -> None:
        """Put our norms, attention and MLP outputs in the place of the model's."""
        body = self.model.base_model
        self.model.set_attn_implementation(_FROZEN)
        blocks = getattr(body, "layers", None) or body.h
        first, *_ = blocks
        first.register_forward_pre_hook(lambda module, args: (self._embed[None], *args[1:]))
        final = next(
            getattr(body, name)
            for name in ("norm", "ln_f", "final_layer_norm")
            if getattr(body, name, None) is not None
        )
        final.forward = partial(self._norm, final, "ln_final")
        for layer, block in enumerate(blocks):
            is_gemma = hasattr(block, "pre_feedforward_layernorm")
            names = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
            if is_gemma:
                names["ln1_post"], names["ln2"] = names["ln2"], "pre_feedforward_layernorm"
                names["ln2_post"] = "post_feedforward_layernorm"
            if hasattr(block, "ln_1"):
                names = {"ln1": "ln_1", "ln2": "ln_2"}
            for key, name in names.items():
                norm = getattr(block, name)
                norm.forward = partial(self._norm, norm, f"layers.{layer}.{key}")
            attention = next(
                getattr(block, name) for name in ("self_attn", "attn", "attention") if hasattr(block, name)
            )
            attention.oracle, attention.oracle_key = [self], f"layers.{layer}.attn.pattern"
            last = block.post_feedforward_layernorm if is_gemma else block.mlp
            last.register_forward_hook(lambda module, args, output, layer=layer: self._written(layer, output))

    def _norm(self, norm: nn.Module, key: str, x: Tensor) -> Tensor:
        held = self._held
        weight, bias = norm.weight, getattr(norm, "bias", None)
        if isinstance(norm, nn.LayerNorm):
            centred, epsilon = x - x.mean(-1, keepdim=True), norm.eps
        else:
            centred, epsilon = x, norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
            weight = weight + ("Gemma" in type(norm).__name__)
        scale = (centred.square().mean(-1) + epsilon).sqrt() if held is None else held[f"{key}.scale"][None]
        normed = centred / scale[..., None] * weight
        normed = normed if bias is None else normed + bias
        self._out[f"{key}.scale"] = scale[0]
        if key.endswith(".ln2"):
            self._out[key.replace("ln2", "mlp_in")] = normed[0]
            if not self.is_parallel:
                self._out[key.replace("ln2", "resid_mid")] = x[0]
        if key == "ln_final":
            self._out["ln_final.normed"] = normed[0]
        return normed

    def _written(self, layer: int, output: Tensor) -> Tensor:
        key = f"layers.{layer}.mlp_out"
        if self._mlp_out is not None:
            given = self._mlp_out[layer]
            value = given(self._out) if callable(given) else given
        else:
            value = output[0] if self._held is None else self._held[key]
        if layer in self._added:
            value = value + self._added[layer]
        self._out[key] = value
        return value[None]

    def pattern(self, key: str, own: Callable[[], Tensor]) -> Tensor:
        """The pattern of a layer: held, or its own."""
        self._out[key] = own() if self._held is None else self._held[key]
        return self._out[key]

    def embed(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token embeddings, and what positions add to them."""
        tokens = self.model.get_input_embeddings()(torch.tensor(ids))
        table = getattr(self.model.base_model, "wpe", None)
        return tokens, torch.zeros_like(tokens) if table is None else table.weight[: len(ids)]

    def run(
        self,
        embed: Tensor,
        *,
        held: Mapping[str, Tensor] | None = None,
        mlp_out: Sequence[Written] | None = None,
        added: Mapping[int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run from embeddings; `ReferenceModel.run` says what the arguments are."""
        self._embed, self._held, self._mlp_out, self._added, self._out = embed, held, mlp_out, added or {}, {}
        self.model.base_model(torch.zeros(1, len(embed), dtype=torch.int64), use_cache=False)
        out = self._out
        out["logits_before_cap"] = self.model.get_output_embeddings()(out["ln_final.normed"][-1])
        out["logits"] = out["logits_before_cap"]
        if self.cap:
            out["logits"] = (out["logits"] / self.cap).tanh() * self.cap
        return out

    def streams(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """A plain forward pass."""
        tokens, positions = self.embed(ids)
        return self.run(tokens + positions)


def _first(module: nn.Module, *names: str) -> nn.Module:
    found: nn.Module = next(getattr(module, name) for name in names if hasattr(module, name))
    return found


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Each head by itself."""
    heads, group = query.shape[1], query.shape[1] // key.shape[1]

    def own() -> Tensor:
        scores = torch.stack([query[0, head] @ key[0, head // group].T for head in range(heads)]) * scaling
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        return (scores + attention_mask[0]).softmax(-1)

    oracle: FrozenTransformer = module.oracle[0]
    pattern = oracle.pattern(module.oracle_key, own)
    mixed = torch.stack([pattern[head] @ value[0, head // group] for head in range(heads)], dim=1)
    return mixed[None], None


AttentionInterface.register(_FROZEN, _attend)
AttentionMaskInterface.register(_FROZEN, eager_mask)
