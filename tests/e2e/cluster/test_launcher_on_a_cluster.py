"""What only a real cluster can say: why ranks wait, how they find each other, what an eviction does, who leads."""

import asyncio
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from real_cluster import RealWorld, kubectl, namespace

from weft_common.errors import InvalidArgumentError
from weft_trainer.adapters.kubernetes_api import PODS
from weft_trainer.adapters.kubernetes_client import KubernetesClient
from weft_trainer.adapters.kubernetes_launcher import KubernetesLauncher, RankKind, kubernetes_launcher
from weft_trainer.adapters.kubernetes_manifests import SecretKey
from weft_trainer.adapters.lease_election import LeaseElection
from weft_trainer.core.ports import RankGroup, RankJob

pytestmark = pytest.mark.cluster

JOB = RankJob("runs/r/attempts/1", "m", 2, {})
# Rank 0 waits for a call under its name; the others call.
MEETING = """
import os, socket, time
rank, master = int(os.environ['RANK']), (os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))
if rank == 0:
    listener = socket.create_server(('', master[1]))
    print(listener.accept()[0].recv(9))
else:
    deadline = time.time() + 60
    while True:
        try:
            socket.create_connection(master, 5).sendall(b'hello')
            break
        except OSError:
            assert time.time() < deadline
            time.sleep(0.2)
"""


async def ignore(facts: Mapping[str, Any]) -> None: ...


@pytest.fixture(params=["jobset", "job"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[RealWorld]:
    """A namespace that takes restricted pods only."""
    kind: RankKind = request.param
    async with RealWorld.made(kind) as made:
        yield made


@asynccontextmanager
async def launching(world: RealWorld, **options: Any) -> AsyncIterator[KubernetesLauncher]:
    opened = kubernetes_launcher(world.api, world.options(**options), "e2e", world.kind)
    async with opened as launcher:
        try:
            yield launcher
        finally:
            await launcher.clear(JOB.key)


async def waits_for(group: RankGroup, *parts: str) -> None:
    """Wait, a minute at most, until the ranks say that they wait for all of this: a kubelet's first word is vague."""
    said = ""
    try:
        async with asyncio.timeout(60):
            while not all(part in said for part in parts):
                await asyncio.sleep(0.2)
                said = (await group.look()).pending_reason
    except TimeoutError:
        pytest.fail(f"{parts} is not in {said!r}")


@pytest.mark.parametrize(
    ("options", "part", "detail"),
    [
        ({"node_selector": {"weft.dev/no-such": "node"}}, "Unschedulable", "didn't match Pod's node affinity/selector"),
        ({"resources": {"requests": {"cpu": "4000"}}}, "Unschedulable", "Insufficient cpu"),
        ({"secrets": {"A": SecretKey("not-there", "key")}}, "CreateContainerConfigError", 'secret "not-there"'),
        ({"tls_secret": "not-there"}, "FailedMount", 'secret "not-there" not found'),
        ({"image": "localhost/not-there:1", "image_pull_policy": "Never"}, "ErrImageNeverPull", "not-there"),
    ],
)
async def test_ranks_that_cannot_run_say_why(options: dict[str, Any], part: str, detail: str, world: RealWorld) -> None:
    """Within a minute, in the cluster's own words."""
    async with launching(world, **options) as launcher:
        group = await launcher.start(JOB, ignore)
        await waits_for(group, part, detail)


async def test_ranks_over_quota_say_why(world: RealWorld) -> None:
    """There is no pod to ask, so the events tell."""
    await asyncio.to_thread(kubectl, "-n", world.namespace, "create", "quota", "q", "--hard=pods=1")
    async with launching(world) as launcher:
        group = await launcher.start(JOB, ignore)
        await waits_for(group, "FailedCreate", "exceeded quota")


async def test_check_has_the_cluster_refuse_what_it_would(world: RealWorld) -> None:
    """Nothing is left behind, and the reason is the API server's."""
    async with launching(world, tolerations=({"key": "a", "operator": "Perhaps"},)) as launcher:
        with pytest.raises(InvalidArgumentError, match="Perhaps"):
            await launcher.check(JOB)
    assert await asyncio.to_thread(kubectl, "-n", world.namespace, "get", "jobs", "-o", "name") == ""


async def test_ranks_find_each_other_by_name(world: RealWorld) -> None:
    """The name of rank 0 leads every other rank to it; all end well, and what they wrote is there."""
    async with launching(world, command=("python3", "-c", MEETING)) as launcher:
        group = await launcher.start(JOB, ignore)
        async with asyncio.timeout(120):
            ended = await group.wait()
        assert (ended.code, ended.detail) == (0, "b'hello'")
        logs = {log.source: log.text for log in await group.logs(1000)}
        assert logs["rank 0"].strip() == "b'hello'"
        assert "Pod/" in logs["events"]


async def test_evicted_rank_is_no_failure(world: RealWorld) -> None:
    """A JobSet begins anew by itself and counts it; a Job ends, and says that it is not to blame."""
    async with launching(world) as launcher:
        group = await launcher.start(JOB, ignore)
        before = await world.pods("Running")
        await asyncio.to_thread(_evict, world.namespace, before[0])
        if world.kind == "job":
            async with asyncio.timeout(120):
                assert (await group.wait()).disrupted
            return
        async with asyncio.timeout(120):
            while (await group.look()).restarts == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            while set(await world.pods("Running")) & set(before):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        await world.end(0)
        async with asyncio.timeout(120):
            assert (await group.wait()).code == 0


async def test_killed_rank_ends_the_job_with_its_signal(world: RealWorld) -> None:
    """Whatever the ranks that it leaves behind do."""
    async with launching(world) as launcher:
        group = await launcher.start(JOB, ignore)
        pods = await world.pods("Running")
        await asyncio.to_thread(world.write, pods[1], 137)
        async with asyncio.timeout(60):
            ended = await group.wait()
        assert (ended.code, ended.disrupted) == (-9, False)


async def test_deleted_pod_is_no_failure(world: RealWorld) -> None:
    """How it ended is known although it is gone."""
    async with launching(world) as launcher:
        group = await launcher.start(JOB, ignore)
        pods = await world.pods("Running")
        await asyncio.to_thread(kubectl, "-n", world.namespace, "delete", "pod", pods[0])
        async with asyncio.timeout(60):
            ended = await group.wait()
        assert (ended.code, ended.disrupted) == (-15, True)
        assert "was deleted" in ended.detail


async def test_one_replica_leads_and_another_follows_it() -> None:
    """On a real Lease: one at a time, the next at once where it is given back, and after its time where it is not."""
    async with namespace() as name, AsyncExitStack() as stack:
        api = KubernetesClient(name)
        lost: list[str] = []
        first, second = (LeaseElection(api, "weft-trainer", f"{letter}-{uuid.uuid4()}", hold_s=3.0) for letter in "ab")
        leading = await stack.enter_async_context(_led(first, lost))
        following = asyncio.create_task(_until_led(second, lost))
        await asyncio.sleep(5)
        assert (following.done(), lost) == (False, [])
        lease = json.loads(await asyncio.to_thread(kubectl, "-n", name, "get", "lease", "weft-trainer", "-o", "json"))
        assert lease["spec"]["holderIdentity"].startswith("a-")
        await leading.aclose()
        async with asyncio.timeout(3):
            await following


@asynccontextmanager
async def _led(election: LeaseElection, lost: list[str]) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(election.leading(lambda: lost.append("lost")))
        yield stack


async def _until_led(election: LeaseElection, lost: list[str]) -> None:
    async with _led(election, lost):
        return


def _evict(where: str, pod: str) -> None:
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": where},
        "deleteOptions": {"gracePeriodSeconds": 1},
    }
    address = f"/api/v1/namespaces/{where}/{PODS.plural}/{pod}/eviction"
    command = ["kubectl", "create", "--raw", address, "-f", "-"]
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
