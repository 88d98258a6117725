"""What two ranks send each other in a step: how much, what of, and that no order of arrival changes a bit."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from clt_cases import D_MODEL, NUM_FEATURES, NUM_LAYERS, RECIPES
from forked_ranks import run_ranks
from wire_process import train_rank

pytestmark = pytest.mark.distributed

ORDERS = (
    "top_k",
    "top_k_per_layer",
    "batch_top_k_aux",
    "joint_top_k_window_aux",
    "relu_aux",
    "jump_relu_window_skip_aux",
)
WIRE = ("top_k", "batch_top_k_aux", "joint_top_k", "jump_relu")
FEW, MANY = 64, 128
"""Tokens of a step."""
NUM_STEPS = 2
GLOO_HEADER_BYTES = 48
"""Before every message of gloo's TCP pairs: six size_t (gloo/transport/tcp/pair.h, `struct Op`)."""


@dataclass
class Ranks:
    """What two ranks found on one axis."""

    axis: str
    found: list[dict[str, Any]]

    def wire(self, name: str, tokens: int) -> list[dict[str, Any]]:
        """One recipe at a number of tokens, rank by rank."""
        return [rank["wire"][f"{name} {tokens}"] for rank in self.found]


@pytest.fixture(scope="module", params=[(2, 1), (1, 2)], ids=["feature", "data"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Two processes over gloo that train every case."""
    feature_ranks, data_ranks = request.param
    folder = tmp_path_factory.mktemp("ranks")
    cases = {
        "orders": {name: RECIPES[name] for name in ORDERS},
        "wire": {
            f"{name} {tokens}": RECIPES[name] | {"step_tokens": tokens, "num_steps": NUM_STEPS}
            for name in WIRE
            for tokens in (FEW, MANY)
        },
    }
    run_ranks(train_rank, [(rank, feature_ranks, data_ranks, cases, str(folder)) for rank in (0, 1)], folder, 240)
    return Ranks("feature" if feature_ranks > 1 else "data", [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)])


@pytest.mark.parametrize("name", ORDERS)
def test_overlap_changes_no_bit(ranks: Ranks, name: str) -> None:
    """Collectives in the background, one after the other, and as late as can be: the same parameters and figures."""
    for rank in ranks.found:
        wanted, wanted_metrics = rank["orders"][name]["OneAfterTheOther"]
        assert all(tensor.isfinite().all() for tensor in wanted.values())
        for order in ("GroupAxis", "AtTheLatest"):
            state, metrics = rank["orders"][name][order]
            assert state.keys() == wanted.keys()
            for tensor_name, tensor in state.items():
                assert torch.equal(tensor, wanted[tensor_name]), (order, tensor_name)
            if order == "GroupAxis":
                assert metrics == wanted_metrics


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("name", WIRE)
def test_counted_bytes_are_those_given_to_gloo(ranks: Ranks, name: str, tokens: int) -> None:
    """Every tensor that torch.distributed was given is counted, to the byte, and so is the entries' part."""
    for rank in ranks.wire(name, tokens):
        notes = rank["notes"]
        assert rank["sent_bytes"] == sum(note["for_others"] for note in notes)
        by_token = [metrics["sent_bytes_per_token"] * tokens for metrics in rank["metrics"]]
        assert sum(by_token) == pytest.approx(rank["sent_bytes"], rel=1e-12)
        # Counts are int32, features and values travel as bytes, and only values' gradients are exchanged in one dim.
        entries = sum(
            note["for_others"]
            for note in notes
            if (note["kind"] == "gather" and note["dtype"] in ("torch.int32", "torch.uint8"))
            or (note["kind"] == "exchange" and len(note["shape"]) == 1)
        )
        assert rank["entry_bytes"] == entries
        assert (entries > 0) == (ranks.axis == "feature")
        by_token = [metrics["entry_bytes_per_token"] * tokens for metrics in rank["metrics"]]
        assert sum(by_token) == pytest.approx(entries, rel=1e-12)


@pytest.mark.parametrize("name", WIRE)
def test_sockets_send_what_is_counted(ranks: Ranks, name: str) -> None:
    """Over both ranks, all that the kernel sent beside the counted bytes is whole headers of gloo's messages."""
    wire = ranks.wire(name, MANY)
    counted = sum(rank["sent_bytes"] + rank["meeting_bytes"] for rank in wire)
    headers, rest = divmod(sum(rank["socket_bytes"] for rank in wire) - counted, GLOO_HEADER_BYTES)
    assert rest == 0
    # A message a rank at least; a ring of two has four steps, and each message may be announced from both ends.
    collectives = sum(len(rank["notes"]) + 1 for rank in wire)
    assert collectives <= headers <= 16 * collectives


def _is_float(note: dict[str, Any]) -> bool:
    return bool(note["dtype"].startswith("torch.float"))


@pytest.mark.parametrize("name", WIRE)
def test_no_reduction_is_of_activations_or_outputs(ranks: Ranks, name: str) -> None:
    """Twice the tokens, the same reductions; joint TopK alone has one for each token, of counts."""
    reduced = [
        [note for rank in ranks.wire(name, tokens) for note in rank["notes"] if note["kind"] == "reduce"]
        for tokens in (FEW, MANY)
    ]
    for few, many in zip(*reduced, strict=True):
        assert few["dtype"] == many["dtype"]
        if name == "joint_top_k" and not _is_float(few) and few["shape"][0] == FEW:
            assert (few["shape"], many["shape"]) == ([FEW, 256], [MANY, 256])
        else:
            assert few["shape"] == many["shape"]
            assert ranks.axis == "data" or not _is_float(few) or math.prod(few["shape"]) <= NUM_LAYERS * NUM_FEATURES


@pytest.mark.parametrize("name", WIRE)
def test_feature_axis_carries_data_and_entries_only(ranks: Ranks, name: str) -> None:
    """Numbers that are gathered are inputs and gradients of norms; rows that are exchanged are targets' columns."""
    if ranks.axis == "data":
        assert all(note["kind"] == "reduce" or name == "jump_relu" for note in ranks.wire(name, MANY)[0]["notes"])
        return
    for rank in ranks.wire(name, MANY):
        gathered = Counter(
            math.prod(note["shape"]) for note in rank["notes"] if note["kind"] == "gather" and _is_float(note)
        )
        rows = Counter(
            tuple(note["shape"]) for note in rank["notes"] if len(note["shape"]) == 2 and note["kind"] == "exchange"
        )
        layers = NUM_LAYERS * NUM_STEPS
        wanted = Counter({MANY // 2 * D_MODEL: layers})
        if name == "jump_relu":
            wanted[NUM_LAYERS * NUM_FEATURES // 2] += NUM_STEPS
        assert gathered == wanted
        assert rows == {(MANY, D_MODEL // 2): layers}
