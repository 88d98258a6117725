"""
circuit-tracer's graphs by its own code, as files that tests and `compare_graphs.py` hold against weft's.

    PYTHONPATH=tests PYTHON benchmarks/attribution/make_goldens.py [--output tests/assets/circuit_tracer]
    PYTHONPATH=tests PYTHON benchmarks/attribution/make_goldens.py --model FOLDER --output FOLDER [--ids 504 3575 ...]

PYTHON is that of an environment with circuit-tracer 0.5.0, transformer-lens 3.2.1, nnsight 0.6.1, transformers 4.57.3
and torch; the versions stand in each file. The models are those of `golden_cases`, read by TransformerLens's own
conversions of weights. Its configurations of Gemma go by the names of released models, so those are written here.
Each file has the active features, the whole adjacency, what pruning keeps, and both scores.

With `--model` it is one Llama-like model with its own weights instead, and transcoders as wide as it; they are written
to the output's folder too, beside what circuit-tracer finds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import compute_graph_scores, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from golden_cases import (
    EDGE_THRESHOLD,
    FAMILIES,
    KINDS,
    LAYERS,
    NODE_THRESHOLD,
    PROMPT,
    VOCAB,
    WIDTH,
    write_model,
    write_transcoder,
)
from side_circuit_tracer import llama
from transformer_lens import HookedTransformerConfig
from transformer_lens.loading_from_pretrained import (
    fill_missing_keys,
    get_pretrained_model_config,
    get_pretrained_state_dict,
)
from transformers import AutoConfig, AutoModelForCausalLM

HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
PACKAGES = "circuit-tracer", "transformer-lens", "nnsight", "transformers", "torch", "numpy"
VERSIONS = {name: version(name) for name in PACKAGES}


def configuration(family: str, folder: Path) -> HookedTransformerConfig:
    """What TransformerLens makes of a folder."""
    if not family.startswith("gemma"):
        return get_pretrained_model_config(str(folder), fold_ln=False, device="cpu", dtype=torch.float32)
    hf = json.loads((folder / "config.json").read_text())
    is_second = family == "gemma2"
    others: dict[str, Any]
    if is_second:
        caps = hf["attn_logit_softcapping"], hf["final_logit_softcapping"]
        others = {"attn_scores_soft_cap": caps[0], "output_logits_soft_cap": caps[1]}
    else:
        others = {"use_qk_norm": True, "rotary_base_local": int(hf["rope_local_base_freq"])}
    return HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=64,
        d_head=hf["head_dim"],
        n_heads=4,
        n_key_value_heads=hf["num_key_value_heads"],
        d_mlp=hf["intermediate_size"],
        d_vocab=VOCAB,
        act_fn="gelu_pytorch_tanh",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=hf["rms_norm_eps"],
        positional_embedding_type="rotary",
        rotary_base=int(hf["rope_theta"]),
        rotary_dim=hf["head_dim"],
        use_attn_scale=True,
        attn_scale=float(hf["query_pre_attn_scalar"]) ** 0.5,
        use_normalization_before_and_after=True,
        use_local_attn=True,
        window_size=hf["sliding_window"],
        attn_types=["local" if each == "sliding_attention" else "global" for each in hf["layer_types"]],
        original_architecture="Gemma2ForCausalLM" if is_second else "Gemma3ForCausalLM",
        model_name=family,
        device="cpu",
        dtype=torch.float32,
        seed=0,
        **others,
    )


def small_model(family: str, folder: Path, transcoder: Any) -> tuple[TransformerLensReplacementModel, list[float]]:
    """
    A model of `golden_cases` with its transcoder.

    circuit-tracer has all layers share the last one's rotary embedding, which with Gemma 3, whose local layers have a
    base of their own, is another model. Every layer gets its own back.

    Returns:
        The model, and how far its logits are from transformers' in float64: TransformerLens's, and as circuit-tracer
        sets it up.
    """
    cfg = configuration(family, folder)
    cfg.tokenizer_name = None
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = TransformerLensReplacementModel(cfg)
    state = get_pretrained_state_dict(str(folder), cfg, hf_model, dtype=torch.float32)
    model.load_state_dict(fill_missing_keys(model, state), strict=False)
    with torch.no_grad():
        exact = hf_model.double()(torch.tensor([PROMPT])).logits

    def apart() -> float:
        with torch.no_grad():
            return float((model(torch.tensor([PROMPT])) - exact).abs().max())

    found = [apart()]
    own = [(getattr(block.attn, "rotary_sin", None), getattr(block.attn, "rotary_cos", None)) for block in model.blocks]
    model._configure_replacement_model(transcoder)
    found.append(apart())
    for block, (sin, cos) in zip(model.blocks, own, strict=True):
        if sin is not None:
            block.attn.rotary_sin, block.attn.rotary_cos = sin, cos
    if apart() > 1e-4:
        raise SystemExit(f"{family}: TransformerLens has another model than transformers, {apart():.1e} apart")
    told = ", ".join(f"{each:.1e}" for each in found)
    print(f"{family}: logits of TransformerLens and of circuit-tracer are {told} from transformers'", flush=True)
    return model, found


def load_transcoder(kind: str, folder: Path, layers: int) -> Any:
    """A transcoder by circuit-tracer's own reader."""
    options: dict[str, Any] = {**HOOKS, "device": torch.device("cpu"), "dtype": torch.float32}
    if kind == "clt":
        return load_clt(str(folder), scan="golden", **options)
    paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(layers)}
    return load_transcoder_set(paths, scan="golden", **options)


def explain(model: TransformerLensReplacementModel, token_ids: Sequence[int]) -> dict[str, np.ndarray]:
    """One graph, whole, and what pruning makes of it."""
    # It takes token ids, and needs the tokenizer for names alone.
    model.tokenizer = SimpleNamespace(
        all_special_ids=[token_ids[0]],
        decode=lambda ids, **others: str(ids),
        vocab_size=model.cfg.d_vocab,
        padding_side="right",
    )
    graph = attribute(torch.tensor(token_ids), model, batch_size=16)
    pruned = prune_graph(graph, NODE_THRESHOLD, EDGE_THRESHOLD)
    replacement, completeness = compute_graph_scores(graph)
    return {
        "tokens": np.array(token_ids),
        "features": graph.active_features.numpy().astype(np.int16),
        "activations": graph.activation_values.detach().numpy(),
        "adjacency": graph.adjacency_matrix.numpy(),
        "logits": graph.logit_token_ids.numpy().astype(np.int32),
        "probabilities": graph.logit_probabilities.detach().numpy(),
        "nodes": pruned.node_mask.numpy(),
        "edges": pruned.edge_mask.numpy(),
        "scores": np.array([replacement, completeness]),
        "versions": np.array(json.dumps(VERSIONS)),
    }


def golden(family: str, kind: str) -> dict[str, np.ndarray]:
    """The graph of a small model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(family, folder / "model")
        write_transcoder(kind, family, folder / kind)
        transcoder = load_transcoder(kind, folder / kind, LAYERS)
        model, apart = small_model(family, folder / "model", transcoder)
        return {**explain(model, PROMPT), "logits_apart": np.array(apart)}


def mlp_inputs(folder: Path, token_ids: Sequence[int]) -> np.ndarray:
    """What the MLPs of a Llama-like model read, by transformers: [L, P, D]."""
    config = AutoConfig.from_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    # Newer releases write it where older ones do not look.
    config.rope_theta = written.get("rope_theta") or written["rope_parameters"]["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    found: list[np.ndarray] = []
    for block in model.model.layers:
        block.mlp.register_forward_pre_hook(lambda module, args: found.append(args[0][0].numpy()))
    with torch.no_grad():
        model(torch.tensor([list(token_ids)]))
    return np.stack(found)


def real(kind: str, model: Path, output: Path, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The graph of a model with weights of its own."""
    inputs_LPD = mlp_inputs(model, options.ids)
    folder = output / kind
    write_transcoder(kind, model.name, folder, inputs_LPD, features=options.features, active=options.active)
    transcoder = load_transcoder(kind, folder, len(inputs_LPD))
    return explain(llama(model, 64, transcoder, torch.float32), options.ids)


def main() -> None:
    """Write every golden, or the graphs of one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tests/assets/circuit_tracer"))
    parser.add_argument("--model", type=Path, help="folder of a Llama-like model")
    parser.add_argument("--ids", type=int, nargs="+", default=[504, 3575, 282, 4649, 314], help="prompt for --model")
    parser.add_argument("--features", type=int, default=512, help="F of the transcoders for --model")
    parser.add_argument("--active", type=int, default=17, help="L0 of the transcoders for --model")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    families = [options.model.name] if options.model else list(FAMILIES)
    for family in families:
        for kind in KINDS:
            found = real(kind, options.model, options.output, options) if options.model else golden(family, kind)
            np.savez_compressed(options.output / f"{family}-{kind}.npz", **found)
            print(f"{family}, {kind}: {len(found['features'])} features, {found['nodes'].sum()} nodes kept", flush=True)


if __name__ == "__main__":
    main()
