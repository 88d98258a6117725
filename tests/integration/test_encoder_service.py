"""An encoder over gRPC: described, captured and run at a position, and refused where it predicts no next token."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from harvest_fakes import FakeCatalog
from tiny_models import make_encoder
from transformers import BertForMaskedLM

from weft.activations.v1 import components_pb2, generation_pb2, messages_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_client.capture import Capture
from weft_common.client import aio_channel, error_from_rpc
from weft_common.errors import Code
from weft_common.server import serving
from weft_common.tensors import TensorAssembler, tensor_from_proto
from weft_store.adapters.memory import MemoryObjectStore

IDS = [0, 280, 283, 264, 273, 302, 290, 276]
PROMPT = messages_pb2.Prompt(token_ids=messages_pb2.TokenIds(ids=IDS))


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_encoder(folder / "bert", "bert-masked", num_layers=2)
    return folder


@pytest.fixture
async def stub(models_dir: Path) -> AsyncIterator[Any]:
    store = MemoryObjectStore()
    settings = ActivationsSettings(
        insecure_no_auth=True, bucket_url="memory://", models_dir=models_dir, cache_target="unused:1", drain_s=0
    )
    async with (
        registrations(settings, TransformersBackend(models_dir), store, FakeCatalog(store)) as served,
        serving("activations", settings, served) as server,
        aio_channel(server.target) as channel,
    ):
        yield service_pb2_grpc.ActivationServiceStub(channel)


async def test_encoder_is_captured_and_run_over_grpc(stub: Any, models_dir: Path) -> None:
    """Streams and the prediction at a position, with a head ablated, are those of transformers with the same change."""
    model = await stub.GetModel(service_pb2.GetModelRequest(name="models/bert"))
    assert model.kind == components_pb2.MODEL_KIND_ENCODER
    lens = {component.name: component.lens_name for component in model.components}
    assert lens["layers.*.resid_post"] == "blocks.*.ln2.hook_in"
    change = messages_pb2.Intervention(
        hook="layers.0.attn.z", kind=messages_pb2.INTERVENTION_KIND_ABLATE, heads=[1], positions=[3]
    )
    request = service_pb2.CaptureRequest(
        model="models/bert", prompt=PROMPT, hooks=["layers.*.ln2.normed"], interventions=[change]
    )
    assembler, arrays = TensorAssembler(1 << 20), {}
    async for part in stub.Capture(request):
        if part.HasField("chunk") and (done := assembler.add(part.chunk)) is not None:
            arrays[done[0]] = done[1]
    ran = await stub.Run(
        service_pb2.RunRequest(
            model="models/bert", prompt=PROMPT, interventions=[change], position=3, return_logits=True
        )
    )
    own = BertForMaskedLM.from_pretrained(models_dir / "bert", attn_implementation="eager").eval()

    def without_head(module: Any, args: Any) -> Any:
        z = args[0].clone()
        z[:, 3, 8:16] = 0
        return (z,)

    own.bert.encoder.layer[0].attention.output.dense.register_forward_pre_hook(without_head)
    with torch.no_grad():
        expected = own(torch.tensor([IDS]), output_hidden_states=True)
    np.testing.assert_allclose(
        Capture(model, [], arrays).stacked("ln2.normed"), torch.cat(expected.hidden_states[1:]), atol=1e-5
    )
    np.testing.assert_allclose(tensor_from_proto(ran.logits, max_bytes=1 << 20), expected.logits[0, 3], atol=1e-5)
    assert ran.top_tokens[0].token.id == int(expected.logits[0, 3].argmax())


async def test_generation_by_an_encoder_is_refused(stub: Any) -> None:
    """The status is FAILED_PRECONDITION, and the message names the kind."""
    request = generation_pb2.GenerateRequest(model="models/bert", prompt=PROMPT, max_new_tokens=2)
    with pytest.raises(grpc.RpcError) as caught:
        await anext(aiter(stub.Generate(request)))
    error = error_from_rpc(caught.value)
    assert error.code is Code.FAILED_PRECONDITION
    assert "an encoder (BertForMaskedLM), does not predict" in error.message
