"""How ranks in pods know who they are and wait for rank 0."""

import os
import signal
import socket
import time
from typing import Any

import pytest

from weft_common.errors import InvalidArgumentError, UnavailableError
from weft_trainer.worker.rendezvous import join, rank_and_world, wait_for_name
from weft_trainer.worker.signals import StopFlag


@pytest.mark.parametrize(
    "environment", [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"RANK": ""}]
)
def test_rank_that_makes_no_sense_is_refused(environment: dict[str, str]) -> None:
    """Both variables are named."""
    with pytest.raises(InvalidArgumentError, match=r"RANK is .* WORLD_SIZE"):
        rank_and_world(environment)


def test_name_is_waited_for_until_it_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not there yet is no error."""
    answers = iter([socket.gaierror("no such name"), socket.gaierror("no such name"), []])

    def getaddrinfo(*arguments: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    wait_for_name("rank-0.ranks", 5.0, pause_s=0.001)
    assert next(answers, None) is None


def test_name_that_never_resolves_is_given_up() -> None:
    """After the bound, with a message that says where to look."""
    begun = time.monotonic()
    with pytest.raises(UnavailableError, match="look at the pod of rank 0"):
        wait_for_name("weft-does-not-exist.invalid", 0.05, pause_s=0.01)
    assert time.monotonic() - begun < 20


def test_single_rank_joins_nobody() -> None:
    """It needs no name and no process group; told to end, it says so to the training loop."""
    import torch.distributed

    stop = StopFlag()
    before = signal.getsignal(signal.SIGTERM)
    try:
        join(0, 1, 0.0, stop)
        assert not torch.distributed.is_initialized()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
