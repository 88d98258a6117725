"""
weft's graph of a prompt, made as the service makes it, held against circuit-tracer's of the same files.

    explain(model, transcoder, token_ids, folder)   files are imported, the model captured, rows swept in float32
    compare(explained, theirs)                      how far they are apart

`theirs` is what `benchmarks/attribution/make_goldens.py` writes of a graph.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from golden_cases import EDGE_THRESHOLD, NODE_THRESHOLD
from numpy.typing import NDArray

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_attribution.core.checkpoints import load_linear_weights
from weft_attribution.core.influence import compute_influence, graph_scores, prune
from weft_attribution.core.pipeline import Building, Limits, capture_hooks
from weft_attribution.core.ports import Capture, ModelInfo, Token
from weft_attribution.core.targets import choose_targets
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.whole_graph import WholeGraph, open_graph
from weft_clt.formats.circuit_tracer import write_circuit_tracer
from weft_clt.formats.files import FolderFiles
from weft_clt.formats.opening import open_transcoder
from weft_store.opening import open_store

__all__ = ["Agreement", "Explained", "compare", "explain"]

Array = NDArray[Any]

TIE = 1e-5
"""Thresholds that far apart, relative: what is kept by one and not by the other is a tie."""


@dataclass(frozen=True)
class Explained:
    """A graph before pruning, and its conservation error."""

    graph: WholeGraph
    conservation_error: float


@dataclass(frozen=True)
class Agreement:
    """
    How far two graphs are apart.

    Args:
        features: Active features of each.
        shared: Those of both.
        activations: Largest relative difference of an activation.
        logits: Whether the same tokens are explained, in the same order.
        edges: Edges that are not 0, in weft's graph.
        beyond: Edges apart by more than a thousandth and 1e-5 of the largest.
        worst: Largest difference of an edge, as a share of the largest edge.
        nodes: Nodes that pruning keeps.
        other_nodes: Nodes kept in one graph alone that are no ties.
        kept_edges: Edges that pruning keeps.
        other_edges: Edges kept in one graph alone that are no ties.
        scores: Replacement and completeness, weft's.
        apart: Largest difference of a score.
    """

    features: tuple[int, int]
    shared: int
    activations: float
    logits: bool
    edges: int
    beyond: int
    worst: float
    nodes: int
    other_nodes: int
    kept_edges: int
    other_edges: int
    scores: tuple[float, float]
    apart: float

    @property
    def is_same(self) -> bool:
        """Whether it is one graph up to rounding and ties."""
        return (
            self.features == (self.shared, self.shared)
            and self.logits
            and self.activations <= 1e-3
            and not self.beyond
            and not self.other_nodes
            and not self.other_edges
            and self.apart <= 1e-3
        )


def explain(model: Path, transcoder: Path, token_ids: Sequence[int], folder: Path) -> Explained:
    """
    Make a graph of the likeliest tokens.

    Args:
        model: Its folder.
        transcoder: A folder in circuit-tracer's layout.
        token_ids: The prompt.
        folder: Where the imported transcoder and the graph go; it takes the decoders' size.
    """
    ours = folder / "bucket" / "transcoders" / "t"
    ours.mkdir(parents=True)
    list(write_circuit_tracer(open_transcoder(FolderFiles(transcoder)), ours, model.name, padded=False))
    (ours / "manifest.json").write_text(json.dumps({"model": model.name, "input_hook": "mlp_in"}))
    reader = TranscoderReader(open_store((folder / "bucket").as_uri()), "t")
    weights = load_linear_weights(model)
    backend = TransformersBackend(model.parent, dtype="float32", device="cpu", threads=1)
    names = [
        hook.replace("*", str(layer))
        for hook in capture_hooks("mlp_in", has_post_norms=weights.has_post_norms)
        for layer in range(weights.num_layers if "*" in hook else 1)
    ]
    tensors = backend.forward(model.name, list(token_ids), names)
    tokens = tuple(Token(token_id, str(token_id)) for token_id in token_ids)
    vocab = len(tensors["logits"])
    info = ModelInfo(model.name, "", weights.num_layers, weights.d_model, vocab, len(tokens), "r")
    targets, shares = choose_targets(tensors["logits"], max_logits=10, probability=0.95, targets=())
    limits = Limits(batch_size=0, workers=1, max_active=1 << 16, max_features=0, memory_bytes=1 << 28)
    building = Building(weights, reader, Capture(info, tokens, tensors), targets, shares, limits)
    building.build(folder / "edges.safetensors", lambda *_: None, lambda: None)
    logits = tuple(Token(target.token_id, "") for target in targets)
    graph = open_graph(folder / "edges.safetensors", weights.num_layers, tokens, logits, tuple(shares.tolist()))
    return Explained(graph, building.conservation_error())


def compare(graph: WholeGraph, theirs: Mapping[str, Array]) -> Agreement:
    """Hold both graphs, and what pruning and scores make of each, against each other."""
    nodes, edges, table = graph.nodes, graph.edges, graph.edges.table
    our_keys = [tuple(key) for key in np.stack([nodes.layer_N, nodes.position_N, nodes.index_N], axis=1).tolist()]
    place = {tuple(key): node for node, key in enumerate(theirs["features"].tolist())}
    both = [(node, place[key]) for node, key in enumerate(our_keys) if key in place]
    mine, other = (np.array([pair[side] for pair in both], dtype=np.int64) for side in (0, 1))
    logits = [token.id for token in nodes.logits] == theirs["logits"].tolist()

    # circuit-tracer has errors at the first position too, without edges.
    errors = table.num_layers * len(nodes.tokens)
    their_features = len(place)
    kept_errors = np.arange(errors).reshape(table.num_layers, -1)[:, 1:].ravel()
    rest = np.concatenate([kept_errors, np.arange(errors, errors + len(nodes.tokens) + len(theirs["logits"]))])
    other = np.concatenate([other, their_features + rest])
    mine = np.concatenate([mine, np.arange(table.num_features, table.num_nodes)])
    if len(mine) != len(other):
        raise ValueError(f"weft's graph has {table.num_nodes} nodes, of which {len(other)} are wanted")
    theirs_NN = theirs["adjacency"][np.ix_(other, other)]
    ours_NN = _dense(graph)[np.ix_(mine, mine)]
    apart_NN = np.abs(ours_NN - theirs_NN)
    largest = float(np.abs(theirs_NN).max())

    weights = graph.logit_weights
    influence, sums = compute_influence(edges, weights)
    masks = []
    for node_step, edge_step in [(0.0, 0.0), *product((-TIE, TIE), repeat=2)]:
        pruned = prune(
            edges,
            influence,
            weights,
            node_threshold=NODE_THRESHOLD * (1 + node_step),
            edge_threshold=EDGE_THRESHOLD * (1 + edge_step),
            max_nodes=table.num_nodes,
            max_edges=len(edges.values),
        )
        edge_mask = np.zeros((table.num_nodes, table.num_nodes), dtype=bool)
        edge_mask[pruned.targets, pruned.sources] = True
        masks.append((pruned.node_mask[mine], edge_mask[np.ix_(mine, mine)]))
    their_masks = theirs["nodes"][other], theirs["edges"][np.ix_(other, other)]
    others = [_no_ties([mask[part] for mask in masks], their_masks[part]) for part in (0, 1)]
    scores = graph_scores(edges, influence, weights, sums)
    found = scores.replacement, scores.completeness
    shared = len(both)
    their_activations = theirs["activations"][other[:shared]]
    return Agreement(
        features=(len(our_keys), their_features),
        shared=shared,
        activations=float(np.max(np.abs(nodes.activation_N[mine[:shared]] / their_activations - 1), initial=0)),
        logits=logits,
        edges=int(np.count_nonzero(ours_NN)),
        beyond=int((apart_NN > 1e-3 * np.abs(theirs_NN) + 1e-5 * largest).sum()),
        worst=float(apart_NN.max()) / largest,
        nodes=int(masks[0][0].sum()),
        other_nodes=others[0],
        kept_edges=int(masks[0][1].sum()),
        other_edges=others[1],
        scores=found,
        apart=float(np.abs(np.array(found) - theirs["scores"]).max()),
    )


def _dense(graph: WholeGraph) -> NDArray[np.float32]:
    edges = graph.edges
    dense = np.zeros((edges.table.num_nodes, edges.table.num_nodes), dtype=np.float32)
    rows = np.repeat(np.arange(edges.num_rows), np.diff(edges.indptr))
    dense[edges.row_node(rows), edges.indices] = edges.values
    return dense


def _no_ties(ours: Sequence[Array], theirs: Array) -> int:
    """Count what one side alone keeps, and keeps or leaves whichever of the near thresholds is taken."""
    always, ever = np.logical_and.reduce(ours), np.logical_or.reduce(ours)
    return int(((ours[0] != theirs) & (always == ever)).sum())
