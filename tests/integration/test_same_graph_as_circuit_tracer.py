"""
The same graph as circuit-tracer's own code makes, and which of the two is nearer to float64 autograd.

WEFT_TEST_CIRCUIT_TRACER is the Python of an environment with circuit-tracer 0.5.0, as `bench_graphs.py` describes it.
"""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attribution_rig import (
    ReferenceModel,
    ReferenceRunner,
    load_transcoder,
    make_reference_folder,
    make_transcoder,
    oracle_edges,
)
from turns import Side

from weft_attribution.core.features import find_features
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.pipeline import capture_hooks
from weft_attribution.core.sweep import make_targets, sweep
from weft_attribution.core.targets import Target, explain
from weft_attribution.core.transcoder import TranscoderReader
from weft_attribution.core.weights import load_linear_weights
from weft_store.opening import open_store

PYTHON = os.environ.get("WEFT_TEST_CIRCUIT_TRACER", "")
IDS = [3, 17, 8, 29, 8, 11, 30, 2]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PYTHON, reason="WEFT_TEST_CIRCUIT_TRACER names no Python that has circuit-tracer"),
]


@pytest.mark.parametrize(("jump", "seed"), [(False, 0), (True, 1), (False, 2)])
def test_edges_are_circuit_tracers(
    tmp_path: Path, record_property: Callable[[str, object], None], jump: bool, seed: int
) -> None:
    """Both in float32: edges to a thousandth, and weft's error against float64 at most as large as three times its."""
    folder = make_reference_folder(tmp_path / "model", "llama", seed=seed)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["hidden_size"]}))
    model = ReferenceModel(folder)
    store = open_store(tmp_path.as_uri())
    make_transcoder(store, "t", model, jump=jump, seed=seed + 10)
    capture = asyncio.run(ReferenceRunner(model).capture("tiny", IDS, capture_hooks("mlp_in")))
    active, exact, _ = oracle_edges(model, load_transcoder(store, "t", model.num_layers), IDS, [5])

    weights, reader = load_linear_weights(folder), TranscoderReader(store, "t")
    operator = FrozenOperator(weights, capture.tensors, num_positions=len(IDS))
    features = find_features(
        weights, reader, capture.tensors, num_positions=len(IDS), max_features=1000, max_writer_bytes=1 << 30
    )
    token_ids = np.array(IDS)
    explained = explain(operator, reader, capture.tensors, token_ids, [Target(token_id=5)])
    ours = np.empty(exact.shape)

    def take(rows: np.ndarray, dense: np.ndarray) -> None:
        ours[rows] = dense

    targets = make_targets(operator, features, explained)
    sweep(operator, features, targets, token_ids, batch_size=16, take=take)

    np.savez(tmp_path / f"streams_{len(IDS)}.npz", token_ids=token_ids)
    np.save(tmp_path / "keys.npy", np.array(active))
    given = {
        "model": str(folder), "folder": str(tmp_path), "clt": str(tmp_path / "transcoders" / "t"), "tokens": len(IDS),
        "threads": 1,
    }  # fmt: skip
    side = Side(PYTHON, "side_circuit_tracer.py", given, {k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    try:
        side.ask(what="forward", batch=16)
        side.ask(what="edges", batch=16, keys=str(tmp_path / "keys.npy"), path=str(tmp_path / "theirs.npz"))
    finally:
        side.close()
    with np.load(tmp_path / "theirs.npz") as found:
        keys, edges = [tuple(key) for key in found["keys"].tolist()], found["edges"]
    assert sorted(keys) == sorted(active)
    count, layers = len(active), model.num_layers
    errors = edges[:, count : count + layers * len(IDS)].reshape(len(edges), layers, len(IDS))
    assert not errors[:, :, 0].any()
    columns = [keys.index(key) for key in active]
    theirs = np.concatenate(
        [edges[:, columns], errors[:, :, 1:].reshape(len(edges), -1), edges[:, -len(IDS) :]], axis=1
    )
    ours, exact = ours[:count], exact[:count]
    largest = np.abs(exact).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6 * largest)
    assert (exact != 0).mean() > 0.1
    our_error, their_error = np.abs(ours - exact).max(), np.abs(theirs - exact).max()
    record_property("error_of_weft", our_error / largest)
    record_property("error_of_circuit_tracer", their_error / largest)
    assert our_error <= 3 * their_error + 1e-7 * largest
