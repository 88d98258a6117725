"""Runs that cannot be: a bad configuration fails once, and one that fits on no node says so."""

import pytest
from cluster_rig.kubectl import until
from cluster_rig.release import Release
from cluster_rig.work import get_run, harvest, start_run, training_spec, upload_corpus

from weft.training.v1 import messages_pb2 as training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def _dataset(release: Release) -> None:
    upload_corpus(release, "text")
    harvest(release, "refused")


def test_bad_configuration_fails_once_with_its_reason(release: Release) -> None:
    """A learning rate under which training diverges: the ranks refuse with 42, and nobody starts them again."""
    start_run(release, "diverges", training_spec("refused", learning_rate=1e30, clip_norm=0.0))
    run = until(
        lambda: (found := get_run(release, "diverges")).state == training.RUN_STATE_FAILED and found, "a failure", 240
    )
    assert run.attempt == 1
    assert "diverged" in run.error_message


def test_run_that_fits_nowhere_says_why(release: Release) -> None:
    """Within a minute, and cancelling it leaves nothing."""
    ranks = release.values["trainer"]["ranks"]
    release.upgrade(trainer={"ranks": {"resources": {"requests": {"cpu": "64", "memory": "1Gi"}}}})
    try:
        start_run(release, "huge", training_spec("refused"))
        reason = until(lambda: get_run(release, "huge").pending_reason, "a reason", 60)
        assert "cpu" in reason, reason
    finally:
        _cancel(release, "huge")
        release.upgrade(trainer={"ranks": ranks})
    until(lambda: not release.kubectl.items("pods", "weft.dev/run=huge"), "its pods go", 120)


def _cancel(release: Release, run: str) -> None:
    from weft.training.v1 import service_pb2
    from weft.training.v1.service_pb2_grpc import TrainingServiceStub

    with release.channel("trainer") as channel:
        TrainingServiceStub(channel).CancelRun(service_pb2.CancelRunRequest(name=f"runs/{run}"), timeout=60)
