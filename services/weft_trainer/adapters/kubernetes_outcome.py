"""What the documents of a cluster say of a job: whether it ended and how, what keeps it from running, what happened."""

from collections.abc import Iterable, Sequence
from typing import Any

from weft_trainer.adapters.kubernetes_api import Manifest
from weft_trainer.adapters.kubernetes_manifests import CONTAINER
from weft_trainer.core.ports import BAD_CONFIGURATION

__all__ = [
    "Failure",
    "ended",
    "event_lines",
    "fails_for_good",
    "first_failure",
    "index_of",
    "pending_reason",
    "restarts_of",
    "round_of",
    "was_disrupted",
]

_INDEX = "batch.kubernetes.io/job-completion-index"
_ROUND = "jobset.sigs.k8s.io/restart-attempt"
_WAITING = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RegistryUnavailable",
        "RunContainerError",
    }
)
# Normal steps on the way to a running pod; what else is told of a pod that does not run is in its way.
_TROUBLE = frozenset(
    {"FailedCreate", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedScheduling"}
)


def _condition(item: Manifest, kind: str) -> Manifest | None:
    """Return a condition that holds."""
    conditions = item.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def ended(work: Manifest) -> bool | None:
    """
    Tell how a Job or a JobSet ended: True well, False badly, None not yet.

    A Job whose pods still go down after a failure counts as ended: the others cannot do anything without the one.
    """
    if _condition(work, "Complete") or _condition(work, "Completed"):
        return True
    if _condition(work, "Failed") or _condition(work, "FailureTarget"):
        return False
    return None


def fails_for_good(job: Manifest) -> bool:
    """
    Tell whether a JobSet's Job has failed in a way after which the set is not started again.

    The set itself says so only once the last pod is gone, which those that lost a partner may take their time for.
    """
    failure = _condition(job, "FailureTarget") or _condition(job, "Failed")
    if failure is None:
        return False
    return failure.get("reason") != "PodFailurePolicy" or f"exit code {BAD_CONFIGURATION} " in failure.get(
        "message", ""
    )


def was_disrupted(job: Manifest) -> bool:
    """
    Tell whether a Job says that it failed because the cluster took a pod away.

    An evicted pod may be gone before anybody saw how it ended; its Job keeps the reason.
    """
    failure = _condition(job, "FailureTarget") or _condition(job, "Failed")
    if failure is None or failure.get("reason") != "PodFailurePolicy":
        return False
    return "condition DisruptionTarget " in failure.get("message", "")


def index_of(pod: Manifest) -> int:
    """Return a pod's rank."""
    return int((pod["metadata"].get("annotations") or {}).get(_INDEX, 0))


def restarts_of(work: Manifest) -> int:
    """Return how often a JobSet has begun anew; 0 for a Job."""
    return int(work.get("status", {}).get("restarts") or 0)


def round_of(pod: Manifest) -> int:
    """Return how often its JobSet had begun anew when the pod was made; 0 without one."""
    return int((pod["metadata"].get("labels") or {}).get(_ROUND, 0))


class Failure:
    """
    The pod that failed first.

    Args:
        pod: Its document.
        code: Its exit code, negative for a signal; None where it never had one.
        disrupted: The cluster took a pod of the job away, so the job is not to blame.
        said: What the cluster says of it.
    """

    def __init__(self, pod: Manifest, code: int | None, *, disrupted: bool, said: str) -> None:
        self.pod, self.code, self.disrupted, self.said = pod, code, disrupted, said


def _terminated(pod: Manifest) -> Manifest:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        found = status.get("state", {}).get("terminated")
        if status["name"] == CONTAINER and found:
            return dict(found)
    return {}


def first_failure(pods: Iterable[Manifest]) -> Failure | None:
    """
    Find the pod whose failure brought the others down; a refused configuration counts before everything else.

    None where no pod has failed, or none is left.
    """
    pods = list(pods)
    failed: list[tuple[bool, str, bool, int, Manifest, Manifest]] = []
    for pod in pods:
        end = _terminated(pod)
        code = int(end.get("exitCode", 0))
        if code or pod.get("status", {}).get("phase") == "Failed":
            # Where two end in the same second, the cause is the one that nobody deleted, then the one that was killed.
            deleted, killed = "deletionTimestamp" in pod["metadata"], 0 if code > 128 or not code else 1
            failed.append((code != BAD_CONFIGURATION, str(end.get("finishedAt", "")), deleted, killed, pod, end))
    if not failed:
        return None
    *_, pod, end = min(failed, key=lambda each: each[:4])
    exit_code = int(end["exitCode"]) if end.get("exitCode") else None
    disruption = next((found for each in pods if (found := _condition(each, "DisruptionTarget"))), None)
    # Pods are deleted after the first failure; one that is deleted and fails first was deleted by somebody.
    removed = bool(pod["metadata"].get("deletionTimestamp"))
    disrupted = (disruption is not None or removed) and exit_code != BAD_CONFIGURATION
    status = pod.get("status", {})
    parts = [end.get("reason", ""), status.get("reason", ""), status.get("message", "")]
    if disrupted and disruption is not None:
        parts.append(str(disruption.get("message", "")))
    elif disrupted:
        parts.append(f"pod {pod['metadata']['name']} was deleted")
    said = ", ".join(dict.fromkeys(str(part) for part in parts if part and part not in ("Error", "Completed")))
    return Failure(pod, _signed(exit_code), disrupted=disrupted, said=said)


def _signed(code: int | None) -> int | None:
    return 128 - code if code is not None and code > 128 else code


def pending_reason(
    work: Manifest, pods: Sequence[Manifest], events: Sequence[Manifest], workload: Manifest | None
) -> str:
    """
    Say what keeps a job from running; empty where nothing does.

    Args:
        work: The Job or JobSet.
        pods: Its pods.
        events: Of it and of its pods, oldest first.
        workload: Kueue's, where it queues the job.
    """
    if work.get("spec", {}).get("suspend"):
        return _why_suspended(workload)
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        for condition in status.get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')} (pod {name})"
        for container in status.get("containerStatuses") or []:
            waiting = container.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in _WAITING:
                return f"{waiting['reason']}: {waiting.get('message', '')} (pod {name})"
    if pods and all(pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed") for pod in pods):
        return ""
    for event in reversed(events):
        if event.get("reason") in _TROUBLE:
            return f"{event['reason']}: {event.get('message', '')}"
    return ""


def _why_suspended(workload: Manifest | None) -> str:
    if workload is None:
        return "suspended: the queue has not taken note of it yet; check that Kueue runs and has this queue"
    for condition in workload.get("status", {}).get("conditions") or []:
        if condition["type"] in ("Evicted", "QuotaReserved", "Admitted") and condition.get("message"):
            return f"not admitted by the queue: {condition['message']}"
    return "not admitted by the queue yet"


def _moment(event: Manifest) -> str:
    moment = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return str(moment or "")


def event_lines(events: Iterable[Manifest]) -> list[str]:
    """Return events as lines for a person, oldest first."""
    lines: list[tuple[str, str]] = []
    for event in events:
        about: Any = event.get("involvedObject", {})
        count = int(event.get("count") or 1)
        times = f" (x{count})" if count > 1 else ""
        what = f"{event.get('type', '')} {event.get('reason', '')} {about.get('kind', '')}/{about.get('name', '')}"
        lines.append((_moment(event), f"{_moment(event)} {what}: {event.get('message', '')}{times}"))
    return [line for _, line in sorted(lines)]
