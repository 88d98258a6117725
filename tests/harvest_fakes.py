"""
Stands in for what a harvest needs, each after the same Protocol as the real thing.

    FakeBackend      a "model" whose activations are a function of token and position that bfloat16 holds exactly
    FakeCatalog      the catalog of datasets over a store
    Mortal           wraps a store or a catalog and dies at a given call, before or after its effect
"""

import asyncio
import hashlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from weft_activations.core.ports import (
    CommittedShard,
    DatasetSpec,
    DatasetState,
    Decoding,
    Freeze,
    Intervention,
    ModelInfo,
    Passes,
    UploadTarget,
)
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    UnimplementedError,
)
from weft_store.port import ObjectStore

NUM_LAYERS, D_MODEL = 2, 4


def expected_row(token: int, position: int) -> tuple[list[list[float]], list[list[float]]]:
    """Tell a token's inputs and outputs, [layers][d_model] each."""
    inputs = [[float(token), float(position), float(layer), 1.0] for layer in range(NUM_LAYERS)]
    outputs = [[float(token), -float(position), 0.0, float(layer)] for layer in range(NUM_LAYERS)]
    return inputs, outputs


class FakeBackend:
    """One model, `fake`; a token is a byte of text."""

    def __init__(
        self, *, bos_token_id: int | None = None, revision: str = "5eed" * 16, on_processor: bool = True
    ) -> None:
        self.bos_token_id = bos_token_id
        self.on_processor = on_processor
        self.revision = revision
        self.tokens_run = 0

    def model_ids(self) -> list[str]:
        return ["fake"]

    def describe(self, model_id: str) -> ModelInfo:
        if model_id != "fake":
            raise NotFoundError(f"there is no model {model_id!r}")
        return ModelInfo(
            model_id=model_id,
            architecture="Fake",
            num_layers=NUM_LAYERS,
            d_model=D_MODEL,
            num_heads=2,
            num_kv_heads=2,
            vocab_size=128,
            max_tokens=64,
            revision=self.revision,
            data_type="float32",
            bos_token_id=self.bos_token_id,
            d_head=D_MODEL // 2,
            d_mlp=D_MODEL,
            components=("layers.*.resid_mid", "layers.*.mlp_in", "layers.*.mlp_out", "logits"),
        )

    def tokenize(self, model_id: str, text: str, *, special_tokens: bool = True) -> list[int]:
        start = [self.bos_token_id] if special_tokens and self.bos_token_id is not None else []
        return start + [ord(letter) for letter in text]

    def token_pieces(self, model_id: str, token_ids: Sequence[int]) -> list[bytes]:
        return [chr(token_id).encode() for token_id in token_ids]

    def forward(
        self,
        model_id: str,
        token_ids: Sequence[int],
        hooks: Sequence[str],
        interventions: Sequence[Intervention] = (),
        freeze: Freeze | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        return {hook: np.zeros((len(token_ids), D_MODEL), np.float32) for hook in hooks}

    def decoding(self, model_id: str, interventions: Sequence[Intervention] = ()) -> Decoding:
        raise UnimplementedError("the fake model generates nothing")

    def passes(self, model_id: str, sequences: Sequence[Sequence[int]], input_hook: str) -> Passes:
        raise UnimplementedError("the fake model has no MLPs to replace")

    def streams(
        self,
        model_id: str,
        turns: Sequence[Sequence[npt.NDArray[np.int64]]],
        into: Mapping[str, npt.NDArray[np.float32]],
        others_wait: Callable[[], bool] = lambda: False,
    ) -> int:
        at = 0
        for number, turn in enumerate(turns):
            if number and others_wait():
                return number
            for sequence in turn:
                self.tokens_run += len(sequence)
                for position, token_id in enumerate(sequence.tolist()[1:], start=1):
                    inputs, outputs = map(np.array, expected_row(token_id, position))
                    for hook, rows in into.items():
                        # What one hook gives is seen not to be the other's.
                        rows[:, at] = outputs if hook == "mlp_out" else inputs + (hook == "resid_mid")
                    at += 1
        return len(turns)


@dataclass
class FakeDataset:
    spec: DatasetSpec
    sealed: bool = False
    shards: dict[int, CommittedShard] = field(default_factory=dict)


class FakeCatalog:
    """Keeps the promises of weft.cache.v1 that a harvest relies on."""

    def __init__(self, store: ObjectStore) -> None:
        self.datasets: dict[str, FakeDataset] = {}
        self._store = store
        self._uploads = itertools.count()

    async def create_dataset(self, dataset_id: str, spec: DatasetSpec) -> DatasetState:
        found = self.datasets.setdefault(dataset_id, FakeDataset(spec))
        if found.spec != spec:
            raise AlreadyExistsError(f"datasets/{dataset_id} has another spec")
        return DatasetState.SEALED if found.sealed else DatasetState.OPEN

    async def find_dataset(self, dataset_id: str) -> tuple[DatasetSpec, DatasetState] | None:
        found = self.datasets.get(dataset_id)
        return None if found is None else (found.spec, DatasetState.SEALED if found.sealed else DatasetState.OPEN)

    async def begin_shard(self, dataset_id: str, index: int) -> UploadTarget:
        dataset = self._get(dataset_id)
        if index in dataset.shards:
            return UploadTarget(dataset.shards[index].key, "", dataset.shards[index])
        if dataset.sealed:
            raise FailedPreconditionError(f"datasets/{dataset_id} is sealed")
        return UploadTarget(f"datasets/{dataset_id}/shards/{index}-{next(self._uploads):x}.weft", "", None)

    async def commit_shard(self, dataset_id: str, shard: CommittedShard) -> CommittedShard:
        dataset = self._get(dataset_id)
        if shard.index in dataset.shards:
            return dataset.shards[shard.index]
        if dataset.sealed:
            raise FailedPreconditionError(f"datasets/{dataset_id} is sealed")
        try:
            data = self._store.get(shard.key)
        except NotFoundError as error:
            raise DataLossError(f"{shard.key} is not there") from error
        if (len(data), hashlib.sha256(data).hexdigest()) != (shard.size_bytes, shard.sha256):
            raise DataLossError(f"{shard.key} is not what was announced")
        dataset.shards[shard.index] = replace(shard, statistics=())
        return dataset.shards[shard.index]

    async def seal_dataset(self, dataset_id: str, num_shards: int) -> None:
        dataset = self._get(dataset_id)
        if sorted(dataset.shards) != list(range(num_shards)):
            raise FailedPreconditionError(f"datasets/{dataset_id} has the shards {sorted(dataset.shards)} only")
        dataset.sealed = True

    def _get(self, dataset_id: str) -> FakeDataset:
        if dataset_id not in self.datasets:
            raise NotFoundError(f"there is no dataset datasets/{dataset_id}")
        return self.datasets[dataset_id]


class KilledError(BaseException):
    """What a killed process does not live to see; no `except Exception` may catch it."""


class Fate:
    """
    Counts calls over everything a process touches, and kills it at one of them.

    Args:
        at: Number of the fatal call, from 0; None lives forever.
        after: Whether the fatal call still has its effect.
    """

    def __init__(self, at: int | None, *, after: bool) -> None:
        self.at = at
        self.after = after
        self.calls = 0

    def before(self) -> bool:
        """Count a call; True where it is the last one, and has its effect first."""
        number = self.calls
        self.calls += 1
        if self.at is None or number < self.at:
            return False
        if number == self.at and self.after:
            return True
        raise KilledError


class Mortal:
    """Passes every call on, as long as its process lives."""

    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if inspect.iscoroutinefunction(method):

            async def call(*args: Any, **kwargs: Any) -> Any:
                last = self._fate.before()
                await asyncio.sleep(0)
                found = await method(*args, **kwargs)
                if last:
                    raise KilledError
                return found

            return call

        def call_sync(*args: Any, **kwargs: Any) -> Any:
            last = self._fate.before()
            found = method(*args, **kwargs)
            if last:
                raise KilledError
            return found

        return call_sync
