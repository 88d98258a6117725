"""
CLT-Forge's cache in its own code and environment: a process that answers a line of JSON a line.

    PYTHON side_clt_forge.py TREE FOLDER

TREE is a working tree of CLT-Forge. FOLDER has the streams as `input.npy` and `output.npy`, float32 [L, T, D]; it gets
the cache's file. The settings are the cache's defaults: int8, a scale for each layer, zstd at level 3.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


def figures(peer: Any, file: Path) -> dict[str, Any]:
    """Code and decode one stream: FVU by layer, and bits a value."""
    values = np.load(file)
    coded = peer._quantize_tensor(torch.from_numpy(values).transpose(0, 1).contiguous())
    bits = 8 * len(peer.compress_bytes(coded.data.tobytes())) / values.size
    decoded = coded.dequantize().transpose(0, 1).numpy()
    fvus = []
    for read, exact in zip(decoded, values.astype(np.float64), strict=True):
        fvus.append(float(((read - exact) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()))
    return {"fvus": fvus, "bits": bits}


def decoded(peer: Any, file: Path, out: Path) -> dict[str, Any]:
    """Write what one stream becomes."""
    coded = peer._quantize_tensor(torch.from_numpy(np.load(file)).transpose(0, 1).contiguous())
    np.save(out, coded.dequantize().transpose(0, 1).float().numpy())
    return {}


def main() -> None:
    """Answer until there is no line more."""
    tree, folder = (Path(argument) for argument in sys.argv[1:])
    sys.path.insert(0, str(tree / "src"))
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # what it prints is no answer
    from clt_forge.training.compressed_activations_store import CompressedActivationsStore, CompressionConfig

    logging.disable(logging.INFO)  # a line for each file that it saves
    peer = CompressedActivationsStore(CompressionConfig())
    streams: list[torch.Tensor] = []
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] in ("write", "read") and not streams:
            streams = [
                torch.from_numpy(np.load(folder / f"{name}.npy")).transpose(0, 1).to(torch.bfloat16).contiguous()
                for name in ("input", "output")
            ]
        start_s, answer = time.process_time(), {}
        if asked["do"] == "write":
            peer.save_compressed(folder / "peer.bin", *streams)
        elif asked["do"] == "read":
            peer.load_compressed(folder / "peer.bin")
        elif asked["do"] == "decoded":
            answer = decoded(peer, Path(asked["file"]), Path(asked["out"]))
        else:
            answer = figures(peer, Path(asked["file"]))
        print(json.dumps(answer | {"cpu_s": time.process_time() - start_s}), file=answers, flush=True)


if __name__ == "__main__":
    main()
