"""
weft's side: active features, targets and the sweep as the attribution service runs them, rows spilled as it does.

    python side_weft.py JSON      with model, folder, tokens, threads, memory
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problem import CLT
from turns import peak_bytes, resident_bytes, serve

from weft_attribution.core.checkpoints import load_linear_weights
from weft_attribution.core.edge_file import EdgeScratch
from weft_attribution.core.features import find_features
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.pipeline import default_batch_size
from weft_attribution.core.sweep import make_targets, sweep
from weft_attribution.core.targets import Target, explain
from weft_attribution.core.transcoder import TranscoderReader
from weft_store.opening import open_store

Json = dict[str, Any]


def make(given: Json) -> Callable[[Json], Json]:
    """Find what is active, and answer requests for rows, edges and the rate of a product."""
    # Workers sweep beside each other, each with one of torch's threads.
    torch.set_num_threads(1)
    start_s = time.perf_counter()
    folder, tokens, threads = Path(given["folder"]), given["tokens"], given["threads"]
    weights = load_linear_weights(Path(given["model"]))
    with np.load(folder / f"streams_{tokens}.npz") as streams:
        tensors = {name: streams[name] for name in streams}
    token_ids = tensors.pop("token_ids")
    reader = TranscoderReader(open_store(folder.as_uri()), given.get("transcoder", CLT))
    with torch.no_grad():
        operator = FrozenOperator(weights, tensors, num_positions=tokens)
        features = find_features(
            weights, reader, tensors, num_positions=tokens, max_features=1 << 20, max_writer_bytes=given["memory"] // 2
        )
        best = [Target(token_id=int(token_id)) for token_id in np.argsort(-tensors["logits"])[:10]]
        targets = make_targets(operator, features, explain(operator, reader, tensors, best))
    setup_s = time.perf_counter() - start_s
    batch_size = default_batch_size(tokens, weights.d_model)

    def swept(rows: np.ndarray, take: Callable[[np.ndarray, np.ndarray], None]) -> None:
        sweep(
            operator,
            features,
            targets,
            token_ids,
            batch_size=batch_size,
            take=take,
            workers=threads,
            memory_bytes=given["memory"] // 2,
            rows=rows,
        )

    def time_rows(request: Json) -> Json:
        """Features of some positions, so that layers are as frequent as in a whole graph, at most as many as asked."""
        positions = np.linspace(1, tokens, request["spans"] + 1)
        middle = ((positions[1:] + positions[:-1]) / 2).astype(int)
        rows = np.flatnonzero(np.isin(features.position_N, middle))
        if "most" in request and len(rows) > request["most"]:
            rows = rows[np.linspace(0, len(rows) - 1, request["most"]).astype(int)]
        resident, begun, begun_cpu = resident_bytes(from_here=True), time.perf_counter(), time.process_time()
        with EdgeScratch(len(targets.layer_N)) as scratch:
            swept(rows, scratch.add)
        taken = {"seconds": time.perf_counter() - begun, "sweep_cpu_s": time.process_time() - begun_cpu}
        return {**taken, "rows": len(rows), "rise_bytes": peak_bytes() - resident, "flop": needed_flop(rows)}

    def needed_flop(rows: np.ndarray) -> float:
        """Operations of the products that no sweep down the causal cone of these rows can leave out."""
        d = weights.d_model
        attention = weights.layers[0].output_ZD.numel() + weights.layers[0].value_KD.numel()
        layer, reach = targets.layer_N[rows], targets.position_N[rows] + 1
        mixing = weights.layers[0].output_ZD.shape[0] * reach * (reach + 1) / 2
        total = ((layer + 1.0) * (attention * reach + mixing)).sum()
        # A feature below writes to every layer from its own to the one under the target.
        place = features.layer_N[None, :], features.position_N[None, :]
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            at, where = targets.layer_N[part][:, None], targets.position_N[part][:, None]
            total += d * (np.maximum(at - place[0], 0) * (place[1] <= where)).sum()
        return 2.0 * float(total)

    def edges(request: Json) -> Json:
        """Write some rows, and what their columns are."""
        rows = np.linspace(0, len(features) - 1, request["count"]).astype(int)
        found: dict[int, np.ndarray] = {}
        swept(rows, lambda batch, dense: found.update(dict(zip(batch.tolist(), dense, strict=True))))
        np.savez(
            request["path"],
            keys=np.stack([features.layer_N, features.position_N, features.index_N], axis=1),
            rows=rows,
            edges=np.stack([found[row] for row in rows.tolist()]),
        )
        return {}

    def product_rate(request: Json) -> Json:
        """Operations by second of processor time of a product of a shape that the sweep has, on all threads at once."""
        left, right = torch.randn(4096, weights.d_model), torch.randn(weights.d_model, weights.d_model)
        outs = [torch.empty(4096, weights.d_model) for _ in range(threads)]

        def multiply(out: torch.Tensor) -> None:
            for _ in range(20):
                torch.mm(left, right, out=out)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(multiply, outs))
            begun = time.process_time()
            list(pool.map(multiply, outs))
            seconds = time.process_time() - begun
        return {"flop_per_s": 2.0 * 20 * threads * left.numel() * weights.d_model / seconds}

    def facts(request: Json) -> Json:
        return {"active_features": len(features), "setup_s": setup_s}

    answers = {"rows": time_rows, "edges": edges, "rate": product_rate, "facts": facts}
    return lambda request: answers[request["what"]](request)


if __name__ == "__main__":
    serve(make)
