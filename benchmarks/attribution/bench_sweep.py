"""
Times the sweep, and beside it in the same run a plain autograd implementation of the same edges.

    python benchmarks/attribution/bench_sweep.py MODEL_FOLDER [--tokens 6 16 64] [--rows 512] [--rounds 3]

The peer is a stand-in, written here, for circuit-tracer's method as its paper and code describe it, not circuit-tracer:
one forward pass of the frozen model with the prompt repeated B times and its graph kept, one backward pass a batch of
targets, and gradients gathered as [B, sources, d] before they meet the decoders. It leaves out circuit-tracer's own
overheads (hooks, the copy of the dense matrix, the ranking). Patterns and scales are random, of the model's shape;
the weights are the model's own; L0 features a position and layer are drawn at random out of F.
Rows are spans of 128 neighbours in the order of the sweep, spread evenly over the graph; both compute the same ones.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weft_attribution.core.features import ActiveFeatures
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.pipeline import default_batch_size
from weft_attribution.core.sweep import Targets, make_targets, sweep
from weft_attribution.core.weights import LinearWeights, load_linear_weights

SPAN = 128
PEER_BATCH = 64


def random_problem(
    weights: LinearWeights, tokens: int, num_features: int, active: int
) -> tuple[FrozenOperator, ActiveFeatures, Targets, np.ndarray]:
    """A prompt with random streams and features of the model's shape."""
    rng = np.random.default_rng(0)
    layers, d = weights.num_layers, weights.d_model
    tensors = {"ln_final.scale": np.ones(tokens, np.float32)}
    for layer in range(layers):
        scores = np.where(np.tri(tokens, dtype=bool), rng.normal(size=(weights.num_heads, tokens, tokens)), -np.inf)
        pattern = np.exp(scores)
        tensors[f"layers.{layer}.attn.pattern"] = (pattern / pattern.sum(-1, keepdims=True)).astype(np.float32)
        for name in ("ln1", "ln2"):
            tensors[f"layers.{layer}.{name}.scale"] = (1 + rng.random(tokens)).astype(np.float32)
    operator = FrozenOperator(weights, tensors, num_positions=tokens)
    places = [
        (layer, position, feature)
        for layer in range(layers)
        for position in range(1, tokens)
        for feature in np.sort(rng.choice(num_features, active, replace=False))
    ]
    layer_N, position_N, index_N = (np.array(part, dtype=np.int64) for part in zip(*places, strict=True))
    unique, writer_N = np.unique(layer_N * num_features + index_N, return_inverse=True)
    below = np.searchsorted(unique // num_features, np.arange(layers), side="right")
    count = len(places)
    features = ActiveFeatures(
        layer_N=layer_N,
        position_N=position_N,
        index_N=index_N,
        value_N=torch.ones(count),
        activation_N=torch.ones(count),
        reader_ND=torch.randn(count, d),
        offset_N=torch.zeros(count),
        scale_N=torch.ones(count),
        writers_UD=tuple(torch.randn(int(n), d) * 0.05 for n in below),
        writer_N=torch.from_numpy(writer_N),
        error_LPD=torch.randn(layers, tokens, d),
        constant_LPD=torch.zeros(layers, tokens, d),
    )
    features.error_LPD[:, 0] = 0
    token_ids = rng.integers(0, weights.embedding_VD.shape[0], tokens)
    targets = make_targets(operator, features, np.arange(10), torch.zeros(10))
    return operator, features, targets, token_ids


class AutogradPeer:
    """The stand-in: one retained forward graph of B prompts, one backward a batch, gathers."""

    def __init__(
        self, operator: FrozenOperator, features: ActiveFeatures, token_ids: np.ndarray, batch_size: int
    ) -> None:
        self.features, self.operator, self.batch_size = features, operator, batch_size
        weights, positions = operator.weights, operator.num_positions
        self.embed_PD = weights.embedding_VD[torch.from_numpy(token_ids)]
        self.embed_BPD = self.embed_PD.repeat(batch_size, 1, 1).requires_grad_()
        x = self.embed_BPD
        self.outs: list[Tensor] = []
        self.streams: list[Tensor] = []
        group = weights.num_heads // weights.num_kv_heads
        for layer, w in enumerate(weights.layers):
            v = (x / operator.attention_scale_P[layer][:, None]) @ w.value_KD.T
            v = v.view(batch_size, positions, weights.num_kv_heads, -1).transpose(1, 2).repeat_interleave(group, 1)
            mixed = (operator.pattern_HPP[layer] @ v).transpose(1, 2).reshape(batch_size, positions, -1)
            x = x + mixed @ w.output_ZD
            self.streams.append(x)
            out = torch.zeros_like(x).requires_grad_()
            self.outs.append(out)
            x = x + out
        self.streams.append(x)
        layer = torch.from_numpy(features.layer_N)
        self.sources = [(layer <= target).nonzero()[:, 0] for target in range(weights.num_layers)]
        position = torch.from_numpy(features.position_N)
        self.positions = [position[source] for source in self.sources]

    def rows(self, targets: Targets, batch: np.ndarray) -> np.ndarray:
        """Edges of some targets, [rows, sources]."""
        seen = [
            (self.streams[layer][b, position] * targets.reader_ND[row]).sum()
            for b, (row, layer, position) in enumerate(
                zip(batch.tolist(), targets.layer_N[batch], targets.position_N[batch], strict=True)
            )
        ]
        *grads, embed = torch.autograd.grad(
            torch.stack(seen).sum(), [*self.outs, self.embed_BPD], retain_graph=True, materialize_grads=True
        )
        features = self.features
        edges_BN = torch.zeros(self.batch_size, len(features))
        errors = []
        for layer, grad in enumerate(grads):
            source = self.sources[layer]
            writers = features.writers_UD[layer].index_select(0, features.writer_N[source])
            edges_BN[:, source] += torch.einsum("bsd,sd->bs", grad[:, self.positions[layer]], writers)
            errors.append(torch.einsum("bpd,pd->bp", grad, features.error_LPD[layer])[:, 1:])
        token = torch.einsum("bpd,pd->bp", embed, self.embed_PD)
        whole = torch.cat([edges_BN * features.activation_N, *errors, token], dim=1)
        return whole[: len(batch)].detach().numpy()


def main() -> None:
    """Print one JSON line for each prompt length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a Llama or GPT-2 model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[6, 16, 64])
    parser.add_argument("--features", type=int, default=2048, help="F, features a layer")
    parser.add_argument("--active", type=int, default=17, help="L0, active features a layer and position")
    parser.add_argument("--rows", type=int, default=512, help="rows timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=0, help="rows of a sweep; 0 has it chosen")
    parser.add_argument("--threads", type=int, default=2, help="workers of the sweep; torch's threads for the peer")
    parser.add_argument("--without-peer", action="store_true")
    arguments = parser.parse_args()
    weights = load_linear_weights(arguments.model)
    for tokens in arguments.tokens:
        torch.manual_seed(0)
        operator, features, targets, token_ids = random_problem(weights, tokens, arguments.features, arguments.active)
        order = np.lexsort((-targets.layer_N, targets.position_N))
        starts = np.linspace(0, max(0, len(order) - SPAN), max(1, arguments.rows // SPAN)).astype(int)
        spans = [order[start : start + SPAN] for start in starts]
        rows = sum(len(span) for span in spans)
        peer = None if arguments.without_peer else AutogradPeer(operator, features, token_ids, PEER_BATCH)
        ours_s, peer_s, difference = [], [], 0.0
        for _ in range(arguments.rounds):
            torch.set_num_threads(1)
            begun = time.perf_counter()
            found = list(
                sweep(
                    operator,
                    features,
                    targets,
                    token_ids,
                    batch_size=arguments.batch or default_batch_size(tokens, weights.d_model),
                    workers=arguments.threads,
                    rows=np.concatenate(spans),
                )
            )
            ours_s.append(time.perf_counter() - begun)
            if peer is not None:
                torch.set_num_threads(arguments.threads)
                begun = time.perf_counter()
                whole_order = np.concatenate(spans)
                expected = [
                    peer.rows(targets, whole_order[start : start + PEER_BATCH])
                    for start in range(0, len(whole_order), PEER_BATCH)
                ]
                peer_s.append(time.perf_counter() - begun)
                whole = dict(zip(whole_order.tolist(), np.concatenate(expected), strict=True))
                for batch, dense in found:
                    for row, values in zip(batch.tolist(), dense, strict=True):
                        gap = np.abs(values - whole[row]).max() / max(np.abs(whole[row]).max(), 1e-30)
                        difference = max(difference, float(gap))
        result = {
            "tokens": tokens,
            "active_features": len(features),
            "rows": rows,
            "ours_rows_per_s": round(rows / statistics.median(ours_s), 1),
            "peer_rows_per_s": round(rows / statistics.median(peer_s), 1) if peer_s else None,
            "ratio": round(statistics.median(peer_s) / statistics.median(ours_s), 2) if peer_s else None,
            "max_relative_difference": difference if peer_s else None,
            "threads": arguments.threads,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
