"""The file of edges, the transcoder's files, and the graph's JSON: round trips, damage, ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft_attribution.core.edge_file import EdgeScratch, read_arrays
from weft_attribution.core.graph_json import GraphNodes, cantor_pair, graph_json, node_id
from weft_attribution.core.influence import Pruned
from weft_attribution.core.ports import Token
from weft_attribution.core.sweep import NodeTable
from weft_attribution.core.targets import Target, choose_targets
from weft_attribution.core.transcoder import TranscoderReader
from weft_common.errors import DataLossError, FailedPreconditionError, NotFoundError
from weft_store.opening import open_store
from weft_store.port import ObjectStore


def write_edges(path: Path) -> np.ndarray:
    """Write eight rows in mixed order and return them dense."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((8, 20)) < 0.4, rng.normal(size=(8, 20)), 0).astype(np.float32)
    dense[3] = 0
    order = rng.permutation(8)
    with EdgeScratch(8) as scratch:
        for batch in np.array_split(order, 3):
            scratch.add(batch, dense[batch])
        scratch.write(path, {"layer": np.arange(5, dtype="<i4")})
    return dense


def test_edges_come_back_in_row_order(tmp_path: Path) -> None:
    """Rows that were added in any order are read back in theirs, by us and by the safetensors library."""
    dense = write_edges(tmp_path / "edges.safetensors")
    arrays = read_arrays(tmp_path / "edges.safetensors")
    library = safetensors.numpy.load_file(tmp_path / "edges.safetensors")
    assert set(arrays) == set(library) == {"layer", "indptr", "indices", "values"}
    found = np.zeros_like(dense)
    for row in range(8):
        span = slice(arrays["indptr"][row], arrays["indptr"][row + 1])
        found[row, arrays["indices"][span]] = arrays["values"][span]
    np.testing.assert_array_equal(found, dense)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, library[name])


@pytest.mark.parametrize("keep", [0, 5, 60, -3])
def test_cut_edges_are_data_loss(tmp_path: Path, keep: int) -> None:
    """A file that ends early is refused, wherever it ends."""
    path = tmp_path / "edges.safetensors"
    write_edges(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataLossError):
        read_arrays(path)


@pytest.fixture
def store() -> ObjectStore:
    store = open_store("memory://")
    rng = torch.Generator().manual_seed(0)
    encoder = {"W_enc_0": torch.randn(50, 4, generator=rng), "b_enc_0": torch.zeros(50), "b_dec_0": torch.ones(4)}
    encoder = {name: value.bfloat16() for name, value in encoder.items()}
    decoder = {"W_dec_0": torch.randn(50, 3, 4, generator=rng).half()}
    store.put("transcoders/t/W_enc_0.safetensors", safetensors.torch.save(encoder))
    store.put("transcoders/t/W_dec_0.safetensors", safetensors.torch.save(decoder))
    manifest = {"model": "models/m", "model_revision": "r", "input_hook": "resid_mid", "output_hook": "mlp_out"}
    store.put("transcoders/t/manifest.json", json.dumps(manifest).encode())
    return store


def test_transcoder_is_read_by_slices(store: ObjectStore) -> None:
    """Half-precision tensors come back as float32, decoders for the asked features alone."""
    reader = TranscoderReader(store, "t")
    assert reader.manifest.model == "m"
    whole = safetensors.torch.load(store.get("transcoders/t/W_dec_0.safetensors"))["W_dec_0"].float().numpy()
    features = np.array([0, 3, 4, 49])
    found = np.zeros((4, 3, 4), np.float32)
    for start, rows in reader.decoders(0, features):
        found[start : start + len(rows)] = rows
    np.testing.assert_array_equal(found, whole[features])
    encoder = reader.encoder(0)
    expected = safetensors.torch.load(store.get("transcoders/t/W_enc_0.safetensors"))["W_enc_0"].float().numpy()
    np.testing.assert_array_equal(encoder.w_enc_FD, expected)
    assert encoder.threshold_F is None
    assert not reader.has_layer(1)


def test_damaged_or_absent_transcoder_is_refused(store: ObjectStore) -> None:
    """A cut file is DATA_LOSS, an absent transcoder NOT_FOUND, wrong hooks FAILED_PRECONDITION."""
    key = "transcoders/t/W_enc_0.safetensors"
    store.put(key, store.get(key)[:-10])
    with pytest.raises(DataLossError):
        TranscoderReader(store, "t").encoder(0)
    store.put(key, b"not a safetensors file at all")
    with pytest.raises(DataLossError):
        TranscoderReader(store, "t").encoder(0)
    with pytest.raises(NotFoundError):
        TranscoderReader(store, "absent")
    store.put("transcoders/t/manifest.json", json.dumps({"model": "m", "input_hook": "resid_pre"}).encode())
    with pytest.raises(FailedPreconditionError):
        TranscoderReader(store, "t")


def nodes_of(places: list[tuple[int, int, int]]) -> GraphNodes:
    table = NodeTable(len(places), 12, 4, 2)
    layer, index, position = (np.array(part, dtype=np.int64) for part in zip(*places, strict=True))
    tokens = tuple(Token(i, f'to"k{i}') for i in (5, 6, 5, 5))
    return GraphNodes(table, layer, position, index, np.ones(len(places)), tokens, tokens[:2], (0.75, 0.25))


@given(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=60))
def test_node_ids_are_unique(places: set[tuple[int, int, int]]) -> None:
    """Features of low index, errors, repeated tokens and logits never share an id."""
    nodes = nodes_of(sorted(places))
    ids = [node_id(nodes, node) for node in range(nodes.table.num_nodes)]
    assert len(set(ids)) == len(ids)


@given(st.integers(0, 100), st.integers(0, 10**6), st.integers(0, 100), st.integers(0, 10**6))
def test_cantor_pairs_tell_features_apart(layer: int, index: int, other_layer: int, other_index: int) -> None:
    """Two features share a number only if they are one."""
    same = cantor_pair(layer, index) == cantor_pair(other_layer, other_index)
    assert same == ((layer, index) == (other_layer, other_index))


def test_graph_json_survives_a_round_trip() -> None:
    """What is written is plain JSON, with the fields that each kind of node needs."""
    nodes = nodes_of([(0, 3, 1), (2, 1, 3)])
    table = nodes.table
    mask = np.ones(table.num_nodes, dtype=bool)
    pruned = Pruned(
        mask, np.array([0, table.token_start]), np.array([1, 1]), np.array([0.5, -2.0], np.float32), 1.0, 1.0
    )
    content = graph_json(nodes, pruned, np.full(table.num_nodes, 0.5), {"slug": "s"})
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["links"] == [
        {"source": "0_3_1", "target": "2_1_3", "weight": 0.5},
        {"source": "E_5_0", "target": "2_1_3", "weight": -2.0},
    ]
    by_id = {node["node_id"]: node for node in content["nodes"]}
    assert by_id["2_1_3"]["feature"] == cantor_pair(2, 1)
    assert by_id["2_1_3"]["reverse_ctx_idx"] == 0
    assert by_id["13_5_3"]["clerp"] == 'Output "to"k5" (p=0.750)'
    assert by_id["0_error_mlp_1"]["feature"] == -1


def test_logits_are_the_likeliest_up_to_the_share() -> None:
    """The smallest set that reaches the share is taken, at most the maximum; asked ids are taken as they are."""
    logits = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05]))
    chosen, weights = choose_targets(logits, max_logits=10, probability=0.79, targets=())
    assert [target.token_id for target in chosen] == [1, 3]
    np.testing.assert_allclose(weights, [0.5, 0.3])
    assert [each.token_id for each in choose_targets(logits, max_logits=1, probability=0.95, targets=())[0]] == [1]
    assert len(choose_targets(logits, max_logits=10, probability=1.0, targets=())[0]) == 5


def test_asked_targets_are_taken_with_their_weights() -> None:
    """A token counts as much as it is likely, all else as 1, and any target as much as it says."""
    logits = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05]))
    asked = (
        Target(token_id=4), Target(kind="difference", token_id=1, minus_token_id=3), Target(token_id=0, weight=0.7),
    )  # fmt: skip
    chosen, weights = choose_targets(logits, max_logits=1, probability=0.5, targets=asked)
    assert chosen == asked
    np.testing.assert_allclose(weights, [0.05, 1.0, 0.7])
