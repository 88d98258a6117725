"""
A small model written from the papers, in float64, with stop-gradients: the oracle of the attribution tests, and a fake
of the activations service that speaks the same port as the gRPC adapter.

    ReferenceModel(folder)      reads the folder that make_reference_folder wrote, with names and config as on the hub
    ReferenceRunner(model)      the port ModelRunner over it
    make_transcoder(store)      a random transcoder in circuit-tracer's layout
    oracle_edges(...)           every edge, by one autograd.grad a target
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from frozen_transformer import FrozenTransformer, Written
from torch import Tensor

from weft_attribution.core.feature_index.sequences import HarvestedSequences
from weft_attribution.core.ports import Addition, Capture, LikelyToken, ModelInfo, SteeredLogits, Token
from weft_common.errors import NotFoundError
from weft_store.port import ObjectStore

VOCAB = 40


def make_reference_folder(folder: Path, family: str, *, num_layers: int = 3, d_model: int = 16, seed: int = 0) -> Path:
    """Write a random model with four heads (two of keys and values for Llama), biases and norms away from 0 and 1."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int, around: float = 0.0, by: float = 0.25) -> Tensor:
        return around + by * torch.randn(*shape, generator=rng, dtype=torch.float64)

    d, weights = d_model, {}
    if family == "llama":
        config = {
            "model_type": "llama", "hidden_size": d, "num_hidden_layers": num_layers, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "max_position_embeddings": 64, "rope_theta": 100.0,
        }  # fmt: skip
        weights["model.embed_tokens.weight"] = draw(VOCAB, d, by=1.0)
        weights["lm_head.weight"] = draw(VOCAB, d, by=0.5)
        weights["model.norm.weight"] = draw(d, around=1.0)
        for layer in range(num_layers):
            base = f"model.layers.{layer}."
            weights[f"{base}input_layernorm.weight"] = draw(d, around=1.0)
            weights[f"{base}post_attention_layernorm.weight"] = draw(d, around=1.0)
            weights[f"{base}self_attn.q_proj.weight"] = draw(d, d)
            weights[f"{base}self_attn.k_proj.weight"] = draw(d // 2, d)
            weights[f"{base}self_attn.v_proj.weight"] = draw(d // 2, d)
            weights[f"{base}self_attn.o_proj.weight"] = draw(d, d)
            weights[f"{base}mlp.gate_proj.weight"] = draw(2 * d, d)
            weights[f"{base}mlp.up_proj.weight"] = draw(2 * d, d)
            weights[f"{base}mlp.down_proj.weight"] = draw(d, 2 * d)
    else:
        config = {
            "model_type": "gpt2", "n_embd": d, "n_layer": num_layers, "n_head": 4, "vocab_size": VOCAB,
            "layer_norm_epsilon": 1e-5, "n_positions": 64,
        }  # fmt: skip
        weights["transformer.wte.weight"] = draw(VOCAB, d, by=1.0)
        weights["transformer.wpe.weight"] = draw(64, d, by=0.5)
        for name in ["ln_f", *(f"h.{layer}.ln_{i}" for layer in range(num_layers) for i in (1, 2))]:
            weights[f"transformer.{name}.weight"] = draw(d, around=1.0)
            weights[f"transformer.{name}.bias"] = draw(d)
        for layer in range(num_layers):
            base = f"transformer.h.{layer}."
            for name, rows, columns in [
                ("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d),
            ]:  # fmt: skip
                weights[f"{base}{name}.weight"] = draw(rows, columns)
                weights[f"{base}{name}.bias"] = draw(columns)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return folder


class ReferenceModel:
    """One forward pass, position by position as written in the papers; `run` can hold and replace its parts."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.w = safetensors.torch.load_file(folder / "model.safetensors")
        self.llama = self.config["model_type"] == "llama"
        self.num_layers = self.config["num_hidden_layers" if self.llama else "n_layer"]
        self.d_model = self.config["hidden_size" if self.llama else "n_embd"]

    def embed(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token embeddings, and what positions add to them."""
        if self.llama:
            tokens = self.w["model.embed_tokens.weight"][list(ids)]
            return tokens, torch.zeros_like(tokens)
        return self.w["transformer.wte.weight"][list(ids)], self.w["transformer.wpe.weight"][: len(ids)]

    def scale(self, x: Tensor) -> Tensor:
        """What a norm divides by."""
        if self.llama:
            return (x.pow(2).mean(-1) + self.config["rms_norm_eps"]).sqrt()
        return (x.var(-1, unbiased=False) + self.config["layer_norm_epsilon"]).sqrt()

    def norm(self, x: Tensor, scale: Tensor, name: str) -> Tensor:
        """A norm with a given scale."""
        if self.llama:
            return x / scale[:, None] * self.w[f"{name}.weight"]
        return (x - x.mean(-1, keepdim=True)) / scale[:, None] * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def names(self, layer: int) -> tuple[str, str, str]:
        """First norm, second norm and final norm."""
        if self.llama:
            base = f"model.layers.{layer}."
            return f"{base}input_layernorm", f"{base}post_attention_layernorm", "model.norm"
        return f"transformer.h.{layer}.ln_1", f"transformer.h.{layer}.ln_2", "transformer.ln_f"

    def attend(self, layer: int, x: Tensor, pattern: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention of a normed stream, with its own pattern or a given one; per head, without batching."""
        size, d = self.d_model // 4, self.d_model
        if self.llama:
            base = f"model.layers.{layer}.self_attn."
            q, k, v = (x @ self.w[f"{base}{n}_proj.weight"].T for n in "qkv")
        else:
            base = f"transformer.h.{layer}.attn."
            q, k, v = (x @ self.w[f"{base}c_attn.weight"] + self.w[f"{base}c_attn.bias"]).split(d, dim=-1)
        mixed, patterns = [], []
        for head in range(4):
            source = head // 2 if self.llama else head
            qh, kh, vh = (t[:, i * size : (i + 1) * size] for t, i in ((q, head), (k, source), (v, source)))
            if pattern is None:
                if self.llama:
                    qh, kh = self.rotate(qh), self.rotate(kh)
                scores = qh @ kh.T / math.sqrt(size)
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
                patterns.append(scores.softmax(-1))
            else:
                patterns.append(pattern[head])
            mixed.append(patterns[-1] @ vh)
        joined = torch.cat(mixed, dim=-1)
        if self.llama:
            return joined @ self.w[f"{base}o_proj.weight"].T, torch.stack(patterns)
        return joined @ self.w[f"{base}c_proj.weight"] + self.w[f"{base}c_proj.bias"], torch.stack(patterns)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions, halves convention."""
        half = x.shape[1] // 2
        frequency = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None] * frequency
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        """The MLP of a normed stream."""
        if self.llama:
            base = f"model.layers.{layer}.mlp."
            gate = torch.nn.functional.silu(x @ self.w[f"{base}gate_proj.weight"].T)
            return (gate * (x @ self.w[f"{base}up_proj.weight"].T)) @ self.w[f"{base}down_proj.weight"].T
        base = f"transformer.h.{layer}.mlp."
        hidden = torch.nn.functional.gelu(x @ self.w[f"{base}c_fc.weight"] + self.w[f"{base}c_fc.bias"])
        return hidden @ self.w[f"{base}c_proj.weight"] + self.w[f"{base}c_proj.bias"]

    def run(
        self,
        embed: Tensor,
        *,
        held: Mapping[str, Tensor] | None = None,
        mlp_out: Sequence[Written | None] | None = None,
        added: Mapping[int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """
        Run from embeddings.

        Args:
            embed: What enters the stream.
            held: Streams whose patterns, scales and MLP outputs are kept.
            mlp_out: MLP outputs to use in place of any other.
            added: Added to MLP outputs, by layer, on top.
        """
        out: dict[str, Tensor] = {}
        x = embed
        for layer in range(self.num_layers):
            key = f"layers.{layer}."
            ln1, ln2, final = self.names(layer)
            out[f"{key}ln1.scale"] = self.scale(x) if held is None else held[f"{key}ln1.scale"]
            pattern = None if held is None else held[f"{key}attn.pattern"]
            wrote, out[f"{key}attn.pattern"] = self.attend(layer, self.norm(x, out[f"{key}ln1.scale"], ln1), pattern)
            x = x + wrote
            out[f"{key}resid_mid"] = x
            out[f"{key}ln2.scale"] = self.scale(x) if held is None else held[f"{key}ln2.scale"]
            out[f"{key}mlp_in"] = self.norm(x, out[f"{key}ln2.scale"], ln2)
            given = None if mlp_out is None else mlp_out[layer]
            if given is not None:
                out[f"{key}mlp_out"] = given(out) if callable(given) else given
            elif held is not None and f"{key}mlp_out" in held:
                out[f"{key}mlp_out"] = held[f"{key}mlp_out"]
            else:
                out[f"{key}mlp_out"] = self.mlp(layer, out[f"{key}mlp_in"])
            if added is not None and layer in added:
                out[f"{key}mlp_out"] = out[f"{key}mlp_out"] + added[layer]
            x = x + out[f"{key}mlp_out"]
        out["ln_final.scale"] = self.scale(x) if held is None else held["ln_final.scale"]
        unembedding = self.w["lm_head.weight" if self.llama else "transformer.wte.weight"]
        out["ln_final.normed"] = self.norm(x, out["ln_final.scale"], final)
        out["logits"] = out["ln_final.normed"][-1] @ unembedding.T
        return out

    def streams(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """A plain forward pass."""
        tokens, positions = self.embed(ids)
        return self.run(tokens + positions)


class ReferenceRunner:
    """The port ModelRunner in this process; a prompt's characters are its tokens."""

    def __init__(self, model: ReferenceModel | FrozenTransformer, *, name: str = "tiny", revision: str = "r1") -> None:
        self.reference = model
        self.info = ModelInfo(name, "Reference", model.num_layers, model.d_model, VOCAB, 64, revision)
        self.captures = 0

    async def model(self, name: str) -> ModelInfo:
        if name != self.info.name:
            raise NotFoundError(f"no model models/{name}")
        return self.info

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        return tuple(Token(ord(c) % VOCAB, c) for c in text)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"t{i}" for i in token_ids)

    async def pieces(self, model: str, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(text.encode() for text in await self.detokenize(model, token_ids))

    async def capture(self, model: str, token_ids: Sequence[int], hooks: Sequence[str]) -> Capture:
        self.captures += 1
        streams = self.reference.streams(token_ids)
        tokens = tuple(Token(i, f"t{i}") for i in token_ids)
        wanted = {hook.replace("layers.*.", "") for hook in hooks}
        kept = {
            name: value.numpy() for name, value in streams.items() if name.split(".", 2)[-1] in wanted or name in wanted
        }
        return Capture(self.info, tokens, kept)

    async def steer(
        self,
        model: str,
        token_ids: Sequence[int],
        additions: Sequence[Addition],
        *,
        held_layers: Sequence[int],
        freeze_attention: bool,
        hooks: Sequence[str],
    ) -> Capture:
        tokens, positions = self.reference.embed(token_ids)
        clean = self.reference.streams(token_ids)
        streams = self.reference.run(
            tokens + positions,
            held={name: value for name, value in clean.items() if "mlp_out" not in name} if freeze_attention else None,
            mlp_out=[
                clean[f"layers.{layer}.mlp_out"] if layer in held_layers else None
                for layer in range(self.reference.num_layers)
            ],
            added=self._added(token_ids, additions),
        )
        named = tuple(Token(i, f"t{i}") for i in token_ids)
        return Capture(self.info, named, {name: streams[name].numpy() for name in hooks})

    def _added(self, token_ids: Sequence[int], additions: Sequence[Addition]) -> dict[int, Tensor]:
        added: dict[int, Tensor] = {}
        for addition in additions:
            value = added.setdefault(
                addition.layer, torch.zeros(len(token_ids), self.info.d_model, dtype=torch.float64)
            )
            places = list(addition.positions) or list(range(len(token_ids)))
            value[places] += torch.from_numpy(addition.value_PD).double()
        return added

    async def run(
        self,
        model: str,
        token_ids: Sequence[int],
        additions: Sequence[Addition],
        *,
        frozen: bool,
        logits_of: Sequence[int],
    ) -> SteeredLogits:
        added = self._added(token_ids, additions)
        tokens, positions = self.reference.embed(token_ids)
        held = self.reference.streams(token_ids) if frozen else None
        logits = self.reference.run(tokens + positions, held=held, added=added)["logits"]
        probabilities = logits.softmax(-1)
        asked = list(logits_of)
        return SteeredLogits(tuple(logits[asked].tolist()), tuple(probabilities[asked].tolist()), float(logits.mean()))

    async def generate(
        self, model: str, token_ids: Sequence[int], additions: Sequence[Addition], *, max_new_tokens: int
    ) -> tuple[LikelyToken, ...]:
        ids, found = list(token_ids), []
        for _ in range(max_new_tokens):
            tokens, positions = self.reference.embed(ids)
            logits = self.reference.run(tokens + positions, added=self._added(ids, additions))["logits"]
            probability, chosen = logits.softmax(-1).max(-1)
            ids.append(int(chosen))
            found.append(LikelyToken(Token(ids[-1], f"t{ids[-1]}"), float(probability)))
        return tuple(found)


class NoSequences:
    """The port SequenceSource where no harvest wrote anything."""

    async def sequences(self, dataset: str, *, held_out: bool, max_tokens: int) -> HarvestedSequences:
        raise NotFoundError(f"no harvest wrote datasets/{dataset}")


def make_transcoder(
    store: ObjectStore,
    transcoder: str,
    model: ReferenceModel | FrozenTransformer,
    *,
    features: int = 12,
    input_hook: str = "mlp_in",
    jump: bool = False,
    window: int = 99,
    skip: bool = False,
    bias: float = -0.3,
    seed: int = 1,
    revision: str = "r1",
    tensors: Mapping[str, Tensor] | None = None,
    activation: str = "",
    top_k: int = 0,
) -> None:
    """
    Write a random transcoder, or given tensors; a random feature fires on about a third of the positions.

    With an `activation` that counts, `top_k` features of a layer fire.
    """
    rng = torch.Generator().manual_seed(seed)
    d, layers = model.d_model, model.num_layers

    def draw(*shape: int, by: float = 0.3) -> Tensor:
        return by * torch.randn(*shape, generator=rng, dtype=torch.float64)

    for layer in range(layers):
        encoder = {
            f"W_enc_{layer}": draw(features, d),
            f"b_enc_{layer}": draw(features) + bias,
            f"b_dec_{layer}": draw(d),
        }
        if jump:
            encoder[f"threshold_{layer}"] = draw(features).abs()
        decoder = {f"W_dec_{layer}": draw(features, min(window, layers - layer), d)}
        if skip:
            encoder[f"W_skip_{layer}"] = draw(d, d)
        if activation == "joint_top_k":
            encoder[f"rank_norm_{layer}"] = draw(features).abs() + 0.1
        if tensors is not None:
            names = (*encoder, f"threshold_{layer}", f"W_skip_{layer}")
            encoder = {name: tensors[name] for name in names if name in tensors}
            decoder = {name: tensors[name] for name in decoder}
        store.put(f"transcoders/{transcoder}/W_enc_{layer}.safetensors", safetensors.torch.save(encoder))
        store.put(f"transcoders/{transcoder}/W_dec_{layer}.safetensors", safetensors.torch.save(decoder))
    manifest: dict[str, Any] = {
        "model": "tiny", "model_revision": revision, "input_hook": input_hook, "output_hook": "mlp_out",
    }  # fmt: skip
    if activation:
        manifest |= {"activation": activation, "top_k": top_k}
    store.put(f"transcoders/{transcoder}/manifest.json", json.dumps(manifest).encode())


def load_transcoder(store: ObjectStore, transcoder: str, num_layers: int) -> dict[str, Tensor]:
    """All tensors of a transcoder, by name."""
    tensors: dict[str, Tensor] = {}
    for layer in range(num_layers):
        for kind in ("W_enc", "W_dec"):
            data = store.get(f"transcoders/{transcoder}/{kind}_{layer}.safetensors")
            tensors.update(safetensors.torch.load(data))
    return tensors


def counted(kind: str, top_k: int, tensors: Mapping[str, Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Choose by sorting every position's features in Python."""

    def fires(pres: list[Tensor]) -> list[Tensor]:
        chosen = [torch.zeros_like(pre, dtype=torch.bool) for pre in pres]
        layers = range(len(pres))
        for position in range(len(pres[0])):
            for pool in [list(layers)] if kind == "joint_top_k" else [[layer] for layer in layers]:
                ranked = []
                for layer in pool:
                    norms = tensors.get(f"rank_norm_{layer}", torch.ones(pres[layer].shape[1]))
                    scores = (pres[layer][position] * norms).tolist()
                    ranked += [(-score, layer, feature) for feature, score in enumerate(scores)]
                for score, layer, feature in sorted(ranked)[: top_k * len(pool)]:
                    chosen[layer][position, feature] = score < 0
        return chosen

    return fires


def oracle_edges(
    model: ReferenceModel | FrozenTransformer,
    tensors: Mapping[str, Tensor],
    ids: Sequence[int],
    logit_ids: Sequence[int],
    *,
    input_hook: str = "mlp_in",
    first: int = 1,
    fires: Callable[[list[Tensor]], list[Tensor]] | None = None,
) -> tuple[list[tuple[int, int, int]], np.ndarray, np.ndarray]:
    """
    Every edge by autograd: sources are multiplied by leaves of value 1, and each target is differentiated once.

    Positions before `first` have neither features nor errors. `fires` tells which pre-activations [P, F] of all layers
    are activations, where thresholds do not.

    Returns:
        Active features (layer, position, index), edges [features + logits, features + errors + tokens], target values.
    """
    with torch.no_grad():
        clean = model.streams(ids)
    layers, positions = model.num_layers, len(ids)
    pres = [
        clean[f"layers.{layer}.{input_hook}"] @ tensors[f"W_enc_{layer}"].T + tensors[f"b_enc_{layer}"]
        for layer in range(layers)
    ]
    zero = torch.zeros(1, dtype=torch.float64)
    fired = fires(pres) if fires else [pre > tensors.get(f"threshold_{i}", zero) for i, pre in enumerate(pres)]
    acts = [torch.where(fire, pre, 0.0) for fire, pre in zip(fired, pres, strict=True)]
    for act in acts:
        act[:first] = 0
    active = [(i, int(p), int(f)) for i in range(layers) for p, f in acts[i].nonzero()]
    feature_leaf = torch.stack([torch.ones_like(act) for act in acts]).requires_grad_()
    error_leaf = torch.ones(layers, positions, dtype=torch.float64).requires_grad_()
    token_leaf = torch.ones(positions, dtype=torch.float64).requires_grad_()
    outputs: list[Written] = []
    for layer in range(layers):
        written = torch.zeros(positions, model.d_model, dtype=torch.float64)
        for source in range(layer + 1):
            if layer - source < tensors[f"W_dec_{source}"].shape[1]:
                decoder = tensors[f"W_dec_{source}"][:, layer - source]
                written = written + (feature_leaf[source] * acts[source]) @ decoder
        bias = tensors[f"b_dec_{layer}"].expand(positions, -1)
        stream, skip = f"layers.{layer}.{input_hook}", tensors.get(f"W_skip_{layer}", torch.zeros(1))
        rest = clean[f"layers.{layer}.mlp_out"] - (clean[stream] @ skip.T if skip.dim() > 1 else 0)
        error = (rest - written - bias).detach()
        whole = torch.cat([rest[:first], (written + bias + error * error_leaf[layer][:, None])[first:]])

        def output(
            out: Mapping[str, Tensor], whole: Tensor = whole, stream: str = stream, skip: Tensor = skip
        ) -> Tensor:
            return whole + out[stream] @ skip.T if skip.dim() > 1 else whole

        outputs.append(output)
    tokens, added = model.embed(ids)
    held = {name: value.detach() for name, value in clean.items()}
    out = model.run(tokens * token_leaf[:, None] + added, held=held, mlp_out=outputs)
    targets = [
        out[f"layers.{layer}.{input_hook}"][position] @ tensors[f"W_enc_{layer}"][index]
        + tensors[f"b_enc_{layer}"][index]
        for layer, position, index in active
    ]
    logits = out.get("logits_before_cap", out["logits"])
    targets += [logits[i] - logits.mean() for i in logit_ids]
    rows = []
    for target in targets:
        features, errors, token = torch.autograd.grad(
            target, [feature_leaf, error_leaf, token_leaf], retain_graph=True, materialize_grads=True
        )
        row = [float(features[place]) for place in active]
        rows.append([*row, *errors[:, 1:].flatten().tolist(), *token.tolist()])
    return active, np.array(rows), np.array([float(target.detach()) for target in targets])
