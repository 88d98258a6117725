"""
The replacement model of a real model: a few steps of training on its activations, then its scores over gRPC, beside
hooks on transformers' own model with dense decoders.
"""

import asyncio
import os
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from clt_cases import config_of
from harvest_fakes import FakeCatalog
from replacement_oracle import check, oracle
from torch import Tensor
from transformers import AutoModelForCausalLM

from weft.activations.v1 import service_pb2_grpc
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_clt.kernels import ReferenceKernels
from weft_clt.layerwise import LayerwiseTranscoder
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.normalization import Moments, Normalization
from weft_clt.trainer import Batch, Trainer
from weft_common.client import channel
from weft_common.server import serving
from weft_store.adapters.memory import MemoryObjectStore
from weft_trainer.worker.model_passes import HeldOut
from weft_trainer.worker.replacement import measure

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

MODEL, NUM_LAYERS, D_MODEL = "smollm2-135m-instruct", 30, 576
NUM_FEATURES, TOP_K, NUM_STEPS, SEQUENCE, NUM_TRAINED = 48, 8, 6, 32, 6
ROOT = Path(__file__).resolve().parents[2]


@torch.no_grad()
def mlp_streams(model: Any, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of every MLP, [L, T, D], without each sequence's first token."""
    read: list[list[Tensor]] = [[] for _ in range(NUM_LAYERS)]
    written: list[list[Tensor]] = [[] for _ in range(NUM_LAYERS)]

    def hook(layer: int) -> Any:
        def look(module: Any, args: tuple[Tensor], output: Tensor) -> None:
            read[layer].append(args[0][:, 1:].flatten(0, 1))
            written[layer].append(output[:, 1:].flatten(0, 1))

        return look

    handles = [block.mlp.register_forward_hook(hook(layer)) for layer, block in enumerate(model.model.layers)]
    model(torch.tensor(sequences))
    for handle in handles:
        handle.remove()
    return torch.stack([torch.cat(each) for each in read]), torch.stack([torch.cat(each) for each in written])


def trained(inputs_LTD: Tensor, outputs_LTD: Tensor) -> tuple[Trainer, Normalization]:
    """Do a few steps on all tokens, in units of their norms."""
    moments = [
        [Moments(float(x_TD.norm(dim=1).mean()), x_TD.double().mean(0).numpy()) for x_TD in stream]
        for stream in (inputs_LTD, outputs_LTD)
    ]
    normalization = Normalization.from_moments(*moments)
    num_tokens = inputs_LTD.shape[1]
    config = config_of(
        num_features=NUM_FEATURES, top_k=TOP_K, num_steps=NUM_STEPS, step_tokens=num_tokens, learning_rate=4e-3
    )
    trainer = Trainer(
        config, normalization, Mesh(SingleAxis(), SingleAxis()), ReferenceKernels(),
        num_layers=NUM_LAYERS, d_model=D_MODEL, dtype=torch.float32,
    )  # fmt: skip
    scale_in, scale_out = (
        torch.from_numpy(scale_L).float()[:, None, None]
        for scale_L in (normalization.input_scale_L, normalization.output_scale_L)
    )
    for _ in range(NUM_STEPS):
        trainer.train_step(Batch(inputs_LTD * scale_in, outputs_LTD * scale_out, num_tokens))
    return trainer, normalization


async def test_replacement_scores_of_a_real_model_equal_hooks_on_it() -> None:
    """One early layer, one late layer and all at once; training on the model's activations beats zeros in each."""
    models_dir = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    backend = TransformersBackend(models_dir)
    ids = backend.tokenize(MODEL, " ".join(list(topics.values())[3:6]))
    sequences = [ids[first : first + SEQUENCE] for first in range(0, (NUM_TRAINED + 2) * SEQUENCE, SEQUENCE)]
    model: Any = AutoModelForCausalLM.from_pretrained(models_dir / MODEL, dtype=torch.float32).eval()
    trainer, units = trained(*mlp_streams(model, sequences[:NUM_TRAINED]))
    params = trainer.params

    def dense(layer: int, inputs: list[Tensor]) -> Tensor:
        out = params.b_dec_LC[layer].expand_as(inputs[0])
        for source, x in enumerate(inputs):
            preact = (x * float(units.input_scale_L[source])) @ params.w_enc_LSD[source].T + params.b_enc_LS[source]
            smallest = preact.sort(dim=-1, descending=True).values[..., TOP_K - 1 : TOP_K]
            out = out + torch.where(preact >= smallest, preact, 0.0).relu() @ params.decoder(source, layer)
        return out / float(units.output_scale_L[layer])

    store = MemoryObjectStore()
    settings = ActivationsSettings(
        insecure_no_auth=True, bucket_url="memory://", models_dir=models_dir, cache_target="unused:1", drain_s=0
    )
    async with (
        registrations(settings, backend, store, FakeCatalog(store)) as served,
        serving("activations", settings, served) as server,
    ):
        held_out = HeldOut(f"models/{MODEL}", "", "mlp_in", np.array([]), [tuple(each) for each in sequences[-2:]])
        stub = service_pb2_grpc.ActivationServiceStub(channel(server.target))
        transcoder = LayerwiseTranscoder(params, trainer.config.features, units)
        found = await asyncio.to_thread(measure, stub, held_out, transcoder)
    assert found["tokens"] == 2 * (SEQUENCE - 2)
    by_layer = found["by_layer"]
    assert len(by_layer) == NUM_LAYERS
    for layers, score in (([1], by_layer[1]), ([29], by_layer[29]), (range(NUM_LAYERS), found["all"])):
        wanted = await asyncio.to_thread(oracle, model, held_out, layers, dense)
        assert found["cross_entropy"] == pytest.approx(wanted["model"], rel=1e-4)
        check(score, wanted, rel=5e-3)
    assert found["cross_entropy"] < found["all"]["cross_entropy"] < found["all"]["ablated_cross_entropy"]
