"""
circuit-tracer's side, by its own code: its set-up, its forward pass, and its batches of backward passes.

Source: circuit-tracer 0.5.0, `attribution/attribute.py`, phases 0, 1 and 4, its TransformerLens route. Its model takes
no local folder and not this model, so its configuration is written here and its weights are read from the folder.
Runs in an environment that has circuit-tracer 0.5.0, transformer-lens 3.2.1, nnsight 0.6.1 and transformers 4.57.3.

    python side_circuit_tracer.py JSON      with model, folder, clt, tokens, threads
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from safetensors import safe_open
from transformer_lens import HookedTransformerConfig
from turns import serve

Json = dict[str, Any]


def llama(folder: Path, context: int, clt: Any, dtype: torch.dtype) -> TransformerLensReplacementModel:
    """A Llama-like model with its transcoder in the place of its MLPs."""
    config = json.loads((folder / "config.json").read_text())
    heads, width = config["num_attention_heads"], config["hidden_size"]
    kv_heads = config["num_key_value_heads"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    cfg = HookedTransformerConfig(
        n_layers=config["num_hidden_layers"],
        d_model=width,
        n_ctx=context,
        d_head=width // heads,
        n_heads=heads,
        n_key_value_heads=None if kv_heads == heads else kv_heads,
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=config["rms_norm_eps"],
        positional_embedding_type="rotary",
        rotary_base=int(theta),
        rotary_dim=width // heads,
        original_architecture="LlamaForCausalLM",
        model_name="bench",
        device="cpu",
        dtype=dtype,
        seed=0,
    )
    model = TransformerLensReplacementModel(cfg)
    model.load_state_dict(_weights(folder, cfg, config["tie_word_embeddings"]), strict=False)
    model._configure_replacement_model(clt)
    return model


def _weights(folder: Path, cfg: HookedTransformerConfig, tied: bool) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    heads = cfg.n_key_value_heads or cfg.n_heads
    mark = "_" if cfg.n_key_value_heads else ""
    with safe_open(path, framework="pt") as file:

        def read(name: str) -> torch.Tensor:
            return file.get_tensor(f"model.{name}.weight").to(cfg.dtype)

        unembedding = file.get_tensor("lm_head.weight").to(cfg.dtype) if not tied else read("embed_tokens")
        found = {"embed.W_E": read("embed_tokens"), "unembed.W_U": unembedding.T, "ln_final.w": read("norm")}
        for i in range(cfg.n_layers):
            ours, theirs = f"blocks.{i}.", f"layers.{i}."
            found[f"{ours}ln1.w"] = read(f"{theirs}input_layernorm")
            found[f"{ours}ln2.w"] = read(f"{theirs}post_attention_layernorm")
            query, key, value = (read(f"{theirs}self_attn.{n}_proj") for n in "qkv")
            found[f"{ours}attn.W_Q"] = query.view(cfg.n_heads, cfg.d_head, -1).transpose(1, 2)
            found[f"{ours}attn.{mark}W_K"] = key.view(heads, cfg.d_head, -1).transpose(1, 2)
            found[f"{ours}attn.{mark}W_V"] = value.view(heads, cfg.d_head, -1).transpose(1, 2)
            out = read(f"{theirs}self_attn.o_proj")
            found[f"{ours}attn.W_O"] = out.T.reshape(cfg.n_heads, cfg.d_head, -1)
            found[f"{ours}mlp.W_gate"] = read(f"{theirs}mlp.gate_proj").T
            found[f"{ours}mlp.W_in"] = read(f"{theirs}mlp.up_proj").T
            found[f"{ours}mlp.W_out"] = read(f"{theirs}mlp.down_proj").T
    return found


def make(given: Json) -> Callable[[Json], Json]:
    """Set it up as `attribute` does, and answer requests for rows and edges."""
    torch.set_num_threads(given["threads"])
    start_s = time.perf_counter()
    folder, tokens = Path(given["folder"]), given["tokens"]
    dtype = getattr(torch, given.get("dtype", "float32"))
    with np.load(folder / f"streams_{tokens}.npz") as streams:
        token_ids = torch.from_numpy(streams["token_ids"])
    clt = load_clt(given["clt"], "mlp.hook_in", "hook_mlp_out", device=torch.device("cpu"), dtype=dtype)
    model = llama(Path(given["model"]), max(tokens, 256), clt, dtype)
    context = model.setup_attribution(token_ids)
    layers, positions, indices = context.activation_matrix.indices()
    count = len(layers)
    setup_s = time.perf_counter() - start_s

    def compute(rows: torch.Tensor) -> torch.Tensor:
        return context.compute_batch(
            layers=layers[rows], positions=positions[rows], inject_values=context.encoder_vecs[rows]
        ).cpu()

    def forward(request: Json) -> Json:
        """Keep the graph of a forward pass of so many prompts."""
        context._resid_activations = [None] * (context.n_layers + 1)
        begun = time.perf_counter()
        model.run_forward_pass(token_ids, request["batch"], context)
        return {"seconds": time.perf_counter() - begun}

    def time_rows(request: Json) -> Json:
        """Batches of neighbours from the middles of equal parts of all features: layers as in a whole graph."""
        batch, spans = min(request["batch"], count), request["spans"]
        matrix = torch.zeros(batch * spans, context._row_size)
        begun = time.perf_counter()
        for span in range(spans):
            start = max(0, min(count - batch, int((span + 0.5) * count / spans) - batch // 2))
            matrix[span * batch : (span + 1) * batch] = compute(torch.arange(start, start + batch))
        return {"rows": batch * spans, "seconds": time.perf_counter() - begun}

    def edges(request: Json) -> Json:
        """Write the rows with these keys, and what their columns are; all zero where there is no such feature."""
        wanted = np.load(request["keys"])
        mine = torch.stack([layers, positions, indices], dim=1)
        place = {tuple(key): row for row, key in enumerate(mine.tolist())}
        rows = [place[tuple(key)] for key in wanted.tolist()]
        found = torch.cat([compute(torch.tensor(rows[i : i + request["batch"]]))
                           for i in range(0, len(rows), request["batch"])])  # fmt: skip
        np.savez(request["path"], keys=mine.numpy(), edges=found.detach().numpy())
        return {}

    def facts(request: Json) -> Json:
        return {"active_features": count, "setup_s": setup_s}

    answers = {"forward": forward, "rows": time_rows, "edges": edges, "facts": facts}
    return lambda request: answers[request["what"]](request)


if __name__ == "__main__":
    serve(make)
