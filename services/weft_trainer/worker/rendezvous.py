"""
How ranks in pods find each other: rank 0 under a fixed name, which the others wait for.

torch itself waits for the port behind the name, but gives up at once on a name that does not resolve yet.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from weft_common.errors import InvalidArgumentError, UnavailableError
from weft_common.logging import get_logger
from weft_trainer.worker.signals import StopFlag

if TYPE_CHECKING:
    from weft_trainer.worker.watchdog import Notes

__all__ = ["backends", "join", "rank_and_world", "wait_for_name"]

_log = get_logger(__name__)


def rank_and_world(environment: Mapping[str, str]) -> tuple[int, int]:
    """
    Read RANK and WORLD_SIZE. InvalidArgumentError where they make no sense.

    >>> rank_and_world({"RANK": "1", "WORLD_SIZE": "2"}), rank_and_world({})
    ((1, 2), (0, 1))
    """
    texts = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    try:
        rank, world_size = map(int, texts)
    except ValueError:
        rank, world_size = -1, 0
    if not 0 <= rank < world_size:
        raise InvalidArgumentError(
            f"RANK is {texts[0]!r} and WORLD_SIZE {texts[1]!r}: give numbers, the first from 0 and below the second."
        )
    return rank, world_size


def backends(*, gpus: bool) -> str:
    """
    Name what carries tensors, by where they lie, as torch.distributed has it.

    >>> backends(gpus=False), backends(gpus=True)
    ('gloo', 'cpu:gloo,cuda:nccl')
    """
    return "cpu:gloo,cuda:nccl" if gpus else "gloo"


def wait_for_name(host: str, bound_s: float, pause_s: float = 0.5) -> None:
    """Wait until a name resolves. UnavailableError where it does not within the bound."""
    deadline = time.monotonic() + bound_s
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{host}, where rank 0 is to be found, does not resolve after {bound_s:g} s ({error}): look at the "
                    "pod of rank 0, and at the cluster's DNS."
                ) from None
            _log.info("waiting_for_rank_0", host=host)
            time.sleep(pause_s)
        else:
            return


def join(rank: int, world_size: int, bound_s: float, stop: StopFlag, *, gpus: bool = False) -> Notes | None:
    """
    Make the process group of all ranks; alone, there is none to make.

    Args:
        rank: This one.
        world_size: How many there are.
        bound_s: Seconds to wait for the name of rank 0, and again for all ranks to come.
        stop: Installed once the others count on this rank: from then on it goes when all do.
        gpus: Whether tensors of GPUs are to travel, by NCCL; those of the host always do, by gloo.

    Returns:
        The place where ranks leave each other notes; None for a rank alone.

    Raises:
        UnavailableError: Ranks did not come; it names them as far as that is known.
    """
    if rank:
        wait_for_name(os.environ["MASTER_ADDR"], bound_s)
    stop.install()
    if world_size == 1:
        return None
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    bound = timedelta(seconds=bound_s)
    try:
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=bound))
    except dist.DistError as error:
        raise UnavailableError(
            f"not all {world_size} ranks have come within {bound_s:g} s ({error}): look at those that do not run."
        ) from error
    store.set(f"weft/joined/{rank}", "")
    try:
        dist.init_process_group(backends(gpus=gpus), store=store, rank=rank, world_size=world_size, timeout=bound)
    except (dist.DistError, RuntimeError) as error:
        missing = [other for other in range(world_size) if not store.check([f"weft/joined/{other}"])]
        who = f"ranks {missing} have not come" if missing else "all ranks have come, but do not reach each other"
        raise UnavailableError(f"after {bound_s:g} s {who} ({error}): look at their logs and machines.") from error
    notes: Notes = dist.PrefixStore("weft/watchdog", store)  # type: ignore[attr-defined]
    return notes
