"""
Ranks as processes that are forked from a server, which has imported torch and the kernels once for all of them.

What a rank spends on its start, some seconds of a processor, is more than what it spends on a small case.
"""

import multiprocessing
import multiprocessing.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FORKS", "run_ranks"]

FORKS = multiprocessing.get_context("forkserver")
# Before the first process; torch and numba start no threads when they are imported.
FORKS.set_forkserver_preload(["checkpoint_process", "clt_cases", "numba", "weft_clt.kernels"])
# The server listens in this folder. Made now, it is not within that of a test, which goes with the test.
multiprocessing.util.get_temp_dir()


def _told(errors: Path, work: Callable[..., None], arguments: Sequence[Any]) -> None:
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    work(*arguments)


def run_ranks(work: Callable[..., None], of_rank: Sequence[Sequence[Any]], folder: Path, timeout_s: float) -> None:
    """
    Call a function in one process for each rank, side by side; all must end well.

    Args:
        work: A function of a module.
        of_rank: Its arguments, by rank.
        folder: Where their errors go.
        timeout_s: For each to end.
    """
    logs = [folder / f"rank{rank}.log" for rank in range(len(of_rank))]
    ranks = [FORKS.Process(target=_told, args=(log, work, own)) for log, own in zip(logs, of_rank, strict=True)]
    for rank in ranks:
        rank.start()
    try:
        for rank, log in zip(ranks, logs, strict=True):
            rank.join(timeout_s)
            assert rank.exitcode == 0, log.read_text()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
