"""Ranks started as their pods start them: a process each, told by its manifest who it is, and no torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from worker_rig import Rig, free_port, spec_of

from weft_store import open_store
from weft_store.documents import list_ids
from weft_trainer.adapters.kubernetes_manifests import PodOptions, work_manifest
from weft_trainer.core.ports import RankJob
from weft_trainer.worker.signals import TERMINATED

pytestmark = pytest.mark.distributed


@contextmanager
def _pods(rig: Rig, run: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run the container of each of two pods on this machine."""
    told = {name: value for name, value in rig.environment(run).items() if name.startswith(("WEFT_", "OMP_"))}
    job = RankJob(f"runs/{run}/attempts/1", "weft_trainer.worker", 2, told)
    container = work_manifest(job, "weft-test", PodOptions(image="i"), jobset=False)["spec"]["template"]["spec"][
        "containers"
    ][0]
    plain = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert plain["MASTER_ADDR"] == "weft-test-0.weft-test"
    here = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "HOME": os.environ["HOME"]}
    ranks = []
    for index in range(2):
        with (rig.folder / f"{run}-{index}.log").open("ab") as log:
            environment = {**os.environ, **plain, **here, "RANK": str(index)}
            command = [sys.executable, *container["command"][1:]]
            ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _until_begun(rig: Rig, run: str) -> None:
    deadline = time.monotonic() + 240
    while '"first_step"' not in (log := (rig.folder / f"{run}-1.log").read_text()):
        assert time.monotonic() < deadline, log[-4000:]
        time.sleep(0.01)


def _codes(ranks: list["subprocess.Popen[bytes]"]) -> list[int]:
    return [rank.wait(300) for rank in ranks]


@pytest.mark.timeout(1200)
def test_one_rank_that_is_told_to_stop_has_all_save(rig: Rig) -> None:
    """The SIGTERM of a drain reaches one pod; both end well, and the next start comes to the bytes of a whole run."""
    for run in ("whole-pods", "drained"):
        rig.create_run(run, spec_of(checkpoint_steps=0, num_steps=100))
    with _pods(rig, "whole-pods") as ranks:
        assert _codes(ranks) == [0, 0]
    with _pods(rig, "drained") as ranks:
        _until_begun(rig, "drained")
        ranks[1].send_signal(signal.SIGTERM)
        assert _codes(ranks) == [0, 0]
    saved = list(list_ids(open_store(rig.bucket_url), "runs/drained/checkpoints/", "/manifest.json"))
    assert len(saved) == 1
    with _pods(rig, "drained") as ranks:
        assert _codes(ranks) == [0, 0]
    assert rig.digests("drained", 100) == rig.digests("whole-pods", 100)


def test_ranks_whose_partner_was_killed_end_soon(rig: Rig) -> None:
    """They fail by themselves, so that the job ends and the next attempt begins."""
    rig.create_run("killed-pod", spec_of(num_steps=100_000))
    with _pods(rig, "killed-pod") as ranks:
        _until_begun(rig, "killed-pod")
        ranks[1].kill()
        assert ranks[0].wait(120) == 1


def test_rank_that_waits_for_the_others_ends_when_told_to(rig: Rig) -> None:
    """It has nothing to save, so it does not use up the time that it is given."""
    rig.create_run("early", spec_of())
    environment = rig.environment("early", RANK="1", WORLD_SIZE="2", MASTER_ADDR="weft-does-not-exist.invalid")
    with (rig.folder / "early-1.log").open("ab") as log:
        rank = subprocess.Popen([sys.executable, "-m", "weft_trainer.worker"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while "waiting_for_rank_0" not in (rig.folder / "early-1.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(20) == TERMINATED
    finally:
        rank.kill()
        rank.wait()
