"""One rank's life: resume, train, evaluate, save, report, stop when asked."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import Any, NoReturn

import torch

from weft.cache.v1 import messages_pb2, service_pb2_grpc
from weft_clt.checkpoint import Manifest
from weft_clt.config import TrainingConfig
from weft_clt.data import held_out_batches
from weft_clt.kernels import kernels_for
from weft_clt.loader import LoaderOptions, TokenLoader
from weft_clt.mesh import Mesh
from weft_clt.metrics import Evaluation, StepMetrics
from weft_clt.normalization import Normalization
from weft_clt.staging import staging_for
from weft_clt.trainer import Batch, Trainer
from weft_common.errors import DataLossError, FailedPreconditionError
from weft_common.logging import get_logger
from weft_store import ObjectStore
from weft_store.documents import encode_json
from weft_store.port import RangedReads
from weft_trainer.core.retention import prune
from weft_trainer.worker.background import Background
from weft_trainer.worker.checkpoints import RunCheckpoints
from weft_trainer.worker.epochs import RankEpochs
from weft_trainer.worker.processor import device_name
from weft_trainer.worker.reads import CacheRowGroups, only
from weft_trainer.worker.reports import CONTINUE, SAVE_AND_STOP, STOP, Reporter
from weft_trainer.worker.resuming import load_newest
from weft_trainer.worker.saving import CheckpointSaver
from weft_trainer.worker.signals import StopFlag

__all__ = ["Rank"]

_CHUNK_STEPS = 20

_log = get_logger(__name__)


class Rank:
    """
    One rank of a run.

    Args:
        epochs: What each goes over; evaluations go over the held-out tokens of the first one's snapshot.
        device: Where it keeps its tensors and computes.
        attempt: Which start of the ranks this is.
        loading: How much is mixed and read ahead.
        keep_checkpoints: Newest checkpoints that stay, beside the best by evaluation; 0 keeps all.
        retry_s: How long a bucket that refuses is asked again.
        shards: Where the dataset is read, by default the bucket.
        stop: Set by SIGTERM.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: service_pb2_grpc.CacheServiceStub,
        reporter: Reporter,
        mesh: Mesh,
        config: TrainingConfig,
        normalization: Normalization,
        epochs: RankEpochs,
        stop: StopFlag,
        *,
        device: torch.device,
        run: str,
        attempt: int,
        loading: LoaderOptions,
        keep_checkpoints: int,
        retry_s: float,
        shards: RangedReads | None = None,
    ) -> None:
        self._shards = shards or store
        self._store, self._cache, self._reporter, self._mesh = store, cache, reporter, mesh
        self._config, self._normalization, self._epochs, self._stop = config, normalization, epochs, stop
        self._run, self._attempt, self._loading = run, attempt, loading
        num_layers, d_model = normalization.input_mean_LD.shape
        self._device, (self._kernels_name, kernels) = device, kernels_for(device)
        self._trainer = Trainer(
            config, normalization, mesh, kernels, num_layers=num_layers, d_model=d_model, device=device
        )
        self._checkpoints = RunCheckpoints(store, run, attempt)
        self._keep_checkpoints, self._retry_s = keep_checkpoints, retry_s
        self._background = Background(retry_s)
        self._saver = CheckpointSaver(self._checkpoints, config, mesh, self._background, self._saved)
        self._chunk: list[StepMetrics] = []

    def train(self) -> None:
        """Do the steps that are left, or stop where a directive or a signal says so."""
        # One plan for all ranks, so that a step's tokens do not depend on how many there are.
        source = self._source(messages_pb2.SPLIT_TRAIN, rank=0, world_size=1)
        loader = TokenLoader(
            source,
            self._normalization,
            step_tokens=self._config.batch.step_tokens,
            rank=self._mesh.rank,
            world_size=self._mesh.world_size,
            options=self._loading,
            passes=self._config.batch.passes,
            staging=staging_for(self._device),
        )
        try:
            self._train(source, loader)
        finally:
            loader.close()
            source.close()

    def _train(self, source: CacheRowGroups, loader: TokenLoader) -> None:
        trainer, config = self._trainer, self._config
        self._resume(loader)
        loader.end_after(config.batch.num_steps - trainer.step)
        _log.info(
            "ready",
            step=trainer.step,
            tokens_per_step=config.batch.step_tokens,
            device=device_name(self._device),
            kernels=self._kernels_name,
        )
        saved_step, order, begun = trainer.step, CONTINUE, False
        while not trainer.finished:
            order = self._order()
            if order != CONTINUE:
                break
            for _ in range(config.batch.passes - 1):
                trainer.add_pass(*self._draw(source, loader))
            metrics = trainer.train_step(*self._draw(source, loader))
            self._check_finite(metrics)
            if not begun:
                begun = True
                _log.info("first_step", step=metrics.step)
            self._record(metrics)
            self._saver.advance()
            records, step = config.records, trainer.step
            if not trainer.finished:
                if records.evaluation_steps and step % records.evaluation_steps == 0:
                    self._evaluate_and_report()
                if records.checkpoint_steps and step % records.checkpoint_steps == 0:
                    self._save(loader.state())
                    saved_step = step
        self._close_chunk()
        if order == STOP:
            return
        if trainer.step > saved_step:
            self._save(loader.state())
        self._saver.finish()
        self._background.drain(self._mesh)
        if trainer.finished:
            self._evaluate_and_report()
            self._reporter.finished()

    def evaluate(self, checkpoint_step: int, most_tokens: int) -> None:
        """Evaluate a checkpoint and write `evaluation-ranks.json` beside it."""
        trainer, axis = self._trainer, self._mesh.feature
        self._checkpoints.load(checkpoint_step, axis.rank, axis.size, trainer.params.named())
        trainer.step = checkpoint_step
        evaluation = self._evaluation(most_tokens)
        if self._mesh.rank == 0:
            key = f"{self._checkpoints.folder(checkpoint_step)}evaluation-ranks.json"
            self._store.put(key, encode_json(asdict(evaluation)))

    def _source(self, split: messages_pb2.Split.ValueType, *, rank: int, world_size: int) -> CacheRowGroups:
        return CacheRowGroups(
            self._cache,
            self._shards,
            self._config.batch.dataset,
            split,
            rank=rank,
            world_size=world_size,
            seed=self._config.batch.seed,
            over=self._epochs.over if split == messages_pb2.SPLIT_TRAIN else only(self._epochs.first),
            retry_s=self._retry_s,
        )

    def _draw(self, source: CacheRowGroups, loader: TokenLoader) -> tuple[Batch, float]:
        """
        Draw a batch, and tell how many seconds the rank that had to wait longest waited for its own.

        Raises:
            DataLossError: A value of some rank's batch is not finite.
        """
        start_s = time.perf_counter()
        batch = loader.draw()
        wait_s = self._mesh.largest(round((time.perf_counter() - start_s) * 1e6)) / 1e6
        if self._mesh.any(not loader.is_finite()):
            self._blame(source, loader)
        return batch, wait_s

    def _resume(self, loader: TokenLoader) -> None:
        resumed = load_newest(self._checkpoints, self._mesh, self._background, self._load)
        if resumed.manifest is None:
            return
        self._trainer.step = step = resumed.manifest.step
        if not self._trainer.finished:
            loader.restore(resumed.manifest.data)
        for each in resumed.damaged:
            if each.is_ours:
                self._reporter.damaged_checkpoint(each.step, each.reason, step)
        _log.info("resumed", step=step, attempt=self._attempt, damaged=[each.step for each in resumed.damaged])

    def _load(self, step: int) -> Manifest:
        """Fill this rank's state; of the last step only parameters were saved."""
        axis, trainer = self._mesh.feature, self._trainer
        self._checkpoints.manifest(step).check_run(self._config)
        final = step >= self._config.batch.num_steps
        state = trainer.params.named() if final else trainer.state()
        return self._checkpoints.load(step, axis.rank, axis.size, state)

    def _order(self) -> int:
        """What all ranks do next: the most urgent of what each has heard."""
        return self._mesh.largest(max(self._reporter.directive, SAVE_AND_STOP if self._stop.is_set else CONTINUE))

    def _blame(self, source: CacheRowGroups, loader: TokenLoader) -> NoReturn:
        """Say which value of the data is not finite; all ranks end with the words of the lowest that has one."""
        found = loader.find_not_finite()
        world = self._mesh.world_size
        teller = world - self._mesh.largest(world - self._mesh.rank if found else 0)
        own = found if found and self._mesh.rank == teller else (0,) * 5
        epoch, position, row, stream, layer = (self._mesh.largest(value) for value in own)
        row_group = source.at(epoch, position)
        where = source.describe(row_group) if row_group is not None else f"row group {position} of epoch {epoch}"
        raise DataLossError(
            f"The data of step {self._trainer.step + 1} is not finite: {('input', 'output')[stream]} of layer {layer}, "
            f"token {row} of {where}. Harvest the dataset again, without what makes such activations."
        )

    def _check_finite(self, metrics: StepMetrics) -> None:
        """Refuse to go on from a step that came to nothing, whose data was finite."""
        if math.isfinite(metrics.loss) and math.isfinite(metrics.gradient_norm):
            return
        raise FailedPreconditionError(
            f"Training diverged: the loss of step {metrics.step} is {metrics.loss}, its gradient's norm "
            f"{metrics.gradient_norm}, and its data is finite. Start a run with a lower learning rate or a longer "
            "warm-up."
        )

    def _record(self, metrics: StepMetrics) -> None:
        if self._mesh.rank != 0:
            return
        self._reporter.step(metrics)
        self._chunk.append(metrics)
        if len(self._chunk) >= _CHUNK_STEPS:
            self._close_chunk()

    def _close_chunk(self) -> None:
        if self._chunk:
            lines = [json.dumps(asdict(metrics), sort_keys=True) for metrics in self._chunk]
            key = f"runs/{self._run}/attempts/{self._attempt}/metrics-{self._chunk[0].step:08d}.jsonl"
            data = ("\n".join(lines) + "\n").encode()
            self._background.submit("metrics", lambda: self._store.put(key, data))
            self._chunk = []

    def _evaluation(self, most_tokens: int) -> Evaluation:
        world, rank = self._mesh.world_size, self._mesh.rank
        source = self._source(messages_pb2.SPLIT_HELD_OUT, rank=rank, world_size=world)
        own_most = most_tokens // world + (rank < most_tokens % world) if most_tokens else 0
        own_tokens = source.num_tokens()
        if most_tokens:
            own_tokens = min(own_tokens, own_most)
        batch_tokens = self._trainer.rank_tokens
        num_batches = self._mesh.largest(-(-own_tokens // batch_tokens))
        batches = held_out_batches(
            source, self._normalization, batch_tokens=batch_tokens, most_tokens=own_tokens, device=self._device
        )
        return self._trainer.evaluate(batches, num_batches)

    def _evaluate_and_report(self) -> None:
        evaluation = self._evaluation(self._config.records.evaluation_tokens)
        if self._mesh.rank == 0:
            self._reporter.evaluation(evaluation)

    def _save(self, data: dict[str, Any]) -> None:
        """Begin to save; after the last step without moments and clocks, which nothing will need again."""
        self._close_chunk()
        trainer = self._trainer
        self._saver.begin(trainer.step, trainer.params.named() if trainer.finished else trainer.state(), data)

    def _saved(self, step: int) -> None:
        """Tell of a checkpoint that is complete, and delete those that it makes superfluous."""
        self._reporter.checkpoint(step)
        if self._keep_checkpoints:
            prune(self._store, self._run, self._keep_checkpoints)
