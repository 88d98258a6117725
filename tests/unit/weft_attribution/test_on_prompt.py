"""What fires on a text: beside an index that has never seen some of it, and page by page over replicas."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import field_mask_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from index_rig import REVISION, IndexRig

from weft.features.v1 import queries_pb2
from weft_attribution.core.feature_index.indexing import FeatureIndexing
from weft_attribution.core.feature_index.on_prompt import PromptActivations, PromptAnswer, PromptFeature, PromptQuestion
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.prompt_answers import KeptAnswers, WholeAnswer, strongest_first
from weft_attribution.core.ports import Capture, ModelInfo, Token
from weft_attribution.core.question_turns import Turns
from weft_attribution.servicer_feature_queries import QueryRpcs
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_store.opening import open_store

TOKENS = tuple(Token(number, f"t{number}") for number in range(6))


class Runner:
    """A model whose streams are much larger than those of the dataset."""

    info = ModelInfo("tiny", "Reference", 2, 4, 40, 64, REVISION)

    def __init__(self) -> None:
        self.runs = 0
        rng = np.random.default_rng(1)
        self.streams = {f"layers.{layer}.mlp_in": rng.normal(0, 8, (6, 4)).astype(np.float32) for layer in range(2)}

    async def model(self, name: str) -> ModelInfo:
        return self.info

    async def tokenize(self, model: str, text: str) -> tuple[Token, ...]:
        return TOKENS

    async def capture(self, model: str, token_ids: Sequence[int], hooks: Sequence[str]) -> Capture:
        self.runs += 1
        return Capture(self.info, TOKENS, {hook: self.streams[hook] for hook in hooks})


def replica(rig: IndexRig, runner: Runner, memory_bytes: int = 1 << 20) -> PromptActivations:
    """One that keeps answers, or with no memory none."""
    any_runner: Any = runner
    models: Any = SimpleNamespace(weights=lambda model: SimpleNamespace(first_position=1))
    indexes = OpenIndexes(rig.store, look_s=0)
    return PromptActivations(rig.store, any_runner, models, indexes, max_prompt_tokens=10, memory_bytes=memory_bytes)


async def test_feature_that_the_index_never_saw_has_no_relative_activation() -> None:
    """It comes after all that are known, the stronger first; where there is no index none has one."""
    rig, runner = IndexRig.make(open_store("memory://"), num_features=40, bias=-0.5), Runner()
    any_runner: Any = runner
    prompts = replica(rig, runner)
    question = PromptQuestion("t", "text", max_features=1000)
    plain = await prompts.find(question)
    assert {each.relative_max for each in plain.features} == {0.0}
    peaks = [max(each.activations) for each in plain.features]
    assert peaks == sorted(peaks, reverse=True)
    indexing = FeatureIndexing(rig.store, any_runner, rig, memory_bytes=1 << 30, workers=1)
    await indexing.build(rig.request(), lambda done, total: None)
    answer = await prompts.find(question)
    assert len(answer.features) == len(plain.features)
    known = [rig.activations(each.layer)[:, each.index] for each in answer.features]
    largest = [np.nanmax(acts) for acts in known]
    unknown = [each == 0 for each in largest]
    assert 5 < sum(unknown) < len(unknown) - 5
    assert unknown == sorted(unknown)
    for feature, most in zip(answer.features, largest, strict=True):
        assert feature.relative_max == (pytest.approx(max(feature.activations) / most, rel=1e-5) if most else 0)
    shares = [each.relative_max for each in answer.features]
    assert shares == sorted(shares, reverse=True)
    last = [max(each.activations) for each in answer.features if not each.relative_max]
    assert last == sorted(last, reverse=True)


PLACES = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 5)),
    st.tuples(st.lists(st.integers(-2, 4), max_size=4), st.integers(0, 3)),
    max_size=24,
)


@given(PLACES)
def test_features_are_told_strongest_first_and_ties_by_layer_and_index(
    found: dict[tuple[int, int], tuple[list[int], int]],
) -> None:
    """The order is that of a sort one by one, with ties in every figure; each has its own activations."""
    given_order = sorted(found.items())
    answer = strongest_first(
        TOKENS,
        np.array([layer for (layer, _), _ in given_order], np.int64),
        np.array([index for (_, index), _ in given_order], np.int64),
        np.array([len(values) for _, (values, _) in given_order], np.int64),
        np.array([at for _, (values, _) in given_order for at in range(len(values))], np.int64),
        np.array([value for _, (values, _) in given_order for value in values], np.float32),
        np.array([largest for _, (_, largest) in given_order], np.float64),
    )
    wanted = []
    for (layer, index), (values, largest) in given_order:
        peak = max(values, default=0)
        share = peak / largest if largest else 0.0
        feature = PromptFeature(layer, index, tuple(range(len(values))), tuple(map(float, values)), share)
        wanted.append(((-share, -peak, layer, index), feature))
    assert answer.features(0, 100) == tuple(feature for _, feature in sorted(wanted, key=lambda each: each[0]))
    assert answer.num_active == sum(bool(values) for values, _ in found.values())


@cache
def house() -> tuple[IndexRig, Runner]:
    return IndexRig.make(open_store("memory://"), num_features=40, bias=-0.5), Runner()


def ask_pages(question: PromptQuestion, sizes: Sequence[int], replicas: Sequence[PromptActivations]) -> list[Any]:
    """Pages of these sizes in turn, each from the next replica."""
    pages, token, number = [], "", 0
    while not pages or token:
        asked = replace(question, page_size=sizes[number % len(sizes)], page_token=token)
        pages.append(asyncio.run(replicas[number % len(replicas)].find(asked)))
        token, number = pages[-1].next_token, number + 1
    return pages


QUESTIONS = (
    {},
    {"max_features": 17},
    {"layers": (1,)},
    {"features": ((0, 39), (1, 3), (0, 2), (1, 39))},
)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(QUESTIONS),
    st.integers(1, 90),
    st.lists(st.integers(1, 90), max_size=3),
    st.sampled_from([0, 1 << 20]),
)
def test_pages_put_together_are_the_whole_answer(
    asked: dict[str, Any], first: int, later: list[int], memory_bytes: int
) -> None:
    """Of any sizes, from whatever replica, kept or made anew: each feature once, in order, with the whole's tokens."""
    rig, runner = house()
    question = PromptQuestion("t", "text", **asked)
    most = question.max_features or 1000
    whole = asyncio.run(replica(rig, runner).find(replace(question, max_features=most)))
    pages = ask_pages(question, [first, *later], [replica(rig, runner, memory_bytes), replica(rig, runner)])
    assert tuple(feature for page in pages for feature in page.features) == whole.features
    assert {(page.tokens, page.num_active) for page in pages} == {(whole.tokens, whole.num_active)}
    sizes = [len(page.features) for page in pages[:-1]]
    assert sizes == [([first, *later])[number % (1 + len(later))] for number in range(len(sizes))]
    assert len(whole.features) == min(most, 4 if question.features else whole.num_active)


async def test_question_without_a_page_size_is_answered_at_once() -> None:
    """As ever 100 at most and no token; with a token and no size the page has 50, and none has more than a thousand."""
    rig, runner = IndexRig.make(open_store("memory://"), num_features=700, bias=0.5), Runner()
    prompts = replica(rig, runner)
    whole = await prompts.find(PromptQuestion("t", "text"))
    assert whole.num_active > 1000
    assert (len(whole.features), whole.next_token) == (100, "")
    page = await prompts.find(PromptQuestion("t", "text", page_size=1 << 20))
    assert len(page.features) == 1000
    page = await prompts.find(PromptQuestion("t", "text", page_token=page.next_token))
    assert len(page.features) == 50
    with pytest.raises(InvalidArgumentError, match="page_size is -1"):
        await prompts.find(PromptQuestion("t", "text", page_size=-1))


async def test_pages_of_one_replica_run_the_model_once() -> None:
    """An answer is kept for its own pages alone: not where there are none, nor for another transcoder of that name."""
    rig, runner = IndexRig.make(open_store("memory://"), num_features=40, bias=-0.5), Runner()
    prompts = replica(rig, runner)
    question = PromptQuestion("t", "text", page_size=10)
    first = await prompts.find(question)
    second = await prompts.find(replace(question, page_token=first.next_token))
    assert runner.runs == 1
    assert second.next_token
    await prompts.find(replace(question, layers=(0,), page_size=0))
    await prompts.find(replace(question, layers=(0,), page_size=0))
    assert runner.runs == 3
    manifest = rig.store.get("transcoders/t/manifest.json")
    rig.store.put("transcoders/t/manifest.json", manifest + b" ")
    with pytest.raises(FailedPreconditionError, match="begin again at the first page"):
        await prompts.find(replace(question, page_token=second.next_token))
    assert runner.runs == 4
    assert (await prompts.find(question)).features == first.features


async def test_page_token_of_another_question_is_refused_before_the_model_runs() -> None:
    """As is one that was made up or cut; the message says what a token holds for."""
    rig, runner = house()
    prompts = replica(rig, runner)
    question = PromptQuestion("t", "text", page_size=10)
    token = (await prompts.find(question)).next_token
    before = runner.runs
    for other in (
        replace(question, prompt="texts"),
        replace(question, transcoder="u"),
        replace(question, layers=(1,)),
        replace(question, features=((0, 1),)),
        replace(question, max_features=20),
    ):
        with pytest.raises(InvalidArgumentError, match="this transcoder, prompt, layers, features and max_features"):
            await prompts.find(replace(other, page_token=token))
    for bad in ("no token", "AAAA", token[:-4], token + "AAAA", "é" * 9):
        with pytest.raises(InvalidArgumentError, match="page_token"):
            await prompts.find(replace(question, page_token=bad))
    assert runner.runs == before
    raw = base64.urlsafe_b64decode(token)
    for place in (0, 9, 11, 2**64 - 1):
        moved = base64.urlsafe_b64encode(raw[:-8] + place.to_bytes(8, "big")).decode()
        with pytest.raises(FailedPreconditionError):
            await prompts.find(replace(question, page_token=moved))


async def test_page_of_a_replica_that_computes_otherwise_never_repeats_or_hides_a_feature() -> None:
    """What moves within the pages told, or after them, does no harm; what moves between them is refused."""
    rig, runner = house()
    question = PromptQuestion("t", "text", page_size=10)
    first = await replica(rig, runner).find(question)
    asked = replace(question, page_size=1000, page_token=first.next_token)
    rest = await replica(rig, runner).find(asked)
    refused = accepted = 0
    for seed, noise in enumerate([0.001, 0.03] * 8):
        other, rng = Runner(), np.random.default_rng(seed)
        for stream in other.streams.values():
            stream *= (1 + rng.normal(0, noise, stream.shape)).astype(np.float32)
        told = {(each.layer, each.index) for each in first.features}
        whole = await replica(rig, other).find(replace(question, page_size=1000))
        begins_alike = {(each.layer, each.index) for each in whole.features[:10]} == told
        if begins_alike:
            page = await replica(rig, other).find(asked)
            assert page.features == whole.features[10:]
            assert page.features != rest.features
            accepted += 1
        else:
            with pytest.raises(FailedPreconditionError, match="replicas compute the model differently"):
                await replica(rig, other).find(asked)
            refused += 1
    assert refused
    assert accepted


async def test_pages_end_where_another_index_begins_to_answer() -> None:
    """Strengths are of an index; a page of one is not gone on with by another."""
    rig, runner = IndexRig.make(open_store("memory://"), num_features=40, bias=-0.5), Runner()
    any_runner: Any = runner
    prompts = replica(rig, runner)
    question = PromptQuestion("t", "text", page_size=10)
    first = await prompts.find(question)
    indexing = FeatureIndexing(rig.store, any_runner, rig, memory_bytes=1 << 30, workers=1)
    await indexing.build(rig.request(), lambda done, total: None)
    with pytest.raises(FailedPreconditionError, match="its index"):
        await prompts.find(replace(question, page_token=first.next_token))


def test_kept_answers_are_bounded_by_their_number_and_bytes() -> None:
    """The one that was not asked for longest goes first; one that is larger than all memory is not kept."""

    def answer(num: int) -> WholeAnswer:
        ints = np.zeros(num, np.int64)
        return strongest_first(TOKENS, ints, ints, ints, ints[:0], np.zeros(0, np.float32), np.zeros(num))

    size = answer(10).num_bytes
    assert size == 10 * 5 * 8
    kept = KeptAnswers(3 * size)
    for key in "abc":
        kept.put(key, answer(10))
    assert kept.get("a") is not None
    kept.put("d", answer(10))
    assert [key for key in "abcd" if kept.get(key) is not None] == ["a", "c", "d"]
    kept.put("large", answer(31))
    assert kept.get("large") is None
    kept.put("e", answer(30))
    assert [key for key in "acde" if kept.get(key) is not None] == ["e"]
    many = KeptAnswers(1 << 20)
    for number in range(20):
        many.put(number, answer(1))
    assert [number for number in range(20) if many.get(number) is not None] == list(range(12, 20))


class Labels:
    """Labels of one feature, which count how often they are listed."""

    def __init__(self) -> None:
        self.listed = 0
        self.damaged: list[str] = ["page"]

    async def labels(self, transcoder: str) -> "Labels":
        self.listed += 1
        return self

    def __contains__(self, place: tuple[int, int]) -> bool:
        return place == (1, 2)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        return SimpleNamespace(text="a word", origin="human", scores={}, explainer="", prompt_sha256="")


@pytest.mark.parametrize(
    ("paths", "shown", "num_listed"),
    [
        ([], {"name", "layer", "index", "positions", "activations", "relative_max", "label"}, 1),
        (["name", "positions"], {"name", "positions"}, 0),
        (["index", "label.text"], {"index", "label"}, 1),
    ],
)
async def test_read_mask_leaves_what_it_names_and_lists_labels_for_nobody_else(
    paths: list[str], shown: set[str], num_listed: int
) -> None:
    """A part of a field is that part; what pages and tokens say stays."""
    labels, trailers = Labels(), list[Any]()
    servicer, context = _servicer(labels), SimpleNamespace(set_trailing_metadata=trailers.append)
    answer = await servicer.GetActivationsOnPrompt(_request(paths), context)
    (feature,) = answer.features
    assert {field.name for field, _ in feature.ListFields()} == shown
    assert feature.label.is_human == (paths == [])
    assert feature.label.text == ("a word" if "label" in shown else "")
    assert (labels.listed, len(trailers)) == (num_listed, num_listed)
    assert (answer.next_page_token, answer.num_active_features, len(answer.tokens)) == ("more", 9, 6)


async def test_read_mask_with_an_unknown_field_is_refused_before_the_question_is_asked() -> None:
    """The message has the fields that there are; a field of Feature alone is not one."""
    for path in ("colour", "statistics", "label.colour"):
        with pytest.raises(InvalidArgumentError, match=r"no field of PromptFeature; its fields are name, layer, index"):
            await _servicer(Labels(), asked=False).GetActivationsOnPrompt(_request([path]), None)


def _request(paths: list[str]) -> queries_pb2.GetActivationsOnPromptRequest:
    return queries_pb2.GetActivationsOnPromptRequest(
        transcoder="transcoders/t",
        prompt="text",
        layers=[2, 1, 2],
        page_size=7,
        page_token="token",
        read_mask=field_mask_pb2.FieldMask(paths=paths),
    )


def _servicer(labels: Labels, *, asked: bool = True) -> Any:
    async def find(question: PromptQuestion) -> PromptAnswer:
        assert asked
        assert question == PromptQuestion("t", "text", layers=(1, 2), page_size=7, page_token="token")
        return PromptAnswer(TOKENS, (PromptFeature(1, 2, (3,), (0.5,), 0.25),), 9, "more")

    servicer: Any = QueryRpcs()
    servicer.on_prompt, servicer.turns = SimpleNamespace(find=find), Turns()
    servicer.queries = SimpleNamespace(labels=labels)
    return servicer
