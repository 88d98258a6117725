"""A training run of one rank over a bucket, which saves every second step: what the fault tests start and kill."""

from pathlib import Path

import torch
from clt_cases import config_of, own_batch, trainer_of
from faulty_store import Fault, FaultyObjectStore

from weft_clt.checkpoint import Manifest
from weft_clt.config import TrainingConfig
from weft_clt.kernels import ReferenceKernels
from weft_clt.trainer import Trainer
from weft_store import ObjectStore
from weft_store.adapters.file import FileObjectStore
from weft_store.documents import encode_json
from weft_trainer.core.retention import prune
from weft_trainer.worker.background import Background
from weft_trainer.worker.checkpoints import RunCheckpoints
from weft_trainer.worker.resuming import load_newest
from weft_trainer.worker.saving import CheckpointSaver

NUM_STEPS, SAVE_STEPS, KEEP = 5, 2, 1


def config() -> TrainingConfig:
    return config_of(num_steps=NUM_STEPS)


def load(checkpoints: RunCheckpoints) -> Trainer:
    """A trainer at the newest checkpoint, or at the start."""
    trainer = trainer_of(config(), ReferenceKernels())

    def fill(step: int) -> Manifest:
        manifest = checkpoints.load(step, 0, 1, trainer.state())
        manifest.check_run(config())
        return manifest

    manifest = load_newest(checkpoints, trainer.mesh, Background(0.0), fill).manifest
    if manifest:
        assert manifest.data == {"draws": manifest.step}
        trainer.step = manifest.step
    return trainer


def train(root: str, fault: Fault, retry_s: float = 0.0, keep: int = KEEP) -> int:
    """Train over a folder; return how many writes that took."""
    store = FaultyObjectStore(FileObjectStore(Path(root)), fault)
    train_over(store, retry_s, keep)
    return store.writes


def train_over(store: ObjectStore, retry_s: float, keep: int = KEEP) -> None:
    """Go on from the newest checkpoint to the end."""
    torch.set_num_threads(1)
    checkpoints = RunCheckpoints(store, "r", 1)
    trainer = load(checkpoints)
    background = Background(retry_s)

    def saved(step: int) -> None:
        prune(store, "r", keep)

    saver = CheckpointSaver(checkpoints, config(), trainer.mesh, background, saved)
    while not trainer.finished:
        step = trainer.step + 1
        trainer.train_step(own_batch(step, trainer.mesh))
        saver.advance()
        if step % SAVE_STEPS == 0 or trainer.finished:
            saver.begin(step, trainer.state(), {"draws": step})
    saver.finish()
    background.drain(trainer.mesh)


def prepare(root: str) -> None:
    """Make the run's document."""
    FileObjectStore(Path(root)).put("runs/r/run.json", encode_json({"attempt": 1}))
