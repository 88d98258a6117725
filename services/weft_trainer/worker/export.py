"""
Writes a checkpoint as a transcoder: `python -m weft_trainer.worker.export`.

One process; in memory are the weights once, the calibration's pre-activations of one layer's features, and one batch.
"""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft_common.logging import configure_logging, get_logger
from weft_common.settings import load_settings
from weft_trainer.worker.settings import ExportSettings
from weft_trainer.worker.signals import exit_when_terminated
from weft_trainer.worker.starting import exit_code, prepare_process, read_config

if TYPE_CHECKING:
    from weft.cache.v1 import messages_pb2
    from weft_clt.config import TrainingConfig
    from weft_clt.metrics import Evaluation
    from weft_clt.normalization import Normalization
    from weft_clt.parameters import Parameters
    from weft_store import ObjectStore
    from weft_trainer.worker.checkpoints import RunCheckpoints
    from weft_trainer.worker.reads import CacheRowGroups

_CALIBRATION_TOKENS = 2048
_EVALUATION_TOKENS = 512
"""Tokens of one pass over held-out data."""

_log = get_logger(__name__)


def load_whole(checkpoints: RunCheckpoints, step: int, config: TrainingConfig, like: Parameters) -> None:
    """Join the shares of all ranks of a checkpoint in `like`, one rank in memory at a time."""
    from weft_clt.parameters import Parameters, Share

    size = config.mesh.feature_ranks
    for rank in range(size):
        share = Share(like.share.shape, rank, size)
        part = Parameters.zeros(share, thresholds=like.threshold_LS is not None, dtype=like.w_enc_LSD.dtype)
        checkpoints.load(step, rank, size, part.named())
        like.w_enc_LSD[:, share.features] = part.w_enc_LSD
        like.b_enc_LS[:, share.features] = part.b_enc_LS
        if like.threshold_LS is not None and part.threshold_LS is not None:
            like.threshold_LS[:, share.features] = part.threshold_LS
        like.w_dec_PFC[:, :, share.columns] = part.w_dec_PFC
        like.b_dec_LC[:, share.columns] = part.b_dec_LC


def calibrate(params: Parameters, source: CacheRowGroups, normalization: Normalization, top_k: int) -> Parameters:
    """Give a TopK model thresholds from tokens of the training split."""
    import numpy as np
    import torch

    from weft_clt.data import held_out_batches
    from weft_clt.export import thresholds_from_top_k

    wanted = min(_CALIBRATION_TOKENS, source.num_tokens())
    batches = held_out_batches(source, normalization, batch_tokens=_EVALUATION_TOKENS, most_tokens=wanted)
    parts: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    while sum(part.shape[1] for part in parts) < wanted and (batch := next(batches)).num_valid:
        preact_LNF = torch.baddbmm(params.b_enc_LS[:, None], batch.inputs_LOD, params.w_enc_LSD.transpose(1, 2))
        parts.append(preact_LNF[:, : batch.num_valid].numpy())
    threshold_LS = torch.stack(
        [
            thresholds_from_top_k(torch.from_numpy(np.concatenate([part[layer] for part in parts])), top_k)
            for layer in range(params.share.shape.num_layers)
        ]
    )
    return replace(params, threshold_LS=threshold_LS)


def evaluate(
    params: Parameters, config: TrainingConfig, source: CacheRowGroups, normalization: Normalization, step: int
) -> Evaluation:
    """Measure a whole model on the held-out split; thresholds make it JumpReLU, their absence TopK."""
    import torch

    from weft_clt.config import Activation
    from weft_clt.data import held_out_batches
    from weft_clt.kernels import CpuKernels
    from weft_clt.mesh import Mesh, SingleAxis
    from weft_clt.metrics import ReconstructionSums
    from weft_clt.step import StepEngine

    activation = Activation.TOP_K if params.threshold_LS is None else Activation.JUMP_RELU
    features = replace(config.features, activation=activation, threshold_init=1.0, bandwidth=1.0)
    mesh = Mesh(SingleAxis(), SingleAxis())
    engine = StepEngine(params, mesh, CpuKernels(), features, config.loss, group_tokens=_EVALUATION_TOKENS)
    sums = ReconstructionSums(params.share, torch.from_numpy(normalization.output_mean_LD))
    tokens = source.num_tokens()
    batches = held_out_batches(source, normalization, batch_tokens=_EVALUATION_TOKENS, most_tokens=tokens)
    while tokens > 0:
        batch = next(batches)
        tokens -= batch.num_valid
        valid_T = torch.arange(_EVALUATION_TOKENS) < batch.num_valid
        forward = engine.forward(batch.inputs_LOD, batch.targets_LOD, near=False)
        sums.add(forward.error_LTC, batch.targets_LOD, forward.exchanged, valid_T)
    return sums.reduced(mesh).evaluation(step)


def export(store: ObjectStore, settings: ExportSettings, dataset: messages_pb2.Dataset, cache: Any) -> None:
    """Write the files of a transcoder, and its manifest last."""
    import torch

    from weft.cache.v1 import messages_pb2
    from weft_clt.config import Activation
    from weft_clt.export import config_yaml, export_transcoder
    from weft_clt.parameters import Parameters, Shape, Share
    from weft_common.errors import AlreadyExistsError
    from weft_store.documents import create_json
    from weft_trainer.worker.checkpoints import RunCheckpoints
    from weft_trainer.worker.reads import CacheRowGroups, normalization_of

    config, _ = read_config(store, settings.run)
    spec, step = dataset.spec, settings.checkpoint_step
    normalization = normalization_of(dataset)
    is_top_k = config.features.activation is Activation.TOP_K
    shape = Shape(spec.num_layers, config.features.num_features, spec.d_model)
    params = Parameters.zeros(Share(shape, 0, 1), thresholds=not is_top_k, dtype=torch.float32)
    load_whole(RunCheckpoints(store, settings.run, settings.attempt), step, config, params)

    def source(split: messages_pb2.Split.ValueType) -> CacheRowGroups:
        return CacheRowGroups(cache, store, dataset.name, split, rank=0, world_size=1, seed=config.batch.seed)

    variants = [params]
    if is_top_k:
        params = calibrate(params, source(messages_pb2.SPLIT_TRAIN), normalization, config.features.top_k)
        variants.append(params)
    with ThreadPoolExecutor(len(variants)) as threads:
        held_out = (source(messages_pb2.SPLIT_HELD_OUT) for _ in variants)
        evaluations = list(
            threads.map(lambda variant, data: evaluate(variant, config, data, normalization, step), variants, held_out)
        )
    trained, exported = evaluations[0], evaluations[-1]
    _log.info(
        "evaluated",
        explained_variance=exported.explained_variance,
        trained_explained_variance=trained.explained_variance,
    )

    prefix = f"transcoders/{settings.transcoder}/"
    config_file = config_yaml(spec.model.removeprefix("models/"), spec.input_hook, spec.output_hook)
    store.put(f"{prefix}config.yaml", config_file)
    sizes = {"config.yaml": len(config_file)}
    with tempfile.TemporaryDirectory(prefix="weft-") as folder:
        for name in export_transcoder(params, normalization, folder):
            path = Path(folder) / name
            sizes[name] = path.stat().st_size
            store.put_file(f"{prefix}{name}", path)
            path.unlink()
    manifest = {
        "name": f"transcoders/{settings.transcoder}",
        "model": spec.model,
        "model_revision": spec.model_revision,
        "dataset": dataset.name,
        "run": f"runs/{settings.run}",
        "checkpoint_step": step,
        "num_layers": spec.num_layers,
        "num_features": shape.num_features,
        "d_model": spec.d_model,
        "input_hook": spec.input_hook,
        "output_hook": spec.output_hook,
        "activation": "threshold",
        "evaluation": asdict(exported),
        "trained_evaluation": asdict(trained),
        "recipe": config.to_spec(),
        "size_bytes": sum(sizes.values()),
        "files": sorted(sizes),
        "prefix": prefix,
        "create_time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    try:
        create_json(store, f"{prefix}manifest.json", manifest)
    except AlreadyExistsError:
        _log.info("already_exported", transcoder=settings.transcoder)


def main() -> int:
    """Export one checkpoint and return the exit code."""
    exit_when_terminated()
    settings = load_settings(ExportSettings)
    configure_logging("trainer-export", settings.log_level)
    prepare_process(os.environ, settings.threads)

    def work() -> None:
        import torch

        from weft.cache.v1 import service_pb2_grpc
        from weft_common.client import channel
        from weft_store import open_store
        from weft_trainer.worker.reads import get_dataset

        torch.set_num_threads(settings.threads)
        secrets = (settings.bucket_access_key, settings.bucket_secret_key)
        keys = (secret.get_secret_value() if secret else None for secret in secrets)
        store = open_store(settings.bucket_url, *keys, ca=settings.bucket_ca)
        cache = service_pb2_grpc.CacheServiceStub(
            channel(settings.cache_target, token=settings.cache_token, **settings.tls)
        )
        config, _ = read_config(store, settings.run)
        export(store, settings, get_dataset(cache, config.batch.dataset), cache)

    return exit_code(work, lambda message: None)


if __name__ == "__main__":
    sys.exit(main())
