"""Bad input, through gRPC and through the command: the right code, and words that say what to do."""

import gzip
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from embedded_weft import WEFT, Embedded, clean_environment
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message
from harvest_processes import Client, Service
from tiny_models import make_gpt2, make_llama
from typer.testing import CliRunner

from weft.activations.v1 import messages_pb2 as activations
from weft.activations.v1 import service_pb2 as activations_rpc
from weft.activations.v1.service_pb2_grpc import ActivationServiceStub
from weft.attribution.v1 import messages_pb2 as attribution
from weft.attribution.v1 import service_pb2 as attribution_rpc
from weft.attribution.v1.service_pb2_grpc import AttributionServiceStub
from weft.cache.v1 import messages_pb2 as cache
from weft.cache.v1 import service_pb2 as cache_rpc
from weft.cache.v1.service_pb2_grpc import CacheServiceStub
from weft.training.v1 import messages_pb2 as training
from weft.training.v1 import service_pb2 as training_rpc
from weft.training.v1.service_pb2_grpc import TrainingServiceStub
from weft_client.cli import app

pytestmark = pytest.mark.e2e

STUBS = {
    "activations": ActivationServiceStub,
    "cache": CacheServiceStub,
    "trainer": TrainingServiceStub,
    "attribution": AttributionServiceStub,
}
TEXT = (
    b"The capital of France is Paris. The capital of Italy is Rome. Features of one layer write to every layer. " * 60
)


def _harvest(**changes: object) -> activations.HarvestSpec:
    spec = activations.HarvestSpec(
        model="models/tiny",
        dataset="datasets/fresh",
        corpus="corpora/text",
        num_tokens=600,
        held_out_share=0.3,
        sequence_tokens=32,
        streams=activations.Streams(input_hook="mlp_in", output_hook="mlp_out"),
        codec=activations.Codec(kind="uniform", target_fvu=1e-3),
        lease_sequences=4,
    )
    spec.MergeFrom(activations.HarvestSpec(**changes))
    return spec


def _training(**changes: object) -> training.TrainingSpec:
    values: dict[str, object] = {
        "dataset": "datasets/tiny",
        "num_features": 64,
        "activation": training.ACTIVATION_TOP_K,
        "top_k": 4,
        "num_steps": 4,
        "step_tokens": 64,
        "feature_ranks": 1,
        "data_ranks": 1,
        "learning_rate": 1e-3,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "clip_norm": 1.0,
        "dead_after_tokens": 1000,
    }
    return training.TrainingSpec(**(values | changes))


def _graph(**changes: object) -> attribution.GraphSpec:
    values: dict[str, object] = {
        "model": "models/tiny",
        "transcoder": "transcoders/tiny",
        "prompt": "The capital of France",
    }
    return attribution.GraphSpec(**(values | changes))


def _wait(run: Embedded, service: str, operation: operations_pb2.Operation) -> operations_pb2.Operation:
    with run.channel(service) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        while not operation.done:
            request = operations_pb2.WaitOperationRequest(name=operation.name)
            request.timeout.FromSeconds(5)
            operation = stub.WaitOperation(request, timeout=30)
    assert not operation.HasField("error"), operation.error
    return operation


def _pieces() -> list[activations_rpc.UploadCorpusRequest]:
    pieces = [activations_rpc.UploadCorpusRequest(document=f"{number}.txt", text=TEXT) for number in range(4)]
    pieces[0].corpus_id = "text"
    return pieces


@pytest.fixture(scope="module")
def run(make_embedded: Callable[[Callable[[Path], None]], Embedded]) -> Embedded:
    """Two tiny models, one dataset, one open dataset, one transcoder."""

    def prepare(root: Path) -> None:
        make_llama(root / "models" / "tiny", max_tokens=300)
        make_gpt2(root / "models" / "other", max_tokens=300)

    made = make_embedded(prepare)
    with made.channel("activations") as channel:
        stub = ActivationServiceStub(channel)
        stub.UploadCorpus(iter(_pieces()), timeout=30)
        request = activations_rpc.CreateHarvestRequest(harvest_id="tiny", spec=_harvest(dataset="datasets/tiny"))
        _wait(made, "activations", stub.CreateHarvest(request, timeout=60))
        revision = stub.GetModel(activations_rpc.GetModelRequest(name="models/tiny"), timeout=60).revision
    with made.channel("cache") as channel:
        spec = cache.DatasetSpec(
            model="models/tiny",
            model_revision=revision,
            num_layers=3,
            d_model=32,
            input_hook="mlp_in",
            output_hook="mlp_out",
            codec="bf16",
        )
        CacheServiceStub(channel).CreateDataset(cache_rpc.CreateDatasetRequest(dataset_id="open", spec=spec))
    with made.channel("trainer") as channel:
        stub = TrainingServiceStub(channel)
        _wait(made, "trainer", stub.CreateRun(training_rpc.CreateRunRequest(run_id="tiny", spec=_training())))
        request = training_rpc.ExportTranscoderRequest(checkpoint="runs/tiny", transcoder_id="tiny")
        _wait(made, "trainer", stub.ExportTranscoder(request))
    return made


@dataclass(frozen=True)
class Case:
    """A request that must be refused, as an RPC and as a command line."""

    name: str
    service: str
    method: str
    request: Message
    code: grpc.StatusCode
    says: tuple[str, ...]
    command: tuple[str, ...] = field(default=())


def _run_request(**changes: object) -> training_rpc.CreateRunRequest:
    return training_rpc.CreateRunRequest(run_id="bad", spec=_training(**changes))


def _graph_request(**changes: object) -> attribution_rpc.CreateGraphRequest:
    return attribution_rpc.CreateGraphRequest(graph_id="bad", spec=_graph(**changes))


def _harvest_request(**changes: object) -> activations_rpc.CreateHarvestRequest:
    return activations_rpc.CreateHarvestRequest(harvest_id="bad", spec=_harvest(**changes))


INVALID, MISSING, STATE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)
GRAPH = ("graphs", "create", "bad", "--model", "tiny", "--transcoder", "tiny", "--prompt")
RUN = ("runs", "create", "bad")
HARVEST = ("harvests", "create", "bad", "--dataset", "fresh", "--corpus", "text")
CASES = [
    Case(
        "unknown-model",
        "activations",
        "GetModel",
        activations_rpc.GetModelRequest(name="models/nobody"),
        MISSING,
        ("nobody", "tiny"),
        ("models", "get", "nobody"),
    ),
    Case(
        "unknown-dataset",
        "cache",
        "GetDataset",
        cache_rpc.GetDatasetRequest(name="datasets/nothing"),
        MISSING,
        ("datasets/nothing",),
        ("datasets", "get", "nothing"),
    ),
    Case(
        "unknown-run",
        "trainer",
        "GetRun",
        training_rpc.GetRunRequest(name="runs/nothing"),
        MISSING,
        ("runs/nothing",),
        ("runs", "get", "nothing"),
    ),
    Case(
        "unknown-graph",
        "attribution",
        "GetGraph",
        attribution_rpc.GetGraphRequest(name="graphs/nothing"),
        MISSING,
        ("graphs/nothing",),
        ("graphs", "get", "nothing"),
    ),
    Case(
        "malformed-name",
        "cache",
        "GetDataset",
        cache_rpc.GetDatasetRequest(name="data/x"),
        INVALID,
        ("datasets/",),
    ),
    Case(
        "harvest-of-unknown-model",
        "activations",
        "CreateHarvest",
        _harvest_request(model="models/nobody"),
        MISSING,
        ("nobody",),
        (*HARVEST, "--model", "nobody", "--num-tokens", "600"),
    ),
    Case(
        "harvest-of-zero-tokens",
        "activations",
        "CreateHarvest",
        activations_rpc.CreateHarvestRequest(
            harvest_id="bad",
            spec=activations.HarvestSpec(
                model="models/tiny",
                dataset="datasets/fresh",
                corpus="corpora/text",
                sequence_tokens=32,
                streams=activations.Streams(input_hook="mlp_in", output_hook="mlp_out"),
                codec=activations.Codec(kind="bf16"),
                lease_sequences=4,
            ),
        ),
        INVALID,
        ("num_tokens",),
        (*HARVEST, "--model", "tiny", "--num-tokens", "0"),
    ),
    Case(
        "harvest-of-more-than-there-is",
        "activations",
        "CreateHarvest",
        _harvest_request(num_tokens=10_000_000),
        STATE,
        ("10000000", "tokens"),
        (*HARVEST, "--model", "tiny", "--num-tokens", "10000000"),
    ),
    Case(
        "harvest-at-unknown-hook",
        "activations",
        "CreateHarvest",
        _harvest_request(streams=activations.Streams(input_hook="mlp_middle", output_hook="mlp_out")),
        INVALID,
        ("mlp_middle", "mlp_in"),
    ),
    Case(
        "harvest-of-unknown-corpus",
        "activations",
        "CreateHarvest",
        _harvest_request(corpus="corpora/nothing"),
        MISSING,
        ("corpora/nothing",),
        ("harvests", "create", "bad", "--dataset", "fresh", "--corpus", "nothing", "--model", "tiny"),
    ),
    Case(
        "run-on-unknown-dataset",
        "trainer",
        "CreateRun",
        _run_request(dataset="datasets/nothing"),
        MISSING,
        ("datasets/nothing",),
        (*RUN, "--dataset", "nothing"),
    ),
    Case(
        "run-on-unsealed-dataset",
        "trainer",
        "CreateRun",
        _run_request(dataset="datasets/open"),
        STATE,
        ("datasets/open", "seal"),
        (*RUN, "--dataset", "open"),
    ),
    Case(
        "features-not-divisible-by-ranks",
        "trainer",
        "CreateRun",
        _run_request(num_features=65, feature_ranks=2),
        INVALID,
        ("65", "2"),
        (*RUN, "--dataset", "tiny", "--num-features", "65", "--feature-ranks", "2"),
    ),
    Case(
        "run-of-zero-steps",
        "trainer",
        "CreateRun",
        _run_request(num_steps=0),
        INVALID,
        ("num_steps",),
        (*RUN, "--dataset", "tiny", "--num-steps", "0"),
    ),
    Case(
        "graph-of-unknown-model",
        "attribution",
        "CreateGraph",
        _graph_request(model="models/nobody"),
        MISSING,
        ("nobody",),
        ("graphs", "create", "bad", "--model", "nobody", "--transcoder", "tiny", "--prompt", "The capital"),
    ),
    Case(
        "graph-of-unknown-transcoder",
        "attribution",
        "CreateGraph",
        _graph_request(transcoder="transcoders/nothing"),
        MISSING,
        ("transcoders/nothing",),
        ("graphs", "create", "bad", "--model", "tiny", "--transcoder", "nothing", "--prompt", "The capital"),
    ),
    Case(
        "transcoder-of-another-model",
        "attribution",
        "CreateGraph",
        _graph_request(model="models/other"),
        STATE,
        ("models/tiny", "models/other"),
        ("graphs", "create", "bad", "--model", "other", "--transcoder", "tiny", "--prompt", "The capital"),
    ),
    Case("empty-prompt", "attribution", "CreateGraph", _graph_request(prompt=""), INVALID, ("prompt",), (*GRAPH, "")),
    Case(
        "too-long-prompt",
        "attribution",
        "CreateGraph",
        _graph_request(prompt="word " * 400),
        INVALID,
        ("300", "tokens"),
        (*GRAPH, "word " * 400),
    ),
    Case(
        "threshold-out-of-range",
        "attribution",
        "CreateGraph",
        _graph_request(node_threshold=1.5),
        INVALID,
        ("node_threshold", "1.5"),
        (*GRAPH, "The capital", "--node-threshold", "1.5"),
    ),
    Case(
        "target-outside-the-vocabulary",
        "attribution",
        "CreateGraph",
        _graph_request(target_token_ids=[99_999]),
        INVALID,
        ("99999",),
    ),
    Case(
        "feature-that-does-not-exist",
        "attribution",
        "Intervene",
        attribution_rpc.InterveneRequest(name="graphs/nothing"),
        MISSING,
        ("graphs/nothing",),
    ),
]


def _call(run: Embedded, case: Case, **options: object) -> grpc.RpcError:
    token = options.pop("token", None)
    with run.channel(case.service, token=token) as channel, pytest.raises(grpc.RpcError) as caught:
        getattr(STUBS[case.service](channel), case.method)(case.request, **({"timeout": 60} | options))
    return caught.value


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_request_is_refused_by_rpc(run: Embedded, case: Case) -> None:
    """The answer has the right code and names what is wrong."""
    error = _call(run, case)
    assert error.code() is case.code, error.details()
    for words in case.says:
        assert words in error.details()
    assert "Traceback" not in error.details()


@pytest.mark.parametrize("case", [case for case in CASES if case.command], ids=lambda case: case.name)
def test_bad_request_is_refused_by_command(run: Embedded, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, called in this process, fails with one clear message and no traceback."""
    monkeypatch.chdir(run.folder)
    unset = dict.fromkeys(name for name in os.environ if name.startswith("WEFT_"))
    result = CliRunner().invoke(app, case.command, env=unset | clean_environment())
    # Every other exception would be a traceback.
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == (2 if case.code is INVALID else 1), result.stderr
    for words in case.says:
        # The command's options are spelt with dashes where the contract's fields are not.
        assert words in result.stderr or words.replace("_", "-").removeprefix("num-") in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_unknown_layer_is_refused(run: Embedded) -> None:
    """A capture of a layer that the model lacks names the layers it has."""
    request = activations_rpc.CaptureRequest(
        model="models/tiny", prompt=activations.Prompt(text="The capital"), hooks=["layers.7.mlp_out"]
    )
    with run.channel("activations") as channel, pytest.raises(grpc.RpcError) as caught:
        list(ActivationServiceStub(channel).Capture(request, timeout=60))
    assert caught.value.code() is INVALID
    assert "7" in caught.value.details()
    assert "2" in caught.value.details()


def test_prompt_that_is_not_utf8_is_refused_by_rpc(run: Embedded) -> None:
    """Bytes that are no UTF-8 in a text field are the caller's mistake, not a fault of the service."""
    good = _graph_request(prompt="PROMPT").SerializeToString()
    broken = good.replace(b"PROMPT", b"\xff\xfe\xfdABC")
    with run.channel("attribution") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/weft.attribution.v1.AttributionService/CreateGraph")(broken, timeout=60)
    assert caught.value.code() is INVALID
    assert "UTF-8" in caught.value.details()


def test_prompt_that_is_not_utf8_is_refused_by_command(run: Embedded) -> None:
    """The command says that the prompt is no UTF-8 before it asks anybody."""
    result = subprocess.run(
        [os.fsencode(WEFT), *map(os.fsencode, GRAPH), b"\xff\xfe"],
        cwd=run.folder,
        env=clean_environment(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 2, result.stderr
    assert b"UTF-8" in result.stderr
    assert b"Traceback" not in result.stderr


def test_wrong_token_is_refused(run: Embedded) -> None:
    """Without the right token nothing is answered, by any service."""
    for case in (CASES[0], CASES[1], CASES[2], CASES[3]):
        assert _call(run, case, token="wrong").code() is grpc.StatusCode.UNAUTHENTICATED


def test_wrong_token_is_explained_by_command(run: Embedded, tmp_path: Path) -> None:
    """The command says that its token is not taken."""
    document = json.loads(run.layout.endpoints_path.read_text())
    for entry in document["services"].values():
        entry["token"] = "wrong"
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps(document))
    result = run.weft("datasets", "list", WEFT_ENDPOINTS=str(endpoints))
    assert result.returncode == 1
    assert "token" in result.stderr


def test_expired_deadline_is_told(run: Embedded) -> None:
    """A call that is not done in the time given, here by a service that stands still, ends with DEADLINE_EXCEEDED."""
    process = run.process("cache")
    with run.channel("cache") as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        process.suspend()
        try:
            with pytest.raises(grpc.RpcError) as caught:
                CacheServiceStub(channel).GetDataset(cache_rpc.GetDatasetRequest(name="datasets/tiny"), timeout=0.5)
        finally:
            process.resume()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert _call(run, CASES[1]).code() is grpc.StatusCode.NOT_FOUND


def test_broken_lines_of_a_corpus_are_counted_named_and_limited(run: Embedded, tmp_path: Path) -> None:
    """Beyond the limit the command names file and line; within it, corpus and harvest tell what was left out."""
    lines = [json.dumps({"text": TEXT.decode()}) for _ in range(4)]
    path = tmp_path / "lines.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([lines[0], "{", *lines[1:], "[]"]).encode()))
    refused = run.weft("corpora", "import", "lines", str(path), "--max-broken", "1")
    assert refused.returncode == 1
    assert "corpora/lines/files/lines.jsonl.gz, record 6: it is JSON but no object" in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    imported = run.weft("corpora", "import", "lines", str(path), "--max-broken", "2", "--json")
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["origin"]["num_broken"] == "2"
    arguments = ("--model", "tiny", "--corpus", "lines", "--num-tokens", "100", "--sequence-tokens", "32", "--json")
    harvested = run.weft("harvests", "create", "lines", *arguments)
    assert harvested.returncode == 0, harvested.stderr
    assert json.loads(harvested.stdout)["corpus_broken_records"] == "2"


def test_second_up_is_refused(run: Embedded) -> None:
    """A second `weft up` in the same folder says that one runs already."""
    result = run.weft("up")
    assert result.returncode == 1
    assert "already runs" in result.stderr
    assert run.weft("status").returncode == 0


def test_taken_port_is_refused(run: Embedded, tmp_path: Path) -> None:
    """A page port that somebody else has is refused by name, and nothing is left running."""
    port = str(run.endpoints["console"].port)
    result = Embedded(tmp_path).weft("up", "--console-port", port)
    assert result.returncode == 1
    assert port in result.stderr
    assert "--console-port" in result.stderr
    assert "Nothing" in Embedded(tmp_path).weft("down").stdout


def test_commands_without_services_say_what_to_do(tmp_path: Path) -> None:
    """Where nothing runs, the command says how to start it."""
    result = Embedded(tmp_path).weft("datasets", "list")
    assert result.returncode == 1
    assert "weft up" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_full_disk_is_told(tmp_path: Path) -> None:
    """A bucket without room answers RESOURCE_EXHAUSTED and says so."""
    models, bucket = tmp_path / "models", tmp_path / "bucket"
    make_llama(models / "tiny", max_tokens=300)
    bucket.mkdir()
    # Of all services the one that takes texts is enough.
    service = Service("activations", tmp_path, models_dir=str(models), cache_target="127.0.0.1:9", cache_token="none")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", bucket], check=True)
    try:
        service.start()
        client = Client(service.target)
        with pytest.raises(grpc.RpcError) as caught:
            # Four times what the disk holds.
            client.upload("large", {"large.txt": TEXT.decode() * 40})
        client.close()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "space" in caught.value.details()
    finally:
        service.stop()
        subprocess.run(["umount", "-l", bucket], check=True)
