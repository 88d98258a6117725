"""
Measure the shard codecs on activations of a real model, beside one int8 scale a layer under zstd -3.

The peer's code is CLT-Forge's choice, written here from its description: a scale for each layer and stream from the
largest magnitude, int8, zstd level 3. The bound is the rate of a Gaussian with the same covariance at the same error
(reverse water-filling over its eigenvalues); what is measured is not Gaussian, so figures below it are no mistake.

    python benchmarks/store/bench_codec.py [--model FOLDER] [--out .weft/bench/store.json]

Shapes: L layers, T tokens, D d_model.
"""

import argparse
import json
import os
import pydoc_data.topics
import time
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from weft_store import open_store
from weft_store.shard import CodecSpec, ShardReader, StreamStatistics, encode_shard

ROOT = Path(__file__).resolve().parents[2]
SEQUENCES, LENGTH = 8, 256
ROUNDS = 3
Streams = dict[str, NDArray[np.float32]]


def take_activations(folder: Path) -> Streams:
    """Take MLP inputs, residuals before the MLP and MLP outputs of all layers, position 0 left out: [L, T, D] each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    text = "\n".join(pydoc_data.topics.topics.values())
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(text)["input_ids"]
    taken: dict[str, list[NDArray[np.float32]]] = {"mlp_in": [], "resid_mid": [], "mlp_out": []}

    def keep(name: str, tensor: torch.Tensor) -> None:
        taken[name].append(tensor[:, 1:].reshape(-1, tensor.shape[-1]).numpy())

    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda _, given, out: keep("resid_mid", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_in", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_out", out))
    with torch.inference_mode():
        model(torch.tensor(tokens[: SEQUENCES * LENGTH]).reshape(SEQUENCES, LENGTH))
    return {name: np.stack(layers) for name, layers in taken.items()}


def peer(values_TD: NDArray[np.float32]) -> tuple[float, float]:
    """Code one layer as the peer does: FVU and bits a value."""
    scale = float(np.abs(values_TD).max()) / 127
    codes = np.rint(values_TD / scale).astype(np.int8)
    bits = 8 * len(zstandard.ZstdCompressor(level=3).compress(codes.tobytes())) / codes.size
    exact = values_TD.astype(np.float64)
    return float(((codes * scale - exact) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()), bits


def gaussian_bound(values_TD: NDArray[np.float32], fvu: float) -> float:
    """Give the bits a value that a Gaussian of this covariance needs at this FVU: reverse water-filling."""
    variances = np.maximum(np.linalg.eigvalsh(np.cov(values_TD.astype(np.float64), rowvar=False)), 1e-300)
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(variances, level).sum() < fvu * variances.sum() else (low, level)
    return float(np.maximum(0.5 * np.log2(variances / high), 0).sum() / len(variances))


def best_of(call: object, rounds: int = ROUNDS) -> float:
    """Give the processor seconds of the fastest of some calls."""
    assert callable(call)
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the shard codecs on a real model.")
    models = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    parser.add_argument("--model", type=Path, default=models / "smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, default=ROOT / ".weft" / "bench" / "store.json")
    options = parser.parse_args()
    taken = take_activations(options.model)
    shape = taken["mlp_in"].shape
    rows: list[dict[str, object]] = []

    def row(name: str, ours: float, other: float | None, unit: str, conditions: str) -> None:
        ratio = ours / other if other else None
        rows.append({"name": name, "ours": ours, "peer": other, "ratio": ratio, "unit": unit, "conditions": conditions})
        print(f"{name:52} {ours:10.4g} {'' if other is None else f'{other:10.4g}'} {unit}")

    setting = f"{options.model.name}, {shape[0]} layers, {shape[1]} tokens of pydoc_data.topics, position 0 left out"
    for target in (1e-3, 1e-2):
        coded: dict[str, list[StreamStatistics]] = {}
        for source in ("mlp_in", "resid_mid"):
            shard = encode_shard(
                {"input": taken[source], "output": taken["mlp_out"]}, CodecSpec("uniform", target), attributes={}
            )
            coded[source] = [entry.input for entry in shard.statistics]
            coded["mlp_out"] = [entry.output for entry in shard.statistics]
        for source, figures in coded.items():
            layers = taken[source]
            others = [peer(values) for values in layers]
            bits = float(np.mean([8 * entry.size_bytes / layers[0].size for entry in figures]))
            case = f"{setting}; uniform, target FVU {target:g}; peer: one int8 scale a layer, zstd -3"
            row(
                f"{source} fvu {target:g}: bits",
                bits,
                float(np.mean([other[1] for other in others])),
                "bits/value",
                case,
            )
            row(
                f"{source} fvu {target:g}: worst FVU", max(e.fvu for e in figures), max(o[0] for o in others), "1", case
            )
            row(
                f"{source} fvu {target:g}: least FVU", min(e.fvu for e in figures), min(o[0] for o in others), "1", case
            )
            entropy = float(np.mean([entry.entropy_bits for entry in figures]))
            row(
                f"{source} fvu {target:g}: bits beside entropy",
                bits,
                entropy,
                "bits/value",
                f"{setting}; peer: entropy of the codes",
            )
            bound = float(np.mean([gaussian_bound(values, target) for values in layers]))
            row(
                f"{source} fvu {target:g}: bits beside bound",
                bits,
                bound,
                "bits/value",
                f"{setting}; peer: Gaussian bound",
            )
    streams = {"input": taken["mlp_in"], "output": taken["mlp_out"]}
    megabytes = 2 * streams["input"].size * 2 / 1e6
    store = open_store("memory://")
    for codec in ("uniform", "bf16"):
        spec = CodecSpec(codec)
        shard = encode_shard(streams, spec, attributes={})
        case = f"{setting}, both streams; one core, processor time, best of {ROUNDS}; MB of bfloat16"
        encode_s = best_of(lambda spec=spec: encode_shard(streams, spec, attributes={}))
        store.put(codec, shard.data)
        reader = ShardReader(store, codec)
        decode_s = best_of(
            lambda reader=reader: [reader.read_row_group(g) for g in range(reader.header.num_row_groups)]
        )
        row(f"{codec}: encode", megabytes / encode_s, None, "MB/s", case)
        row(f"{codec}: decode", megabytes / decode_s, None, "MB/s", case)
        row(f"{codec}: decode a row group", decode_s / reader.header.num_row_groups, None, "s", case)
        row(
            f"{codec}: bits",
            8 * len(shard.data) / (2 * streams["input"].size),
            16.0,
            "bits/value",
            f"{case}; peer: bfloat16",
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
