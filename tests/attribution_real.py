"""The real model behind a real activations service, and a random sparse transcoder for it, for tests and timings."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from weft_activations.adapters.grpc_catalog import GrpcCatalog
from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_attribution.adapters.grpc_activations import GrpcModelRunner
from weft_common.client import aio_channel
from weft_common.server import serving
from weft_store.documents import encode_json
from weft_store.opening import open_store
from weft_store.port import ObjectStore

REAL_MODEL = "smollm2-135m-instruct"


def models_dir() -> Path:
    """Where the real model lies."""
    default = Path(__file__).parents[1] / ".weft" / "models"
    return Path(os.environ.get("WEFT_TEST_MODELS_DIR", str(default)))


@asynccontextmanager
async def activations(folder: Path, models: Path) -> AsyncIterator[GrpcModelRunner]:
    """Serve models in this process and give a runner that speaks gRPC to them."""
    url = f"file://{folder}/bucket"
    settings = ActivationsSettings(
        insecure_no_auth=True, models_dir=models, cache_target="127.0.0.1:1", bucket_url=url, dtype="float32"
    )
    backend = TransformersBackend(models, dtype="float32", max_prompt_tokens=512, device="cpu", threads=0)
    async with aio_channel(settings.cache_target) as cache:
        wired = registrations(settings, backend, open_store(url), GrpcCatalog(cache))
        async with (
            wired as served,
            serving("activations", settings, served) as server,
            aio_channel(server.target) as channel,
        ):
            yield GrpcModelRunner(channel, max_capture_bytes=1 << 29, timeout_s=300)


async def random_transcoder(
    store: ObjectStore,
    folder: Path,
    runner: GrpcModelRunner,
    model: str,
    transcoder: str,
    *,
    prompt: str,
    num_features: int,
    active: int,
) -> None:
    """Write a random transcoder of which about `active` features a layer fire on a token of `prompt`."""
    info = await runner.model(model)
    ids = [token.id for token in await runner.tokenize(model, prompt)]
    streams = (await runner.capture(model, ids, ["layers.*.mlp_in"])).tensors
    rng = torch.Generator().manual_seed(0)
    path = folder / "part.safetensors"
    for layer in range(info.num_layers):
        bound = num_features**-0.5
        encoder_FD = (torch.rand(num_features, info.d_model, generator=rng) * 2 - 1) * bound
        pre_PF = torch.from_numpy(np.array(streams[f"layers.{layer}.mlp_in"]))[1:] @ encoder_FD.T
        bias = -torch.quantile(pre_PF.flatten()[:1_000_000], 1 - active / num_features)
        encoder = {
            f"W_enc_{layer}": encoder_FD,
            f"b_enc_{layer}": torch.full((num_features,), float(bias)),
            f"b_dec_{layer}": torch.randn(info.d_model, generator=rng) * 0.01,
        }
        targets = info.num_layers - layer
        decoder = torch.randn(num_features, targets, info.d_model, generator=rng) * (targets * info.d_model) ** -0.5
        save_file(encoder, path)
        store.put_file(f"transcoders/{transcoder}/W_enc_{layer}.safetensors", path)
        save_file({f"W_dec_{layer}": decoder}, path)
        store.put_file(f"transcoders/{transcoder}/W_dec_{layer}.safetensors", path)
    path.unlink()
    manifest = {"model": model, "model_revision": info.revision, "input_hook": "mlp_in", "output_hook": "mlp_out"}
    store.put(f"transcoders/{transcoder}/manifest.json", encode_json(manifest))
