"""
CLT-Forge's own training, by its own trainer, over tokens that are given to it; runs in its environment.

Source: LLM-Interp/CLT-Forge at dcf4cc8, `clt_forge/training/clt_trainer.py`. Of it come the model, its start, losses,
gradients, clipping, Adam, both schedules and the order of all of these. Not of it: the tokens, which are in memory in
place of its store of files; and, where a layer has fewer than 20,000 features, the start of the encoder's biases: its
code asks for a firing rate of 10,000 / F, which is above 1 (an index error) below 10,000 features; here it is at most a
half.
Needs torch, numpy, pydantic, safetensors, jaxtyping.
Shapes: N tokens, T of a step, L layers, F features of a layer, D d_model, C tokens of the biases' calibration.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MOST_RATE = 0.5


class Tokens:
    """What its store gives: inputs and targets of a step, [T, L, D] each; every iteration begins at the first."""

    def __init__(self, inputs: str, targets: str, order: str) -> None:
        self._streams = [np.load(path, mmap_mode="r") for path in (inputs, targets)]
        self._order = np.load(order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen_T in self._order:
            inputs_TLD, targets_TLD = (torch.from_numpy(stream[chosen_T]).float() for stream in self._streams)
            yield inputs_TLD, targets_TLD

    @property
    def shape(self) -> tuple[int, int]:
        """L and D."""
        num_layers, d_model = self._streams[0].shape[1:]
        return num_layers, d_model


def _stand_in(name: str, **members: object) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # torch asks for it
    for member, value in members.items():
        setattr(module, member, value)
    sys.modules[name] = module


def _without_what_is_not_used() -> None:
    """Its trainer imports a progress bar, a logging service and its store of files, which imports much more."""
    _stand_in("wandb")
    _stand_in("tqdm", tqdm=lambda what, **_: what)
    _stand_in("clt_forge.training.activations_store", ActivationsStore=Tokens)


def _calibrate(clt: Any, hidden_pre_CLF: Tensor) -> None:
    """Do what its `_initialize_b_enc` does, at a rate of a half."""
    with torch.no_grad():
        place = int(_MOST_RATE * hidden_pre_CLF.shape[0]) + 1
        for layer in range(hidden_pre_CLF.shape[1]):
            ordered_CF = hidden_pre_CLF[:, layer].sort(dim=0, descending=True).values
            clt.b_enc[layer] = clt.log_threshold[layer].exp() - ordered_CF[place]


def main() -> None:
    """Train, and leave weights and seconds in a folder."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    sys.path.insert(0, f"{asked['tree']}/src")
    _without_what_is_not_used()
    from clt_forge.clt import CLT
    from clt_forge.config import CLTConfig, CLTTrainingRunnerConfig
    from clt_forge.training.clt_trainer import CLTTrainer

    tokens = Tokens(asked["inputs"], asked["targets"], asked["order"])
    num_layers, d_model = tokens.shape
    config = CLTTrainingRunnerConfig(
        device="cpu",
        dtype="float32",
        seed=asked["seed"],
        d_in=d_model,
        distributed_setup="None",
        log_to_wandb=False,
        logger_verbose=False,
        n_checkpoints=0,
        **asked["settings"],
    )
    clt = CLT(config.create_sub_config(CLTConfig, n_layers=num_layers))
    if 10_000 / config.d_latent > _MOST_RATE:
        clt._initialize_b_enc = lambda hidden_pre_CLF: _calibrate(clt, hidden_pre_CLF)
    folder = Path(asked["folder"])

    def save(trainer: Any, checkpoint_name: str) -> None:
        trainer.clt.save_model(str(folder))

    started_s = time.perf_counter()
    CLTTrainer(clt, tokens, config, save).fit()
    (folder / "answer.json").write_text(json.dumps({"seconds": time.perf_counter() - started_s}))


if __name__ == "__main__":
    main()
