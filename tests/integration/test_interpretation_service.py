"""ExplainFeatures and ScoreFeatures as a caller sees them: through gRPC, a bucket, and an endpoint over HTTP."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from interpreter_server import InterpreterServer, held, interpreter_server, says, slow, status
from prometheus_client import CollectorRegistry
from rule_interpreter import LABELS, PLACES, PlantedSource, PlantedSources, RuleBrain
from structlog.testing import capture_logs
from typer.testing import CliRunner

from weft.features.v1 import interpretation_pb2, labels_pb2, labels_pb2_grpc, service_pb2, service_pb2_grpc
from weft_attribution.adapters.openai_interpreter import openai_interpreter
from weft_attribution.adapters.prometheus_interpretation import PrometheusInterpretation
from weft_attribution.core.interpretation.asking import Asker
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Label, Place
from weft_attribution.interpretation_requests import Interpreting
from weft_attribution.interpretation_work import InterpretationWork
from weft_attribution.servicer_interpretation import InterpretationRpcs
from weft_attribution.servicer_labels import LabelServicer
from weft_client import AsyncClient, Endpoint
from weft_client.cli import app
from weft_common.errors import CancelledError, FailedPreconditionError, InvalidArgumentError
from weft_common.operations import OperationManager
from weft_common.operations_servicer import operations_registration
from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings
from weft_store import ObjectStore, open_store
from weft_store.operations import ObjectOperationStore

FEATURES = [f"transcoders/t/features/{layer}-{index}" for layer, index in PLACES]
KINDS = [labels_pb2.SCORE_KIND_DETECTION, labels_pb2.SCORE_KIND_FUZZING, labels_pb2.SCORE_KIND_INTRUDER,
         labels_pb2.SCORE_KIND_EMBEDDING]  # fmt: skip


@dataclass
class House:
    """A service over a bucket, its client, and what it counted."""

    client: AsyncClient
    registry: CollectorRegistry
    folder: Path

    async def run(self, operation: Any) -> Any:
        return await self.client.operations.wait(operation, timeout_s=60)

    async def weft(self, *arguments: str) -> Any:
        endpoints = str(self.folder / "endpoints.json")
        return await asyncio.to_thread(CliRunner().invoke, app, ["--endpoints", endpoints, *arguments])

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"weft_interpretation_{name}", labels) or 0.0


class Runner:
    """The one call of the base model that interpretation makes."""

    async def pieces(self, model: str, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        assert model == "tiny"
        return tuple(PlantedSource().vocabulary[token].encode() for token in token_ids)


@asynccontextmanager
async def house_of(store: ObjectStore, url: str, folder: Path, *, is_set_up: bool = True) -> AsyncIterator[House]:
    registry = CollectorRegistry()
    async with openai_interpreter(url, "key", timeout_s=30.0) as interpreter:
        interpreting = Interpreting(
            interpreter,
            endpoint=url,
            model="m",
            embedding_model="e",
            structured=False,
            concurrency=4,
            max_attempts=3,
            observe=PrometheusInterpretation(registry),
        )
        labels = LabelStore(store)
        work = InterpretationWork(
            store,
            PlantedSources(PlantedSource()),
            labels,
            Runner(),  # type: ignore[arg-type]  # it makes one call
            interpreting if is_set_up else None,
        )
        rpcs = InterpretationRpcs()
        rpcs.interpretation = work
        rpcs.work = OperationManager(
            "attribution", ObjectOperationStore(store, "attribution"), work.kinds(), poll_s=0.1
        )
        served = [
            Registration(
                service_pb2.DESCRIPTOR.services_by_name["FeatureService"].full_name,
                lambda server: service_pb2_grpc.add_FeatureServiceServicer_to_server(rpcs, server),
            ),
            Registration(
                labels_pb2.DESCRIPTOR.services_by_name["LabelService"].full_name,
                lambda server: labels_pb2_grpc.add_LabelServiceServicer_to_server(LabelServicer(store, labels), server),
            ),
            operations_registration(rpcs.work),
        ]
        settings = ServiceSettings(token="integration")
        with capture_logs():
            async with rpcs.work.run(), serving("attribution", settings, served) as running:
                target = f"127.0.0.1:{running.port}"
                services = {"attribution": {"target": target, "token": "integration"}}
                (folder / "endpoints.json").write_text(json.dumps({"services": services}))
                async with AsyncClient.to(attribution=Endpoint(target, "integration")) as client:
                    yield House(client, registry, folder)


@pytest.fixture
def server() -> Iterator[InterpreterServer]:
    with interpreter_server(RuleBrain().answer) as served:
        yield served


@pytest.fixture
def store() -> ObjectStore:
    made = open_store("memory://")
    made.put("transcoders/t/manifest.json", json.dumps({"model": "models/tiny"}).encode())
    return made


@pytest.fixture
async def house(store: ObjectStore, server: InterpreterServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house_of(store, server.url, tmp_path) as made:
        yield made


def scope(calls: int = 10_000, **fields: Any) -> interpretation_pb2.InterpretationScope:
    return interpretation_pb2.InterpretationScope(**{"features": FEATURES, "max_calls": calls, **fields})


async def test_features_are_explained_and_scored(house: House, server: InterpreterServer) -> None:
    """Through every part: labels with scores above .95, shuffled ones at chance, spend and metrics that agree."""
    explained = await house.run(await house.client.labels.explain("t", scope=scope()))
    assert (explained.num_features, explained.num_labelled, explained.num_left) == (5, 5, 0)
    assert (explained.explainer, explained.prompt) == ("m", "explain-1")
    scored = await house.run(await house.client.labels.score("t", scope=scope(), kinds=KINDS, control=True))
    assert scored.num_scored == 5
    reports = {report.kind: report for report in scored.reports}
    assert list(reports) == KINDS
    for kind in KINDS[:2]:
        assert reports[kind].pooled.low > 0.9
        assert abs(reports[kind].control.value - 0.5) < 0.06
    detection = reports[labels_pb2.SCORE_KIND_DETECTION].control
    assert detection.low <= 0.5 <= detection.high
    assert not reports[labels_pb2.SCORE_KIND_EMBEDDING].HasField("control")
    labels = [label async for label in house.client.labels.list("t")]
    assert [label.text for label in labels] == [LABELS[PLACES.index((each.layer, each.index))] for each in labels]
    for label in labels:
        values = {score.kind: score.value for score in label.scores}
        assert set(values) == set(KINDS)
        assert values[labels_pb2.SCORE_KIND_DETECTION] > 0.95
        assert values[labels_pb2.SCORE_KIND_EMBEDDING] > 0.6
    calls = explained.spend.calls + scored.spend.calls
    assert calls == len(server.requests) == house.count("questions_total", result="answered")
    assert explained.spend.question_tokens == 100 * explained.spend.calls
    assert house.count("broken_total") == 0


async def test_service_that_died_goes_on_where_it_was(
    store: ObjectStore, server: InterpreterServer, tmp_path: Path
) -> None:
    """Stopped in the middle, another process on the same bucket ends the work; no question is sent twice."""
    server.always = slow(0.15)
    async with house_of(store, server.url, tmp_path) as first:
        operation = await first.client.labels.explain("t", scope=scope())
        await asyncio.to_thread(server.wait_for, 2)
    async with house_of(store, server.url, tmp_path) as second:
        done = await second.run(operation)
    assert done.num_labelled == 5
    assert done.spend.calls == len(server.requests) == 5
    assert len({json.dumps(body) for _, body, _ in server.requests}) == 5


async def test_work_stays_what_was_asked_for(store: ObjectStore, server: InterpreterServer, tmp_path: Path) -> None:
    """A graph that is deleted, another index and newer prompts change nothing of work that is taken up again."""
    with pytest.MonkeyPatch.context() as patch:
        found = [Place(*place) for place in PLACES]
        patch.setattr("weft_attribution.interpretation_requests.features_of_graph", lambda *_: found)
        server.always = slow(0.15)
        async with house_of(store, server.url, tmp_path) as first:
            operation = await first.client.labels.explain("t", scope=scope(features=[], graphs=["graphs/g"]))
            await asyncio.to_thread(server.wait_for, 2)
    opened: list[str] = []

    class Newer(PlantedSources):
        def open(self, transcoder: str, index_id: str = "") -> PlantedSource:
            opened.append(index_id)
            return super().open(transcoder, index_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "PlantedSources", Newer)
        async with house_of(store, server.url, tmp_path) as second:
            done = await second.run(operation)
    assert opened == ["planted"]
    assert (done.num_labelled, done.prompt, done.spend.calls) == (5, "explain-1", 5)
    assert len(server.requests) == 5


async def test_budget_ends_the_work_and_another_goes_on(house: House, server: InterpreterServer) -> None:
    """Two calls label two features and leave three; the next operation pays for those alone."""
    first = await house.run(await house.client.labels.explain("t", scope=scope(2)))
    assert (first.num_labelled, first.num_left, first.spend.calls) == (2, 3, 2)
    second = await house.run(await house.client.labels.explain("t", scope=scope()))
    assert (second.num_labelled, second.num_kept, second.spend.calls) == (3, 2, 3)
    assert len(server.requests) == 5


async def test_work_can_be_cancelled(house: House, server: InterpreterServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No question is sent after the end; what was answered stays paid."""
    may_answer, close = threading.Event(), Asker.close

    async def closing(asker: Asker) -> None:
        # The work has heard of its end, and waits for the answers that are on their way.
        may_answer.set()
        await close(asker)

    monkeypatch.setattr(Asker, "close", closing)
    server.always = held(may_answer)
    async with asyncio.timeout(30):
        operation = await house.client.labels.explain("t", scope=scope())
        # As many as are sent at once; the fifth would follow the first answer.
        await asyncio.to_thread(server.wait_for, 4)
        await house.client.operations.cancel(operation.name)
        with pytest.raises(CancelledError):
            await house.run(operation)
    assert len(server.requests) == 4
    await asyncio.sleep(0.3)
    assert len(server.requests) == 4


async def test_faults_on_the_way_change_no_label(house: House, server: InterpreterServer) -> None:
    """429s, errors and a refusal: what can be repeated is, what cannot costs one feature its label, and all is told."""
    server.faults = [status(429, {"Retry-After": "0.05"}), status(500), says(None, refusal="no"), says("<b>none</b>")]
    done = await house.run(await house.client.labels.explain("t", scope=scope()))
    assert (done.num_labelled, done.num_unlabelled) == (3, 2)
    assert (done.spend.num_refused, done.spend.num_broken, done.spend.num_answered) == (1, 1, 4)
    assert done.spend.calls == len(server.requests) == 7
    assert house.count("questions_total", result="refused") == 1


async def test_wrong_key_fails_the_work_with_what_to_do(house: House, server: InterpreterServer) -> None:
    """The operation ends with an error that names the setting, and asks once."""
    server.always = status(401)
    with pytest.raises(FailedPreconditionError, match="INTERPRETER_KEY"):
        await house.run(await house.client.labels.explain("t", scope=scope(max_features=1)))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"max_calls": 0}, "max_calls"), ({"max_tokens": -1}, "max_tokens"), ({"features": []}, "neither"),
        ({"features": ["transcoders/u/features/0-0"]}, "another transcoder"), ({"max_features": -1}, "max_features"),
        ({"features": ["t/0-0"]}, "transcoders/"), ({"graphs": ["graphs/a"] * 101}, "101 names"),
    ],
)  # fmt: skip
async def test_wrong_scope_is_refused(house: House, fields: dict[str, Any], match: str) -> None:
    """Before anything is asked, with the field's name."""
    with pytest.raises(InvalidArgumentError, match=match):
        await house.client.labels.explain("t", scope=scope(**{"calls": 5, **_as_calls(fields)}))


def _as_calls(fields: dict[str, Any]) -> dict[str, Any]:
    return {("calls" if name == "max_calls" else name): value for name, value in fields.items()}


async def test_what_is_not_set_up_is_named(store: ObjectStore, tmp_path: Path, house: House) -> None:
    """No endpoint, no index, no such prompt: a sentence each, and nothing is begun."""
    (tmp_path / "bare").mkdir()
    async with house_of(store, "http://127.0.0.1:9/v1", tmp_path / "bare", is_set_up=False) as bare:
        with pytest.raises(FailedPreconditionError, match="WEFT_ATTRIBUTION_INTERPRETER_URL"):
            await bare.client.labels.explain("t", scope=scope())
    with pytest.raises(FailedPreconditionError, match="no index"):
        await house.client.labels.explain("u", scope=scope())
    with pytest.raises(InvalidArgumentError, match="explain-1"):
        await house.client.labels.explain("t", scope=scope(), prompt="explain-99")
    with pytest.raises(InvalidArgumentError, match="num_examples"):
        await house.client.labels.score("t", scope=scope(), num_examples=3)


async def test_same_request_is_the_same_work(house: House) -> None:
    """Sent twice with one id, it runs once; checked only, it does not run."""
    first = await house.client.labels.explain("t", scope=scope(), request_id="one")
    second = await house.client.labels.explain("t", scope=scope(), request_id="one")
    assert first.name == second.name
    checked = await house.client.labels.explain("t", scope=scope(), validate_only=True)
    assert [each.name async for each in house.client.operations.list("attribution")] == [first.name]
    assert checked.name != first.name


async def test_command_explains_and_scores(house: House, store: ObjectStore) -> None:
    """`weft labels explain` and `score` print what came of it and what it cost; a person's label stays."""
    LabelStore(store).add("t", Label(Place(*PLACES[0]), "mine"))
    asked = [argument for layer, index in PLACES for argument in ("--feature", f"{layer}-{index}")]
    explained = await house.weft("labels", "explain", "t", *asked, "--max-calls", "100")
    assert explained.exit_code == 0, explained.stderr
    assert "4 of 5 features, by m and explain-1" in explained.stdout
    assert "1 have a label that stays" in explained.stdout
    scored = await house.weft("labels", "score", "t", *asked, "--max-calls", "500", "--kind", "detection", "--control")
    assert scored.exit_code == 0, scored.stderr
    assert "shuffled labels" in scored.stdout
    as_json = await house.weft("labels", "list", "t", "--json")
    texts = {label["text"]: label for label in json.loads(as_json.stdout)["labels"]}
    assert set(texts) == {"mine", *LABELS[1:]}
    assert texts[LABELS[1]]["scores"][0]["value"] > 0.95
    assert texts["mine"]["scores"][0]["value"] == 0.5
    refused = await house.weft("labels", "explain", "t", "--feature", "x", "--max-calls", "1")
    assert refused.exit_code == 2
