"""
Measure the shard codecs on activations of a real model, beside CLT-Forge's own cache.

The peer is CLT-Forge's `CompressedActivationsStore` out of a working tree of its code, int8 with zstd -3 as it is set
by default; without `--clt-forge` its rows are left out. Sides take turns, each writing and reading files in one folder.
The bound is the rate of a Gaussian with the same covariance at the same error (reverse water-filling over its
eigenvalues); what is measured is not Gaussian, so figures below it are no mistake.

    python benchmarks/store/bench_codec.py [--model FOLDER] [--clt-forge FOLDER] [--out .weft/bench/store.json]

Shapes: L layers, T tokens, D d_model.
"""

import argparse
import json
import logging
import os
import pydoc_data.topics
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft_store import open_store
from weft_store.shard import CodecSpec, CodedStream, ShardReader, StreamStatistics, encode_shard

ROOT = Path(__file__).resolve().parents[2]
SEQUENCES, LENGTH = 8, 256
ROUNDS = 5
Streams = dict[str, NDArray[np.float32]]


def take_activations(folder: Path) -> Streams:
    """Take MLP inputs, residuals before the MLP and MLP outputs of all layers, position 0 left out: [L, T, D] each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

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


def open_peer(folder: Path) -> Any:
    """Import CLT-Forge's cache from its own code and make one with its defaults."""
    sys.path.insert(0, str(folder / "src"))
    from clt_forge.training.compressed_activations_store import CompressedActivationsStore, CompressionConfig

    logging.disable(logging.INFO)  # a line for each file that it saves
    return CompressedActivationsStore(CompressionConfig())


def peer_figures(peer: Any, values_LTD: NDArray[np.float32]) -> tuple[list[float], float]:
    """Have the peer code and decode one stream: FVU by layer, and bits a value."""
    coded = peer._quantize_tensor(torch.from_numpy(values_LTD).transpose(0, 1).contiguous())
    bits = 8 * len(peer.compress_bytes(coded.data.tobytes())) / values_LTD.size
    decoded_LTD = coded.dequantize().transpose(0, 1).numpy()
    fvus = []
    for decoded, values in zip(decoded_LTD, values_LTD, strict=True):
        exact = values.astype(np.float64)
        fvus.append(float(((decoded - exact) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()))
    return fvus, bits


def to_bf16(coded: CodedStream, out_LTD: torch.Tensor) -> None:
    """Make bfloat16 of the codes of a row group."""
    if coded.step_L is None or coded.mean_LD is None:
        out_LTD.copy_(torch.from_numpy(coded.codes_LTD).view(torch.bfloat16))
        return
    scratch = torch.empty(coded.codes_LTD.shape[1:])
    for layer, codes_TD in enumerate(coded.codes_LTD):
        scratch.copy_(torch.from_numpy(codes_TD))
        scratch.mul_(float(coded.step_L[layer])).add_(torch.from_numpy(coded.mean_LD[layer].copy()))
        out_LTD[layer].copy_(scratch)


def gaussian_bound(values_TD: NDArray[np.float32], fvu: float) -> float:
    """Give the bits a value that a Gaussian of this covariance needs at this FVU: reverse water-filling."""
    variances = np.maximum(np.linalg.eigvalsh(np.cov(values_TD.astype(np.float64), rowvar=False)), 1e-300)
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(variances, level).sum() < fvu * variances.sum() else (low, level)
    return float(np.maximum(0.5 * np.log2(variances / high), 0).sum() / len(variances))


def processor_s(call: Callable[[], object]) -> float:
    """Give the processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def rates(streams: Streams, peer: Any | None) -> dict[str, dict[str, list[float]]]:
    """Write and read both streams ROUNDS times, sides taking turns: processor seconds by codec, `write` and `read`."""
    sides: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    num_layers, num_tokens, d_model = streams["input"].shape
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"file://{folder}/bucket")
        for codec in ("uniform", "bf16"):

            def write(codec: str = codec) -> None:
                store.put(codec, encode_shard(streams, CodecSpec(codec), attributes={}).data)

            def read(codec: str = codec) -> None:
                reader = ShardReader(store, codec)
                out_SLTD = torch.empty(2, num_layers, num_tokens, d_model, dtype=torch.bfloat16)
                for group in range(reader.header.num_row_groups):
                    start = group * reader.header.row_group_tokens
                    rows = slice(start, start + reader.header.rows(group))
                    for out_LTD, coded in zip(out_SLTD, reader.read_codes(group).values(), strict=True):
                        to_bf16(coded, out_LTD[:, rows])

            sides[codec] = (write, read)
        if peer is not None:
            given = [torch.from_numpy(streams[name]).transpose(0, 1).to(torch.bfloat16) for name in ("input", "output")]
            file = Path(folder) / "peer.bin"
            sides["peer"] = (
                lambda: peer.save_compressed(file, *(each.contiguous() for each in given)),
                lambda: peer.load_compressed(file),
            )
        for write, read in sides.values():  # compiles, and touches all memory once
            write()
            read()
        taken: dict[str, dict[str, list[float]]] = {name: {"write": [], "read": []} for name in sides}
        for _ in range(ROUNDS):
            for name, (write, read) in sides.items():
                taken[name]["write"].append(processor_s(write))
                taken[name]["read"].append(processor_s(read))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the shard codecs on a real model.")
    models = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    parser.add_argument("--model", type=Path, default=models / "smollm2-135m-instruct")
    parser.add_argument("--clt-forge", type=Path, help="a working tree of CLT-Forge's code")
    parser.add_argument("--out", type=Path, default=ROOT / ".weft" / "bench" / "store.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peer = open_peer(options.clt_forge.resolve()) if options.clt_forge else None
    taken = take_activations(options.model)
    shape = taken["mlp_in"].shape
    rows: list[dict[str, object]] = []

    def row(name: str, ours: float, other: float | None, unit: str, conditions: str) -> None:
        ratio = ours / other if other else None
        rows.append({"name": name, "ours": ours, "peer": other, "ratio": ratio, "unit": unit, "conditions": conditions})
        print(f"{name:52} {ours:10.4g} {'' if other is None else f'{other:10.4g}'} {unit}")

    setting = f"{options.model.name}, {shape[0]} layers, {shape[1]} tokens of pydoc_data.topics, position 0 left out"
    others = {name: peer_figures(peer, values) for name, values in taken.items()} if peer is not None else {}
    for target in (1e-3, 1e-2):
        coded: dict[str, list[StreamStatistics]] = {}
        for source in ("mlp_in", "resid_mid"):
            shard = encode_shard(
                {"input": taken[source], "output": taken["mlp_out"]}, CodecSpec("uniform", target), attributes={}
            )
            coded[source] = [entry.input for entry in shard.statistics]
            coded["mlp_out"] = [entry.output for entry in shard.statistics]
        for source, figures in coded.items():
            name = f"uniform, {source}, FVU {target:g}"
            layers = taken[source]
            bits = float(np.mean([8 * entry.size_bytes / layers[0].size for entry in figures]))
            entropy = float(np.mean([entry.entropy_bits for entry in figures]))
            bound = float(np.mean([gaussian_bound(values, target) for values in layers]))
            row(f"{name}: bits beside entropy", bits, entropy, "bits/value", f"{setting}; peer: entropy of the codes")
            row(f"{name}: bits beside bound", bits, bound, "bits/value", f"{setting}; peer: Gaussian bound")
            if source in others:
                case = f"{setting}; peer: CLT-Forge, int8, zstd -3"
                fvus, peer_bits = others[source]
                row(f"{name}: bits beside CLT-Forge", bits, peer_bits, "bits/value", case)
                row(f"{name}: worst layer's FVU beside CLT-Forge", max(e.fvu for e in figures), max(fvus), "1", case)
    streams = {"input": taken["mlp_in"], "output": taken["mlp_out"]}
    megabytes = 2 * streams["input"].size * 2 / 1e6
    taken_s = rates(streams, peer)
    for codec in ("uniform", "bf16"):
        for way in ("write", "read"):
            case = (
                f"{setting}, both streams, to and from a file; one core, processor time, medians of {ROUNDS} rounds "
                "in turn; MB of bfloat16; peer: CLT-Forge, int8, zstd -3"
            )
            ours = statistics.median(taken_s[codec][way])
            other = statistics.median(taken_s["peer"][way]) if peer is not None else None
            row(f"{codec}: {way}", megabytes / ours, megabytes / other if other else None, "MB/s", case)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
