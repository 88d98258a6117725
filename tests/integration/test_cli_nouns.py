# ruff: noqa: N802  gRPC names the methods
"""The `weft` command against services that serve in this process; what is not the cache answers from a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from typer.testing import CliRunner

from weft.activations.v1 import messages_pb2 as activations
from weft.activations.v1 import service_pb2 as activations_rpc
from weft.activations.v1 import service_pb2_grpc as activations_grpc
from weft.attribution.v1 import messages_pb2 as attribution
from weft.attribution.v1 import service_pb2 as attribution_rpc
from weft.attribution.v1 import service_pb2_grpc as attribution_grpc
from weft.cache.v1 import messages_pb2 as cache
from weft.cache.v1 import service_pb2 as cache_rpc
from weft.training.v1 import messages_pb2 as training
from weft.training.v1 import service_pb2 as training_rpc
from weft.training.v1 import service_pb2_grpc as training_grpc
from weft_cache.wiring import registrations
from weft_client import AsyncClient, Endpoint
from weft_client.aio.calls import unary
from weft_client.cli import app
from weft_common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings
from weft_store import open_store

TOKEN = "integration"
RUN = training.Run(
    name="runs/r1",
    spec=training.TrainingSpec(dataset="datasets/d", num_steps=2),
    state=training.RUN_STATE_SUCCEEDED,
    transitions=[training.StateTransition(state=training.RUN_STATE_SUCCEEDED, reason="all steps are done")],
    step=2,
    attempt=3,
    metrics=training.Metrics(step=2, sent_bytes_per_token=4096, entry_bytes_per_token=512),
    epochs=[
        training.Epoch(index=0, snapshot=1, num_tokens=65_536, snapshot_tokens=65_536),
        training.Epoch(index=1, snapshot=3, since_snapshot=1, num_tokens=2_000, snapshot_tokens=67_536),
        training.Epoch(index=2, snapshot=3, num_tokens=67_536, snapshot_tokens=67_536, passes=12),
        training.Epoch(index=14, since_snapshot=3, num_tokens=2_464, snapshot_tokens=70_000, passes=1),
        training.Epoch(index=15, num_tokens=70_000, snapshot_tokens=70_000),
    ],
)


class Models(activations_grpc.ActivationServiceServicer):
    """One model, and whatever corpus comes."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.harvest: activations.HarvestSpec | None = None

    async def ListModels(self, request: activations_rpc.ListModelsRequest, context: Any) -> Any:
        last = request.page_token == "2"
        name = "models/b" if last else "models/a"
        return activations_rpc.ListModelsResponse(
            models=[activations.Model(name=name, num_layers=2)], next_page_token="" if last else "2"
        )

    async def GetModel(self, request: activations_rpc.GetModelRequest, context: Any) -> Any:
        if request.name != "models/a":
            raise NotFoundError(f"there is no {request.name}; `weft models list` shows what there is")
        return activations.Model(name=request.name, num_layers=2, architecture="LlamaForCausalLM")

    async def Run(self, request: activations_rpc.RunRequest, context: Any) -> Any:
        if not request.prompt.text:
            raise InvalidArgumentError("the prompt is empty; give at least one character", field="prompt")
        token = activations.Token(id=7, text=" Paris")
        return activations_rpc.RunResponse(top_tokens=[activations.TokenProbability(token=token, probability=0.5)])

    async def UploadCorpus(self, requests: AsyncIterator[activations_rpc.UploadCorpusRequest], context: Any) -> Any:
        corpus_id = ""
        async for piece in requests:
            corpus_id = corpus_id or piece.corpus_id
            if piece.document:
                self.documents[piece.document] = self.documents.get(piece.document, b"") + piece.text
        return activations_rpc.Corpus(name=f"corpora/{corpus_id}", num_documents=len(self.documents))

    async def CreateHarvest(self, request: activations_rpc.CreateHarvestRequest, context: Any) -> Any:
        self.harvest = request.spec
        return operations_pb2.Operation(name=f"operations/activations-{request.harvest_id}")

    async def GetHarvest(self, request: activations_rpc.GetHarvestRequest, context: Any) -> Any:
        return activations.Harvest(name=request.name, spec=self.harvest, tokens_committed=123)


class Trainer(training_grpc.TrainingServiceServicer):
    """One run that has succeeded, one that was cancelled, and whatever is asked for."""

    def __init__(self) -> None:
        self.asked: list[training_rpc.CreateRunRequest] = []

    async def CreateRun(self, request: training_rpc.CreateRunRequest, context: Any) -> Any:
        self.asked.append(request)
        return operations_pb2.Operation(name=f"operations/trainer-{request.run_id}")

    async def WatchRun(self, request: training_rpc.WatchRunRequest, context: Any) -> Any:
        if request.name == "runs/cancelled":
            yield training_rpc.WatchRunResponse(run=training.Run(name=request.name, state=training.RUN_STATE_CANCELLED))
            return
        for step in range(request.after_step + 1, 3):
            yield training_rpc.WatchRunResponse(metrics=training.Metrics(step=step, loss=1 / step))
        yield training_rpc.WatchRunResponse(run=RUN)

    async def GetRun(self, request: training_rpc.GetRunRequest, context: Any) -> Any:
        pending = training.Run(name=request.name, state=training.RUN_STATE_PENDING, pending_reason="no node fits")
        return pending if request.name == "runs/waiting" else RUN

    async def GetRunLogs(self, request: training_rpc.GetRunLogsRequest, context: Any) -> Any:
        if request.attempt > 2:
            raise NotFoundError(f"{request.name} has no attempt {request.attempt}")
        logs = [
            training.RankLog(source="rank 0", text="step 1\nstep 2\n"[-request.max_bytes :]),
            training.RankLog(source="events", text="Killing Pod/p-0: stopping"),
        ]
        return training_rpc.GetRunLogsResponse(attempt=request.attempt or 2, logs=logs)

    async def PauseRun(self, request: training_rpc.PauseRunRequest, context: Any) -> Any:
        raise FailedPreconditionError(f"{request.name} has ended; start a new run")

    async def ResumeRun(self, request: training_rpc.ResumeRunRequest, context: Any) -> Any:
        spec = training.TrainingSpec(feature_ranks=request.feature_ranks, data_ranks=request.data_ranks)
        return training.Run(name=request.name, state=training.RUN_STATE_PENDING, spec=spec)

    async def GetTranscoder(self, request: training_rpc.GetTranscoderRequest, context: Any) -> Any:
        return training.Transcoder(name=request.name, model="models/a")


class Graphs(attribution_grpc.AttributionServiceServicer):
    """Every graph succeeds."""

    def __init__(self) -> None:
        self.spec: attribution.GraphSpec | None = None

    async def CreateGraph(self, request: attribution_rpc.CreateGraphRequest, context: Any) -> Any:
        self.spec = request.spec
        return operations_pb2.Operation(name=f"operations/attribution-{request.graph_id}")

    async def GetGraph(self, request: attribution_rpc.GetGraphRequest, context: Any) -> Any:
        return attribution.Graph(name=request.name, json=b'{"nodes": []}', state=attribution.GRAPH_STATE_SUCCEEDED)

    async def Intervene(self, request: attribution_rpc.InterveneRequest, context: Any) -> Any:
        effect = attribution.LogitEffect(text=" Paris", predicted=-0.5, measured=-0.25)
        return attribution.InterventionResult(interventions=request.interventions, effects=[effect])


class Operations(operations_pb2_grpc.OperationsServicer):
    """Everything is done at once, with one result."""

    def __init__(self, result: Any) -> None:
        self._result = result

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Any) -> Any:
        operation = operations_pb2.Operation(name=request.name, done=True)
        operation.metadata.Pack(training.RunMetadata())
        operation.response.Pack(self._result)
        return operation


def served(module: Any, service: str, servicer: Any) -> Registration:
    add: Callable[..., None] = getattr(module, f"add_{service}Servicer_to_server")
    package = {"Operations": "google.longrunning"}.get(service)
    if package is None:
        package = type(servicer).__mro__[1].__module__.removesuffix(".service_pb2_grpc")
    return Registration(f"{package}.{service}", lambda server: add(servicer, server))


class House:
    """All services, and a command that finds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models, self.trainer, self.graphs = Models(), Trainer(), Graphs()
        self.cache = Endpoint("")
        self.bucket = open_store("memory://")

    async def weft(self, *arguments: str) -> Any:
        """Run the command in a thread, as its calls block."""
        return await asyncio.to_thread(
            CliRunner().invoke, app, ["--endpoints", str(self.folder / "endpoints.json"), *arguments]
        )

    async def json(self, *arguments: str) -> Any:
        """Run the command with --json; it must succeed."""
        result = await self.weft(*arguments, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Services in this process and their endpoints file."""
    house, settings = House(tmp_path), ServiceSettings(token=TOKEN)
    graph = attribution.Graph(name="graphs/g1", state=attribution.GRAPH_STATE_SUCCEEDED)
    parts = {
        "activations": [
            served(activations_grpc, "ActivationService", house.models),
            served(operations_pb2_grpc, "Operations", Operations(activations.Harvest())),
        ],
        "cache": [],
        "trainer": [served(training_grpc, "TrainingService", house.trainer)],
        "attribution": [
            served(attribution_grpc, "AttributionService", house.graphs),
            served(operations_pb2_grpc, "Operations", Operations(graph)),
        ],
    }
    # Logs of services in this process would mix with what the command prints.
    with capture_logs():
        async with (
            registrations(house.bucket, registry=CollectorRegistry()) as cached,
            serving("activations", settings, parts["activations"]) as one,
            serving("cache", settings, cached) as two,
            serving("trainer", settings, parts["trainer"]) as three,
            serving("attribution", settings, parts["attribution"]) as four,
        ):
            services: dict[str, Any] = {
                name: {"target": f"127.0.0.1:{server.port}", "token": TOKEN}
                for name, server in zip(parts, (one, two, three, four), strict=True)
            }
            services["console"] = {"url": "http://127.0.0.1:1/", "token": "page"}
            (tmp_path / "endpoints.json").write_text(json.dumps({"services": services}))
            house.cache = Endpoint(services["cache"]["target"], TOKEN)
            yield house


async def test_models_are_listed_over_pages(house: House) -> None:
    """A list follows its pages; as a table and as JSON."""
    assert [each["name"] for each in (await house.json("models", "list"))["models"]] == ["models/a", "models/b"]
    table = (await house.weft("models", "list")).stdout
    assert table.splitlines()[0].split() == ["id", "architecture", "layers", "d_model", "vocabulary"]
    assert (await house.json("models", "get", "a"))["architecture"] == "LlamaForCausalLM"
    assert "' Paris'" in (await house.weft("models", "run", "a", "--prompt", "The capital of France is")).stdout


async def test_errors_of_a_service_come_through(house: House) -> None:
    """NOT_FOUND exits 1, INVALID_ARGUMENT exits 2 and names the field, FAILED_PRECONDITION exits 1; one line each."""
    for arguments, code, exit_code in (
        (["models", "get", "nope"], "NOT_FOUND", 1),
        (["models", "run", "a", "--prompt", ""], "INVALID_ARGUMENT", 2),
        (["runs", "pause", "r1"], "FAILED_PRECONDITION", 1),
        (["datasets", "get", "nope"], "NOT_FOUND", 1),
        (["datasets", "get", "a b"], "INVALID_ARGUMENT", 2),
    ):
        plain = await house.weft(*arguments)
        assert (plain.exit_code, plain.stdout, plain.stderr.count("\n")) == (exit_code, "", 1)
        as_json = await house.weft(*arguments, "--json")
        assert json.loads(as_json.stderr)["error"]["code"] == code
        assert as_json.exit_code == exit_code


async def test_service_that_is_down_says_weft_up(house: House) -> None:
    """A port that nobody listens on is one line with what to do."""
    path = house.folder / "endpoints.json"
    document = json.loads(path.read_text())
    document["services"]["cache"]["target"] = "127.0.0.1:1"
    path.write_text(json.dumps(document))
    result = await house.weft("datasets", "list")
    assert result.exit_code == 1
    assert "weft up" in result.stderr
    assert "Traceback" not in result.stderr


async def test_wrong_token_is_said(house: House) -> None:
    """An endpoints file of another run does not get in."""
    path = house.folder / "endpoints.json"
    document = json.loads(path.read_text())
    document["services"]["cache"]["token"] = "other"
    path.write_text(json.dumps(document))
    result = await house.weft("datasets", "list", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["code"] == "UNAUTHENTICATED"


async def test_datasets_are_read_and_deleted(house: House) -> None:
    """The cache's datasets through list, get, verify and delete."""
    assert (await house.json("datasets", "list")) == {"datasets": []}
    async with AsyncClient.to(cache=house.cache) as client:
        spec = cache.DatasetSpec(
            model="models/a",
            model_revision="ab" * 32,
            num_layers=2,
            d_model=8,
            input_hook="mlp_in",
            output_hook="mlp_out",
            codec="bf16",
        )
        request = cache_rpc.CreateDatasetRequest(dataset_id="d", spec=spec)
        await unary(client.datasets._stub.CreateDataset, request)
    document = await house.json("datasets", "get", "d")
    assert (document["name"], document["state"]) == ("datasets/d", "DATASET_STATE_OPEN")
    assert document["stats"]["bits_per_value"] == 0
    assert "mlp_in and mlp_out" in (await house.weft("datasets", "get", "d")).stdout
    empty = await house.weft("datasets", "snapshot", "d")
    assert (empty.exit_code, "no tokens yet" in empty.stderr) == (1, True)
    assert "no snapshot 1" in (await house.weft("datasets", "get", "d", "--snapshot", "1")).stderr
    tagged = await house.json("datasets", "tag", "d", "team=x", "use=try")
    assert tagged["tags"] == {"team": "x", "use": "try"}
    assert (await house.json("datasets", "tag", "d", "--remove", "use"))["tags"] == {"team": "x"}
    named = [["--tag", "team=x", "--state", "open", "--model", "a", "--since", "2026-01-01"], ["--tag", "team=y"]]
    found = [(await house.json("datasets", "list", *each))["datasets"] for each in named]
    assert [[one["name"] for one in each] for each in found] == [["datasets/d"], []]
    assert "team=x" in (await house.weft("datasets", "list")).stdout
    assert (await house.weft("datasets", "tag", "d", "team")).exit_code == 2
    assert (await house.json("datasets", "verify", "d"))["problems"] == []
    kept = await house.json("datasets", "keep", "d", "--days", "3", "--last", "2", "--by", "team")
    assert kept["retention"] == {"keep_days": 3, "keep_last": 2, "keep_last_tag": "team"}
    assert "retention" not in (await house.json("datasets", "keep", "d"))
    assert (await house.json("datasets", "hold", "d", "mine"))["holder"] == "pins/mine"
    assert [each["holder"] for each in (await house.json("datasets", "holds", "d"))["holds"]] == ["pins/mine"]
    assert "held by pins/mine" in (await house.weft("datasets", "delete", "d")).stderr
    assert (await house.json("datasets", "release", "d", "mine")) == {"released": "d"}
    house.bucket.put("datasets/gone/commits/0.json", b"{}")
    assert "1 leftovers: would be deleted" in (await house.weft("datasets", "collect")).stdout
    assert (await house.json("datasets", "collect", "--delete"))["num_leftovers"] == "1"
    assert [item.key for item in house.bucket.list("datasets/")] == ["datasets/d/manifest.json"]
    assert (await house.json("datasets", "delete", "d")) == {"deleted": "d"}
    assert (await house.json("datasets", "list")) == {"datasets": []}


async def test_harvest_uploads_its_text(house: House) -> None:
    """Files of a folder go up in order of their names; the harvest reads that corpus into the dataset of its name."""
    text = house.folder / "text"
    text.mkdir()
    (text / "b.txt").write_text("é" * 700_000)
    (text / "a.txt").write_text("one")
    found = await house.json("harvests", "create", "h1", "--model", "a", "--text", str(text))
    assert found["tokens_committed"] == "123"
    assert house.models.documents == {"a.txt": b"one", "b.txt": ("é" * 700_000).encode()}
    assert list(house.models.documents) == ["a.txt", "b.txt"]
    assert house.models.harvest is not None
    assert house.models.harvest.dataset == "datasets/h1"
    assert house.models.harvest.corpus.startswith("corpora/text-")


async def test_runs_watch_prints_a_line_an_event(house: House) -> None:
    """With --json one object a line, from the step asked for; without, a table."""
    result = await house.weft("runs", "watch", "r1", "--after-step", "1", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [list(event) for event in events] == [["metrics"], ["run"]]
    assert events[0]["metrics"]["step"] == "2"
    table = (await house.weft("runs", "watch", "r1")).stdout
    assert "r1: succeeded" in table


async def test_runs_get_shows_what_epochs_go_over(house: House) -> None:
    """A snapshot, what one has beyond another, and the sealed dataset, each with its tokens."""
    lines = (await house.weft("runs", "get", "r1")).stdout.splitlines()
    shown = [line.split(None, 2)[2].strip() for line in lines if line.startswith("epoch")]
    assert shown == [
        "snapshot 1, 65,536 tokens",
        "what snapshot 3 has beyond 1, 2,000 tokens",
        "snapshot 3, 67,536 tokens, 12 times",
        "what the sealed dataset has beyond 3, 2,464 tokens",
        "the sealed dataset, 70,000 tokens",
    ]


async def test_run_begins_on_a_snapshot_where_it_is_told_to(house: House) -> None:
    """`--while-harvesting` asks for a new one, `--snapshot` for one that is there, neither for a sealed dataset."""
    for arguments, wanted in (
        (["--while-harvesting"], (True, 0)),
        (["--snapshot", "4", "--recipe", "anthropic"], (False, 4)),
        ([], (False, 0)),
    ):
        await house.json("runs", "create", "early", "--dataset", "d", "--no-wait", *arguments)
        spec = house.trainer.asked[-1].spec
        assert (spec.take_snapshot, spec.snapshot) == wanted


async def test_runs_logs_shows_every_log_under_its_source(house: House) -> None:
    """The attempt and the bytes asked for go out; each log comes under a line that says whose it is."""
    shown = (await house.weft("runs", "logs", "r1", "--max-bytes", "7")).stdout
    assert shown == ("==> attempt 2, rank 0 <==\nstep 2\n==> attempt 2, events <==\nKilling Pod/p-0: stopping\n")
    document = await house.json("runs", "logs", "r1", "--attempt", "1")
    assert (document["attempt"], document["logs"][0]["source"]) == (1, "rank 0")
    assert (await house.weft("runs", "logs", "r1", "--attempt", "3")).exit_code == 1


async def test_runs_get_says_what_a_run_waits_for(house: House) -> None:
    """Where it waits for something."""
    assert "no node fits" in (await house.weft("runs", "get", "waiting")).stdout
    assert "waiting for" not in (await house.weft("runs", "get", "r1")).stdout


async def test_runs_watch_fails_with_a_run_that_was_cancelled(house: House) -> None:
    """Exit code 1, so that a script does not go on as if there were a transcoder."""
    result = await house.weft("runs", "watch", "cancelled")
    assert result.exit_code == 1
    assert "cancelled was cancelled" in result.stderr


async def test_runs_get_shows_state_reason_and_attempts(house: House) -> None:
    """What a person asks first about a run on a cluster."""
    lines = (await house.weft("runs", "get", "r1")).stdout.splitlines()
    shown = {label: value.strip() for label, _, value in (line.partition(" ") for line in lines)}
    assert shown["state"].startswith("succeeded since")
    assert (shown["reason"], shown["attempts"]) == ("all steps are done", "3")
    assert shown["network"] == "4.0 KiB a token and rank, 512 B of them for active features"


async def test_run_is_created_from_a_file(house: House) -> None:
    """The file's spec goes out, complete, under the file's id."""
    path = house.folder / "run.yaml"
    path.write_text("run_id: from-file\nspec: {dataset: d, num_features: 64, top_k: 4}\n")
    document = await house.json("runs", "create", "-f", str(path), "--no-wait")
    assert document["name"] == "runs/from-file"
    assert house.trainer.asked[0].run_id == "from-file"
    assert house.trainer.asked[0].spec.top_k == 4


async def test_run_is_resumed_with_other_ranks(house: House) -> None:
    """The numbers go out as they are given; what is not given is 0, which leaves it as it was."""
    for options, sent in ((["--feature-ranks", "4", "--data-ranks", "2"], (4, 2)), ([], (0, 0))):
        spec = (await house.json("runs", "resume", "r1", *options))["spec"]
        assert (spec["feature_ranks"], spec["data_ranks"]) == sent


async def test_context_reaches_the_services(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--context` finds target and token in the user's file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(house.folder))
    monkeypatch.setenv("HOUSE_TOKEN", TOKEN)
    for arguments in (
        ["--service", "cache", "--target", house.cache.target],
        ["--token-env", "HOUSE_TOKEN"],
    ):
        assert (await asyncio.to_thread(CliRunner().invoke, app, ["contexts", "set", "h", *arguments])).exit_code == 0
    result = await asyncio.to_thread(CliRunner().invoke, app, ["--context", "h", "datasets", "list", "--json"])
    assert json.loads(result.stdout) == {"datasets": []}


async def test_graph_is_made_for_its_transcoders_model(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is looked up; --open shows the page of the graph that was made."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    result = await house.weft("graphs", "create", "g1", "--prompt", "Hi", "--transcoder", "t", "--open")
    assert result.exit_code == 0, result.stderr
    assert opened == ["http://127.0.0.1:1/graphs/g1?token=page"]
    assert house.graphs.spec == attribution.GraphSpec(model="models/a", transcoder="transcoders/t", prompt="Hi")


async def test_graph_json_is_written_to_a_file(house: House) -> None:
    """`get --output` writes what viewers read."""
    path = house.folder / "graph.json"
    document = await house.json("graphs", "get", "g1", "--output", str(path))
    assert json.loads(path.read_text()) == {"nodes": []} == json.loads(document["json"])


async def test_intervention_takes_nodes_and_numbers(house: House) -> None:
    """Ablations, factors and values go out in one request."""
    arguments = ["--ablate", "1_2_3", "--scale", "1_2_4=0.5", "--set", "1_2_5=-2"]
    document = await house.json("graphs", "intervene", "g1", *arguments)
    assert [(each["node_id"], each.get("factor"), each.get("value")) for each in document["interventions"]] == [
        ("1_2_3", 0.0, None),
        ("1_2_4", 0.5, None),
        ("1_2_5", None, -2.0),
    ]
    assert "-0.5000" in (await house.weft("graphs", "intervene", "g1", "--ablate", "1_2_3")).stdout
