"""
Who works with whom: D groups on the data axis, R ranks on the feature axis of each group.

Rank r of the world is rank r % R of group r // R, so that a group's neighbours are on one machine.
An axis of one rank does nothing and needs no process group.

What an axis starts goes on in the background, while the rank computes what does not depend on it; whoever needs the
outcome waits for it. All ranks start, and wait for, the same in the same order.

Tensors travel from where they lie: those of the host by gloo, those of a GPU by NCCL, over the same groups. NCCL only
has the GPU wait, and the host would go on until it reads some number; so the host waits for the GPU here, where
`Progress` knows of it, and a rank that others keep waiting can tell so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Axis", "GroupAxis", "Mesh", "Pending", "Progress", "SingleAxis", "make_mesh"]


@dataclass
class Progress:
    """
    How far a rank is in the collectives that all ranks go through in one order.

    A rank enters one where it waits for its outcome, whenever it was started. So a rank that waits for others has
    entered at least one more than a rank that has not started what it waits for.
    """

    entered: int = 0
    inside_since_s: float | None = None
    """By `time.monotonic`, where it is in one."""

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count a collective."""
        self.inside_since_s = time.monotonic()
        self.entered += 1
        try:
            yield
        finally:
            self.inside_since_s = None


class Pending(Protocol):
    """A collective under way: until it was waited for, its tensors are neither read, nor written, nor freed."""

    def wait(self) -> None:
        """Return once its outcome is there, on a GPU as on the host."""
        ...


class _Done:
    """What one rank alone has at once."""

    def wait(self) -> None:
        pass


@dataclass(frozen=True)
class _UnderWay:
    """Work of a process group."""

    work: dist.Work
    progress: Progress
    tensors: tuple[Tensor, ...]
    """Kept alive until it is done."""

    def wait(self) -> None:
        with self.progress.inside():
            self.work.wait()
            device = self.tensors[0].device
            if device.type != "cpu":
                torch.cuda.current_stream(device).synchronize()


class Axis(Protocol):
    """The collectives of one axis of the mesh; all but those that are only started block."""

    rank: int
    size: int
    sent_bytes: int
    """
    Bytes of tensors that this rank has handed to other ranks, counted where a collective starts.

    A reduction counts as a ring: over all ranks 2 (size - 1) times the tensor, of which each rank has its even share.
    """

    def gather(self, own: Tensor) -> Tensor:
        """Stack the equally shaped tensors of all ranks, [size, ...]."""
        ...

    def gather_into(self, out: Tensor, own: Tensor) -> None:
        """Write the equally shaped tensors of all ranks one after the other into `out`."""
        ...

    def start_gather_into(self, out: Tensor, own: Tensor) -> Pending:
        """Start what `gather_into` does."""
        ...

    def start_exchange(self, out: Tensor, own: Tensor, out_sizes: list[int], own_sizes: list[int]) -> Pending:
        """Start to send each rank its run of rows of `own`, and to receive a run of `out` from each."""
        ...

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over ranks."""
        ...

    def start_sum_(self, tensor: Tensor) -> Pending:
        """Start what `sum_` does."""
        ...

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its largest over ranks."""
        ...

    def read(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the host, once the device has it; a rank whose device waits for others waits there."""
        ...


@dataclass
class SingleAxis:
    """An axis of one rank."""

    rank: int = 0
    size: int = 1
    sent_bytes: int = 0

    def gather(self, own: Tensor) -> Tensor:
        return own[None]

    def gather_into(self, out: Tensor, own: Tensor) -> None:
        out.copy_(own.view(out.shape))

    def start_gather_into(self, out: Tensor, own: Tensor) -> Pending:
        self.gather_into(out, own)
        return _Done()

    def start_exchange(self, out: Tensor, own: Tensor, out_sizes: list[int], own_sizes: list[int]) -> Pending:
        out.copy_(own)
        return _Done()

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def start_sum_(self, tensor: Tensor) -> Pending:
        return _Done()

    def max_(self, tensor: Tensor) -> Tensor:
        return tensor

    def read(self, tensor: Tensor) -> Tensor:
        return tensor.cpu()


@dataclass
class GroupAxis:
    """An axis over a process group; tensors lie where its backend wants them."""

    group: dist.ProcessGroup
    rank: int = field(init=False)
    size: int = field(init=False)
    sent_bytes: int = 0
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.rank, self.size = self.group.rank(), self.group.size()

    def gather(self, own: Tensor) -> Tensor:
        out = own.new_empty(self.size, *own.shape)
        self.gather_into(out, own)
        return out

    def gather_into(self, out: Tensor, own: Tensor) -> None:
        self.start_gather_into(out, own).wait()

    def start_gather_into(self, out: Tensor, own: Tensor) -> Pending:
        flat_out, flat_own = out.view(-1), own.reshape(-1)
        self.sent_bytes += own.nbytes * (self.size - 1)
        work = dist.all_gather_single(flat_out, flat_own, group=self.group, async_op=True)
        return self._started(work, flat_out, flat_own)

    def start_exchange(self, out: Tensor, own: Tensor, out_sizes: list[int], own_sizes: list[int]) -> Pending:
        row_bytes = own.nbytes // max(own.shape[0], 1)
        self.sent_bytes += (own.shape[0] - own_sizes[self.rank]) * row_bytes
        work = dist.all_to_all_single(out, own, out_sizes, own_sizes, group=self.group, async_op=True)
        return self._started(work, out, own)

    def sum_(self, tensor: Tensor) -> Tensor:
        self.start_sum_(tensor).wait()
        return tensor

    def start_sum_(self, tensor: Tensor) -> Pending:
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max_(self, tensor: Tensor) -> Tensor:
        self._reduce(tensor, dist.ReduceOp.MAX).wait()
        return tensor

    def read(self, tensor: Tensor) -> Tensor:
        return _read(tensor, self.progress)

    def _reduce(self, tensor: Tensor, kind: dist.ReduceOp.RedOpType) -> Pending:
        # The rank rounds its share, so that the ranks' shares are the ring's traffic to the byte.
        self.sent_bytes += (2 * tensor.nbytes * (self.size - 1) + self.rank) // self.size
        return self._started(dist.all_reduce(tensor, kind, group=self.group, async_op=True), tensor)

    def _started(self, work: dist.Work | None, *tensors: Tensor) -> Pending:
        assert work is not None  # only a process outside of the group has none
        return _UnderWay(work, self.progress, tensors)


def _read(tensor: Tensor, progress: Progress) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    with progress.inside():
        return tensor.cpu()


@dataclass(frozen=True)
class Mesh:
    """The two axes of one rank."""

    feature: Axis
    data: Axis
    progress: Progress = field(default_factory=Progress)
    """Over both axes; one rank alone makes none."""

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.feature.size * self.data.size

    @property
    def rank(self) -> int:
        """Index of this rank in the world."""
        return self.data.rank * self.feature.size + self.feature.rank

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has handed to others on both axes."""
        return self.feature.sent_bytes + self.data.sent_bytes

    def read(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the host, once the device has it, whichever axis that waits for."""
        return _read(tensor, self.progress)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.largest(int(flag)) > 0

    def largest(self, value: int) -> int:
        """Return the largest of all ranks' integers."""
        return int(self.data.max_(self.feature.max_(torch.tensor([value], dtype=torch.int64))).item())


def make_mesh(feature_ranks: int, data_ranks: int) -> Mesh:
    """
    Lay out the world of `torch.distributed`, which must have feature_ranks x data_ranks ranks; one rank needs no world.

    Collectives: creates the groups, on every rank.
    """
    if feature_ranks * data_ranks == 1:
        return Mesh(SingleAxis(), SingleAxis())
    rank, progress = dist.get_rank(), Progress()
    feature: Axis = SingleAxis()
    data: Axis = SingleAxis()
    if feature_ranks > 1:
        for group in range(data_ranks):
            members = list(range(group * feature_ranks, (group + 1) * feature_ranks))
            made = dist.new_group(members)
            if rank in members:
                feature = GroupAxis(made, progress=progress)
    if data_ranks > 1:
        for column in range(feature_ranks):
            members = list(range(column, feature_ranks * data_ranks, feature_ranks))
            made = dist.new_group(members)
            if rank in members:
                data = GroupAxis(made, progress=progress)
    return Mesh(feature, data, progress)
