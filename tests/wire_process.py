"""One rank of a mesh, for tests: notes what its steps and its sockets send, and trains in three orders of arrival."""

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from clt_cases import config_of, own_batch, trainer_of
from torch import Tensor

from weft_clt.kernels import CpuKernels
from weft_clt.mesh import GroupAxis, Mesh, Pending, Progress, SingleAxis
from weft_clt.trainer import Trainer

_TCP_INFO_BYTES = 256
_SENT_AT, _RETRANSMITTED_AT = 200, 208
"""tcpi_bytes_sent and tcpi_bytes_retrans of Linux's struct tcp_info (include/uapi/linux/tcp.h)."""


_TIMED = ("tokens_per_s", "data_wait_share")


class OneAfterTheOther(GroupAxis):
    """Waits for everything where it starts: the order of a step without overlap."""

    def _started(self, work: dist.Work | None, *tensors: Tensor) -> Pending:
        pending = super()._started(work, *tensors)
        pending.wait()
        return pending


@dataclass
class _Deferred:
    """Does what was to be started only where it is waited for."""

    run: Callable[[], Pending]
    own: Tensor

    def __post_init__(self) -> None:
        self._was = self.own.clone()

    def wait(self) -> None:
        assert torch.equal(self.own, self._was), "A tensor was written while it was on its way."
        self.run().wait()


def _spoil(tensor: Tensor) -> None:
    tensor.fill_(torch.nan if tensor.is_floating_point() else 77)


class AtTheLatest(GroupAxis):
    """A network so slow that nothing arrives before it is waited for; until then there is rubbish where it goes."""

    def start_gather_into(self, out: Tensor, own: Tensor) -> Pending:
        _spoil(out)
        start = super().start_gather_into
        return _Deferred(lambda: start(out, own), own)

    def start_exchange(self, out: Tensor, own: Tensor, out_sizes: list[int], own_sizes: list[int]) -> Pending:
        _spoil(out)
        start = super().start_exchange
        return _Deferred(lambda: start(out, own, out_sizes, own_sizes), own)

    def start_sum_(self, tensor: Tensor) -> Pending:
        own, start = tensor.clone(), super().start_sum_
        _spoil(tensor)

        def run() -> Pending:
            assert torch.allclose(tensor, spoilt, 0, 0, equal_nan=True), "A tensor was written while it was summed."
            return start(tensor.copy_(own))

        spoilt = tensor.clone()
        return _Deferred(run, own)


def mesh_of(feature_ranks: int, data_ranks: int, axis: type[GroupAxis]) -> Mesh:
    """A mesh with one axis of all ranks."""
    assert 1 in (feature_ranks, data_ranks)
    progress = Progress()
    made = axis(dist.new_group(), progress=progress)
    return Mesh(made, SingleAxis(), progress) if feature_ranks > 1 else Mesh(SingleAxis(), made, progress)


@contextmanager
def noted() -> Iterator[list[dict[str, Any]]]:
    """Note what torch.distributed is given: kind, type, shape, and the bytes that are for other ranks."""
    notes: list[dict[str, Any]] = []
    gather, exchange, reduce = dist.all_gather_single, dist.all_to_all_single, dist.all_reduce

    def note(kind: str, tensor: Tensor, bytes_for_others: int) -> None:
        notes.append(
            {"kind": kind, "dtype": str(tensor.dtype), "shape": list(tensor.shape), "for_others": bytes_for_others}
        )

    def noting_gather(out: Tensor, own: Tensor, **options: Any) -> Any:
        assert out.nbytes == own.nbytes * dist.get_world_size()
        note("gather", own, out.nbytes - own.nbytes)
        return gather(out, own, **options)

    def noting_exchange(out: Tensor, own: Tensor, out_sizes: list[int], own_sizes: list[int], **options: Any) -> Any:
        runs = torch.split(own, own_sizes)
        note("exchange", own, sum(run.nbytes for rank, run in enumerate(runs) if rank != dist.get_rank()))
        return exchange(out, own, out_sizes, own_sizes, **options)

    def noting_reduce(tensor: Tensor, kind: Any, **options: Any) -> Any:
        # Two ranks, a ring: each sends as many bytes as the tensor has, between them.
        note("reduce", tensor, tensor.nbytes)
        return reduce(tensor, kind, **options)

    dist.all_gather_single, dist.all_to_all_single, dist.all_reduce = noting_gather, noting_exchange, noting_reduce
    try:
        yield notes
    finally:
        dist.all_gather_single, dist.all_to_all_single, dist.all_reduce = gather, exchange, reduce


def socket_bytes() -> int:
    """Bytes that all connected sockets of this process have sent, each once."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
        except OSError:  # the folder's own descriptor is closed by now
            continue
        with socket.socket(fileno=os.dup(int(name))) as found:
            if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
                continue
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        sent, again = (struct.unpack_from("Q", info, place)[0] for place in (_SENT_AT, _RETRANSMITTED_AT))
        total += sent - again
    return total


def trained(mesh: Mesh, case: dict[str, Any], feature_ranks: int, data_ranks: int) -> tuple[Trainer, list[Any]]:
    """Train all steps; the metrics are those that do not depend on the time it took."""
    config = config_of(**case, feature_ranks=feature_ranks, data_ranks=data_ranks)
    trainer = trainer_of(config, CpuKernels(), mesh)
    metrics = []
    for step in range(1, config.batch.num_steps + 1):
        found = asdict(trainer.train_step(own_batch(step, mesh, config.batch.step_tokens)))
        metrics.append({name: value for name, value in found.items() if name not in _TIMED})
    return trainer, metrics


def orders(case: dict[str, Any], feature_ranks: int, data_ranks: int) -> dict[str, Any]:
    """The state and metrics of each order of collectives."""
    found: dict[str, Any] = {}
    for axis in (GroupAxis, OneAfterTheOther, AtTheLatest):
        trainer, metrics = trained(mesh_of(feature_ranks, data_ranks, axis), case, feature_ranks, data_ranks)
        found[axis.__name__] = ({name: tensor.clone() for name, tensor in trainer.state()}, metrics)
    return found


def wire(case: dict[str, Any], feature_ranks: int, data_ranks: int) -> dict[str, Any]:
    """What one run's collectives are, what the mesh counts of them, and what leaves through the sockets."""
    mesh = mesh_of(feature_ranks, data_ranks, GroupAxis)
    mesh.any(False)  # connects
    before, left = mesh.sent_bytes, socket_bytes()
    with noted() as notes:
        trainer, metrics = trained(mesh, case, feature_ranks, data_ranks)
    sent = mesh.sent_bytes
    mesh.any(False)  # what was sent before has arrived
    return {
        "notes": notes,
        "metrics": metrics,
        "sent_bytes": sent - before,
        "entry_bytes": trainer.engine.entry_bytes,
        "socket_bytes": socket_bytes() - left,
        "meeting_bytes": mesh.sent_bytes - sent,
    }


def train_rank(
    rank: int, feature_ranks: int, data_ranks: int, cases: dict[str, dict[str, dict[str, Any]]], folder: str
) -> None:
    """Train every case as one rank, and write what was found into the folder, in which the ranks meet."""
    torch.set_num_threads(1)
    world = feature_ranks * data_ranks
    store = dist.FileStore(f"{folder}/store", world)  # type: ignore[no-untyped-call]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    made = {"orders": orders, "wire": wire}
    found = {
        kind: {name: made[kind](case, feature_ranks, data_ranks) for name, case in cases[kind].items()} for kind in made
    }
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
