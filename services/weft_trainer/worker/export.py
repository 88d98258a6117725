"""
Writes a checkpoint as a transcoder: `python -m weft_trainer.worker.export`.

One process; in memory are the weights once, one rank's share of them while they are joined, the calibration's
pre-activations, one batch, and what `weft_clt.formats` holds of a layer while it writes.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from weft_common.logging import get_logger
from weft_trainer.core.scratch import ScratchFolder
from weft_trainer.worker.checkpoint_job import run_checkpoint_job
from weft_trainer.worker.settings import ExportSettings
from weft_trainer.worker.starting import read_config

if TYPE_CHECKING:
    from weft.cache.v1 import messages_pb2
    from weft_clt.config import FeatureConfig, TrainingConfig
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


def load_whole(checkpoints: RunCheckpoints, step: int, like: Parameters) -> None:
    """Join the shares of all ranks of a checkpoint in `like`."""
    checkpoints.load(step, 0, 1, like.named())


def calibrate(
    params: Parameters, source: CacheRowGroups, normalization: Normalization, features: FeatureConfig
) -> Parameters:
    """Give a model that counts thresholds from tokens of the training split."""
    import torch

    from weft_clt.conversion import decoder_norms, selections, thresholds_from_selection
    from weft_clt.data import held_out_batches

    wanted = min(_CALIBRATION_TOKENS, source.num_tokens())
    batches = held_out_batches(source, normalization, batch_tokens=_EVALUATION_TOKENS, most_tokens=wanted)
    preact_LNF = torch.empty(params.share.shape.num_layers, wanted, features.num_features)
    found = 0
    while found < wanted and (batch := next(batches)).num_valid:
        some = slice(found, found + batch.num_valid)
        for layer, b_enc_F in enumerate(params.b_enc_LS):
            inputs_ND = batch.inputs_LOD[layer, : batch.num_valid]
            torch.addmm(b_enc_F, inputs_ND, params.encoder(layer).T, out=preact_LNF[layer, some])
        found = some.stop
    preact_LNF = preact_LNF[:, :found]
    selected = selections(preact_LNF, decoder_norms(params), features)
    threshold_LS = torch.stack(
        [
            thresholds_from_selection(preact_NF, selected_NF)
            for preact_NF, selected_NF in zip(preact_LNF, selected, strict=True)
        ]
    )
    return replace(params, threshold_LS=threshold_LS)


def evaluate_whole(
    params: Parameters, config: TrainingConfig, source: CacheRowGroups, normalization: Normalization, step: int
) -> Evaluation:
    """Measure a whole model on the held-out split; thresholds make it JumpReLU, without them it selects as trained."""
    import torch

    from weft_clt.config import Activation
    from weft_clt.data import held_out_batches
    from weft_clt.evaluating import evaluate
    from weft_clt.kernels import CpuKernels
    from weft_clt.mesh import Mesh, SingleAxis
    from weft_clt.step import StepEngine

    features = config.features
    if params.threshold_LS is not None:
        features = replace(features, activation=Activation.JUMP_RELU, threshold_init=1.0, bandwidth=1.0)
    mesh = Mesh(SingleAxis(), SingleAxis())
    engine = StepEngine(params, mesh, CpuKernels(), features, config.loss, group_tokens=_EVALUATION_TOKENS)
    tokens = source.num_tokens()
    batches = held_out_batches(source, normalization, batch_tokens=_EVALUATION_TOKENS, most_tokens=tokens)
    centre_LC = torch.from_numpy(normalization.output_mean_LD)
    return evaluate(engine, centre_LC, batches, -(-tokens // _EVALUATION_TOKENS), step=step)


def export(store: ObjectStore, settings: ExportSettings, dataset: messages_pb2.Dataset, cache: Any) -> None:
    """Write the files of a transcoder, and its manifest last."""
    import torch

    from weft.cache.v1 import messages_pb2
    from weft_clt.config import Activation
    from weft_clt.export import TrainedTranscoder
    from weft_clt.formats.circuit_tracer import write_circuit_tracer
    from weft_clt.parameters import Parameters, Shape, Share
    from weft_common.errors import AlreadyExistsError
    from weft_store.documents import create_json
    from weft_trainer.core.circuit_tracer_layout import activation_of
    from weft_trainer.worker.checkpoints import RunCheckpoints
    from weft_trainer.worker.epochs import epochs_seen
    from weft_trainer.worker.reads import CacheRowGroups, normalization_of, only

    config, document = read_config(store, settings.run)
    spec, step = dataset.spec, settings.checkpoint_step
    normalization = normalization_of(dataset, config.batch.scales)
    features = config.features
    shape = Shape(spec.num_layers, features.num_features, spec.d_model, features.decoder_span)
    params = Parameters.zeros(
        Share(shape, 0, 1),
        thresholds=features.activation.has_thresholds,
        skip=features.linear_skip,
        dtype=torch.float32,
        weights=config.optimizer.parameters,
    )
    checkpoints = RunCheckpoints(store, settings.run, settings.attempt)
    load_whole(checkpoints, step, params)

    def source(split: messages_pb2.Split.ValueType) -> CacheRowGroups:
        over, seed = only(dataset.snapshot), config.batch.seed
        return CacheRowGroups(cache, store, dataset.name, split, rank=0, world_size=1, seed=seed, over=over)

    variants = [params]
    if features.activation is Activation.RELU:
        params = replace(params, threshold_LS=torch.zeros_like(params.b_enc_LS))
    elif not features.activation.has_thresholds:
        params = calibrate(params, source(messages_pb2.SPLIT_TRAIN), normalization, features)
        variants.append(params)
    with ThreadPoolExecutor(len(variants)) as threads:
        held_out = (source(messages_pb2.SPLIT_HELD_OUT) for _ in variants)
        evaluations = list(
            threads.map(
                lambda variant, data: evaluate_whole(variant, config, data, normalization, step), variants, held_out
            )
        )
    trained, by_thresholds = evaluations[0], evaluations[-1]
    _log.info(
        "evaluated",
        explained_variance=trained.explained_variance,
        threshold_explained_variance=by_thresholds.explained_variance,
    )

    prefix = f"transcoders/{settings.transcoder}/"
    whole = TrainedTranscoder(params, normalization, spec.input_hook, spec.output_hook, features)
    sizes = {}
    with ScratchFolder() as scratch:
        for name in write_circuit_tracer(whole, scratch.path, spec.model.removeprefix("models/"), padded=False):
            path = scratch.path / name
            sizes[name] = path.stat().st_size
            store.put_file(f"{prefix}{name}", path)
            path.unlink()
    manifest = {
        "name": f"transcoders/{settings.transcoder}",
        "model": spec.model,
        "model_revision": spec.model_revision,
        "dataset": dataset.name,
        "epochs": epochs_seen(document, checkpoints.manifest(step).data),
        "run": f"runs/{settings.run}",
        "checkpoint_step": step,
        "num_layers": spec.num_layers,
        "num_features": shape.num_features,
        "d_model": spec.d_model,
        "input_hook": spec.input_hook,
        "output_hook": spec.output_hook,
        "activation": activation_of(whole.facts),
        **({"top_k": whole.facts.top_k} if whole.facts.top_k else {}),
        "dtype": "float32",
        "window": whole.facts.window,
        "evaluation": asdict(trained),
        "threshold_evaluation": asdict(by_thresholds),
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
    return run_checkpoint_job(ExportSettings, "trainer-export", export)


if __name__ == "__main__":
    sys.exit(main())
