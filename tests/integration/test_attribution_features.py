"""Features through gRPC, the client and the command: indexed, listed, found, on a text, in a graph, beside others."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribution_rig import load_transcoder, make_transcoder
from google.longrunning import operations_pb2
from indexed_house import SETTINGS, Indexed, indexed_house

from weft.features.v1 import index_pb2, queries_pb2
from weft_attribution.core import token_pieces
from weft_attribution.core.feature_index.settings import IndexKeys
from weft_client.aio.calls import unary
from weft_common.errors import (
    AlreadyExistsError,
    CancelledError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from weft_store.documents import update_json


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Indexed]:
    async with indexed_house(tmp_path) as rig:
        yield rig


async def test_index_is_made_listed_and_answers(rig: Indexed) -> None:
    """An index tells what it read; a feature then has figures, text, partners and neighbours besides its logits."""
    plain = await rig.features.get("t", layer=1, index=5)
    assert not plain.HasField("statistics")
    assert plain.top_logits
    with pytest.raises(FailedPreconditionError, match="IndexFeatures"):
        await rig.names(rig.features.list("t"))
    made = await rig.index()
    assert (made.name, made.num_tokens, made.num_sequences) == ("transcoders/t/indexes/i1", 12 * 13, 12)
    assert list(made.num_features) == [12, 12, 12]
    assert made == await rig.features.get_index("t", "i1")
    again = await rig.index("i2")
    assert [each.name async for each in rig.features.indexes("t")] == [again.name, made.name]
    feature = await rig.features.get("t", layer=1, index=5)
    acts = rig.acts[1][:, 5]
    # The dataset holds bfloat16, so a value near a threshold may fall on its other side.
    assert feature.statistics.num_active == pytest.approx((acts > 0).sum(), abs=2)
    assert feature.statistics.max_activation == pytest.approx(acts.max(), rel=0.02)
    assert sum(feature.statistics.histogram) == feature.statistics.num_active
    assert feature.statistics.index == again.name
    assert feature.top_logits == plain.top_logits
    strongest = feature.examples[0]
    assert strongest.peak == pytest.approx(feature.statistics.max_activation)
    assert strongest.activations[strongest.peak_at] == pytest.approx(strongest.peak)
    ids = rig.texts.token_ids[strongest.sequence][strongest.start :][: len(strongest.token_ids)]
    assert list(strongest.token_ids) == ids.tolist()
    assert list(strongest.tokens) == [f"t{i}" for i in ids]
    drawn = [each.quantile for each in feature.examples if each.quantile >= 0]
    assert drawn == sorted(drawn, reverse=True)
    assert set(drawn) <= {0, 1, 2}
    assert feature.neighbours
    assert not feature.target_logits
    part = await rig.features.get("t", layer=1, index=5, fields=["target_logits", "quiet_examples"])
    assert [each.layer for each in part.target_logits] == [1, 2]
    assert not part.name
    assert all(not any(each.activations) for each in part.quiet_examples)
    whole = np.zeros(40)
    unembedding = rig.house.runner.reference.w["lm_head.weight"].numpy()
    norm = rig.house.runner.reference.w["model.norm.weight"].numpy()
    decoder = load_transcoder(rig.house.store, "t", 3)["W_dec_1"][5].numpy()
    for place, target in enumerate(part.target_logits):
        effect = unembedding @ (norm * decoder[place])
        effect -= effect.mean()
        whole += effect
        assert [each.token_id for each in target.top_logits] == np.argsort(-effect)[:10].tolist()
        assert target.bottom_logits[0].weight == pytest.approx(effect.min(), rel=1e-4)
    assert feature.top_logits[0].token_id == whole.argmax()


async def test_text_of_a_feature_is_asked_for_in_bounded_calls(rig: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens its windows have, no call to the base model is above what that takes."""
    await rig.index()
    whole = await rig.features.get("t", layer=1, index=5, fields=["examples", "quiet_examples"])
    runner, asked = rig.house.runner, list[int]()
    pieces = runner.pieces

    async def counted(model: str, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        asked.append(len(token_ids))
        return await pieces(model, token_ids)

    monkeypatch.setattr(token_pieces, "_TOKENS_A_CALL", 3)
    monkeypatch.setattr(runner, "pieces", counted)
    assert await rig.features.get("t", layer=1, index=5, fields=["examples", "quiet_examples"]) == whole
    assert len(asked) > 1
    assert max(asked) == 3


async def test_lists_filter_order_and_page(rig: Indexed) -> None:
    """Every filter and order is what the columns say, pages join to the whole, and masks leave what they name."""
    await rig.index()
    everything = [each async for each in rig.features.list("t", page_size=7)]
    assert [(each.layer, each.index) for each in everything] == [(la, i) for la in range(3) for i in range(12)]
    dense = {each.name for each in everything if each.statistics.density > 0.1}
    wanted = queries_pb2.FeatureFilter(states=[index_pb2.FEATURE_STATE_DENSE])
    assert {each.name async for each in rig.features.list("t", wanted=wanted)} == dense
    bound = float(np.median([each.statistics.density for each in everything]))
    wanted = queries_pb2.FeatureFilter(layers=[0, 2], density=queries_pb2.Bounds(max=bound))
    by_density = [each async for each in rig.features.list("t", wanted=wanted, order_by="density desc", page_size=3)]
    chosen = [each for each in everything if each.layer != 1 and each.statistics.density <= bound]
    chosen.sort(key=lambda each: (-each.statistics.density, each.layer, each.index))
    assert [each.name for each in by_density] == [each.name for each in chosen]
    for order, key in (
        ("max_activation", lambda each: each.statistics.max_activation),
        ("decoder_norm desc", lambda each: -each.statistics.decoder_norm),
        ("last_layer", lambda each: each.statistics.last_layer),
        ("layer desc", lambda each: -each.layer),
    ):
        found = await rig.names(rig.features.list("t", order_by=order, page_size=5))
        assert found == [each.name.rpartition("/")[2] for each in sorted(everything, key=key)]
    (first, *_) = [each async for each in rig.features.list("t", fields=["name", "statistics.density"])]
    assert first.name
    assert first.statistics.density == everything[0].statistics.density
    assert not first.statistics.num_active
    labelled = queries_pb2.FeatureFilter(label_state=queries_pb2.LABEL_STATE_LABELLED)
    assert not [each async for each in rig.features.list("t", wanted=labelled)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"order_by": "age"}, "order_by"),
        ({"order_by": "score"}, "score_kind"),
        ({"page_size": -1}, "page_size"),
        ({"fields": ["colour"]}, "no field of Feature"),
        ({"wanted": queries_pb2.FeatureFilter(score=queries_pb2.Bounds(min=0.5))}, "score_kind"),
        ({"wanted": queries_pb2.FeatureFilter(density=queries_pb2.Bounds(min=float("nan")))}, "no number"),
    ],
)
async def test_questions_that_make_no_sense_are_refused(rig: Indexed, arguments: dict[str, Any], text: str) -> None:
    """Each refusal says which field and what may stand there."""
    await rig.index()
    with pytest.raises(InvalidArgumentError, match=text):
        await rig.names(rig.features.list("t", **arguments))


async def test_page_token_holds_for_its_question_alone(rig: Indexed) -> None:
    """A token of another question, or made up, is refused."""
    from weft.features.v1 import service_pb2_grpc

    await rig.index()
    stub: Any = rig.features._stub
    assert isinstance(stub, service_pb2_grpc.FeatureServiceStub)
    page = await stub.ListFeatures(queries_pb2.ListFeaturesRequest(parent="transcoders/t", page_size=5))
    assert page.total_size == 36
    for request in (
        {"order_by": "density", "page_token": page.next_page_token},
        {"page_token": "AAAA"},
        {"page_token": "no token"},
    ):
        with pytest.raises(InvalidArgumentError, match="page_token"):
            async for _ in _pages(rig, **request):
                pass


async def _pages(rig: Indexed, **request: Any) -> AsyncIterator[Any]:
    from weft_client.aio.calls import pages

    asked = queries_pb2.ListFeaturesRequest(parent="transcoders/t", **request)
    async for each in pages(rig.features._stub.ListFeatures, asked, lambda page: page.features):
        yield each


async def test_search_by_token_finds_what_is_strongest_there(rig: Indexed) -> None:
    """By id and by text: those whose strongest stretches peak on the token, most of them first."""
    await rig.index()
    counted: dict[int, dict[str, int]] = {}
    async for each in rig.features.list("t", fields=["name", "layer", "index"]):
        feature = await rig.features.get("t", layer=each.layer, index=each.index, fields=["examples"])
        for example in feature.examples:
            if example.quantile < 0:
                of_token = counted.setdefault(example.token_ids[example.peak_at], {})
                of_token[each.name] = of_token.get(each.name, 0) + 1
    token_id = max(counted, key=lambda token: len(counted[token]))
    found = [each async for each in rig.features.search("t", token_id=token_id, page_size=2)]
    assert {each.feature.name: each.num_stretches for each in found} == counted[token_id]
    counts = [each.num_stretches for each in found]
    assert counts == sorted(counts, reverse=True)
    text = chr(token_id + 40 * 2) if chr(token_id + 80).isprintable() else chr(token_id + 40)
    by_text = [each.feature.name async for each in rig.features.search("t", token=text)]
    assert by_text == [each.feature.name for each in found]
    layer = found[0].feature.layer
    in_layer = [
        each.feature.layer
        async for each in rig.features.search(
            "t", token_id=token_id, wanted=queries_pb2.FeatureFilter(layers=[layer]), order_by="density"
        )
    ]
    assert in_layer
    assert set(in_layer) == {layer}
    assert not [each async for each in rig.features.search("t", label="anything")]
    with pytest.raises(InvalidArgumentError, match="give a text that is one"):
        [each async for each in rig.features.search("t", token="two")]
    with pytest.raises(InvalidArgumentError, match="give label, token or token_id"):
        [each async for each in rig.features.search("t")]


async def test_activations_on_a_text_are_the_encoders(rig: Indexed) -> None:
    """What fires where equals the encoder in float64; named features come whether they fire or not."""
    await rig.index()
    ids = [ord(c) % 40 for c in "capital"]
    streams = rig.house.runner.reference.streams(ids)
    tensors = load_transcoder(rig.house.store, "t", 3)
    answer = await rig.features.on_prompt("t", "capital", max_features=1000)
    told = {
        (each.layer, each.index): dict(zip(each.positions, each.activations, strict=True)) for each in answer.features
    }
    wanted: dict[tuple[int, int], dict[int, float]] = {}
    for layer in range(3):
        pre = streams[f"layers.{layer}.mlp_in"] @ tensors[f"W_enc_{layer}"].T + tensors[f"b_enc_{layer}"]
        for position, index in (pre > tensors[f"threshold_{layer}"]).nonzero().tolist():
            if position:
                wanted.setdefault((layer, index), {})[position] = float(pre[position, index])
    assert told.keys() == wanted.keys()
    assert answer.num_active_features == len(wanted)
    for key, values in wanted.items():
        assert told[key] == pytest.approx(values, rel=1e-4)
    shares = [each.relative_max for each in answer.features]
    assert shares == sorted(shares, reverse=True)
    strongest = answer.features[0]
    figures = (await rig.features.get("t", layer=strongest.layer, index=strongest.index)).statistics
    assert strongest.relative_max == pytest.approx(max(strongest.activations) / figures.max_activation, rel=1e-3)
    silent = next((la, i) for la in range(3) for i in range(12) if (la, i) not in wanted)
    named = await rig.features.on_prompt("t", "capital", features=[silent, (strongest.layer, strongest.index)])
    assert [len(each.positions) > 0 for each in named.features] == [True, False]
    assert len((await rig.features.on_prompt("t", "capital", layers=[2])).features) == sum(la == 2 for la, _ in wanted)
    assert len((await rig.features.on_prompt("u", "capital", max_features=3)).features) == 3
    for arguments, error in (
        ({"prompt": ""}, InvalidArgumentError),
        ({"prompt": "x" * 30}, InvalidArgumentError),
        ({"prompt": "ab", "layers": [3]}, NotFoundError),
        ({"prompt": "ab", "features": [(0, 12)]}, NotFoundError),
        ({"prompt": "ab", "features": [(0, 1)], "layers": [0]}, InvalidArgumentError),
        ({"prompt": "ab", "max_features": 10_001}, InvalidArgumentError),
    ):
        with pytest.raises(error):
            await rig.features.on_prompt("t", **arguments)


async def test_what_fires_on_a_text_comes_by_pages_and_fields(rig: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages join to the whole and run the model once; a token is its question's; a mask leaves what it names."""
    await rig.index()
    runs, capture = list[str](), rig.house.runner.capture

    async def counted(model: str, *asked: Any) -> Any:
        runs.append(model)
        return await capture(model, *asked)

    monkeypatch.setattr(rig.house.runner, "capture", counted)
    whole = await rig.features.on_prompt("t", "capital", max_features=1000)
    pages = [page async for page in rig.features.on_prompt_pages("t", "capital", page_size=4)]
    assert [each for page in pages for each in page.features] == list(whole.features)
    assert {len(page.features) for page in pages[:-1]} == {4}
    assert len(runs) == 2
    for page in pages:
        assert (page.tokens, page.num_active_features) == (whole.tokens, whole.num_active_features)
    few = rig.features.on_prompt_pages("t", "capital", max_features=3, page_size=2, fields=["name", "relative_max"])
    assert [each async for page in few for each in page.features] == [
        queries_pb2.PromptFeature(name=each.name, relative_max=each.relative_max) for each in whole.features[:3]
    ]
    other = queries_pb2.GetActivationsOnPromptRequest(
        transcoder="transcoders/t", prompt="capitals", page_size=4, page_token=pages[0].next_page_token
    )
    with pytest.raises(InvalidArgumentError, match="page_token is not one that this call returned"):
        await unary(rig.features._stub.GetActivationsOnPrompt, other)
    with pytest.raises(InvalidArgumentError, match="no field of PromptFeature"):
        await rig.features.on_prompt("t", "capital", fields=["statistics"])
    with pytest.raises(InvalidArgumentError, match="page_size"):
        [page async for page in rig.features.on_prompt_pages("t", "capital", page_size=-1)]


async def test_questions_over_whole_transcoders_are_bounded(rig: Indexed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much for one call, too many calls, and a page token that is a number without end: each says what to do."""
    from weft_attribution.core.feature_index import on_prompt
    from weft_attribution.core.question_turns import Turns

    await rig.index()
    for token in ("9" * 5000, "٣", "-1", "1e3"):
        request = queries_pb2.MatchFeaturesRequest(transcoder="transcoders/t", other="transcoders/t", page_token=token)
        with pytest.raises(InvalidArgumentError, match="page_token"):
            await unary(rig.features._stub.MatchFeatures, request)
    monkeypatch.setattr(on_prompt, "_MOST_PRODUCTS", 2 * 7 * 16 * 12)
    with pytest.raises(InvalidArgumentError, match="name layers or features"):
        await rig.features.on_prompt("t", "capital")
    assert (await rig.features.on_prompt("t", "capital", layers=[1])).features
    assert (await rig.features.on_prompt("t", "capital", features=[(0, 1), (1, 1), (2, 1)])).features
    monkeypatch.setattr(Turns, "take", _refusing)
    with pytest.raises(ResourceExhaustedError):
        await rig.features.on_prompt("t", "capital")
    with pytest.raises(ResourceExhaustedError):
        [each async for each in rig.features.match("t", "t", layer=0)]


async def _refusing(turns: Any, work: Any) -> None:
    raise ResourceExhaustedError("busy")


async def test_features_of_a_graph_are_its_nodes(rig: Indexed) -> None:
    """Each feature once, with its positions and its nodes' influence; figures where there is an index."""
    await rig.house.make("g1", node_threshold=1.0)
    nodes: dict[tuple[int, int], set[int]] = {}
    for node in (await rig.house.content("g1"))["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            layer, index, position = map(int, node["node_id"].split("_"))
            nodes.setdefault((layer, index), set()).add(position)
    bare = [each async for each in rig.features.of_graph("g1")]
    assert not bare[0].feature.HasField("statistics")
    await rig.index()
    found = [each async for each in rig.features.of_graph("g1")]
    told = {(each.feature.layer, each.feature.index): set(each.positions) for each in found}
    assert {key: positions & told[key] for key, positions in nodes.items()} == nodes
    shares = [each.influence for each in found]
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(NotFoundError):
        [each async for each in rig.features.of_graph("absent")]
    # And back: every feature of the graph, with its positions and activations there, tells the graph.
    await rig.house.make("g2", prompt="ab")
    for each in found:
        place = {"layer": each.feature.layer, "index": each.feature.index}
        graphs = [graph async for graph in rig.features.in_graphs("t", **place)]
        told = {graph.graph: list(zip(graph.positions, graph.activations, strict=True)) for graph in graphs}
        wanted = list(zip(each.positions, each.activations, strict=True))
        assert [at for at, _ in told["graphs/g1"]] == [at for at, _ in wanted]
        assert [value for _, value in told["graphs/g1"]] == pytest.approx([value for _, value in wanted], rel=1e-6)
        assert graphs[-1].prompt == "capital"
    # A feature that fires nowhere on the prompt stands in no graph of it; one of an unknown transcoder is told so.
    silent = next((la, i) for la in range(3) for i in range(12) if (la, i) not in told_places(found))
    graphs = [graph async for graph in rig.features.in_graphs("t", layer=silent[0], index=silent[1])]
    assert "graphs/g1" not in [graph.graph for graph in graphs]
    with pytest.raises(NotFoundError, match="no transcoder"):
        [each async for each in rig.features.in_graphs("absent", layer=0, index=0)]
    place = f"{found[0].feature.layer}-{found[0].feature.index}"
    listed = await rig.house.json("features", "graphs", "t", place)
    assert listed["graphs"][-1]["graph"] == "graphs/g1"


def told_places(found: Sequence[Any]) -> set[tuple[int, int]]:
    return {(each.feature.layer, each.feature.index) for each in found}


async def test_matches_are_those_of_a_dense_cosine(rig: Indexed) -> None:
    """Best of the other by summed decoders, those below the least left out, pages joined."""
    await rig.index()
    with pytest.raises(FailedPreconditionError):
        [each async for each in rig.features.match("t", "u", layer=0)]
    await rig.index("i1", transcoder="u")
    for other, least in (("u", -1.0), ("t", 0.9)):
        for layer in range(3):
            mine, theirs = (
                load_transcoder(rig.house.store, name, 3)[f"W_dec_{layer}"].numpy().sum(1) for name in ("t", other)
            )
            unit, units = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (mine, theirs))
            cosine = unit @ units.T
            found = [each async for each in rig.features.match("t", other, layer=layer, min_cosine=least)]
            assert [(each.index, each.other_index) for each in found] == list(enumerate(cosine.argmax(axis=1).tolist()))
            np.testing.assert_allclose([each.cosine for each in found], cosine.max(axis=1), atol=2e-3)
            back = cosine.argmax(axis=0)
            assert [each.is_mutual for each in found] == [bool(back[each.other_index] == each.index) for each in found]


async def test_index_requests_that_cannot_be_met_are_refused(rig: Indexed) -> None:
    """Before anything is started: what is not there, what does not fit, what is out of range, another's id."""
    for error, arguments in (
        (NotFoundError, {"dataset": "absent"}),
        (InvalidArgumentError, {"dataset": "d", "settings": index_pb2.FeatureIndexSettings(num_top=1000)}),
        (InvalidArgumentError, {"dataset": "d", "max_tokens": -1}),
        (FailedPreconditionError, {"dataset": "d", "held_out": True}),
    ):
        with pytest.raises(error):
            await rig.features.index("t", "i1", **arguments)
    with pytest.raises(NotFoundError):
        await rig.features.index("absent", "i1", dataset="d")
    with pytest.raises(InvalidArgumentError):
        await rig.features.index("t", "no/id", dataset="d")
    checked = await rig.features.index("t", "i1", dataset="d", validate_only=True)
    assert isinstance(checked, operations_pb2.Operation)
    with pytest.raises(NotFoundError):
        await rig.features.get_index("t", "i1")
    await rig.index()
    with pytest.raises(AlreadyExistsError):
        await rig.features.index("t", "i1", dataset="d", max_tokens=5)
    for layer, index in ((3, 0), (0, 12)):
        with pytest.raises(NotFoundError):
            await rig.features.get("t", layer=layer, index=index, fields=["statistics"])


async def test_cancelled_index_stops_and_goes_on_when_asked_again(
    rig: Indexed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled index leaves no manifest; the same request again succeeds."""
    import threading

    from weft_attribution.core.feature_index.building import IndexBuilder
    from weft_common.operation_runs import Run

    held = threading.Event()
    original, stop = IndexBuilder._add_span, Run.stop

    def slow(self: Any, *arguments: Any) -> None:
        held.wait(10)
        original(self, *arguments)

    def stopped(self: Run, *arguments: Any) -> None:
        held.set()
        stop(self, *arguments)

    monkeypatch.setattr(IndexBuilder, "_add_span", slow)
    monkeypatch.setattr(Run, "stop", stopped)
    operation = await rig.features.index("t", "i1", dataset="d", settings=SETTINGS)
    await rig.house.client.operations.cancel(operation.name)
    with pytest.raises(CancelledError):
        await rig.house.client.operations.wait(operation)
    with pytest.raises(NotFoundError):
        await rig.features.get_index("t", "i1")
    assert (await rig.index("i1")).num_tokens == 12 * 13


async def test_index_tells_by_what_features_were_taken_for_active(rig: Indexed) -> None:
    """By the transcoder's threshold, or by one in the place of its count; an index of before does not tell."""
    make_transcoder(rig.house.store, "k", rig.house.runner.reference, activation="top_k", top_k=4, jump=True)
    assert (await rig.index()).activity_rule == index_pb2.ACTIVITY_RULE_THRESHOLD
    said = await rig.house.text("features", "index", "k", "--dataset", "d", "--index", "i1")
    assert "above the threshold by which it fires as often" in said
    made = await rig.features.get_index("k", "i1")
    assert made.activity_rule == index_pb2.ACTIVITY_RULE_THRESHOLD_FOR_COUNT
    # By a count it would be 4 of each of 3 layers on every token.
    active = [each.statistics.num_active async for each in rig.features.list("k")]
    assert sum(active) != 3 * 4 * made.num_tokens
    assert "threshold for count" in await rig.house.text("features", "indexes", "k")
    keys = IndexKeys("k", "i1")
    update_json(
        rig.house.store, keys.manifest, lambda found: {k: each for k, each in found.items() if k != "activity_rule"}
    )
    made.ClearField("activity_rule")
    assert await rig.features.get_index("k", "i1") == made
    assert "not told" in await rig.house.text("features", "indexes", "k")


async def test_commands_index_and_show(rig: Indexed) -> None:
    """The command indexes, lists, describes, searches and runs a text; --json is the message."""
    assert "36 features over 156 tokens" in await rig.house.text("features", "index", "t", "--dataset", "d")
    (index,) = (await rig.house.json("features", "indexes", "t"))["indexes"]
    assert index["name"] == "transcoders/t/indexes/d"
    listed = (await rig.house.json("features", "list", "t", "--order", "density desc", "--limit", "3"))["features"]
    assert len(listed) == 3
    feature = listed[0]["name"].rpartition("/")[2]
    text = await rig.house.text("features", "get", "t", feature)
    assert "[[t" in text
    assert "of tokens, dense" in text
    found = await rig.house.json("features", "prompt", "t", "--prompt", "capital", "--feature", feature)
    assert [each["name"] for each in found["features"]] == [listed[0]["name"]]
    example = (await rig.house.json("features", "get", "t", feature))["examples"][0]
    token = str(example["token_ids"][example["peak_at"]])
    searched = (await rig.house.json("features", "search", "t", "--token-id", token))["features"]
    assert listed[0]["name"] in [each["name"] for each in searched]
    await rig.house.make("g1")
    assert json.loads(await rig.house.text("features", "graph", "g1", "--limit", "2", "--json"))["features"]
    assert "1.000" in await rig.house.text("features", "match", "t", "t", "--layer", "1")
    refused = await rig.house.weft("features", "search", "t")
    assert refused.exit_code != 0
