"""
The replacement model of a tiny Llama: this process against the activations service, over gRPC, beside hooks on
transformers' own model in float64.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.longrunning import operations_pb2, operations_pb2_grpc
from harvest_fakes import FakeCatalog
from harvest_processes import harvest_spec
from replacement_oracle import check, oracle
from tiny_models import make_llama
from torch import Tensor
from transformers import AutoModelForCausalLM

from weft.activations.v1 import messages_pb2, packing_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_clt.config import Activation, FeatureConfig
from weft_clt.layerwise import LayerwiseTranscoder
from weft_clt.normalization import Normalization
from weft_clt.parameters import Parameters, Shape, Share
from weft_common.client import aio_channel, channel, error_from_rpc
from weft_common.errors import Code, FailedPreconditionError, NotFoundError, WeftError
from weft_common.server import serving
from weft_common.tensors import chunk_tensor
from weft_store.adapters.memory import MemoryObjectStore
from weft_trainer.worker.model_passes import HeldOut, read_held_out
from weft_trainer.worker.replacement import measure

NUM_LAYERS, D_MODEL, NUM_FEATURES, TOP_K = 3, 32, 24, 4
DOCUMENTS = {f"doc {index}": f"The capital of Italy is Rome. Document {index} ends. " * 6 for index in range(8)}


class World:
    """A running service with a harvested dataset, and the model in float64."""

    def __init__(self, target: str, store: MemoryObjectStore, models_dir: Path) -> None:
        self.store = store
        self.stub = service_pb2_grpc.ActivationServiceStub(channel(target))
        self.operations: Any = operations_pb2_grpc.OperationsStub(channel(target))
        self.model: Any = AutoModelForCausalLM.from_pretrained(models_dir / "llama").eval().double()

    async def held_out(self, max_tokens: int = 60) -> HeldOut:
        return await asyncio.to_thread(read_held_out, self.stub, "datasets/d", max_tokens)

    async def measure(self, held_out: HeldOut, transcoder: Any) -> dict[str, Any]:
        return await asyncio.to_thread(measure, self.stub, held_out, transcoder)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", add_bos=True)
    return folder


@pytest.fixture
async def world(models_dir: Path) -> AsyncIterator[World]:
    store = MemoryObjectStore()
    settings = ActivationsSettings(
        insecure_no_auth=True, bucket_url="memory://", models_dir=models_dir, cache_target="unused:1", drain_s=0
    )
    async with (
        registrations(settings, TransformersBackend(models_dir), store, FakeCatalog(store)) as served,
        serving("activations", settings, served) as server,
        aio_channel(server.target) as opened,
    ):
        stub: Any = service_pb2_grpc.ActivationServiceStub(opened)
        pieces = [
            service_pb2.UploadCorpusRequest(corpus_id="c", document=name, text=text.encode())
            for name, text in DOCUMENTS.items()
        ]
        await stub.UploadCorpus(iter(pieces))
        spec = harvest_spec("llama", num_tokens=300, held_out_share=0.4, sequence_tokens=12, max_norm_ratio=1.4)
        operation = await stub.CreateHarvest(service_pb2.CreateHarvestRequest(harvest_id="h", spec=spec))
        operations: Any = operations_pb2_grpc.OperationsStub(opened)
        request = operations_pb2.WaitOperationRequest(name=operation.name)
        request.timeout.FromSeconds(60)
        assert not (await operations.WaitOperation(request)).HasField("error")
        yield World(server.target, store, models_dir)


def transcoder_of(activation: Activation) -> tuple[LayerwiseTranscoder, Callable[[int, list[Tensor]], Tensor]]:
    """A random transcoder, and the same written down densely in float64, from the inputs of layers to an output."""
    random = np.random.default_rng(6)
    share = Share(Shape(NUM_LAYERS, NUM_FEATURES, D_MODEL), 0, 1)
    params = Parameters.zeros(share, thresholds=activation is Activation.JUMP_RELU, dtype=torch.float32)
    for name, tensor in params.named():
        drawn = torch.from_numpy(random.standard_normal(tensor.shape))
        tensor.copy_(drawn.abs() * 0.5 if name == "threshold" else drawn * 0.2)
    scales = random.uniform(0.5, 2.0, (2, NUM_LAYERS))
    means = np.zeros((NUM_LAYERS, D_MODEL))
    normalization = Normalization(scales[0], scales[1], means, means)
    features = FeatureConfig(NUM_FEATURES, activation, TOP_K, 0.1, 1.0, False)

    def dense(layer: int, inputs: list[Tensor]) -> Tensor:
        out = params.b_dec_LC[layer].double().expand_as(inputs[0])
        for source, x in enumerate(inputs):
            preact = (x * scales[0, source]) @ params.w_enc_LSD[source].double().T + params.b_enc_LS[source].double()
            if params.threshold_LS is not None:
                acts = torch.where(preact > params.threshold_LS[source].double(), preact, 0.0)
            else:
                smallest = preact.sort(dim=-1, descending=True).values[..., TOP_K - 1 : TOP_K]
                acts = torch.where(preact >= smallest, preact, 0.0).relu()
            out = out + acts @ params.decoder(source, layer).double()
        return out / scales[1, layer]

    return LayerwiseTranscoder(params, features, normalization), dense


@pytest.mark.parametrize("activation", [Activation.TOP_K, Activation.JUMP_RELU])
async def test_replacement_scores_equal_hooks_on_the_model(world: World, activation: Activation) -> None:
    """Layer by layer and all at once, with the tokens that the harvest left out kept and not counted."""
    transcoder, dense = transcoder_of(activation)
    held_out = await world.held_out()
    found = await world.measure(held_out, transcoder)
    every = range(NUM_LAYERS)
    together = await asyncio.to_thread(oracle, world.model, held_out, every, dense)
    assert found["tokens"] == together["tokens"]
    num_predictions = sum(len(sequence) - 2 for sequence in held_out.sequences)
    assert 0.3 * num_predictions < found["tokens"] < num_predictions
    assert found["cross_entropy"] == pytest.approx(together["model"], rel=1e-5)
    check(found["all"], together)
    assert len(found["by_layer"]) == NUM_LAYERS
    for layer in every:
        check(found["by_layer"][layer], await asyncio.to_thread(oracle, world.model, held_out, [layer], dense))


class PerfectTranscoder:
    """Writes what the MLPs themselves make of their inputs."""

    num_layers = NUM_LAYERS

    def __init__(self, model: Any) -> None:
        self._model, self._read = model, dict[int, Any]()

    def clear(self) -> None:
        self._read = {}

    def read(self, layer: int, inputs_ND: Any) -> None:
        self._read[layer] = torch.from_numpy(inputs_ND).double()

    @torch.no_grad()
    def reconstruct(self, layer: int) -> Any:
        return self._model.model.layers[layer].mlp(self._read[layer]).float().numpy()


async def test_perfect_transcoder_recovers_everything(world: World) -> None:
    """Divergence 0, agreement 1, all of the cross-entropy recovered: at every layer and all at once."""
    found = await world.measure(await world.held_out(40), PerfectTranscoder(world.model))
    for score in [found["all"], *found["by_layer"]]:
        assert score["kl_divergence"] == pytest.approx(0, abs=1e-9)
        assert score["top1_agreement"] == 1
        assert score["cross_entropy"] == pytest.approx(found["cross_entropy"], rel=1e-6)
        assert score["recovered"] == pytest.approx(1, rel=1e-4)


async def test_held_out_sequences_are_those_of_the_harvest(world: World) -> None:
    """They start with the start token, are as long as was asked, and stop after the tokens that are wanted."""
    everything = await world.held_out(0)
    assert sum(len(sequence) - 1 for sequence in everything.sequences) == 120
    assert {sequence[0] for sequence in everything.sequences} == {0}
    assert max(map(len, everything.sequences)) == 12
    few = await world.held_out(20)
    assert few.sequences == everything.sequences[:2]
    assert (few.model, few.input_hook, few.output_norm_limits.shape) == ("models/llama", "mlp_in", (NUM_LAYERS,))


async def test_filtered_tokens_are_kept_and_not_counted(world: World) -> None:
    """Separators and filtered tokens of a packed harvest reach the measurement, which leaves them as they are."""
    asked = service_pb2.TokenizeRequest(model="models/llama", text=DOCUMENTS["doc 0"], without_special_tokens=True)
    tokens = (await asyncio.to_thread(world.stub.Tokenize, asked)).tokens
    filtered_ids = {tokens[3].id, tokens[8].id}
    packing = packing_pb2.Packing(
        cross_documents=True, separator_token_id=3, skipped_token_ids=filtered_ids, max_document_tokens=25
    )
    changes = {"num_tokens": 100, "held_out_share": 0.5, "sequence_tokens": 12, "dataset": "datasets/packed"}
    spec = harvest_spec("llama", **changes)
    spec.packing.CopyFrom(packing)
    request = service_pb2.CreateHarvestRequest(harvest_id="packed", spec=spec)
    operation = await asyncio.to_thread(world.stub.CreateHarvest, request)
    waiting = operations_pb2.WaitOperationRequest(name=operation.name)
    waiting.timeout.FromSeconds(60)
    assert not (await asyncio.to_thread(world.operations.WaitOperation, waiting)).HasField("error")
    held_out = await asyncio.to_thread(read_held_out, world.stub, "datasets/packed", 0)
    for sequence, skipped in zip(held_out.sequences, held_out.skipped, strict=True):
        filtered = [at for at, each in enumerate(sequence) if at and each in {*filtered_ids, 3}]
        assert list(skipped) == filtered
    assert {*filtered_ids, 3} <= {each for sequence in held_out.sequences for each in sequence}
    transcoder, dense = transcoder_of(Activation.TOP_K)
    found = await world.measure(held_out, transcoder)
    together = await asyncio.to_thread(oracle, world.model, held_out, range(NUM_LAYERS), dense)
    assert found["tokens"] == together["tokens"] < sum(len(sequence) - 2 for sequence in held_out.sequences)
    check(found["all"], together)


async def test_sequences_of_a_changed_corpus_are_refused(world: World) -> None:
    """What was harvested cannot be told any more once the corpus is another; an unknown dataset says so too."""
    with pytest.raises(NotFoundError, match="no harvest"):
        await asyncio.to_thread(read_held_out, world.stub, "datasets/other", 0)
    document = next(info.key for info in world.store.list("harvests/h/") if info.key.endswith("harvest.json"))
    changed = world.store.get(document).replace(b'"plan_digest"', b'"plan_digest":"' + b"0" * 64 + b'","was"')
    world.store.put(document, changed.replace(b'"was"', b'"request_id"', 1))
    with pytest.raises(FailedPreconditionError, match="no longer what it read"):
        await world.held_out()


def _start(**changes: Any) -> service_pb2.ReplaceMlpsRequest:
    fields: dict[str, Any] = {
        "model": "models/llama",
        "input_hook": "mlp_in",
        "sequences": [messages_pb2.TokenIds(ids=[0, 5, 6, 7])],
    }
    return service_pb2.ReplaceMlpsRequest(start=service_pb2.ReplaceStart(**(fields | changes)))


def _plan(**fields: Any) -> service_pb2.ReplaceMlpsRequest:
    return service_pb2.ReplaceMlpsRequest(plan=service_pb2.ReplacePass(**fields))


def _output(name: str, value: float = 0.0, rows: int = 4) -> service_pb2.ReplaceMlpsRequest:
    array = np.full((rows, D_MODEL), value, np.float32)
    return service_pb2.ReplaceMlpsRequest(output=next(chunk_tensor(name, array)))


async def test_replacing_says_what_is_wrong(world: World) -> None:
    """A dialogue that is not one is refused with what was expected."""
    cases: list[tuple[list[service_pb2.ReplaceMlpsRequest], str]] = [
        ([_plan()], "`start` was expected"),
        ([_start(), _start()], "`plan` was expected"),
        ([_start(input_hook="resid_pre")], "mlp_in or resid_mid"),
        ([_start(sequences=[])], "lengths"),
        (
            [_start(sequences=[messages_pb2.TokenIds(ids=[0, 1]), messages_pb2.TokenIds(ids=[0, 1, 2])])],
            "lengths [2, 3]",
        ),
        ([_start(sequences=[messages_pb2.TokenIds(ids=[0, 99999])])], "outside the vocabulary"),
        ([_start(), _plan(read_layers=[3])], "from 0 to 2"),
        ([_start(), _plan(read_layers=[1, 0])], "does not rise"),
        ([_start(), _plan(kept_rows=[4])], "from 0 to 3"),
        ([_start(), _plan(replaced_layers=[1], ablated_layers=[0, 1])], "both replaced and ablated"),
        ([_start(), _plan(replaced_layers=[1]), _output("layers.2.mlp_out")], "layers.1.mlp_out is waited for"),
        ([_start(), _plan(replaced_layers=[1]), _output("layers.1.mlp_out", np.nan)], "NaN"),
        ([_start(), _plan(replaced_layers=[1]), _output("layers.1.mlp_out", rows=3)], "[4, 32] is waited for"),
        ([_start(), _plan(replaced_layers=[1])], "before it gave layers.1.mlp_out"),
    ]

    def refusal(requests: list[service_pb2.ReplaceMlpsRequest]) -> WeftError:
        with pytest.raises(grpc.RpcError) as caught:
            for _ in world.stub.ReplaceMlps(iter(requests), timeout=30):
                pass
        return error_from_rpc(caught.value)

    for requests, message in cases:
        error = await asyncio.to_thread(refusal, requests)
        assert error.code is Code.INVALID_ARGUMENT
        assert message in error.message
