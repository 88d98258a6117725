"""
Starts ranks as pods of a Kubernetes cluster: a JobSet, or an Indexed Job beside a headless Service.

The cluster keeps what runs, so ranks outlive their controller and are found by the name that their job's key gives.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from weft_common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    WeftError,
)
from weft_common.logging import get_logger
from weft_trainer.adapters.kubernetes_api import (
    EVENTS,
    JOBS,
    JOBSETS,
    PODS,
    SERVICES,
    WORKLOADS,
    ClusterApi,
    Manifest,
    Resource,
)
from weft_trainer.adapters.kubernetes_manifests import (
    JOB_LABEL,
    RANKS,
    PodOptions,
    job_name,
    service_manifest,
    work_manifest,
)
from weft_trainer.adapters.kubernetes_mirror import KubernetesMirror
from weft_trainer.adapters.kubernetes_outcome import (
    ended,
    event_lines,
    fails_for_good,
    first_failure,
    index_of,
    pending_reason,
    restarts_of,
    round_of,
    was_disrupted,
)
from weft_trainer.core.ports import BAD_CONFIGURATION, RankExit, RankJob, RankLog, RankStatus

__all__ = ["KubernetesGroup", "KubernetesLauncher", "RankKind", "kubernetes_launcher"]

_log = get_logger(__name__)

RankKind = Literal["auto", "jobset", "job"]

_LOOK_S = 5.0
_WATCH_LAG_S = 5.0
_TAIL_LINES = 12
_LINE_BYTES = 100
# What a node is given, beyond the pods' own time, to say that they are gone.
_NODE_S = 30.0
_SELECTOR = "app.kubernetes.io/name=weft,app.kubernetes.io/component=rank"


class KubernetesGroup:
    """
    The pods of one job.

    Args:
        api: The cluster.
        mirror: Copies of its objects.
        resource: Job or JobSet.
        name: Of it.
    """

    def __init__(self, api: ClusterApi, mirror: KubernetesMirror, resource: Resource, name: str) -> None:
        self._api = api
        self._mirror = mirror
        self._resource = resource
        self._name = name
        self._exit: RankExit | None = None

    async def wait(self) -> RankExit:
        while True:
            bell = self._mirror.bell()
            try:
                self._exit = self._exit or await self._ended()
            except UnavailableError as error:
                _log.warning("cluster_away", job=self._name, error=error.message)
            if self._exit is not None:
                return self._exit
            await self._mirror.wait(bell, _LOOK_S)

    async def stop(self, grace_s: float) -> None:
        await asyncio.to_thread(self._api.delete, self._resource, self._name)
        deadline = time.monotonic() + grace_s + _NODE_S
        force = False
        told: set[str] = set()
        while True:
            bell = self._mirror.bell()
            pods = await self._pods()
            if not pods and not await self._is_there():
                return
            untold = [name for pod in pods if (name := str(pod["metadata"]["name"])) not in told]
            for name in untold:
                told.add(name)
                seconds = 0 if force else max(1, round(grace_s))
                await asyncio.to_thread(self._api.delete, PODS, name, grace_s=seconds)
            if time.monotonic() > deadline and not untold:
                if force:
                    raise UnavailableError(
                        f"the pods of {self._name} do not go when deleted: look at them and at their nodes."
                    )
                # Their node is not heard of; should it come back, what they save is of an old attempt and refused.
                _log.warning("pods_forced", job=self._name, pods=[pod["metadata"]["name"] for pod in pods])
                force, deadline = True, time.monotonic() + _NODE_S
                told.clear()
            await self._mirror.wait(bell, 1.0)

    async def look(self) -> RankStatus:
        work = self._mirror.get(self._resource, self._name)
        if work is None:
            return RankStatus()
        pods = self._mirror.select(PODS, JOB_LABEL, self._name)
        restarts = restarts_of(work)
        workload = await self._workload() if work.get("spec", {}).get("suspend") else None
        reason = pending_reason(work, pods, (), workload)
        if not reason and not (pods and all(pod.get("status", {}).get("phase") == "Running" for pod in pods)):
            reason = pending_reason(work, pods, await self._events(), workload)
        return RankStatus(pending_reason=reason, restarts=restarts)

    async def logs(self, max_bytes: int) -> Sequence[RankLog]:
        pods = await self._pods()
        found = [RankLog(f"rank {index_of(pod)}", await self._log(pod, max_bytes)) for pod in pods]
        lines = await asyncio.to_thread(event_lines, await self._events())
        return [*found, RankLog("events", "\n".join(lines)[-max_bytes:])]

    async def _ended(self) -> RankExit | None:
        work = self._mirror.get(self._resource, self._name)
        if work is None:
            # The copies may lag behind: only the server knows that something is not there.
            try:
                work = await asyncio.to_thread(self._api.get, self._resource, self._name)
            except NotFoundError:
                return RankExit(None, f"{self._resource.kind} {self._name} is not there any more")
        well, job = ended(work), self._mirror.get(JOBS, f"{self._name}-{RANKS}-0") or work
        if well is None and not fails_for_good(job):
            return None
        pods = await self._pods()
        if well:
            return RankExit(0, await self._tail(pods[0]) if pods else "")
        there = {pod["metadata"]["name"] for pod in pods}
        await self._until_seen_gone(there)
        gone = [pod for pod in self._mirror.gone(PODS, JOB_LABEL, self._name) if pod["metadata"]["name"] not in there]
        restarts = restarts_of(work)
        failure = first_failure(pod for pod in [*pods, *gone] if round_of(pod) >= restarts)
        if failure is None:
            return RankExit(None, _messages(work), disrupted=was_disrupted(job))
        code = failure.code if failure.code is not None else 1
        disrupted = failure.disrupted or (was_disrupted(job) and code != BAD_CONFIGURATION)
        # Where nobody saw the pod that was taken away, its Job knows which one it was.
        why = _messages(job) if disrupted and not failure.disrupted else ""
        said = [failure.said, why, await self._tail(failure.pod)]
        return RankExit(code, "\n".join(part for part in said if part), disrupted=disrupted)

    async def _until_seen_gone(self, there: set[str]) -> None:
        """Wait for the last of pods that are not there any more: a list is ahead of what is watched."""
        deadline = time.monotonic() + _WATCH_LAG_S
        while time.monotonic() < deadline:
            bell = self._mirror.bell()
            known = self._mirror.select(PODS, JOB_LABEL, self._name)
            if all(pod["metadata"]["name"] in there for pod in known):
                return
            await self._mirror.wait(bell, 1.0)

    async def _pods(self) -> list[Manifest]:
        pods, _ = await asyncio.to_thread(self._api.list, PODS, f"{JOB_LABEL}={self._name}")
        return sorted(pods, key=lambda pod: (index_of(pod), str(pod["metadata"]["name"])))

    async def _is_there(self) -> bool:
        try:
            await asyncio.to_thread(self._api.get, self._resource, self._name)
        except NotFoundError:
            return False
        return True

    async def _events(self) -> list[Manifest]:
        events, _ = await asyncio.to_thread(self._api.list, EVENTS)
        own = (self._name, f"{self._name}-")
        found = [event for event in events if str(event.get("involvedObject", {}).get("name", "")).startswith(own)]
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))

    async def _workload(self) -> Manifest | None:
        try:
            workloads, _ = await asyncio.to_thread(self._api.list, WORKLOADS)
        except NotFoundError:
            return None
        for workload in workloads:
            owners = workload["metadata"].get("ownerReferences") or []
            if any(owner["name"] == self._name for owner in owners):
                return workload
        return None

    async def _tail(self, pod: Manifest) -> str:
        lines = (await self._log(pod, _TAIL_LINES * 1000, _TAIL_LINES)).splitlines()
        return "\n".join(line for line in lines if line.strip())

    async def _log(self, pod: Manifest, max_bytes: int, tail_lines: int = 0) -> str:
        lines = tail_lines or max(_TAIL_LINES, max_bytes // _LINE_BYTES)
        try:
            text = await asyncio.to_thread(self._api.log, pod["metadata"]["name"], lines)
        except (InvalidArgumentError, NotFoundError):
            return ""
        except WeftError as error:
            return f"(the log cannot be read: {error.message})"
        return text.encode()[-max_bytes:].decode(errors="replace")


def _messages(work: Manifest) -> str:
    conditions = work.get("status", {}).get("conditions") or []
    return "; ".join(str(each["message"]) for each in conditions if each["status"] == "True" and each.get("message"))


class KubernetesLauncher:
    """
    Starts jobs in a namespace.

    Args:
        api: The cluster.
        mirror: Copies of its objects.
        options: What the pods are like.
        installation: Tells one installation's jobs from another's in the same namespace; its bucket.
        jobsets: The cluster serves JobSets, and they are wanted.
    """

    ranks_outlive_controller = True

    def __init__(
        self, api: ClusterApi, mirror: KubernetesMirror, options: PodOptions, installation: str, *, jobsets: bool
    ) -> None:
        self._api = api
        self._mirror = mirror
        self._options = options
        self._installation = installation
        self._jobsets = jobsets
        self._groups: dict[str, KubernetesGroup] = {}

    async def check(self, job: RankJob) -> None:
        resource, manifest = self._work(job)
        asked = [(resource, manifest)]
        if resource is JOBSETS:
            # Nobody checks the Job within a JobSet before it is made.
            asked.append((JOBS, work_manifest(job, str(manifest["metadata"]["name"]), self._options, jobset=False)))
        for each, document in asked:
            with suppress(AlreadyExistsError):
                await asyncio.to_thread(self._api.create, each, document, dry_run=True)

    async def start(self, job: RankJob, register: Callable[[Mapping[str, Any]], Awaitable[None]]) -> KubernetesGroup:
        resource, manifest = self._work(job)
        name = str(manifest["metadata"]["name"])
        await register({"kind": resource.kind, "name": name})
        try:
            work = await asyncio.to_thread(self._api.create, resource, manifest)
        except AlreadyExistsError:
            work = await asyncio.to_thread(self._api.get, resource, name)
            if work["metadata"].get("deletionTimestamp"):
                raise UnavailableError(f"{resource.kind} {name} of an earlier start still goes down.") from None
        await self._ensure_service(resource, work)
        group = self._groups[job.key] = KubernetesGroup(self._api, self._mirror, resource, name)
        return group

    async def find(self, key: str, record: Mapping[str, Any]) -> KubernetesGroup:
        if key in self._groups:
            return self._groups[key]
        resource = JOBSETS if record.get("kind") == JOBSETS.kind else JOBS
        name = str(record.get("name") or job_name(self._installation, key))
        try:
            await self._ensure_service(resource, await asyncio.to_thread(self._api.get, resource, name))
        except NotFoundError:
            _log.info("ranks_gone", job=key, kind=resource.kind, name=name)
        group = self._groups[key] = KubernetesGroup(self._api, self._mirror, resource, name)
        return group

    async def clear(self, key: str) -> None:
        self._groups.pop(key, None)
        name = job_name(self._installation, key)
        for resource in [JOBSETS, JOBS] if self._jobsets else [JOBS]:
            await KubernetesGroup(self._api, self._mirror, resource, name).stop(0)

    def _work(self, job: RankJob) -> tuple[Resource, Manifest]:
        name = job_name(self._installation, job.key)
        manifest = work_manifest(job, name, self._options, jobset=self._jobsets)
        return (JOBSETS if manifest["kind"] == JOBSETS.kind else JOBS), manifest

    async def _ensure_service(self, resource: Resource, work: Manifest) -> None:
        """Give the pods of an Indexed Job their names; a controller that died in between is made up for."""
        if resource is not JOBS or work["spec"].get("completionMode") != "Indexed":
            return
        try:
            await asyncio.to_thread(self._api.create, SERVICES, service_manifest(work))
        except AlreadyExistsError:
            return


@asynccontextmanager
async def kubernetes_launcher(
    api: ClusterApi, options: PodOptions, installation: str, kind: RankKind
) -> AsyncIterator[KubernetesLauncher]:
    """
    Open a launcher.

    Raises:
        FailedPreconditionError: JobSets are asked for and the cluster serves none.
    """
    served = kind != "job" and await asyncio.to_thread(api.serves, JOBSETS)
    if kind == "jobset" and not served:
        raise FailedPreconditionError(
            "WEFT_TRAINER_KUBERNETES_RANK_KIND is jobset, but the cluster serves no JobSets: install JobSet, or set it "
            "to auto or job."
        )
    mirror = KubernetesMirror(api, [PODS, JOBS, *([JOBSETS] if served else [])], _SELECTOR)
    try:
        await mirror.start()
        _log.info("launcher_ready", kind="JobSet" if served else "Job")
        yield KubernetesLauncher(api, mirror, options, installation, jobsets=served)
    finally:
        mirror.stop()
