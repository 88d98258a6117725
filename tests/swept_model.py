"""A small model in float64, its features and targets, ready to be swept."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attribution_rig import (
    ReferenceModel,
    ReferenceRunner,
    load_transcoder,
    make_reference_folder,
    make_transcoder,
)
from frozen_transformer import FrozenTransformer

from weft_attribution.core.checkpoints import load_linear_weights
from weft_attribution.core.features import ActiveFeatures, find_features
from weft_attribution.core.operator import FrozenOperator
from weft_attribution.core.pipeline import capture_hooks
from weft_attribution.core.ports import Capture
from weft_attribution.core.skips import read_skips
from weft_attribution.core.sweep import Targets, make_targets, sweep
from weft_attribution.core.targets import Target, explain
from weft_attribution.core.transcoder import TranscoderReader
from weft_store.opening import open_store

IDS = [3, 17, 8, 29, 8, 11]
LOGITS = np.array([5, 0, 31])


@dataclass
class Swept:
    model: ReferenceModel | FrozenTransformer
    capture: Capture
    reader: TranscoderReader
    operator: FrozenOperator
    features: ActiveFeatures
    targets: Targets
    tensors: dict[str, torch.Tensor]
    input_hook: str

    def edges(
        self, batch_size: int = 7, rows: np.ndarray | None = None, *, workers: int = 1, memory_bytes: int = 1 << 20
    ) -> np.ndarray:
        ids = np.array([token.id for token in self.capture.tokens])
        found: dict[int, np.ndarray] = {}
        sweep(
            self.operator,
            self.features,
            self.targets,
            ids,
            batch_size=batch_size,
            take=lambda batch, dense: found.update(dict(zip(batch.tolist(), dense, strict=True))),
            workers=workers,
            memory_bytes=memory_bytes,
            rows=rows,
        )
        return np.stack([found[row] for row in sorted(found)])


def build(folder: Path, family: str, **options: Any) -> Swept:
    """A model written from the papers, and what `build_from` takes."""
    return build_from(ReferenceModel(make_reference_folder(folder / family, family)), folder / family, **options)


def build_from(
    model: ReferenceModel | FrozenTransformer,
    folder: Path,
    *,
    input_hook: str = "mlp_in",
    jump: bool = False,
    max_writer_bytes: int = 1 << 30,
    streams: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None,
    ids: Sequence[int] = IDS,
    **transcoder: Any,
) -> Swept:
    """A model whose folder is there, with a random transcoder; `streams` captures hooks by other means."""
    store = open_store("memory://")
    make_transcoder(store, "t", model, input_hook=input_hook, jump=jump, **transcoder)
    weights = load_linear_weights(folder, torch.float64)
    hooks = capture_hooks(input_hook, has_post_norms=weights.has_post_norms)
    capture = asyncio.run(ReferenceRunner(model).capture("tiny", ids, hooks))
    if streams is not None:
        capture = replace(capture, tensors=streams(hooks))
    reader = TranscoderReader(store, "t")
    skips = read_skips(weights, reader)
    operator = FrozenOperator(weights, capture.tensors, num_positions=len(ids), skips=skips)
    features = find_features(
        weights,
        reader,
        capture.tensors,
        skips,
        num_positions=len(ids),
        max_features=10_000,
        max_writer_bytes=max_writer_bytes,
    )
    wanted = [Target(token_id=token_id) for token_id in LOGITS.tolist()]
    targets = make_targets(operator, features, explain(operator, reader, capture.tensors, wanted))
    tensors = load_transcoder(store, "t", model.num_layers)
    return Swept(model, capture, reader, operator, features, targets, tensors, input_hook)
