"""
What both sides of the comparison of graphs explain: a random CLT in circuit-tracer's layout, and streams of prompts.

The CLT is drawn by a seeded generator: encoders uniform, decoders normal, biases such that about L0 features a token
and layer are active on the longest prompt. The streams come from weft's own activations backend, in this process, which
ends before anything is measured; its peak memory is told.

    python problem.py JSON      with model, folder, tokens, features, active, threads

With `counts` there are as many CLTs more, `bench-{count}`: the same decoders, and encoders with biases such that so
many features are active in all on the prompt of `count_tokens`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from turns import peak_bytes, serve

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_attribution.core.pipeline import capture_hooks

Json = dict[str, Any]
CLT = "bench"
TEXT = """
The lighthouse stood at the end of a long spit of sand, and every evening its keeper walked out to it before the tide
came in. He carried bread, a can of oil and the newspaper of the day before, which was as fresh as news could be in that
place. In forty years he had missed a single night, when a storm took the bridge away, and a ship had seen no light and
turned back to sea. Nobody was hurt, but he wrote it down in his book with the date and the hour, under a line drawn
with a ruler, and from then on he kept a bed, a stove and a month of food in the tower. The children of the village
asked him what he did there in winter. He said that he counted waves, and that he had not yet reached the last one, but
that he was in no hurry, since somebody before him had begun and somebody after him would go on. The capital of France,
he added, was Paris; he had been there once, and found that it had no sea.
"""


def make(given: Json) -> Any:
    """Write the streams of every prompt and the CLT."""
    torch.set_num_threads(given["threads"])
    folder, model = Path(given["folder"]), Path(given["model"])
    backend = TransformersBackend(model.parent, dtype="float32", device="cpu", threads=given["threads"])
    text = " ".join(TEXT.split())
    ids = backend.tokenize(model.name, text)
    # Told again where the prompt is longer.
    ids = backend.tokenize(model.name, " ".join([text] * -(-max(given["tokens"]) // len(ids))))
    info = backend.describe(model.name)
    layers = info.num_layers
    names = [
        name
        for hook in capture_hooks("mlp_in")
        for name in ([hook.replace("*", str(i)) for i in range(layers)] if "*" in hook else [hook])
    ]
    inputs_LTD = np.empty(0)
    for tokens in sorted(given["tokens"]):
        streams = backend.forward(model.name, ids[:tokens], names)
        np.savez(folder / f"streams_{tokens}.npz", token_ids=np.array(ids[:tokens]), **streams)
        inputs_LTD = np.stack([streams[f"layers.{i}.mlp_in"] for i in range(layers)])
    model_bytes = peak_bytes()
    clt = folder / CLT
    clt.mkdir()
    rng = torch.Generator().manual_seed(0)
    features, d = given["features"], inputs_LTD.shape[2]
    for layer in range(layers):
        encoder_FD = (torch.rand(features, d, generator=rng) * 2 - 1) * features**-0.5
        pre_TF = torch.from_numpy(inputs_LTD[layer, 1:]) @ encoder_FD.T
        above = pre_TF.flatten().kthvalue(pre_TF.numel() - round(given["active"] * len(pre_TF)))[0]
        targets = layers - layer
        decoder = torch.randn(features, targets, d, generator=rng) * (targets * d) ** -0.5
        save_file(
            {
                f"W_enc_{layer}": encoder_FD,
                f"b_enc_{layer}": torch.full((features,), -float(above)),
                f"b_dec_{layer}": torch.randn(d, generator=rng) * 0.01,
            },
            clt / f"W_enc_{layer}.safetensors",
        )
        save_file({f"W_dec_{layer}": decoder}, clt / f"W_dec_{layer}.safetensors")
    _tell(folder, CLT, model.name)
    for count in given.get("counts", []):
        _with_count(folder, model.name, layers, given["count_tokens"], count)
    return lambda request: {"model_bytes": model_bytes}


def _tell(folder: Path, name: str, model: str) -> None:
    manifest = {"model": model, "prefix": f"{name}/", "input_hook": "mlp_in", "output_hook": "mlp_out"}
    (folder / "transcoders" / name).mkdir(parents=True)
    (folder / "transcoders" / name / "manifest.json").write_text(json.dumps(manifest))


def _with_count(folder: Path, model: str, layers: int, tokens: int, count: int) -> None:
    """Write encoders that make so many features active on a prompt, beside the same decoders."""
    name = f"{CLT}-{count}"
    (folder / name).mkdir()
    with np.load(folder / f"streams_{tokens}.npz") as streams:
        inputs_LTD = [torch.from_numpy(streams[f"layers.{layer}.mlp_in"]) for layer in range(layers)]
    for layer, inputs_TD in enumerate(inputs_LTD):
        file = f"W_enc_{layer}.safetensors"
        encoder = load_file(folder / CLT / file)
        pre_TF = (inputs_TD[1:] @ encoder[f"W_enc_{layer}"].T).flatten()
        active = min(len(pre_TF) - 1, max(1, count * (layer + 1) // layers - count * layer // layers))
        above = pre_TF.kthvalue(len(pre_TF) - active)[0]
        encoder[f"b_enc_{layer}"] = torch.full_like(encoder[f"b_enc_{layer}"], -float(above))
        save_file(encoder, folder / name / file)
        (folder / name / f"W_dec_{layer}.safetensors").hardlink_to(folder / CLT / f"W_dec_{layer}.safetensors")
    _tell(folder, name, model)


if __name__ == "__main__":
    serve(make)
