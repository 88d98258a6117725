"""The launcher over a cluster in memory, where the cluster is not at its best."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fake_cluster import FakeCluster

from weft_common.errors import FailedPreconditionError, UnavailableError
from weft_trainer.adapters import kubernetes_launcher as module
from weft_trainer.adapters.kubernetes_api import EVENTS, JOBS, JOBSETS, PODS, SERVICES, WORKLOADS
from weft_trainer.adapters.kubernetes_launcher import KubernetesLauncher, RankKind, kubernetes_launcher
from weft_trainer.adapters.kubernetes_manifests import PodOptions
from weft_trainer.adapters.kubernetes_mirror import KubernetesMirror
from weft_trainer.core.ports import RankGroup, RankJob

KEY = "runs/r/attempts/1"
JOB = RankJob(KEY, "m", 2, {})
Opener = Callable[..., Awaitable[KubernetesLauncher]]


async def ignore(facts: Mapping[str, Any]) -> None: ...


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def launcher_of(cluster: FakeCluster) -> AsyncIterator[Opener]:
    """Open launchers of one installation."""
    async with AsyncExitStack() as stack:
        stack.callback(cluster.end_watches)

        async def opened(kind: RankKind = "job", **options: Any) -> KubernetesLauncher:
            context = kubernetes_launcher(cluster, PodOptions(image="i", **options), "here", kind)
            return await stack.enter_async_context(context)

        yield opened


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def status_of(group: RankGroup, part: str) -> str:
    """Wait until the copies have arrived and what is in the way is told."""
    async with asyncio.timeout(5):
        while part not in (reason := (await group.look()).pending_reason):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return reason


def kinds(cluster: FakeCluster) -> list[str]:
    return sorted(resource.kind for resource, _ in cluster.objects if resource is not PODS)


@pytest.mark.parametrize(
    ("kind", "served", "expected"),
    [
        ("auto", True, ["JobSet"]),
        ("auto", False, ["Job", "Service"]),
        ("jobset", True, ["JobSet"]),
        ("job", True, ["Job", "Service"]),
    ],
)
async def test_kind_is_what_the_cluster_serves_or_what_is_asked_for(
    kind: RankKind, served: bool, expected: list[str], cluster: FakeCluster, launcher_of: Opener
) -> None:
    """Discovery decides where nobody did; an Indexed Job comes with its Service."""
    cluster.jobsets = served
    await (await launcher_of(kind)).start(JOB, ignore)
    assert kinds(cluster) == expected


async def test_jobsets_that_are_not_served_are_refused_at_the_start(cluster: FakeCluster, launcher_of: Opener) -> None:
    """The message names the setting."""
    cluster.jobsets = False
    with pytest.raises(FailedPreconditionError, match="WEFT_TRAINER_KUBERNETES_RANK_KIND"):
        await launcher_of("jobset")


async def test_start_whose_answer_was_lost_finds_its_own_job(cluster: FakeCluster, launcher_of: Opener) -> None:
    """409 on create is success: there is one job, and it is the one."""
    await (await launcher_of()).start(JOB, ignore)
    group = await (await launcher_of()).start(JOB, ignore)
    assert kinds(cluster) == ["Job", "Service"]
    for pod in cluster.pods(cluster.work()["metadata"]["name"]):
        cluster.finish(pod, 0)
    assert (await group.wait()).code == 0


async def test_start_waits_for_a_namesake_to_be_gone(cluster: FakeCluster, launcher_of: Opener) -> None:
    """A job that is being deleted is not adopted."""
    launcher = await launcher_of()
    await launcher.start(JOB, ignore)
    cluster.holds_pods = True
    cluster.delete(JOBS, cluster.work()["metadata"]["name"])
    with pytest.raises(UnavailableError, match="still goes down"):
        await launcher.start(JOB, ignore)


async def test_controller_that_died_before_the_service_is_made_up_for(
    cluster: FakeCluster, launcher_of: Opener
) -> None:
    """Whoever finds the ranks gives them their names."""
    await (await launcher_of()).start(JOB, ignore)
    cluster.delete(SERVICES, cluster.work()["metadata"]["name"])
    del cluster.objects[SERVICES, cluster.work()["metadata"]["name"]]
    await (await launcher_of()).find(KEY, {"kind": "Job", "name": cluster.work()["metadata"]["name"]})
    assert kinds(cluster) == ["Job", "Service"]


async def test_check_is_a_dry_run(cluster: FakeCluster, launcher_of: Opener) -> None:
    """The cluster is asked, and nothing is made; a job that is there already is as good."""
    launcher = await launcher_of("jobset")
    await launcher.check(JOB)
    assert cluster.objects == {}
    assert [call[:2] for call in cluster.calls if call[0] == "check"] == [("check", "JobSet"), ("check", "Job")]
    await launcher.start(JOB, ignore)
    await launcher.check(JOB)


@pytest.mark.parametrize("kind", ["job", "jobset"])
async def test_exit_is_that_of_the_rank_that_failed_first(
    kind: RankKind, cluster: FakeCluster, launcher_of: Opener
) -> None:
    """Its code, and the end of its log."""
    group = await (await launcher_of(kind)).start(JOB, ignore)
    first, second = cluster.pods(cluster.work()["metadata"]["name"])
    cluster.logs[second["metadata"]["name"]] = "starting\n\nout of tokens\n"
    cluster.finish(second, 7)
    cluster.finish(first, 1)
    ended = await group.wait()
    assert (ended.code, ended.disrupted, ended.detail) == (7, False, "starting\nout of tokens")


async def test_disruption_is_no_fault_of_the_job(cluster: FakeCluster, launcher_of: Opener) -> None:
    """A drained node excuses the exit code."""
    group = await (await launcher_of()).start(JOB, ignore)
    first, _ = cluster.pods(cluster.work()["metadata"]["name"])
    cluster.finish(first, 143, disrupted=True)
    ended = await group.wait()
    assert (ended.code, ended.disrupted) == (-15, True)
    assert "node drained" in ended.detail


@pytest.mark.parametrize(("left", "code", "excused"), [(0, None, True), (1, 1, True), (42, 42, False)])
async def test_job_keeps_the_disruption_of_a_pod_that_nobody_saw_end(
    left: int, code: int | None, excused: bool, cluster: FakeCluster, launcher_of: Opener
) -> None:
    """The evicted pod is gone; the other may run, or have failed for want of it or of a configuration."""
    group = await (await launcher_of()).start(JOB, ignore)
    name = cluster.work()["metadata"]["name"]
    evicted, other = cluster.pods(name)
    cluster.delete(PODS, evicted["metadata"]["name"], grace_s=1)
    if left:
        end = {"exitCode": left, "finishedAt": "2026-01-01T00:00:01Z"}
        cluster.set_status(other, phase="Failed", containerStatuses=[{"name": "rank", "state": {"terminated": end}}])
    message = "Pod ns/p has condition DisruptionTarget matching FailJob rule at index 1"
    condition = {"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy", "message": message}
    cluster.replace(JOBS, name, {**cluster.work(), "status": {"conditions": [condition]}})
    async with asyncio.timeout(30):
        ended = await group.wait()
    assert (ended.code, ended.disrupted) == (code, excused)
    assert (message in ended.detail) == excused


async def test_disruption_of_an_earlier_round_excuses_no_later_one(cluster: FakeCluster, launcher_of: Opener) -> None:
    """A JobSet that began anew is told by what ended it at last."""
    group = await (await launcher_of("jobset")).start(JOB, ignore)
    work = cluster.work()
    name, rounds = work["metadata"]["name"], "jobset.sigs.k8s.io/restart-attempt"
    evicted, other = cluster.pods(name)
    evicted["metadata"]["labels"][rounds], other["metadata"]["labels"][rounds] = "0", "1"
    cluster.set_status(evicted, phase="Failed", conditions=[{"type": "DisruptionTarget", "status": "True"}])
    cluster.delete(PODS, evicted["metadata"]["name"], grace_s=1)
    cluster.replace(JOBSETS, name, {**cluster.work(), "status": {"restarts": 1}})
    cluster.finish(other, 7)
    async with asyncio.timeout(30):
        ended = await group.wait()
    assert (ended.code, ended.disrupted) == (7, False)


async def test_job_that_somebody_deleted_is_gone(cluster: FakeCluster, launcher_of: Opener) -> None:
    """Nobody saw how it ended; whoever waits hears of it at once."""
    group = await (await launcher_of()).start(JOB, ignore)
    waiting = asyncio.create_task(group.wait())
    await asyncio.sleep(0.05)
    cluster.delete(JOBS, cluster.work()["metadata"]["name"])
    async with asyncio.timeout(2):
        ended = await waiting
    assert ended.code is None
    assert "not there any more" in ended.detail


async def test_failure_without_a_pod_tells_what_the_cluster_says(cluster: FakeCluster, launcher_of: Opener) -> None:
    """Pods that were collected since leave the job's own condition."""
    group = await (await launcher_of()).start(JOB, ignore)
    name = cluster.work()["metadata"]["name"]
    first, second = cluster.pods(name)
    cluster.finish(first, 1)
    for pod in (first, second):
        cluster.delete(PODS, pod["metadata"]["name"], grace_s=1)
    cluster.end_watches(forget=True)
    group = await (await launcher_of()).find(KEY, {"kind": "Job", "name": name})
    ended = await group.wait()
    assert (ended.code, ended.detail) == (None, "a pod failed")


async def test_pod_that_somebody_deleted_is_remembered(cluster: FakeCluster, launcher_of: Opener) -> None:
    """Its last state was seen before it went: the code is known, and the job is not to blame."""
    group = await (await launcher_of()).start(JOB, ignore)
    first, _ = cluster.pods(cluster.work()["metadata"]["name"])
    first["metadata"]["deletionTimestamp"] = "now"
    cluster.finish(first, 137)
    cluster.delete(PODS, first["metadata"]["name"], grace_s=1)
    ended = await group.wait()
    assert (ended.code, ended.disrupted) == (-9, True)
    assert "was deleted" in ended.detail


@pytest.mark.parametrize(
    ("reason", "message", "code"),
    [
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", 7),
        (
            "PodFailurePolicy",
            "Container rank for pod ns/p failed with exit code 42 matching FailJob rule at index 0",
            42,
        ),
        ("PodFailurePolicy", "Pod ns/p has condition DisruptionTarget matching FailJob rule at index 1", None),
    ],
)
async def test_jobset_that_will_not_go_on_is_not_waited_for(
    reason: str, message: str, code: int | None, cluster: FakeCluster, launcher_of: Opener
) -> None:
    """Its Job has failed and other pods take their time; after a disruption the set begins anew."""
    group = await (await launcher_of("jobset")).start(JOB, ignore)
    work = cluster.work()
    first, _ = cluster.pods(work["metadata"]["name"])
    end = {"exitCode": code or 143, "finishedAt": "2026-01-01T00:00:01Z"}
    cluster.set_status(first, phase="Failed", containerStatuses=[{"name": "rank", "state": {"terminated": end}}])
    condition = {"type": "FailureTarget", "status": "True", "reason": reason, "message": message}
    labels = work["metadata"]["labels"]
    job = {"metadata": {"name": f"{work['metadata']['name']}-ranks-0", "labels": labels}, "spec": {"completions": 0}}
    cluster.create(JOBS, {**job, "status": {"conditions": [condition]}})
    waiting = asyncio.create_task(group.wait())
    if code is not None:
        async with asyncio.timeout(30):
            assert (await waiting).code == code
    else:
        await asyncio.sleep(0.2)
        assert not waiting.done()
        waiting.cancel()


async def test_stop_gives_pods_their_time_and_leaves_nothing(cluster: FakeCluster, launcher_of: Opener) -> None:
    """Each pod is told how long it has; job, pods and Service are gone afterwards."""
    launcher = await launcher_of()
    group = await launcher.start(JOB, ignore)
    cluster.holds_pods = True
    stopping = asyncio.create_task(group.stop(20))
    await soon(lambda: sum(call[0] == "delete in 20 s" for call in cluster.calls) == 2)
    assert not stopping.done()
    cluster.holds_pods = False
    for pod in cluster.pods(cluster.work()["metadata"]["name"]):
        cluster.delete(PODS, pod["metadata"]["name"], grace_s=20)
    await stopping
    assert cluster.objects == {}


async def test_stop_forces_pods_of_a_node_that_is_not_heard_of(
    cluster: FakeCluster, launcher_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that nobody ends is removed after its time."""
    monkeypatch.setattr(module, "_NODE_S", 0.2)
    group = await (await launcher_of()).start(JOB, ignore)
    cluster.holds_pods = True
    await group.stop(0)
    assert sum(call[0] == "delete in 0 s" for call in cluster.calls) == 2
    assert cluster.objects == {}


async def test_waiting_survives_a_server_that_is_away(cluster: FakeCluster, launcher_of: Opener) -> None:
    """Failed calls are no end of the job."""
    group = await (await launcher_of()).start(JOB, ignore)
    name = cluster.work()["metadata"]["name"]
    cluster.fails = UnavailableError("the API server is away")
    waiting = asyncio.create_task(group.wait())
    cluster.end_watches()
    await asyncio.sleep(0.1)
    assert not waiting.done()
    cluster.fails = None
    for pod in cluster.pods(name):
        cluster.finish(pod, 0)
    async with asyncio.timeout(10):
        assert (await waiting).code == 0


async def test_wait_for_the_scheduler_is_told(cluster: FakeCluster, launcher_of: Opener) -> None:
    """Until the pods run, and not after."""
    group = await (await launcher_of()).start(JOB, ignore)
    name = cluster.work()["metadata"]["name"]
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node fits"}
    cluster.set_status(cluster.pods(name)[0], conditions=[condition])
    assert "no node fits" in await status_of(group, "Unschedulable")
    cluster.run(name)
    async with asyncio.timeout(5):
        while (await group.look()).pending_reason:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_trouble_before_there_are_pods_is_told_by_events(cluster: FakeCluster, launcher_of: Opener) -> None:
    """An exceeded quota leaves no pod to ask; other jobs' events are not ours."""
    cluster.admits = False
    group = await (await launcher_of()).start(JOB, ignore)
    for name, message in (("weft-other", "not this"), (cluster.work()["metadata"]["name"], "exceeded quota")):
        event = {"reason": "FailedCreate", "message": message, "involvedObject": {"kind": "Job", "name": name}}
        cluster.create(EVENTS, {"metadata": {"name": f"event-{name}"}, **event})
    assert await status_of(group, "quota") == "FailedCreate: exceeded quota"


async def test_queue_that_does_not_admit_is_told(cluster: FakeCluster, launcher_of: Opener) -> None:
    """The workload that belongs to the job has the queue's reason."""
    cluster.admits = False
    group = await (await launcher_of("jobset", queue="gpus")).start(JOB, ignore)
    assert "Kueue" in await status_of(group, "suspended")
    owner = {"name": cluster.work()["metadata"]["name"], "uid": cluster.work()["metadata"]["uid"]}
    condition = {"type": "QuotaReserved", "status": "False", "message": "no quota left"}
    workload = {"metadata": {"name": "w", "ownerReferences": [owner]}, "status": {"conditions": [condition]}}
    cluster.create(WORKLOADS, workload)
    assert await status_of(group, "not admitted") == "not admitted by the queue: no quota left"


async def test_restarts_of_a_jobset_are_told(cluster: FakeCluster, launcher_of: Opener) -> None:
    """The set counts them."""
    group = await (await launcher_of("jobset")).start(JOB, ignore)
    work = cluster.objects[JOBSETS, cluster.work()["metadata"]["name"]]
    work["status"] = {"restarts": 2}
    cluster.replace(JOBSETS, work["metadata"]["name"], work)
    async with asyncio.timeout(5):
        while (await group.look()).restarts != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_logs_are_by_rank_with_events_last(cluster: FakeCluster, launcher_of: Opener) -> None:
    """A pod that has not started has an empty one."""
    group = await (await launcher_of()).start(JOB, ignore)
    name = cluster.work()["metadata"]["name"]
    cluster.logs[cluster.pods(name)[1]["metadata"]["name"]] = "step 1\nstep 2"
    about = {"kind": "Job", "name": name}
    cluster.create(EVENTS, {"metadata": {"name": "e"}, "reason": "Made", "message": "m", "involvedObject": about})
    logs = await group.logs(6)
    assert [(log.source, log.text) for log in logs[:2]] == [("rank 0", ""), ("rank 1", "step 2")]
    assert logs[2].source == "events"
    assert len(logs[2].text) == 6


async def test_mirror_lists_again_where_the_server_has_forgotten(cluster: FakeCluster) -> None:
    """After 410 nothing that happened in between is missing, and nothing that is gone stays."""
    mirror = KubernetesMirror(cluster, [PODS], "a=b", pause_s=0.01)
    pod = {"metadata": {"name": "one", "labels": {"a": "b"}, "annotations": {}}}
    cluster.create(PODS, pod)
    cluster.create(PODS, {"metadata": {"name": "other", "labels": {"a": "c"}, "annotations": {}}})
    await mirror.start()
    try:
        assert [each["metadata"]["name"] for each in mirror.select(PODS, "a", "b")] == ["one"]
        await soon(lambda: any(call[0] == "watch" for call in cluster.calls))
        with cluster._lock:
            cluster.end_watches(forget=True)
            cluster.create(PODS, {"metadata": {"name": "two", "labels": {"a": "b"}, "annotations": {}}})
            cluster._remove(PODS, "one")
            cluster._forgotten = 10**6
        await soon(lambda: mirror.get(PODS, "two") is not None and mirror.get(PODS, "one") is None)
        cluster._forgotten = 0
        cluster.create(PODS, {"metadata": {"name": "three", "labels": {"a": "b"}, "annotations": {}}})
        await soon(lambda: mirror.get(PODS, "three") is not None)
    finally:
        mirror.stop()
        cluster.end_watches()
