"""The activations service over gRPC, in this process, with tiny models and a fake catalog."""

import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from harvest_fakes import FakeCatalog
from harvest_processes import harvest_spec
from tiny_models import make_gpt2, make_llama

from weft.activations.v1 import corpora_pb2, generation_pb2, messages_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.components import component_patterns
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_common.client import aio_channel, error_from_rpc
from weft_common.errors import Code, WeftError
from weft_common.server import serving
from weft_common.tensors import TensorAssembler, tensor_from_proto, tensor_to_proto
from weft_store.adapters.memory import MemoryObjectStore
from weft_store.shard import ShardReader

PROMPT = messages_pb2.Prompt(text="The capital of France is")
DOCUMENTS = {f"doc {index}": f"The capital of Italy is Rome. Document {index}. " * 12 for index in range(6)}


class World:
    """A running service and what it stands on."""

    def __init__(self, channel: grpc.aio.Channel, catalog: FakeCatalog, store: MemoryObjectStore) -> None:
        self.stub: Any = service_pb2_grpc.ActivationServiceStub(channel)
        self.operations: Any = operations_pb2_grpc.OperationsStub(channel)
        self.catalog = catalog
        self.store = store

    async def upload(self, documents: dict[str, str] | None = None, corpus_id: str = "c") -> Any:
        pieces = [
            service_pb2.UploadCorpusRequest(corpus_id=corpus_id, document=name, text=text.encode())
            for name, text in (documents or DOCUMENTS).items()
        ]
        return await self.stub.UploadCorpus(iter(pieces))

    async def create(self, spec: messages_pb2.HarvestSpec, harvest_id: str = "h", **fields: Any) -> Any:
        request = service_pb2.CreateHarvestRequest(harvest_id=harvest_id, spec=spec, **fields)
        return await self.stub.CreateHarvest(request)

    async def wait(self, name: str) -> operations_pb2.Operation:
        request = operations_pb2.WaitOperationRequest(name=name)
        request.timeout.FromSeconds(60)
        operation: operations_pb2.Operation = await self.operations.WaitOperation(request)
        return operation

    async def capture(self, **fields: Any) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
        header, assembler, found = None, TensorAssembler(1 << 28), {}
        async for response in self.stub.Capture(service_pb2.CaptureRequest(**fields)):
            if response.WhichOneof("part") == "header":
                assert header is None
                header = response.header
            elif (done := assembler.add(response.chunk)) is not None:
                found[done[0]] = done[1]
        assembler.finish()
        return header, found


async def refused(call: Any) -> WeftError:
    """Await a call that must fail, and return its error."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return error_from_rpc(caught.value)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", add_bos=True)
    make_gpt2(folder / "gpt2")
    return folder


@pytest.fixture
async def world(models_dir: Path) -> AsyncIterator[World]:
    store = MemoryObjectStore()
    catalog = FakeCatalog(store)
    settings = ActivationsSettings(
        insecure_no_auth=True,
        bucket_url="memory://",
        models_dir=models_dir,
        cache_target="unused:1",
        drain_s=0,
        max_corpus_bytes=100_000,
        max_capture_bytes=1 << 20,
    )
    async with (
        registrations(settings, TransformersBackend(models_dir), store, catalog) as served,
        serving("activations", settings, served) as server,
        aio_channel(server.target) as channel,
    ):
        yield World(channel, catalog, store)


async def test_models_are_described_and_listed(world: World) -> None:
    """List pages through what Get describes."""
    first = await world.stub.ListModels(service_pb2.ListModelsRequest(page_size=1))
    second = await world.stub.ListModels(service_pb2.ListModelsRequest(page_token=first.next_page_token))
    assert [model.name for model in (*first.models, *second.models)] == ["models/gpt2", "models/llama"]
    llama = await world.stub.GetModel(service_pb2.GetModelRequest(name="models/llama"))
    assert llama == second.models[0]
    assert (llama.num_layers, llama.d_model, llama.bos_token_id, len(llama.revision)) == (3, 32, 0, 64)
    assert not first.models[0].HasField("bos_token_id")


async def test_tokens_go_there_and_back(world: World) -> None:
    """Token texts join to the text; the start token is added unless it is left out."""
    text = "The capital of France"
    request = service_pb2.TokenizeRequest(model="models/llama", text=text)
    tokens = (await world.stub.Tokenize(request)).tokens
    request.without_special_tokens = True
    bare = (await world.stub.Tokenize(request)).tokens
    assert list(tokens[1:]) == list(bare)
    assert "".join(token.text for token in bare) == text
    back = await world.stub.Detokenize(
        service_pb2.DetokenizeRequest(model="models/llama", token_ids=[token.id for token in tokens])
    )
    assert back.tokens == tokens


async def test_capture_streams_what_was_asked_for(world: World) -> None:
    """The header comes first and names the tensors, which come in its order and in their shapes."""
    hooks = ["logits", "layers.*.mlp_out", "layers.1.attn.pattern", "ln_final.scale"]
    header, found = await world.capture(model="models/llama", prompt=PROMPT, hooks=hooks)
    positions = len(header.tokens)
    expected = ["logits", *(f"layers.{layer}.mlp_out" for layer in range(3)), *hooks[2:]]
    assert list(header.tensor_names) == list(found) == expected
    assert [found[name].shape for name in expected] == [
        (320,),
        *[(positions, 32)] * 3,
        (4, positions, positions),
        (positions,),
    ]
    same, again = await world.capture(
        model="models/llama",
        prompt=messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=[token.id for token in header.tokens])),
        hooks=["logits"],
    )
    assert same.tokens == header.tokens
    np.testing.assert_allclose(again["logits"], found["logits"], atol=1e-5)


async def test_run_returns_the_models_own_prediction_and_the_changed_one(world: World) -> None:
    """Top tokens are the largest logits with softmax's probabilities; an intervention changes them."""
    request = service_pb2.RunRequest(
        model="models/gpt2", prompt=PROMPT, num_top_tokens=3, logit_token_ids=[5, 300], return_logits=True
    )
    plain = await world.stub.Run(request)
    logits = tensor_from_proto(plain.logits, max_bytes=1 << 20).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert [top.token.id for top in plain.top_tokens] == np.argsort(-logits)[:3].tolist()
    for likely in (*plain.top_tokens, *plain.asked_tokens):
        assert likely.probability == pytest.approx(probabilities[likely.token.id])
        assert likely.logit == pytest.approx(logits[likely.token.id])
    assert [asked.token.id for asked in plain.asked_tokens] == [5, 300]
    assert plain.mean_logit == pytest.approx(logits.mean())
    request.interventions.add(
        hook="layers.1.mlp_out",
        kind=messages_pb2.INTERVENTION_KIND_ADD,
        positions=[2],
        value=tensor_to_proto(np.random.default_rng(0).normal(size=32).astype(np.float32) * 5),
    )
    moved = tensor_from_proto((await world.stub.Run(request)).logits, max_bytes=1 << 20)
    assert np.abs(moved - logits).max() > 1e-2
    request.freeze.attention_patterns = request.freeze.norm_scales = request.freeze.mlp_outputs = True
    held = tensor_from_proto((await world.stub.Run(request)).logits, max_bytes=1 << 20)
    assert np.abs(held - moved).max() > 1e-3


def _change(**fields: Any) -> Callable[[service_pb2.RunRequest], None]:
    return lambda request: request.interventions.add(**fields) and None


VALUE = tensor_to_proto(np.zeros(32, np.float32))
ADD = messages_pb2.INTERVENTION_KIND_ADD


@pytest.mark.parametrize(
    ("edit", "code", "message"),
    [
        (lambda request: setattr(request, "model", "models/none"), Code.NOT_FOUND, "gpt2, llama"),
        (lambda request: setattr(request, "model", "llama"), Code.INVALID_ARGUMENT, "models/{id}"),
        (lambda request: request.ClearField("prompt"), Code.INVALID_ARGUMENT, "no prompt"),
        (lambda request: setattr(request.prompt, "text", ""), Code.INVALID_ARGUMENT, "empty"),
        (lambda request: setattr(request.prompt, "text", "Paris" * 200), Code.INVALID_ARGUMENT, "128 at most"),
        (lambda request: request.prompt.token_ids.SetInParent(), Code.INVALID_ARGUMENT, "no tokens"),
        (lambda request: request.prompt.token_ids.ids.append(320), Code.INVALID_ARGUMENT, "0 to 319"),
        (lambda request: request.logit_token_ids.append(-1), Code.INVALID_ARGUMENT, "outside the vocabulary"),
        (lambda request: setattr(request, "num_top_tokens", 101), Code.INVALID_ARGUMENT, "1 to 100"),
        (_change(hook="layers.3.mlp_out", kind=ADD, value=VALUE), Code.INVALID_ARGUMENT, "3 layers, 0 to 2"),
        (_change(hook="layers.1.mlp_inn", kind=ADD, value=VALUE), Code.INVALID_ARGUMENT, r"GPT2.*layers\.\*\.attn\.q"),
        (_change(hook="logits", kind=ADD, value=VALUE), Code.INVALID_ARGUMENT, "before the logits"),
        (_change(hook="layers.*.mlp_out", kind=ADD, value=VALUE), Code.INVALID_ARGUMENT, "is not a hook"),
        (_change(hook="layers.1.mlp_out", value=VALUE), Code.INVALID_ARGUMENT, "not set"),
        (_change(hook="layers.1.mlp_out", kind=ADD), Code.INVALID_ARGUMENT, r"shape is none.*\[32\]"),
        (
            _change(hook="layers.1.mlp_out", kind=ADD, value=VALUE, positions=[7]),
            Code.INVALID_ARGUMENT,
            "no position 7",
        ),
        (_change(hook="layers.1.mlp_out", kind=ADD, value=VALUE, positions=[1, 1]), Code.INVALID_ARGUMENT, "twice"),
        (
            _change(hook="layers.1.mlp_out", kind=ADD, value=tensor_to_proto(np.full(32, np.nan, np.float32))),
            Code.INVALID_ARGUMENT,
            "NaN",
        ),
        (
            _change(hook="layers.1.mlp_out", kind=messages_pb2.INTERVENTION_KIND_SCALE, factor=float("inf")),
            Code.INVALID_ARGUMENT,
            "finite",
        ),
    ],
)
async def test_bad_runs_are_refused(world: World, edit: Callable[[Any], Any], code: Code, message: str) -> None:
    """Each answer has the right code and says what was expected."""
    request = service_pb2.RunRequest(model="models/gpt2", prompt=PROMPT)
    edit(request)
    error = await refused(world.stub.Run(request))
    assert error.code == code
    assert re.search(message, error.message), error.message


@pytest.mark.parametrize(
    ("hooks", "code", "message"),
    [
        ([], Code.INVALID_ARGUMENT, "no hooks"),
        (["layers.0.nope"], Code.INVALID_ARGUMENT, r"no hook.*layers\.\*\.mlp_out"),
        (["layers.9.mlp_in"], Code.INVALID_ARGUMENT, "3 layers, 0 to 2"),
        (list(component_patterns("LlamaForCausalLM")), Code.RESOURCE_EXHAUSTED, "fewer hooks"),
    ],
)
async def test_bad_captures_are_refused(world: World, hooks: list[str], code: Code, message: str) -> None:
    """Unknown hooks and layers, none at all, and more bytes than one capture may hold."""
    prompt = messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=[1] * 127))
    with pytest.raises(grpc.RpcError) as caught:
        await world.capture(model="models/llama", prompt=prompt, hooks=hooks)
    error = error_from_rpc(caught.value)
    assert error.code == code
    assert re.search(message, error.message), error.message


async def test_bad_tokens_and_names_are_refused(world: World) -> None:
    """Empty text, ids outside the vocabulary, too many of them, unknown names."""
    for call, message in (
        (world.stub.Tokenize(service_pb2.TokenizeRequest(model="models/llama")), "empty"),
        (world.stub.Detokenize(service_pb2.DetokenizeRequest(model="models/llama", token_ids=[999])), "0 to 319"),
        (
            world.stub.Detokenize(service_pb2.DetokenizeRequest(model="models/llama", token_ids=[1] * 10_001)),
            "10000 at most",
        ),
        (world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="datasets/x")), "harvests/{id}"),
    ):
        error = await refused(call)
        assert (error.code, message in error.message) == (Code.INVALID_ARGUMENT, True), error.message
    for call in (
        world.stub.GetModel(service_pb2.GetModelRequest(name="models/none")),
        world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/none")),
    ):
        assert (await refused(call)).code == Code.NOT_FOUND


async def test_generate_streams_tokens_that_run_predicts(world: World) -> None:
    """Each token comes by itself and is Run's best after the text so far, with the same change."""
    change = messages_pb2.Intervention(
        hook="layers.1.mlp.post", kind=messages_pb2.INTERVENTION_KIND_SCALE, factor=3.0, neurons=[1, 2, 5]
    )
    request = generation_pb2.GenerateRequest(
        model="models/gpt2", prompt=PROMPT, interventions=[change], max_new_tokens=3
    )
    found = [each async for each in world.stub.Generate(request)]
    text = [token.id for token in found[0].prompt_tokens]
    for each in found:
        prompt = messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=text))
        run = await world.stub.Run(service_pb2.RunRequest(model="models/gpt2", prompt=prompt, interventions=[change]))
        assert each.token.token == run.top_tokens[0].token
        assert each.token.probability == pytest.approx(run.top_tokens[0].probability, abs=1e-5)
        text.append(each.token.token.id)
    assert [each.end for each in found] == [0, 0, generation_pb2.GENERATION_END_LENGTH]
    request.max_new_tokens = 0
    with pytest.raises(grpc.RpcError) as caught:
        _ = [each async for each in world.stub.Generate(request)]
    assert error_from_rpc(caught.value).code == Code.INVALID_ARGUMENT


async def test_corpus_is_uploaded_once(world: World) -> None:
    """The same upload again is success; other documents, bad UTF-8, no id and too much text are refused."""
    corpus = await world.upload()
    assert (corpus.name, corpus.num_documents) == ("corpora/c", 6)
    assert await world.upload() == corpus
    assert (await refused(world.upload({"a": "other"}))).code == Code.ALREADY_EXISTS
    bad = service_pb2.UploadCorpusRequest(corpus_id="x", document="n.txt", text=b"abc\xff")
    error = await refused(world.stub.UploadCorpus(iter([bad])))
    assert error.code == Code.INVALID_ARGUMENT
    assert "'n.txt'" in error.message
    assert "at byte 3" in error.message
    assert (await refused(world.upload(corpus_id=""))).code == Code.INVALID_ARGUMENT
    assert (await refused(world.stub.UploadCorpus(iter([])))).code == Code.INVALID_ARGUMENT
    assert (await refused(world.upload({"a": "x" * 100_001}, "big"))).code == Code.RESOURCE_EXHAUSTED


async def _upload_file(world: World, corpus_id: str, name: str, data: bytes) -> Any:
    pieces = [
        corpora_pb2.UploadCorpusFileRequest(corpus_id=corpus_id, file=name, data=data[:50]),
        corpora_pb2.UploadCorpusFileRequest(data=data[50:]),
    ]
    return await world.stub.UploadCorpusFile(iter(pieces))


async def test_files_become_a_corpus_that_is_harvested(world: World) -> None:
    """Uploaded files are imported, broken lines told in the corpus's and the harvest's answer, and harvested."""
    data = "\n".join([json.dumps({"body": text}) for text in DOCUMENTS.values()] + ["nonsense"]).encode()
    stored = await _upload_file(world, "c", "part/a.jsonl.gz", gzip.compress(data))
    assert stored.source == "corpora/c/files/"
    spec = corpora_pb2.CorpusImportSpec(source=stored.source, text_field="body", max_broken=1)
    request = corpora_pb2.ImportCorpusRequest(corpus_id="c", spec=spec, request_id="r")
    operation = await world.stub.ImportCorpus(request)
    assert (await world.stub.ImportCorpus(request)).name == operation.name
    done = await world.wait(operation.name)
    assert not done.HasField("error"), done.error
    corpus, metadata = service_pb2.Corpus(), corpora_pb2.CorpusImportMetadata()
    done.response.Unpack(corpus)
    done.metadata.Unpack(metadata)
    assert corpus == await world.stub.GetCorpus(service_pb2.GetCorpusRequest(name="corpora/c"))
    assert (corpus.num_documents, corpus.origin.num_records, corpus.origin.num_broken) == (6, 7, 1)
    assert (corpus.origin.broken[0].file, corpus.origin.broken[0].number) == ("corpora/c/files/part/a.jsonl.gz", 7)
    assert metadata.progress.completed == metadata.progress.total == stored.size_bytes
    await world.upload(corpus_id="b")
    listed = await world.stub.ListCorpora(service_pb2.ListCorporaRequest())
    assert [(each.name, each.HasField("origin")) for each in listed.corpora] == [
        ("corpora/b", False),
        ("corpora/c", True),
    ]
    assert not (await world.wait((await world.create(harvest_spec("gpt2"))).name)).HasField("error")
    harvest = await world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/h"))
    assert (harvest.tokens_committed, harvest.corpus_broken_records) == (600, 1)


async def test_import_that_fails_says_where_and_can_be_asked_again(world: World) -> None:
    """The operation's error names file and line; a file that was mended is imported by the next request."""
    for data, wanted in ((b"{", "a.jsonl, record 1: it is not JSON"), (b'{"text": "x"}', "")):
        await _upload_file(world, "c", "a.jsonl", data)
        spec = corpora_pb2.CorpusImportSpec(source="corpora/c/files/")
        operation = await world.stub.ImportCorpus(corpora_pb2.ImportCorpusRequest(corpus_id="c", spec=spec))
        done = await world.wait(operation.name)
        assert done.HasField("error") == bool(wanted)
        assert wanted in done.error.message
    assert (await refused(_upload_file(world, "c", "../a.jsonl", b"x"))).code == Code.INVALID_ARGUMENT
    assert (await refused(_upload_file(world, "", "a.jsonl", b"x"))).code == Code.INVALID_ARGUMENT
    spec = corpora_pb2.CorpusImportSpec(source="models/")
    bad = world.stub.ImportCorpus(corpora_pb2.ImportCorpusRequest(corpus_id="d", spec=spec))
    assert (await refused(bad)).code == Code.INVALID_ARGUMENT
    missing = world.stub.GetCorpus(service_pb2.GetCorpusRequest(name="corpora/none"))
    assert (await refused(missing)).code == Code.NOT_FOUND


@pytest.mark.parametrize("model", ["llama", "gpt2"])
async def test_harvest_stores_what_the_model_gives(world: World, model: str, models_dir: Path) -> None:
    """Tokens are counted exactly, the dataset is sealed, and rows equal captures of the same text."""
    await world.upload()
    operation = await world.wait((await world.create(harvest_spec(model))).name)
    assert operation.done
    assert not operation.HasField("error"), operation.error
    harvest = messages_pb2.Harvest()
    operation.response.Unpack(harvest)
    found = await world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/h"))
    assert harvest == found
    assert found.state == messages_pb2.HARVEST_STATE_SUCCEEDED
    assert (found.tokens_committed, found.tokens_held_out, found.tokens_skipped) == (600, 120, 0)
    assert found.num_leases == found.num_leases_done
    assert found.tokens_per_s > 0
    dataset = world.catalog.datasets["d"]
    assert dataset.sealed
    assert sum(shard.num_tokens for shard in dataset.shards.values()) == 600
    backend = TransformersBackend(models_dir)
    assert dataset.spec.model_revision == backend.describe(model).revision
    rows = ShardReader(world.store, dataset.shards[0].key).read("output", 2, 0)
    ids = {name: backend.tokenize(model, text, special_tokens=False) for name, text in DOCUMENTS.items()}
    step = 15 if model == "llama" else 16
    candidates = []
    for document in ids.values():
        start = [0] if model == "llama" else []
        captured = backend.forward(model, [*start, *document[:step]], ["layers.2.mlp_out"])["layers.2.mlp_out"]
        candidates.append(float(np.abs(captured[1:16] - rows[:15]).max()))
    assert min(candidates) < 0.02  # bfloat16


async def test_harvest_asked_for_twice_is_one(world: World) -> None:
    """The same request gives the same operation; validate_only starts none; another spec is refused."""
    await world.upload()
    spec = harvest_spec("gpt2")
    checked = await world.create(spec, validate_only=True)
    assert checked.done
    assert not world.catalog.datasets
    assert (
        await refused(world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/h")))
    ).code == Code.NOT_FOUND
    first = await world.create(spec, request_id="r")
    assert (await world.create(spec, request_id="r")).name == first.name
    await world.wait(first.name)
    assert (await world.create(spec)).name == first.name
    listed = await world.stub.ListHarvests(service_pb2.ListHarvestsRequest())
    assert [harvest.name for harvest in listed.harvests] == ["harvests/h"]
    error = await refused(world.create(harvest_spec("gpt2", num_tokens=601)))
    assert error.code == Code.ALREADY_EXISTS
    error = await refused(world.create(spec, harvest_id="other"))
    assert error.code == Code.ALREADY_EXISTS
    assert "datasets/d" in error.message


async def test_cancelled_harvest_goes_on_when_asked_again(world: World) -> None:
    """Cancelling stops the work and keeps what is committed; the same request finishes it."""
    await world.upload()
    spec = harvest_spec("gpt2", lease_sequences=1)
    first = await world.create(spec)
    await world.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=first.name))
    ended = await world.wait(first.name)
    harvest = await world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/h"))
    assert (ended.error.code, harvest.state) == (Code.CANCELLED, messages_pb2.HARVEST_STATE_CANCELLED)
    second = await world.create(spec)
    assert second.name != first.name
    assert not (await world.wait(second.name)).HasField("error")
    harvest = await world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/h"))
    assert (harvest.state, harvest.tokens_committed) == (messages_pb2.HARVEST_STATE_SUCCEEDED, 600)


async def test_harvest_is_paused_resumed_and_cancelled(world: World) -> None:
    """Each call answers with the state it made, is refused in the others, and loses nothing that was committed."""
    await world.upload()
    operation = await world.create(harvest_spec("gpt2", lease_sequences=1))

    async def call(what: str) -> Any:
        request = getattr(service_pb2, f"{what}HarvestRequest")(name="harvests/h")
        return await getattr(world.stub, f"{what}Harvest")(request)

    assert (await refused(call("Resume"))).code == Code.FAILED_PRECONDITION
    for _ in range(2):
        assert (await call("Pause")).state == messages_pb2.HARVEST_STATE_PAUSED
    assert (await world.create(harvest_spec("gpt2", lease_sequences=1))).name == operation.name
    assert (await call("Resume")).state == messages_pb2.HARVEST_STATE_RUNNING
    await call("Pause")
    cancelled = await call("Cancel")
    assert cancelled.state == messages_pb2.HARVEST_STATE_CANCELLED
    for what in ("Pause", "Cancel"):
        error = await refused(call(what))
        assert (error.code, "is cancelled" in error.message) == (Code.FAILED_PRECONDITION, True), error.message
    resumed = await call("Resume")
    assert resumed.state in (messages_pb2.HARVEST_STATE_RUNNING, messages_pb2.HARVEST_STATE_SUCCEEDED)
    assert resumed.operation != operation.name
    assert not (await world.wait(resumed.operation)).HasField("error")
    harvest = await world.stub.GetHarvest(service_pb2.GetHarvestRequest(name="harvests/h"))
    assert (harvest.state, harvest.tokens_committed) == (messages_pb2.HARVEST_STATE_SUCCEEDED, 600)
    assert (await refused(call("Pause"))).code == Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"model": "models/none"}, Code.NOT_FOUND, "gpt2, llama"),
        ({"corpus": "corpora/none"}, Code.NOT_FOUND, "UploadCorpus"),
        ({"dataset": "d"}, Code.INVALID_ARGUMENT, "datasets/{id}"),
        ({"num_tokens": 0}, Code.INVALID_ARGUMENT, "1 token at least"),
        ({"num_tokens": 10**6}, Code.FAILED_PRECONDITION, r"give \d+ tokens"),
        ({"held_out_share": 0.6}, Code.INVALID_ARGUMENT, "0 to 0.5"),
        ({"held_out_share": float("nan")}, Code.INVALID_ARGUMENT, "0 to 0.5"),
        ({"sequence_tokens": 1}, Code.INVALID_ARGUMENT, "2 to 128"),
        ({"sequence_tokens": 129}, Code.INVALID_ARGUMENT, "2 to 128"),
        ({"lease_sequences": 0}, Code.INVALID_ARGUMENT, "give 1 to"),
        ({"lease_sequences": 10**8}, Code.INVALID_ARGUMENT, "give 1 to"),
        ({"max_norm_ratio": 0.5}, Code.INVALID_ARGUMENT, "more than 1"),
        (
            {"streams": messages_pb2.Streams(input_hook="nope", output_hook="mlp_out")},
            Code.INVALID_ARGUMENT,
            "mlp_in or resid_mid",
        ),
        ({"codec": messages_pb2.Codec(kind="zip")}, Code.INVALID_ARGUMENT, "'uniform' or 'klt'"),
        ({"codec": messages_pb2.Codec(kind="uniform", target_fvu=2)}, Code.INVALID_ARGUMENT, "target_fvu"),
    ],
)
async def test_bad_harvests_are_refused(world: World, changes: dict[str, Any], code: Code, message: str) -> None:
    """Nothing is written, and each answer has the right code and says what was expected."""
    await world.upload()
    error = await refused(world.create(harvest_spec("gpt2", **changes)))
    assert error.code == code, error.message
    assert re.search(message, error.message), error.message
    assert not list(world.store.list("harvests/"))
    assert not world.catalog.datasets
