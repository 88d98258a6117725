"""A cluster in memory: objects with versions and watches, controllers of Jobs and JobSets; the test is the kubelet."""

import copy
import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weft_common.errors import AlreadyExistsError, ConflictError, InvalidArgumentError, NotFoundError, WeftError
from weft_trainer.adapters.kubernetes_api import (
    JOBS,
    JOBSETS,
    PODS,
    ClusterApi,
    Manifest,
    Resource,
    WatchExpiredError,
)
from weft_trainer.adapters.kubernetes_manifests import CONTAINER, JOB_LABEL, RANKS

INDEX = "batch.kubernetes.io/job-completion-index"


def _labels_of(selector: str) -> dict[str, str]:
    return dict(part.split("=") for part in selector.split(",") if part)


class FakeCluster(ClusterApi):
    """
    One namespace.

    Args:
        jobsets: Whether JobSets are served.
    """

    def __init__(self, *, jobsets: bool = True) -> None:
        self.jobsets = jobsets
        self.objects: dict[tuple[Resource, str], Manifest] = {}
        self.logs: dict[str, str] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.fails: WeftError | None = None
        self.admits = True
        self.holds_pods = False
        self._versions = itertools.count(1)
        self._clock = itertools.count(1)
        self._lock = threading.RLock()
        self._watches: list[tuple[Resource, dict[str, str], queue.Queue[tuple[str, Manifest] | None]]] = []
        self._history: list[tuple[int, Resource, str, Manifest]] = []
        self._forgotten = 0

    # ---- the API ----

    def serves(self, resource: Resource) -> bool:
        self._call("serves", resource, "")
        return resource is not JOBSETS or self.jobsets

    def create(self, resource: Resource, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        with self._lock:
            name = str(manifest["metadata"]["name"])
            self._call("check" if dry_run else "create", resource, name)
            if (resource, name) in self.objects:
                raise AlreadyExistsError(f'{resource.plural} "{name}" already exists')
            made = copy.deepcopy(manifest)
            if dry_run:
                return made
            made["metadata"] |= {"uid": f"uid-{next(self._clock)}", "labels": manifest["metadata"].get("labels", {})}
            self._put(resource, made, "ADDED")
            self._control(resource, made)
            return copy.deepcopy(self.objects[resource, name])

    def get(self, resource: Resource, name: str) -> Manifest:
        with self._lock:
            self._call("get", resource, name)
            if (resource, name) not in self.objects:
                raise NotFoundError(f'{resource.plural} "{name}" not found')
            return copy.deepcopy(self.objects[resource, name])

    def replace(self, resource: Resource, name: str, manifest: Manifest) -> Manifest:
        with self._lock:
            present = self.get(resource, name)
            if manifest["metadata"].get("resourceVersion") != present["metadata"]["resourceVersion"]:
                raise ConflictError("the object has been modified")
            self._put(resource, copy.deepcopy(manifest), "MODIFIED")
            return copy.deepcopy(self.objects[resource, name])

    def label(self, resource: Resource, name: str, labels: Mapping[str, str | None]) -> Manifest:
        with self._lock:
            self._call("label", resource, name)
            if (resource, name) not in self.objects:
                raise NotFoundError(f'{resource.plural} "{name}" not found')
            changed = copy.deepcopy(self.objects[resource, name])
            merged = {**changed["metadata"].get("labels", {}), **labels}
            changed["metadata"]["labels"] = {key: value for key, value in merged.items() if value is not None}
            self._put(resource, changed, "MODIFIED")
            return copy.deepcopy(changed)

    def delete(self, resource: Resource, name: str, *, grace_s: int | None = None) -> None:
        with self._lock:
            self._call("delete" if grace_s is None else f"delete in {grace_s} s", resource, name)
            found = self.objects.get((resource, name))
            if found is None:
                return
            if resource is PODS:
                if not self.holds_pods or grace_s == 0:
                    self._remove(PODS, name)
                self._collect()
                return
            found["metadata"]["deletionTimestamp"] = "now"
            self._put(resource, found, "MODIFIED")
            if not self.holds_pods:
                for pod in self.pods(name):
                    self._remove(PODS, pod["metadata"]["name"])
            self._collect()

    def list(self, resource: Resource, selector: str = "") -> tuple[list[Manifest], str]:
        with self._lock:
            self._call("list", resource, selector)
            labels = _labels_of(selector)
            found = [
                copy.deepcopy(each)
                for (kind, _), each in self.objects.items()
                if kind is resource and labels.items() <= each["metadata"].get("labels", {}).items()
            ]
            return found, str(next(self._versions))

    def watch(self, resource: Resource, selector: str, version: str, timeout_s: int) -> Iterator[tuple[str, Manifest]]:
        news: queue.Queue[tuple[str, Manifest] | None] = queue.Queue()
        labels = _labels_of(selector)
        with self._lock:
            self._call("watch", resource, version)
            if int(version) < self._forgotten:
                raise WatchExpiredError(f"too old resource version: {version}")
            for number, kind, event, item in self._history:
                if number > int(version) and kind is resource and labels.items() <= item["metadata"]["labels"].items():
                    news.put((event, item))
            self._watches.append((resource, labels, news))
        while (told := news.get()) is not None:
            yield told

    def log(self, pod: str, tail_lines: int) -> str:
        self._call("log", PODS, pod)
        if pod not in self.logs:
            raise InvalidArgumentError(f'container "rank" in pod "{pod}" is waiting to start')
        return "\n".join(self.logs[pod].splitlines()[-tail_lines:])

    # ---- what the test does ----

    def end_watches(self, *, forget: bool = False) -> None:
        """End every watch; with `forget`, what happened until now can no longer be watched for."""
        with self._lock:
            if forget:
                self._forgotten = next(self._versions)
            watches, self._watches = self._watches, []
            for _, _, news in watches:
                news.put(None)

    def pods(self, work: str) -> Sequence[Manifest]:
        """Return the pods of a Job or JobSet, by rank."""
        found = [each for (kind, _), each in self.objects.items() if kind is PODS]
        own = [pod for pod in found if pod["metadata"]["labels"].get(JOB_LABEL) == work]
        return sorted(own, key=lambda pod: int(pod["metadata"]["annotations"][INDEX]))

    def work(self) -> Manifest:
        """Return the one Job or JobSet that somebody asked for."""
        (only,) = [
            each
            for (kind, _), each in self.objects.items()
            if kind in (JOBS, JOBSETS) and "ownerReferences" not in each["metadata"]
        ]
        return only

    def set_status(self, pod: Manifest, **status: Any) -> None:
        """Say something of a pod."""
        with self._lock:
            pod["status"] = {**pod.get("status", {}), **status}
            self._put(PODS, pod, "MODIFIED")

    def run(self, work: str) -> None:
        """Have all pods run."""
        for pod in self.pods(work):
            self.set_status(pod, phase="Running", conditions=[{"type": "PodScheduled", "status": "True"}])

    def finish(self, pod: Manifest, code: int, *, disrupted: bool = False) -> None:
        """End a pod's process; the controllers see it at once."""
        with self._lock:
            end = {"exitCode": code, "finishedAt": f"2026-01-01T00:00:{next(self._clock):02d}Z"}
            conditions = (
                [{"type": "DisruptionTarget", "status": "True", "message": "node drained"}] if disrupted else []
            )
            self.set_status(
                pod,
                phase="Failed" if code else "Succeeded",
                conditions=conditions,
                containerStatuses=[{"name": CONTAINER, "state": {"terminated": end}}],
            )
            self.logs.setdefault(pod["metadata"]["name"], f"ended with {code}")
            self._conclude(pod["metadata"]["labels"][JOB_LABEL])

    # ---- the controllers ----

    def _control(self, resource: Resource, work: Manifest) -> None:
        if resource is JOBSETS and self.admits:
            template = work["spec"]["replicatedJobs"][0]["template"]
            self._make_pods(f"{work['metadata']['name']}-{RANKS}-0", template["spec"])
        elif resource is JOBS and self.admits:
            self._make_pods(work["metadata"]["name"], work["spec"])

    def _make_pods(self, name: str, spec: Manifest) -> None:
        for index in range(spec["completions"]):
            template = copy.deepcopy(spec["template"])
            metadata = {**template["metadata"], "name": f"{name}-{index}-{next(self._clock):05d}"}
            metadata["annotations"] = {**metadata.get("annotations", {}), INDEX: str(index)}
            pod = {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}}
            self._put(PODS, pod, "ADDED")

    def _conclude(self, name: str) -> None:
        """Give a Job or JobSet its end, as backoffLimit 0 has it."""
        resource = JOBS if (JOBS, name) in self.objects else JOBSETS
        work = self.objects[resource, name]
        phases = [pod["status"]["phase"] for pod in self.pods(name)]
        if "Failed" in phases:
            condition = {"type": "Failed", "status": "True", "message": "a pod failed"}
        elif all(phase == "Succeeded" for phase in phases):
            condition = {"type": "Complete" if resource is JOBS else "Completed", "status": "True", "message": ""}
        else:
            return
        work["status"] = {**work.get("status", {}), "conditions": [condition]}
        self._put(resource, work, "MODIFIED")

    def _collect(self) -> None:
        """Remove what is being deleted once nothing that it owns is left, and what it owned."""
        for (kind, name), each in list(self.objects.items()):
            if kind in (JOBS, JOBSETS) and each["metadata"].get("deletionTimestamp") and not self.pods(name):
                self._remove(kind, name)
        uids = {each["metadata"].get("uid") for each in self.objects.values()}
        for (kind, name), each in list(self.objects.items()):
            owners = each["metadata"].get("ownerReferences", [])
            if owners and not any(owner["uid"] in uids for owner in owners):
                self._remove(kind, name)

    def _call(self, verb: str, resource: Resource, what: str) -> None:
        self.calls.append((verb, resource.kind, what))
        if self.fails is not None:
            raise self.fails

    def _put(self, resource: Resource, item: Manifest, event: str) -> None:
        version = next(self._versions)
        item["metadata"]["resourceVersion"] = str(version)
        self.objects[resource, item["metadata"]["name"]] = item
        self._tell(version, resource, event, item)

    def _remove(self, resource: Resource, name: str) -> None:
        item = self.objects.pop((resource, name))
        version = next(self._versions)
        item["metadata"]["resourceVersion"] = str(version)
        self._tell(version, resource, "DELETED", item)

    def _tell(self, version: int, resource: Resource, event: str, item: Manifest) -> None:
        item = copy.deepcopy(item)
        item["metadata"].setdefault("labels", {})
        self._history.append((version, resource, event, item))
        for kind, labels, news in self._watches:
            if kind is resource and labels.items() <= item["metadata"]["labels"].items():
                news.put((event, item))
