"""A model of speech over gRPC: a WAV file and features go in through the client, components of both stacks come out."""

import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from harvest_fakes import FakeCatalog
from tiny_models import make_whisper
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from weft.activations.v1 import components_pb2, service_pb2, service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_client import AsyncClient, Endpoint, interventions
from weft_client.speech import heard
from weft_common.client import aio_channel, error_from_rpc
from weft_common.errors import Code, InvalidArgumentError
from weft_common.server import serving
from weft_common.tensors import TensorAssembler, tensor_from_proto
from weft_store.adapters.memory import MemoryObjectStore

IDS = [0, 280, 283, 264]
TONE = np.sin(np.arange(12_000) * 0.17)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_whisper(folder / "whisper")
    return folder


@pytest.fixture
async def target(models_dir: Path) -> AsyncIterator[str]:
    store = MemoryObjectStore()
    settings = ActivationsSettings(
        insecure_no_auth=True, bucket_url="memory://", models_dir=models_dir, cache_target="unused:1", drain_s=0
    )
    async with (
        registrations(settings, TransformersBackend(models_dir), store, FakeCatalog(store)) as served,
        serving("activations", settings, served) as server,
    ):
        yield server.target


@pytest.fixture
async def stub(target: str) -> AsyncIterator[Any]:
    async with aio_channel(target) as channel:
        yield service_pb2_grpc.ActivationServiceStub(channel)


def recording(tmp_path: Path) -> Path:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.round(TONE * 32767).astype("<i2").tobytes())
    path = tmp_path / "tone.wav"
    path.write_bytes(made.getvalue())
    return path


async def test_recording_is_captured_and_run_over_grpc(stub: Any, models_dir: Path, tmp_path: Path) -> None:
    """Cross attention, and logits with frames of another recording in place, are transformers' own; dims are named."""
    model = await stub.GetModel(service_pb2.GetModelRequest(name="models/whisper"))
    assert model.kind == components_pb2.MODEL_KIND_SPEECH
    assert (model.speech.num_frames, model.speech.num_steps, model.speech.sampling_rate) == (50, 100, 16_000)
    dims = {component.name: list(component.dims) for component in model.components}
    assert dims["decoder.layers.*.cross.pattern"] == [
        components_pb2.DIM_HEAD,
        components_pb2.DIM_POSITION,
        components_pb2.DIM_FRAME,
    ]
    prompt = heard(recording(tmp_path), IDS)
    request = service_pb2.CaptureRequest(
        model="models/whisper", prompt=prompt, hooks=["decoder.layers.*.cross.pattern", "encoder.features"]
    )
    assembler, arrays = TensorAssembler(1 << 22), {}
    async for part in stub.Capture(request):
        if part.HasField("chunk") and (done := assembler.add(part.chunk)) is not None:
            arrays[done[0]] = done[1]
    extractor = WhisperFeatureExtractor.from_pretrained(models_dir / "whisper")
    features = extractor(np.round(TONE * 32767) / 32768, sampling_rate=16_000, return_tensors="np").input_features
    np.testing.assert_allclose(arrays["encoder.features"].T, features[0], atol=1e-4)
    own = WhisperForConditionalGeneration.from_pretrained(models_dir / "whisper", attn_implementation="eager").eval()
    other = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32)
    with torch.no_grad():
        ids = torch.tensor([IDS])
        expected = own(torch.from_numpy(features), decoder_input_ids=ids, output_attentions=True).cross_attentions
        patched = own(torch.from_numpy(other)[None], decoder_input_ids=ids).logits[0]
    for layer in range(3):
        np.testing.assert_allclose(arrays[f"decoder.layers.{layer}.cross.pattern"], expected[layer][0], atol=1e-5)
    change = interventions.patch("encoder.ln_final.normed", heard(other, [0]))
    for position, row in ((None, 3), (1, 1)):
        ran = await stub.Run(
            service_pb2.RunRequest(
                model="models/whisper", prompt=prompt, interventions=[change], position=position, return_logits=True
            )
        )
        np.testing.assert_allclose(tensor_from_proto(ran.logits, max_bytes=1 << 20), patched[row], atol=2e-5)


async def test_patterns_of_a_recording_come_with_seconds(target: str, models_dir: Path, tmp_path: Path) -> None:
    """Tokens over frames and frames over frames are transformers' own; a frame lasts a fiftieth of a second."""
    prompt = heard(recording(tmp_path), IDS)
    extractor = WhisperFeatureExtractor.from_pretrained(models_dir / "whisper")
    features = extractor(np.round(TONE * 32767) / 32768, sampling_rate=16_000, return_tensors="pt").input_features
    own = WhisperForConditionalGeneration.from_pretrained(models_dir / "whisper", attn_implementation="eager").eval()
    with torch.no_grad():
        expected = own(features, decoder_input_ids=torch.tensor([IDS]), output_attentions=True)
    async with AsyncClient.to(activations=Endpoint(target)) as client:
        cross = await client.analyses.attention_patterns("whisper", prompt, kind="cross", layers=[2])
        np.testing.assert_allclose(cross["pattern"][0], expected.cross_attentions[2][0], atol=1e-5)
        assert cross.dims("pattern") == ("layer", "head", "position", "source_frame")
        dim, seconds = cross.coords["source_frame_s"]
        assert dim == "source_frame"
        np.testing.assert_allclose(seconds, np.arange(50) / 50)
        assert len(cross.coords["token"][1]) == len(IDS)
        frames = await client.analyses.attention_patterns("whisper", prompt, kind="frames", positions=[7, 49])
        assert frames.dims("pattern") == ("layer", "head", "frame", "source_frame")
        np.testing.assert_allclose(frames.coords["frame_s"][1], [7 / 50, 49 / 50])
        for layer, pattern_HQF in enumerate(frames["pattern"]):
            np.testing.assert_allclose(pattern_HQF, expected.encoder_attentions[layer][0][:, [7, 49]], atol=1e-5)
        with pytest.raises(InvalidArgumentError, match="give tokens, frames, cross"):
            await client.analyses.attention_patterns("whisper", prompt, kind="words")


async def test_prompt_without_a_recording_is_refused(stub: Any) -> None:
    """The status is INVALID_ARGUMENT, and the message says what to set."""
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Run(service_pb2.RunRequest(model="models/whisper", prompt={"token_ids": {"ids": IDS}}))
    error = error_from_rpc(caught.value)
    assert error.code is Code.INVALID_ARGUMENT
    assert "set prompt.audio.wav or prompt.audio.features" in error.message
