"""
The graph of circuit-tracer 0.5.0, by its own code on the same small models, is weft's graph.

`benchmarks/attribution/make_goldens.py` wrote what circuit-tracer finds; weft goes its whole way here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_cases import FAMILIES, KINDS, PROMPT, write_model, write_transcoder
from numpy.typing import NDArray
from same_graph import compare, explain

from weft_attribution.core.whole_graph import WholeGraph

GOLDENS = Path(__file__).parents[2] / "assets" / "circuit_tracer"
Golden = dict[str, NDArray[Any]]


def made(family: str, kind: str, folder: Path) -> tuple[WholeGraph, float, Golden]:
    """weft's graph, its conservation error, and the golden."""
    write_model(family, folder / "m")
    write_transcoder(kind, family, folder / "t")
    explained = explain(folder / "m", folder / "t", PROMPT, folder)
    with np.load(GOLDENS / f"{family}-{kind}.npz", allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    return explained.graph, explained.conservation_error, golden


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_graph_is_circuit_tracers(tmp_path: Path, family: str, kind: str) -> None:
    """The same active features in the same order, edges, pruned nodes and edges but for ties, and scores."""
    graph, conservation_error, golden = made(family, kind, tmp_path)
    found = compare(graph, golden)
    assert found.is_same, found
    assert conservation_error < 1e-4
    assert found.shared > 40
    assert 10 < found.nodes < graph.edges.table.num_nodes
    features = np.stack([graph.nodes.layer_N, graph.nodes.position_N, graph.nodes.index_N], axis=1)
    np.testing.assert_array_equal(features, golden["features"])
    np.testing.assert_allclose(graph.nodes.probabilities, golden["probabilities"], rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_circuit_tracers_model_is_transformers_but_for_gemma_3(family: str) -> None:
    """It has all layers share one rotary embedding, so that Gemma 3 is another model there; its goldens are without."""
    with np.load(GOLDENS / f"{family}-clt.npz", allow_pickle=False) as golden:
        before, as_set_up = golden["logits_apart"].tolist()
    assert before < 1e-5
    assert as_set_up > 1e-2 if family == "gemma3" else as_set_up < 1e-5


def test_comparison_sees_what_differs(tmp_path: Path) -> None:
    """One edge, one pruned node, one score or one feature that is another's is told."""
    graph, _, golden = made("gpt2", "clt", tmp_path)
    adjacency = golden["adjacency"].copy()
    row, column = np.unravel_index(np.abs(adjacency).argmax(), adjacency.shape)
    adjacency[row, column] *= 1.002
    assert compare(graph, {**golden, "adjacency": adjacency}).beyond == 1
    nodes = golden["nodes"].copy()
    nodes[int(np.flatnonzero(nodes)[0])] = False
    assert compare(graph, {**golden, "nodes": nodes}).other_nodes == 1
    edges = golden["edges"].copy()
    edges[tuple(np.argwhere(edges)[0])] = False
    assert compare(graph, {**golden, "edges": edges}).other_edges == 1
    assert not compare(graph, {**golden, "scores": golden["scores"] + 0.002}).is_same
    features = golden["features"].copy()
    features[0, 2] = 1 + features[:, 2].max()
    changed = compare(graph, {**golden, "features": features})
    assert (changed.shared, changed.is_same) == (changed.features[0] - 1, False)


def test_goldens_say_what_wrote_them() -> None:
    """Each names the releases it came from; together they stay small."""
    files = sorted(GOLDENS.iterdir())
    assert [file.stem for file in files] == sorted(f"{family}-{kind}" for family in FAMILIES for kind in KINDS)
    assert sum(file.stat().st_size for file in files) < 300_000
    for file in files:
        with np.load(file, allow_pickle=False) as golden:
            versions = json.loads(str(golden["versions"]))
        assert versions["circuit-tracer"] == "0.5.0"
        assert {"transformer-lens", "transformers", "torch", "numpy"} <= set(versions)
