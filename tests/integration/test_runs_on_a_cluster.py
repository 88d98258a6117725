"""Runs from their creation to their end, with ranks as pods of a cluster in memory and replicas of the controller."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress

import pytest
from fake_cluster import FakeCluster
from fake_ranks import Controller
from pydantic import SecretStr

from weft_trainer.adapters.kubernetes_api import JOBS, JOBSETS, LEASES, PODS, Manifest
from weft_trainer.adapters.kubernetes_launcher import RankKind, kubernetes_launcher
from weft_trainer.adapters.kubernetes_manifests import PodOptions
from weft_trainer.core.records import RunRecord, RunState
from weft_trainer.core.reports import Directive
from weft_trainer.launching import open_launcher
from weft_trainer.settings import TrainerSettings


class Replica:
    """A controller over the cluster; `stop` ends it as a lost lead does."""

    def __init__(self, controller: Controller, stack: AsyncExitStack) -> None:
        self.controller = controller
        self.supervising: asyncio.Task[RunRecord] = controller.supervise()
        self._stack = stack

    async def stop(self) -> None:
        self.supervising.cancel()
        with suppress(asyncio.CancelledError):
            await self.supervising
        await self._stack.aclose()


class Site:
    """A cluster, a bucket, and the replicas that come and go."""

    def __init__(self, kind: RankKind) -> None:
        self.cluster = FakeCluster()
        self.kind = kind
        self.first = Controller()

    async def replica(self) -> Replica:
        stack = AsyncExitStack()
        opened = kubernetes_launcher(self.cluster, PodOptions(image="i"), "here", self.kind)
        launcher = await stack.enter_async_context(opened)
        return Replica(Controller(self.first.store, launcher), stack)  # type: ignore[arg-type]

    async def pods(self, attempt: int) -> list[Manifest]:
        """Wait for the two pods of an attempt, and have them run."""
        async with asyncio.timeout(10):
            while True:
                works = [each for (kind, _), each in self.cluster.objects.items() if kind in (JOBS, JOBSETS)]
                for work in works:
                    found = self.cluster.pods(work["metadata"]["name"])
                    if len(found) == 2 and found[0]["metadata"]["labels"]["weft.dev/attempt"] == str(attempt):
                        self.cluster.run(work["metadata"]["name"])
                        return list(found)
                await asyncio.sleep(0.01)


@pytest.fixture(params=["jobset", "job"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """With a run that was asked for."""
    made = Site(request.param)
    await made.first.create()
    yield made
    made.cluster.end_watches()


async def test_run_survives_its_controllers_and_a_rank(site: Site) -> None:
    """A second replica adopts the ranks of the first; a killed rank is followed by one more attempt, and no other."""
    first = await site.replica()
    await site.pods(1)
    assert await first.controller.report(1, 1) is Directive.CONTINUE
    await first.stop()
    assert len(await site.pods(1)) == 2
    second = await site.replica()
    assert await second.controller.report(1, 2) is Directive.CONTINUE
    second.controller.save(4)
    site.cluster.finish((await site.pods(1))[1], 137)
    pods = await site.pods(2)
    record = await second.controller.runs.get("r")
    assert "killed by signal 9; going on from step 4" in record.transitions[-1].reason
    second.controller.save(10, 2)
    for pod in pods:
        site.cluster.finish(pod, 0)
    async with asyncio.timeout(10):
        assert (await second.supervising).state is RunState.SUCCEEDED
    assert sum(call[0] == "create" and call[1] in ("Job", "JobSet") for call in site.cluster.calls) == 2
    _, logs = await second.controller.logs.get("r", 1, 0)
    assert [(log.source, log.text) for log in logs[1:2]] == [("rank 1", "ended with 137")]
    await second.stop()
    assert not [kind for kind, _ in site.cluster.objects if kind in (JOBS, JOBSETS)]


async def test_refused_configuration_is_not_started_again(site: Site) -> None:
    """42 of one pod fails the run with what its log says."""
    replica = await site.replica()
    pod = (await site.pods(1))[0]
    site.cluster.logs[pod["metadata"]["name"]] = "top_k is larger than num_features"
    site.cluster.finish(pod, 42)
    async with asyncio.timeout(10):
        record = await replica.supervising
    assert (record.state, record.attempt) == (RunState.FAILED, 1)
    assert "top_k is larger" in record.error_message
    await replica.stop()


async def test_cancelled_run_leaves_nothing_in_the_cluster(site: Site) -> None:
    """Its object is deleted, its pods with it; what they wrote is kept."""
    replica = await site.replica()
    await site.pods(1)
    await replica.controller.report(1, 1)
    await replica.controller.commands.cancel("r")
    async with asyncio.timeout(10):
        assert (await replica.supervising).state is RunState.CANCELLED
    assert site.cluster.objects == {}
    assert (await replica.controller.logs.get("r", 1, 0))[0] == 1
    await replica.stop()


async def test_one_replica_opens_its_launcher_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The others wait for the Lease, ready behind a leader that lives; its pod alone is labelled, also after a start with
    an old label. A leader that loses the Lease asks its own process to stop.
    """
    cluster = FakeCluster()
    for name in "ab":
        labels = {"app.kubernetes.io/component": "trainer", "weft.dev/leader": "true"}
        cluster.create(PODS, {"metadata": {"name": f"trainer-{name}", "labels": labels}})
    stops: list[int] = []
    make: Callable[[str], FakeCluster] = lambda namespace: cluster  # noqa: E731
    monkeypatch.setattr("weft_trainer.adapters.kubernetes_client.KubernetesClient", make)
    monkeypatch.setattr(signal, "raise_signal", stops.append)
    settings = TrainerSettings(
        token=SecretStr("t"),
        report_token=SecretStr("r"),
        bucket_url="s3+http://minio:9000/weft",
        cache_target="cache:1",
        launcher="kubernetes",
        kubernetes_namespace="ml",
        kubernetes_rank_image="i",
        kubernetes_reports_service="trainer:2",
        kubernetes_auth_secret="auth",
    )

    leave = asyncio.Event()

    async def lead(name: str, standby: threading.Event) -> None:
        own = settings.model_copy(update={"kubernetes_pod": name})
        async with open_launcher(own, standby) as launcher:
            assert launcher.ranks_outlive_controller
            opened.append(name)
            await leave.wait()

    def labelled() -> list[str]:
        pods, _ = cluster.list(PODS, "weft.dev/leader=true")
        return [pod["metadata"]["name"] for pod in pods]

    opened: list[str] = []
    first, second = threading.Event(), threading.Event()
    leading = asyncio.create_task(lead("trainer-a", first))
    async with asyncio.timeout(20):
        while not opened:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert labelled() == ["trainer-a"]
        waiting = asyncio.create_task(lead("trainer-b", second))
        while not second.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert (opened, first.is_set(), labelled()) == (["trainer-a"], False, ["trainer-a"])
        assert cluster.get(LEASES, "weft-trainer")["spec"]["holderIdentity"].startswith("trainer-a_")
        lease = cluster.get(LEASES, "weft-trainer")
        lease["spec"]["holderIdentity"] = "somebody else"
        cluster.replace(LEASES, "weft-trainer", lease)
        while not stops:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert stops == [signal.SIGTERM]
    leave.set()
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await leading
    assert (second.is_set(), labelled()) == (False, [])
    cluster.end_watches()
