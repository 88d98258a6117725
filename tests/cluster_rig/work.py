"""The same small work for every test: a corpus, a dataset, runs over it, and what came of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from cluster_rig.release import Release

from weft.activations.v1 import messages_pb2 as activations
from weft.activations.v1 import service_pb2 as activations_rpc
from weft.activations.v1.service_pb2_grpc import ActivationServiceStub
from weft.training.v1 import messages_pb2 as training
from weft.training.v1 import service_pb2 as training_rpc
from weft.training.v1.service_pb2_grpc import TrainingServiceStub
from weft_store.documents import read_json

__all__ = ["get_run", "harvest", "patiently", "start_run", "tensors_of", "training_spec", "upload_corpus"]

T = TypeVar("T")

_SENTENCES = (
    "The capital of France is Paris. The capital of Italy is Rome. Features of one layer write to every layer. "
    "A rank that dies is followed by another, and no token is read twice. "
)


def upload_corpus(release: Release, corpus_id: str, text: str = _SENTENCES * 200, documents: int = 6) -> None:
    """Upload some documents, unless they are there."""
    pieces = [
        activations_rpc.UploadCorpusRequest(document=f"{number}.txt", text=text.encode()) for number in range(documents)
    ]
    pieces[0].corpus_id = corpus_id
    with release.channel("activations") as channel:
        try:
            ActivationServiceStub(channel).UploadCorpus(iter(pieces), timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise


def harvest(release: Release, dataset: str, *, model: str = "tiny", **changes: Any) -> activations.Harvest:
    """Harvest a dataset of the same name as the harvest, and return how it ended."""
    values: dict[str, Any] = {
        "model": f"models/{model}",
        "dataset": f"datasets/{dataset}",
        "corpus": "corpora/text",
        "num_tokens": 6000,
        "held_out_share": 0.1,
        "sequence_tokens": 64,
        "streams": activations.Streams(input_hook="mlp_in", output_hook="mlp_out"),
        "codec": activations.Codec(kind="uniform", target_fvu=1e-3),
        "lease_sequences": 4,
    }
    spec = activations.HarvestSpec(**(values | changes))
    with release.channel("activations") as channel:
        stub = ActivationServiceStub(channel)
        request = activations_rpc.CreateHarvestRequest(harvest_id=dataset, spec=spec)
        release.wait("activations", stub.CreateHarvest(request, timeout=60))
        return stub.GetHarvest(activations_rpc.GetHarvestRequest(name=f"harvests/{dataset}"), timeout=30)


def training_spec(dataset: str, **changes: Any) -> training.TrainingSpec:
    """A run of two ranks that takes about half a minute and saves often."""
    values: dict[str, Any] = {
        "dataset": f"datasets/{dataset}",
        "num_features": 128,
        "activation": training.ACTIVATION_TOP_K,
        "top_k": 8,
        "num_steps": 600,
        "step_tokens": 256,
        "feature_ranks": 2,
        "data_ranks": 1,
        "learning_rate": 1e-3,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "clip_norm": 1.0,
        "dead_after_tokens": 10000,
        "checkpoint_steps": 50,
        "seed": 3,
    }
    return training.TrainingSpec(**(values | changes))


def patiently(call: Callable[[], T], timeout_s: float = 180) -> T:
    """Repeat a call that finds nobody, as people and programs do: pods come back, controllers hand over."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if not away or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def start_run(release: Release, run_id: str, spec: training.TrainingSpec) -> Any:
    """Ask for a run and return its operation; the same request again finds the one that is there."""
    request = training_rpc.CreateRunRequest(run_id=run_id, spec=spec, request_id=str(uuid.uuid4()))

    def ask() -> Any:
        with release.channel("trainer") as channel:
            return TrainingServiceStub(channel).CreateRun(request, timeout=60)

    return patiently(ask)


def get_run(release: Release, run_id: str) -> training.Run:
    """Read a run."""

    def ask() -> training.Run:
        with release.channel("trainer") as channel:
            request = training_rpc.GetRunRequest(name=f"runs/{run_id}")
            return TrainingServiceStub(channel).GetRun(request, timeout=30)

    return patiently(ask)


def tensors_of(release: Release, run_id: str, step: int) -> dict[str, Any]:
    """
    Return what a checkpoint's manifest says of its files, digests included, which stand for all of their bytes.

    The attempt is left out of their names: runs that came to the same may have taken another number of them.
    """
    manifest, _ = read_json(release.bucket.store(), f"runs/{run_id}/checkpoints/{step:08d}/manifest.json")
    files: dict[str, Any] = {name.partition("-")[2]: facts for name, facts in manifest["files"].items()}
    assert files
    return files
