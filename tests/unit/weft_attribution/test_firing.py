"""What fires where a transcoder counts, against loops in float64: in graphs, and where numbers are equal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_rig import (
    ReferenceModel,
    counted,
    load_transcoder,
    make_reference_folder,
    make_transcoder,
    oracle_edges,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from swept_model import IDS, LOGITS, build

from weft_attribution.core.firing import Firing, layers_read
from weft_attribution.core.pipeline import conservation_error
from weft_attribution.core.sweep import target_constants
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import DataLossError, FailedPreconditionError
from weft_store.opening import open_store

KINDS = ["top_k", "joint_top_k"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_counted_features_and_their_edges_are_those_of_the_oracle(tmp_path: Path, family: str, kind: str) -> None:
    """The largest of a layer or of all layers are the graph's features; thresholds beside them decide nothing."""
    swept = build(tmp_path, family, activation=kind, top_k=3, jump=True, bias=0.0)
    fires = counted(kind, 3, swept.tensors)
    active, expected, values = oracle_edges(swept.model, swept.tensors, IDS, LOGITS.tolist(), fires=fires)
    features = swept.features
    found = zip(features.layer_N.tolist(), features.position_N.tolist(), features.index_N.tolist(), strict=True)
    assert list(found) == active
    each_layer = np.bincount(features.layer_N * len(IDS) + features.position_N)
    assert (each_layer.max() > 3) == (kind == "joint_top_k")
    assert len(active) > 30
    edges = swept.edges()
    np.testing.assert_allclose(edges, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())
    constant = target_constants(swept.operator, swept.targets, features.constant_LPD).numpy()
    assert conservation_error(values, edges.sum(axis=1), constant, num_logits=len(LOGITS)) < 1e-9
    by_thresholds = build(tmp_path / "other", family, jump=True, bias=0.0)
    assert by_thresholds.features.index_N.tolist() != features.index_N.tolist()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return ReferenceModel(make_reference_folder(tmp_path_factory.mktemp("model"), "llama"))


@given(
    top_k=st.integers(1, 20),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 10**6),
    levels=st.integers(1, 6),
    positions=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_any_count_and_any_ties_are_chosen_as_in_the_loop(
    reference: ReferenceModel, top_k: int, kind: str, seed: int, levels: int, positions: list[int]
) -> None:
    """Of equal ones a layer keeps the first; over layers all that equal the smallest stay; 0 is silent."""
    store = open_store("memory://")
    make_transcoder(store, "t", reference, features=7, activation=kind, top_k=top_k)
    tensors = load_transcoder(store, "t", 3)
    random = np.random.default_rng(seed)
    for layer in range(3):
        # Few whole numbers, so that many are equal: the encoder reads a stream of one-hot rows.
        tensors[f"W_enc_{layer}"] = torch.from_numpy(random.integers(-levels, levels + 1, (7, 16))).double()
        tensors[f"b_enc_{layer}"] = torch.zeros(7, dtype=torch.float64)
        if kind == "joint_top_k":
            tensors[f"rank_norm_{layer}"] = torch.from_numpy(random.integers(1, 3, 7)).double()
    make_transcoder(store, "t", reference, features=7, activation=kind, top_k=top_k, tensors=tensors)
    stream = np.eye(16, dtype=np.float32)[:5]
    streams = {f"layers.{layer}.mlp_in": stream for layer in range(3)}
    reader, places = TranscoderReader(store, "t"), np.array(positions)
    firing = Firing(reader, streams, 3, torch.float64, places)
    found, pres = [], []
    for layer in range(3):
        encoder = reader.encoder(layer)
        pres.append(firing.preactivations(layer, encoder))
        found.append(firing.fires(encoder, pres[-1]))
        torch.testing.assert_close(pres[-1], tensors[f"W_enc_{layer}"].T[places])
    wanted = counted(kind, top_k, tensors)(pres)
    for layer, (mine, chosen) in enumerate(zip(found, wanted, strict=True)):
        if kind == "top_k":
            assert torch.equal(mine, chosen)
            continue
        scores = [pre * tensors[f"rank_norm_{other}"] for other, pre in enumerate(pres)]
        smallest = [
            min((float(s[p][c[p]].min()) for s, c in zip(scores, wanted, strict=True) if c[p].any()), default=np.inf)
            for p in range(len(places))
        ]
        assert torch.equal(mine, scores[layer] >= torch.tensor(smallest)[:, None])


def test_layers_read_are_all_where_features_compete_over_layers(reference: ReferenceModel) -> None:
    """Elsewhere those asked for are enough."""
    store = open_store("memory://")
    for kind, wanted in (("", [1]), ("top_k", [1]), ("joint_top_k", [0, 1, 2])):
        make_transcoder(store, "t", reference, activation=kind, top_k=2 * bool(kind))
        assert layers_read(TranscoderReader(store, "t"), {1}, 3) == wanted


@pytest.mark.parametrize(
    ("activation", "top_k", "error"),
    [
        ("top_k", 0, DataLossError),
        ("joint_top_k", "4", DataLossError),
        ("top_k", True, DataLossError),
        ("softmax", 3, FailedPreconditionError),
    ],
)
def test_manifest_that_counts_without_a_count_is_refused(
    reference: ReferenceModel, activation: str, top_k: Any, error: type[Exception]
) -> None:
    """What does not say how many, or says a way of choosing that is not known, makes no graph."""
    store = open_store("memory://")
    make_transcoder(store, "t", reference, activation=activation, top_k=top_k)
    with pytest.raises(error, match=r"transcoders/t"):
        TranscoderReader(store, "t")
    manifest = json.loads(store.get("transcoders/t/manifest.json"))
    assert manifest["activation"] == activation
