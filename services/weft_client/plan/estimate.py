"""
A plan: a workload, where it runs, what lies in the bucket, how long it takes and what it costs.

Formulas of memory, messages and operations are `weft_clt.sizing`; those of a shard are `weft_store.shard`'s format.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from weft_client.plan.devices import Device, StepTime, step_time
from weft_client.plan.models import ModelShape
from weft_clt.sizing import Workload

PROCESS_BYTES = 688 << 20
"""Interpreter, torch and libraries of a rank on a CPU, measured at its start."""
USABLE_SHARE = 0.9
"""Of a device's memory; the rest is for allocators and libraries."""
BITS = {"uniform": 5.2, "klt": 4.7, "bf16": 11.1}
"""Bits a value, measured on SmolLM2-135M's MLP inputs and outputs; uniform and klt at an FVU of 1e-3."""
_SHARD_TOKENS = 2040
_ROW_GROUP_TOKENS = 256
_TABLE_ROW_BYTES = 32
_BASIS_BYTES = 2


@dataclass(frozen=True)
class Storage:
    """
    What lies in the bucket.

    Args:
        dataset: Activations, both splits.
        checkpoint: One in the middle of the run.
        checkpoints: All of the run's; none is deleted.
        transcoder: The export.
    """

    dataset: int
    checkpoint: int
    checkpoints: int
    transcoder: int

    @property
    def total(self) -> int:
        """All that stays."""
        return self.dataset + self.checkpoints + self.transcoder


def dataset_bytes(num_layers: int, d_model: int, num_tokens: int, bits: float, *, has_basis: bool = False) -> int:
    """
    Bytes of a dataset's shards: values, and around them means, orders and tables of blocks; and of its basis, once.

    >>> dataset_bytes(1, 1000, 1000, 8.0) // 1000
    2006
    """
    values = 2 * num_layers * d_model * num_tokens * bits / 8
    parameters = 2 * num_layers * (4 + 6 * d_model) * num_tokens / _SHARD_TOKENS
    table = 2 * num_layers * _TABLE_ROW_BYTES * num_tokens / _ROW_GROUP_TOKENS
    basis = 2 * num_layers * _BASIS_BYTES * d_model**2 if has_basis else 0
    return round(values + parameters + table + basis)


@dataclass(frozen=True)
class Plan:
    """
    All that is asked and all that follows.

    Args:
        model: Its shape.
        work: The run.
        tokens: That are trained on, over all epochs.
        epochs: Times that the training split is read.
        held_out_share: Share of the dataset that is not trained on.
        bits: Of a stored value.
        checkpoint_steps: Steps between checkpoints; 0 keeps only the last.
        device: That a rank runs on; None where a rate is given and its memory does not matter.
        network_gbit: That a rank can send, in gigabits a second.
        tokens_per_s: Measured by whoever asks, over all ranks; 0 estimates it.
        price: Of one rank's hour; 0 where it is not asked.
    """

    model: ModelShape
    work: Workload
    tokens: int
    epochs: float
    held_out_share: float
    bits: float
    checkpoint_steps: int
    device: Device
    network_gbit: float
    tokens_per_s: float
    price: float

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return math.ceil(self.tokens / self.work.step_tokens)

    @property
    def dataset_tokens(self) -> int:
        """Tokens to harvest, both splits."""
        return math.ceil(self.tokens / self.epochs / (1 - self.held_out_share))

    @property
    def storage(self) -> Storage:
        """What lies in the bucket at the end."""
        work = self.work
        between = (self.num_steps - 1) // self.checkpoint_steps if self.checkpoint_steps else 0
        return Storage(
            dataset=dataset_bytes(
                work.num_layers, work.d_model, self.dataset_tokens, self.bits, has_basis=work.has_basis
            ),
            checkpoint=work.checkpoint_bytes,
            checkpoints=between * work.checkpoint_bytes + work.last_checkpoint_bytes,
            transcoder=work.transcoder_bytes,
        )

    @property
    def rank_bytes(self) -> int:
        """Memory of a rank, its process included where that is on a CPU."""
        return self.work.memory().total + (PROCESS_BYTES if self.device.measured else 0)

    @property
    def step(self) -> StepTime:
        """Estimated time of a step."""
        return step_time(self.work, self.device, self.network_gbit)

    @property
    def rate(self) -> float:
        """Tokens a second over all ranks."""
        return self.tokens_per_s or self.work.step_tokens / self.step.total

    @property
    def basis(self) -> str:
        """Where the rate comes from."""
        return "measurement: given" if self.tokens_per_s else self.device.basis

    @property
    def hours(self) -> float:
        """Of training."""
        return self.tokens / self.rate / 3600

    @property
    def cost(self) -> float:
        """Of training, in the price's currency."""
        return self.hours * self.work.world_size * self.price

    def fits(self) -> bool:
        """Whether a rank fits its device."""
        limit = self.device.memory_bytes
        return limit == 0 or self.rank_bytes <= USABLE_SHARE * limit

    def smallest_fit(self) -> int:
        """Fewest feature ranks with which a rank fits its device; 0 where none are enough."""
        return next((each.work.feature_ranks for each in self._spreads() if each.fits()), 0)

    def leanest(self) -> int:
        """The number of feature ranks with which a rank takes least memory."""
        return min(self._spreads(), key=lambda each: each.rank_bytes).work.feature_ranks

    def _spreads(self) -> Iterator["Plan"]:
        """The same over every possible number of feature ranks, ascending."""
        for ranks in _divisors(math.gcd(self.work.num_features, self.work.d_model)):
            if self.work.step_tokens % (ranks * self.work.data_ranks * self.work.passes) == 0:
                yield replace(self, work=replace(self.work, feature_ranks=ranks))

    def notes(self) -> list[str]:
        """What a reader has to know about these figures."""
        found = []
        if not self.fits():
            ranks = self.smallest_fit()
            leanest = f"no number of feature ranks does; {self.leanest()} take least"
            way = f"{ranks} feature ranks are the fewest that do" if ranks else leanest
            found.append(f"a rank does not fit {self.device.name}; {way}")
        if not self.device.measured:
            found.append("weft's step was never timed on a GPU: its figures are estimates of what one would do")
        if self.work.float_bytes != 4:
            found.append("weft trains in float32 today: another type is an estimate")
        if self.work.jumps:
            found.append("near is what the bandwidth makes of it: compare sent_bytes_per_token of a short run")
        if self.work.aux_top_k:
            found.append(
                "memory, network and operations of AuxK are for as many dead features as it may list; most runs have "
                "fewer"
            )
        return found

    def document(self) -> dict[str, Any]:
        """All of it, for programs."""
        work, memory, network, flops, export = (
            self.work,
            self.work.memory(),
            self.work.network(),
            self.work.flops(),
            self.work.export(),
        )
        return {
            "model": asdict(self.model),
            "run": {
                **asdict(work),
                "activation": str(work.activation),
                "ranks": work.world_size,
                "tokens": self.tokens,
                "steps": self.num_steps,
            },
            "parameters": {
                "encoder": work.num_encoder_parameters,
                "decoder": work.num_decoder_parameters,
                "total": work.num_parameters,
                "rank": work.rank_parameters,
            },
            "memory_bytes": {
                **asdict(memory),
                "process": self.rank_bytes - memory.total,
                "rank": self.rank_bytes,
                "export": export.peak,
            },
            "network_bytes": {
                **asdict(network),
                "step": network.total,
                "token": network.total / work.step_tokens,
                "all_ranks_step": network.total * work.world_size,
            },
            "bucket_bytes": {
                **asdict(self.storage),
                "total": self.storage.total,
                "dataset_tokens": self.dataset_tokens,
            },
            "flops_per_token": {**asdict(flops), "total": flops.total},
            "time": {
                "device": self.device.name,
                "basis": self.basis,
                "step_s": {**asdict(self.step), "total": self.step.total},
                "tokens_per_s": self.rate,
                "hours": self.hours,
                "fits": self.fits(),
                "feature_ranks_that_fit": self.smallest_fit(),
            },
            "cost": {"rank_hours": self.hours * work.world_size, "price": self.price, "total": self.cost},
            "notes": self.notes(),
        }


def _divisors(number: int) -> Iterator[int]:
    """
    Yield all divisors, ascending.

    >>> list(_divisors(12))
    [1, 2, 3, 4, 6, 12]
    """
    yield from (each for each in range(1, number + 1) if number % each == 0)
