"""What is read out of the documents of a cluster: the end of a job, and what keeps one from running."""

from typing import Any

import pytest

from weft_trainer.adapters.kubernetes_api import Manifest
from weft_trainer.adapters.kubernetes_outcome import ended, event_lines, first_failure, pending_reason

INDEX = "batch.kubernetes.io/job-completion-index"


def pod(rank: int, code: int | None = None, second: int = 0, **status: Any) -> Manifest:
    if code is not None:
        end = {"exitCode": code, "finishedAt": f"2026-01-01T00:00:{second:02d}Z", "reason": status.pop("reason", "")}
        status["containerStatuses"] = [{"name": "rank", "state": {"terminated": end}}]
        status.setdefault("phase", "Failed" if code else "Succeeded")
    return {"metadata": {"name": f"p-{rank}", "annotations": {INDEX: str(rank)}}, "status": status}


def waiting(reason: str, message: str) -> Manifest:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(0, phase="Pending", containerStatuses=[{"name": "rank", "state": state}])


def work(*conditions: str, **spec: Any) -> Manifest:
    return {"spec": spec, "status": {"conditions": [{"type": kind, "status": "True"} for kind in conditions]}}


def event(reason: str, message: str, **more: Any) -> Manifest:
    return {"reason": reason, "message": message, "metadata": {}, **more}


@pytest.mark.parametrize(
    ("conditions", "verdict"),
    [
        ((), None),
        (("Suspended",), None),
        (("SuccessCriteriaMet",), None),
        (("Complete",), True),
        (("Completed",), True),
        (("Failed",), False),
        (("FailureTarget",), False),
    ],
)
def test_end_is_read_from_the_conditions(conditions: tuple[str, ...], verdict: bool | None) -> None:
    """Jobs and JobSets have names of their own for it; a Job that only waits for its pods' end has failed."""
    assert ended(work(*conditions)) is verdict


def test_first_failure_is_the_earliest() -> None:
    """The ranks that lose their partner fail later, with codes of their own; a signal's code is negative."""
    failure = first_failure([pod(0, 1, second=9), pod(1, 137, second=3, reason="OOMKilled"), pod(2)])
    assert failure is not None
    assert (failure.pod["metadata"]["name"], failure.code, failure.disrupted) == ("p-1", -9, False)
    assert "OOMKilled" in failure.said


def test_first_failure_within_a_second_is_the_one_that_was_killed() -> None:
    """Times of pods have whole seconds only; one that was deleted for another's failure is none."""
    failure = first_failure([pod(0, 1, second=3), pod(1, 139, second=3)])
    assert failure is not None
    assert failure.code == -11
    deleted = pod(1, 143, second=3)
    deleted["metadata"]["deletionTimestamp"] = "now"
    failure = first_failure([deleted, pod(0, 1, second=3)])
    assert failure is not None
    assert (failure.code, failure.disrupted) == (1, False)


def test_refused_configuration_counts_before_everything_else() -> None:
    """Also before earlier failures, and before a disruption of another pod."""
    taken = {"type": "DisruptionTarget", "status": "True"}
    failure = first_failure([pod(0, 1, second=1, conditions=[taken]), pod(1, 42, second=5)])
    assert failure is not None
    assert (failure.code, failure.disrupted) == (42, False)


def test_disruption_of_any_pod_excuses_the_job() -> None:
    """The others may well fail first, for want of the one that is being taken away."""
    taken = {"type": "DisruptionTarget", "status": "True", "message": "evicted by the drain"}
    failure = first_failure([pod(0, 1, second=1), pod(1, 143, second=4, conditions=[taken])])
    assert failure is not None
    assert (failure.code, failure.disrupted) == (1, True)
    assert "evicted by the drain" in failure.said


def test_deletion_by_somebody_excuses_the_job() -> None:
    """Only where the pod that was deleted failed first: the others are deleted because of it."""
    first, second = pod(0, 137, second=1), pod(1, 143, second=3)
    second["metadata"]["deletionTimestamp"] = "now"
    failure = first_failure([first, second])
    assert failure is not None
    assert not failure.disrupted
    first["metadata"]["deletionTimestamp"] = "now"
    failure = first_failure([first, second])
    assert failure is not None
    assert (failure.code, failure.disrupted, failure.said) == (-9, True, "pod p-0 was deleted")


def test_pod_without_an_exit_code_has_failed_all_the_same() -> None:
    """A pod that a node refused or evicted before it ran says why in its status."""
    failure = first_failure([pod(0, phase="Failed", reason="Evicted", message="the node was low on memory")])
    assert failure is not None
    assert failure.code is None
    assert failure.said == "Evicted, the node was low on memory"


def test_no_failure_is_found_where_none_is() -> None:
    """Pods that run or ended well, or none."""
    assert first_failure([pod(0, 0), pod(1, phase="Running")]) is None
    assert first_failure([]) is None


def test_unschedulable_pod_says_why() -> None:
    """The scheduler's own sentence is given, with the pod."""
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    said = pending_reason(work(), [pod(0, phase="Pending", conditions=[scheduled])], (), None)
    assert said == f"Unschedulable: {message} (pod p-0)"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ErrImagePull", "pull access denied"),
        ("ImagePullBackOff", "Back-off pulling image"),
        ("CreateContainerConfigError", 'secret "auth" not found'),
        ("RunContainerError", "no such file"),
    ],
)
def test_container_that_cannot_start_says_why(reason: str, message: str) -> None:
    """Images, Secrets and commands that are missing are named."""
    assert pending_reason(work(), [waiting(reason, message)], (), None) == f"{reason}: {message} (pod p-0)"


def test_container_that_is_being_made_is_no_reason() -> None:
    """What every pod goes through on its way is not told."""
    assert pending_reason(work(), [waiting("ContainerCreating", "")], [event("Pulled", "done")], None) == ""


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("FailedCreate", "pods is forbidden: exceeded quota: gpus, requested: 1, used: 4, limited: 4"),
        ("FailedMount", 'MountVolume.SetUp failed for volume "tls": secret "tls" not found'),
    ],
)
def test_newest_event_says_why_pods_are_missing(reason: str, message: str) -> None:
    """Quota and mounts are told by events alone."""
    events = [event("FailedCreate", "older"), event(reason, message), event("SuccessfulCreate", "made one")]
    assert pending_reason(work(), [], events, None) == f"{reason}: {message}"


def test_pods_that_run_wait_for_nothing() -> None:
    """Old events of trouble that is over are not told."""
    assert pending_reason(work(), [pod(0, phase="Running")], [event("FailedCreate", "older")], None) == ""


def test_suspended_job_says_what_its_queue_says() -> None:
    """Kueue's own message; before it took note, that it did not."""
    message = "couldn't assign flavors to pod set ranks: insufficient quota"
    condition = {"type": "QuotaReserved", "status": "False", "message": message}
    workload = {"status": {"conditions": [condition]}}
    assert pending_reason(work(suspend=True), [], (), workload) == f"not admitted by the queue: {message}"
    assert "check that Kueue runs" in pending_reason(work(suspend=True), [], (), None)
    assert pending_reason(work(suspend=True), [], (), {"status": {}}) == "not admitted by the queue yet"


def test_events_are_lines_in_the_order_of_time() -> None:
    """Each with its object and how often it came."""
    about = {"kind": "Pod", "name": "p-0"}
    lines = event_lines(
        [
            event("Killing", "stopping", type="Normal", lastTimestamp="2026-01-01T00:00:02Z", involvedObject=about),
            event("BackOff", "again", type="Warning", count=3, eventTime="2026-01-01T00:00:01Z", involvedObject=about),
        ]
    )
    assert lines == [
        "2026-01-01T00:00:01Z Warning BackOff Pod/p-0: again (x3)",
        "2026-01-01T00:00:02Z Normal Killing Pod/p-0: stopping",
    ]
