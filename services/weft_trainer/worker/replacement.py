"""
Measures the replacement model of a checkpoint: `python -m weft_trainer.worker.replacement`.

The activations service runs the model; this process stands in the place of its MLPs. A batch takes a pass that reads
every layer, for each layer one pass with its reconstruction and one with zeros, and the same for all layers at once.
Between the two go 16 L D bytes a token.
Shapes: N tokens of a batch, L layers, D d_model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.activations.v1 import service_pb2
from weft_common.logging import get_logger
from weft_trainer.worker.checkpoint_job import run_checkpoint_job
from weft_trainer.worker.settings import ReplacementSettings
from weft_trainer.worker.starting import read_config

if TYPE_CHECKING:
    from weft.cache.v1 import messages_pb2
    from weft_clt.layerwise import LayerwiseTranscoder
    from weft_store import ObjectStore
    from weft_trainer.worker.model_passes import Floats, HeldOut, ModelPasses

__all__ = ["batches_of", "measure"]

_BATCH_ROWS = 512
_log = get_logger(__name__)


@dataclass
class _Sums:
    """Over batches, in nats."""

    tokens: int = 0
    model: float = 0.0
    changed: float = 0.0
    divergence: float = 0.0
    agreed: int = 0
    ablated: float = 0.0

    def add(self, replaced: service_pb2.ReplaceScore, ablated: service_pb2.ReplaceScore) -> None:
        self.tokens += replaced.tokens
        self.model += replaced.model_cross_entropy_sum
        self.changed += replaced.cross_entropy_sum
        self.divergence += replaced.kl_sum
        self.agreed += replaced.agreed
        self.ablated += ablated.cross_entropy_sum

    def document(self) -> dict[str, Any]:
        """Return the fields of weft.training.v1.ReplacementScore; None where zeros change nothing."""
        lost = self.ablated - self.model
        return {
            "cross_entropy": self.changed / max(self.tokens, 1),
            "kl_divergence": self.divergence / max(self.tokens, 1),
            "top1_agreement": self.agreed / max(self.tokens, 1),
            "ablated_cross_entropy": self.ablated / max(self.tokens, 1),
            "recovered": (self.ablated - self.changed) / lost if lost else None,
        }


@dataclass
class _Reading:
    """What the reading pass of a batch shows."""

    transcoder: LayerwiseTranscoder
    limits_L: np.ndarray[Any, np.dtype[np.float64]]
    skipped_N: np.ndarray[Any, np.dtype[np.bool_]] = field(init=False)

    def begin(self, skipped: Sequence[Sequence[int]], length: int) -> None:
        self.transcoder.clear()
        self.skipped_N = np.zeros(len(skipped) * length, bool)
        for number, positions in enumerate(skipped):
            self.skipped_N[[number * length + position for position in positions]] = True

    def norms(self, layer: int, norm_N: Floats) -> None:
        if self.limits_L.size:
            self.skipped_N |= norm_N >= self.limits_L[layer]


def batches_of(sequences: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """
    Put sequences of one length together, 512 tokens at most or one sequence; what predicts nothing that counts is left.

    Returns:
        The indices of the sequences of each batch.

    >>> [len(batch) for batch in batches_of([(1,) * 256, (2,) * 256, (3,) * 256, (4,) * 7, (5, 6)])]
    [2, 1, 1]
    """
    by_length: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        if len(sequence) > 2:
            by_length.setdefault(len(sequence), []).append(index)
    batches = []
    for length, members in by_length.items():
        size = max(1, _BATCH_ROWS // length)
        batches += [members[first : first + size] for first in range(0, len(members), size)]
    return batches


def measure(stub: Any, held_out: HeldOut, transcoder: LayerwiseTranscoder) -> dict[str, Any]:
    """Return the fields of weft.training.v1.Replacement."""
    from weft_trainer.worker.model_passes import ModelPasses

    num_layers = transcoder.num_layers
    by_layer, together = [_Sums() for _ in range(num_layers)], _Sums()
    reading = _Reading(transcoder, held_out.output_norm_limits)
    batches = batches_of(held_out.sequences)
    for number, indices in enumerate(batches, start=1):
        batch = [held_out.sequences[index] for index in indices]
        passes = ModelPasses(stub, held_out.model, batch, held_out.input_hook)
        try:
            reading.begin([held_out.skipped_of(index) for index in indices], len(batch[0]))
            _measure_batch(passes, reading, by_layer, together)
        finally:
            passes.close()
        _log.info("batch_measured", batch=number, batches=len(batches), tokens=together.tokens)
    return {
        "tokens": together.tokens,
        "sequences": sum(map(len, batches)),
        "cross_entropy": together.model / max(together.tokens, 1),
        "all": together.document(),
        "by_layer": [sums.document() for sums in by_layer],
    }


def _measure_batch(passes: ModelPasses, reading: _Reading, by_layer: list[_Sums], together: _Sums) -> None:
    transcoder = reading.transcoder
    layers = range(transcoder.num_layers)

    def run(**plan: Any) -> service_pb2.ReplaceScore:
        asked = service_pb2.ReplacePass(kept_rows=kept, **plan)
        return passes.run(asked, transcoder.read, transcoder.reconstruct, reading.norms)

    kept: list[int] = []
    run(read_layers=layers, read_output_norms=True)
    kept = np.flatnonzero(reading.skipped_N).tolist()
    # One layer at a time, the layers below write what they always do: the features of the reading pass hold.
    for layer, sums in enumerate(by_layer):
        sums.add(run(replaced_layers=[layer]), run(ablated_layers=[layer]))
    transcoder.clear()
    together.add(run(read_layers=layers, replaced_layers=layers), run(ablated_layers=layers))


def replace(store: ObjectStore, settings: ReplacementSettings, dataset: messages_pb2.Dataset, cache: Any) -> None:
    """Measure a checkpoint and write `replacement.json` beside it."""
    import torch

    from weft.activations.v1 import service_pb2_grpc
    from weft.cache.v1 import messages_pb2
    from weft_clt.config import Activation
    from weft_clt.layerwise import LayerwiseTranscoder
    from weft_clt.parameters import Parameters, Shape, Share
    from weft_common.client import channel
    from weft_common.errors import FailedPreconditionError
    from weft_store.documents import encode_json
    from weft_trainer.worker.checkpoints import RunCheckpoints
    from weft_trainer.worker.export import calibrate, load_whole
    from weft_trainer.worker.model_passes import read_held_out
    from weft_trainer.worker.reads import CacheRowGroups, normalization_of, only

    config, _ = read_config(store, settings.run)
    spec, checkpoints = dataset.spec, RunCheckpoints(store, settings.run, settings.attempt)
    features, normalization = config.features, normalization_of(dataset, config.batch.scales)
    shape = Shape(spec.num_layers, features.num_features, spec.d_model, features.decoder_span)
    params = Parameters.zeros(
        Share(shape, 0, 1),
        thresholds=features.activation.has_thresholds,
        dtype=torch.float32,
        skip=features.linear_skip,
        weights=config.optimizer.parameters,
    )
    load_whole(checkpoints, settings.checkpoint_step, params)
    if features.activation is Activation.JOINT_TOP_K:
        # It selects over all layers at once: with the thresholds of its export it can stand in for one after the other.
        train, over, seed = messages_pb2.SPLIT_TRAIN, only(dataset.snapshot), config.batch.seed
        source = CacheRowGroups(cache, store, dataset.name, train, rank=0, world_size=1, seed=seed, over=over)
        params = calibrate(params, source, normalization, features)
    transcoder = LayerwiseTranscoder(params, features, normalization)
    stub = service_pb2_grpc.ActivationServiceStub(
        channel(settings.activations_target, token=settings.activations_token, **settings.tls)
    )
    held_out = read_held_out(stub, dataset.name, settings.replacement_tokens)
    if held_out.model_revision != spec.model_revision or not batches_of(held_out.sequences):
        raise FailedPreconditionError(
            f"{dataset.name} was harvested from model {spec.model_revision[:16]}, the activations service has "
            f"{held_out.model_revision[:16]} and {len(held_out.sequences)} held-out sequences of it; evaluate where "
            "the dataset was harvested, with a held-out split."
        )
    result = measure(stub, held_out, transcoder)
    store.put(f"{checkpoints.folder(settings.checkpoint_step)}replacement.json", encode_json(result))


def main() -> int:
    """Measure one checkpoint and return the exit code."""
    return run_checkpoint_job(ReplacementSettings, "trainer-replacement", replace)


if __name__ == "__main__":
    sys.exit(main())
