"""Candidates for one Lease of a cluster in memory."""

import asyncio
import threading
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fake_cluster import FakeCluster

from weft_common.errors import UnavailableError
from weft_trainer.adapters.kubernetes_api import LEASES
from weft_trainer.adapters.lease_election import LeaseElection

# A machine that does other things may hold everything up for half a second, which must not cost the lead.
HOLD_S = 1.8


class Candidate:
    """One replica, that leads for as long as the test wants."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.election = LeaseElection(cluster, "weft-trainer", name, hold_s=HOLD_S)
        self.leads = asyncio.Event()
        self.lost = asyncio.Event()
        self.standby = threading.Event()
        self._enough = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.election.leading(self.lost.set, self.standby):
            self.leads.set()
            await self._enough.wait()

    async def led(self) -> None:
        async with asyncio.timeout(10):
            await self.leads.wait()

    async def leave(self) -> None:
        """End well, Lease given back."""
        self._enough.set()
        await self._task

    async def die(self) -> None:
        """End without a word."""
        self.election._give_back = self._nothing  # type: ignore[method-assign]
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _nothing(self) -> None: ...


def holder(cluster: FakeCluster) -> str | None:
    found: str | None = cluster.objects[LEASES, "weft-trainer"]["spec"]["holderIdentity"]
    return found


async def test_first_candidate_leads_and_the_second_waits() -> None:
    """For as long as the first renews."""
    cluster = FakeCluster()
    first = Candidate(cluster, "a")
    await first.led()
    second = Candidate(cluster, "b")
    await asyncio.sleep(1.5 * HOLD_S)
    assert not second.leads.is_set()
    assert not first.lost.is_set()
    assert holder(cluster) == "a"
    await first.leave()
    assert holder(cluster) != "a"
    await second.led()
    await second.leave()


async def test_lease_of_a_leader_that_died_runs_out() -> None:
    """Not before its time, and then the next one has it; transitions are counted."""
    cluster = FakeCluster()
    first = Candidate(cluster, "a")
    await first.led()
    second = Candidate(cluster, "b")
    await asyncio.sleep(HOLD_S / 3)
    await first.die()
    await asyncio.sleep(HOLD_S / 2)
    assert not second.leads.is_set()
    await second.led()
    spec = cluster.objects[LEASES, "weft-trainer"]["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 1)
    await second.leave()
    assert holder(cluster) is None


async def test_follower_stands_by_behind_a_leader_that_lives() -> None:
    """It counts as ready once it has seen the Lease renewed, and no longer when it leads or has left."""
    cluster = FakeCluster()
    first = await _led(cluster, "a")
    second, third = Candidate(cluster, "b"), Candidate(cluster, "c")
    async with asyncio.timeout(5):
        while not (second.standby.is_set() and third.standby.is_set()):  # noqa: ASYNC110  threads' own
            await asyncio.sleep(HOLD_S / 20)
    await third.die()
    assert not third.standby.is_set()
    await first.leave()
    await second.led()
    assert not second.standby.is_set()
    assert not first.standby.is_set()
    await second.leave()


async def test_nobody_stands_by_behind_a_dead_leader() -> None:
    """A Lease that is held but not renewed has no leader to wait behind; the candidate is not ready until it leads."""
    cluster = FakeCluster()
    first = await _led(cluster, "a")
    await first.die()
    second = Candidate(cluster, "b")
    stood_by = False
    async with asyncio.timeout(5):
        while not second.leads.is_set():
            stood_by |= second.standby.is_set()
            await asyncio.sleep(HOLD_S / 20)
    assert not stood_by
    await second.leave()


async def test_of_two_that_want_a_free_lease_one_gets_it() -> None:
    """Writes name the version that was read."""
    cluster = FakeCluster()
    await (await _led(cluster, "old")).leave()
    candidates = [Candidate(cluster, name) for name in "abcd"]
    await asyncio.sleep(1.2 * HOLD_S)
    leaders = [candidate for candidate in candidates if candidate.leads.is_set()]
    assert len(leaders) == 1
    for candidate in candidates:
        await candidate.die()


async def test_leader_that_cannot_renew_stops_before_another_begins() -> None:
    """It hears of it within two thirds of the time that the Lease holds, plus one try."""
    cluster = FakeCluster()
    async with AsyncExitStack() as stack:
        first = Candidate(cluster, "a")
        stack.push_async_callback(first.die)
        await first.led()
        await asyncio.sleep(HOLD_S / 4)
        begun = asyncio.get_running_loop().time()
        cluster.fails = UnavailableError("the API server is away")
        async with asyncio.timeout(5):
            await first.lost.wait()
        assert asyncio.get_running_loop().time() - begun < HOLD_S * 1.2
        cluster.fails = None
        second = await _led(cluster, "b")
        await second.leave()


async def test_leader_whose_lease_was_taken_away_hears_of_it() -> None:
    """Somebody wrote another holder into it."""
    cluster = FakeCluster()
    first = await _led(cluster, "a")
    lease = cluster.get(LEASES, "weft-trainer")
    lease["spec"]["holderIdentity"] = "somebody"
    cluster.replace(LEASES, "weft-trainer", lease)
    async with asyncio.timeout(5):
        await first.lost.wait()
    await first.leave()
    assert holder(cluster) == "somebody"


async def _led(cluster: FakeCluster, name: str) -> Candidate:
    candidate = Candidate(cluster, name)
    await candidate.led()
    return candidate


async def test_renewal_under_way_does_not_keep_the_lease_of_a_leader_that_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread cannot be stopped, and may write between the leader's last read and write."""
    cluster = FakeCluster()
    first = Candidate(cluster, "a")
    await first.led()
    replace, late = cluster.replace, [True]

    def after_a_renewal(kind: Any, name: str, manifest: Any) -> Any:
        if manifest["spec"]["holderIdentity"] is None and late:
            late.clear()
            assert first.election._take()
        return replace(kind, name, manifest)

    monkeypatch.setattr(cluster, "replace", after_a_renewal)
    await first.leave()
    assert not late
    assert holder(cluster) is None
