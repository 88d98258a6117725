"""FeatureJobService as a caller sees it: what work there is, how far it is, what came of each feature."""

import asyncio
import json
from typing import Any

import pytest
from interpreter_server import InterpreterServer, says, slow, status
from jobs_fixtures import jobs, server
from jobs_house import JobsHouse

from weft.features.v1 import interpretation_pb2, jobs_pb2
from weft_common.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError

__all__ = ["jobs", "server"]

FEATURES = [f"transcoders/t/features/1-{index}" for index in range(12)]
SUCCEEDED, CANCELLED, FAILED = (
    jobs_pb2.JOB_STATE_SUCCEEDED,
    jobs_pb2.JOB_STATE_CANCELLED,
    jobs_pb2.JOB_STATE_FAILED,
)


def scope(calls: int = 1_000, **fields: Any) -> interpretation_pb2.InterpretationScope:
    return interpretation_pb2.InterpretationScope(**{"features": FEATURES, "max_calls": calls, **fields})


async def results(jobs: JobsHouse, operation: str, *outcomes: str, **options: Any) -> list[Any]:
    """What came of features, page by page."""
    numbers = [jobs_pb2.FeatureOutcome.Value(f"FEATURE_OUTCOME_{each}") for each in outcomes]
    return [each async for each in jobs.house.client.jobs.results(operation, outcomes=numbers, **options)]


async def test_jobs_tell_what_came_of_every_feature(jobs: JobsHouse) -> None:
    """Labels and scores by feature agree with the labels that stand, the totals with the response, newest first."""
    client = jobs.house.client
    explaining = await client.labels.explain("t", scope=scope())
    explained = await client.operations.wait(explaining)
    scoring = await client.labels.score("t", scope=scope(max_tokens=10_000_000), control=True)
    scored = await client.operations.wait(scoring)
    assert explained.num_labelled >= 8
    assert scored.num_scored >= 6

    listed = [each async for each in client.jobs.list()]
    assert [each.operation for each in listed] == [scoring.name, explaining.name]
    score, explain = listed
    assert (explain.state, explain.parent, explain.num_named) == (SUCCEEDED, "transcoders/t", 12)
    assert explain.WhichOneof("request") == "explain"
    assert not explain.explain.scope.features
    assert explain.explain.scope.max_calls == 1_000
    assert explain.explained == explained
    assert explain.spend == explained.spend
    assert score.score.control
    assert list(score.reports) == list(scored.reports) == list(score.scored.reports)
    assert score.end_time.ToNanoseconds() >= score.create_time.ToNanoseconds() > explain.create_time.ToNanoseconds()
    assert await client.jobs.get(score.operation) == score
    assert [each async for each in client.jobs.list("t")] == listed
    assert not [each async for each in client.jobs.list("other")]

    labels = {(label.layer, label.index): label async for label in client.labels.list("t")}
    rows = await results(jobs, explaining.name, page_size=5)
    assert [row.name for row in rows] == FEATURES
    assert [row.position for row in rows] == list(range(12))
    labelled = [row for row in rows if row.outcome == jobs_pb2.FEATURE_OUTCOME_LABELLED]
    assert {(row.layer, row.index): row.label for row in labelled} == {at: each.text for at, each in labels.items()}
    assert len(labelled) == explained.num_labelled
    assert len(await results(jobs, explaining.name, "TOO_FEW")) == explained.num_too_few

    tested = await results(jobs, scoring.name, "SCORED")
    assert len(tested) == scored.num_scored
    for row in tested:
        standing = labels[row.layer, row.index].scores
        assert {each.kind: (each.value, each.low, each.high, each.num_trials) for each in row.scores} == {
            each.kind: (each.value, each.low, each.high, each.num_trials) for each in standing
        }
        assert row.label == labels[row.layer, row.index].text
    for report in scored.reports:
        controls = [each for row in tested for each in row.control_scores if each.kind == report.kind]
        assert sum(each.num_trials for each in controls) == report.control.num_trials > 0


async def test_failures_come_with_their_reasons(jobs: JobsHouse, server: InterpreterServer) -> None:
    """What the model said instead of a label is told, as one line of plain text."""
    server.faults = [says(None, refusal="I\nwill not\u202e"), says("<b>none</b>"), status(400, message="too long")]
    operation = await jobs.house.client.labels.explain("t", scope=scope(features=FEATURES[:3]))
    await jobs.house.client.operations.wait(operation)
    rows = await results(jobs, operation.name)
    reasons = {jobs_pb2.FeatureOutcome.Name(row.outcome).removeprefix("FEATURE_OUTCOME_"): row.reason for row in rows}
    assert set(reasons) == {"REFUSED", "BROKEN", "REJECTED"}
    assert reasons["REFUSED"] == "I will not"
    assert reasons["BROKEN"] == "<b>none</b>"
    assert "too long" in reasons["REJECTED"]
    assert [row.outcome for row in await results(jobs, operation.name, "BROKEN")] == [jobs_pb2.FEATURE_OUTCOME_BROKEN]


async def test_watching_follows_to_the_end(jobs: JobsHouse, server: InterpreterServer) -> None:
    """As it is at once, then what grows, last the end; results can be read of whatever is told as done."""
    server.always = slow(0.1)
    operation = await jobs.house.client.labels.explain("t", scope=scope())
    seen = [each async for each in jobs.house.client.jobs.watch(operation.name)]
    done = [each.progress.completed for each in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].progress.total == 12
    assert seen[0].state in (jobs_pb2.JOB_STATE_WAITING, jobs_pb2.JOB_STATE_RUNNING)
    assert seen[-1].state == SUCCEEDED
    assert seen[-1].spend.calls == len(server.requests)


async def test_cancelled_work_goes_on_as_new_work_that_pays_for_nothing_twice(
    jobs: JobsHouse, server: InterpreterServer
) -> None:
    """The features it came to stay told; resumed with another budget, each question was sent once."""
    client = jobs.house.client
    server.always = slow(0.15)
    operation = await client.labels.explain("t", scope=scope())
    await asyncio.to_thread(server.wait_for, 4)
    with pytest.raises(FailedPreconditionError, match="cancel it"):
        await client.jobs.resume(operation.name)
    await client.operations.cancel(operation.name)
    with pytest.raises(CancelledError):
        await client.operations.wait(operation)
    assert (await client.jobs.get(operation.name)).state == CANCELLED
    assert 0 < len(await results(jobs, operation.name)) < 12

    server.always = None
    again = await client.jobs.resume(operation.name, max_calls=500, request_id="one")
    assert (await client.jobs.resume(operation.name, max_calls=500, request_id="one")).name == again.name
    done = await client.operations.wait(again)
    assert done.num_left == 0
    resumed = await client.jobs.get(again.name)
    assert (resumed.explain.scope.max_calls, resumed.num_named) == (500, 12)
    assert len({json.dumps(body) for _, body, _ in server.requests}) == len(server.requests)
    assert [row.name for row in await results(jobs, again.name)] == FEATURES


async def test_index_jobs_are_those_that_are_not_whole(jobs: JobsHouse) -> None:
    """One under way is told with its progress, one that failed with its reason; a whole one is no job any more."""
    client = jobs.house.client

    async def listed(transcoder: str = "t") -> list[jobs_pb2.IndexJob]:
        return [each async for each in client.jobs.indexes(transcoder)]

    assert not await listed()
    jobs.texts.may_read.clear()
    operation = await client.features.index("t", "second", dataset="d")
    (job,) = await listed()
    assert (job.index, job.operation) == ("transcoders/t/indexes/second", operation.name)
    assert job.state in (jobs_pb2.JOB_STATE_WAITING, jobs_pb2.JOB_STATE_RUNNING)
    assert (job.progress.completed, job.progress.total) == (0, 3 * 60 * 13)
    assert job.request.dataset == "datasets/d"
    assert not await listed("u")
    jobs.texts.is_gone = True
    jobs.texts.may_read.set()
    with pytest.raises(NotFoundError):
        await client.operations.wait(operation)
    (job,) = await listed()
    assert job.state == FAILED
    assert "no harvest wrote" in job.error_message
    jobs.texts.is_gone = False
    await client.operations.wait(await client.features.index("t", "second", dataset="d"))
    assert not await listed()


async def test_interpreter_is_told(jobs: JobsHouse) -> None:
    """Who is asked, and with which prompts."""
    found = await jobs.house.client.jobs.interpreter()
    assert (found.is_set_up, found.model, list(found.explain_prompts)) == (True, "m", ["explain-1"])


async def test_other_work_is_no_interpretation(jobs: JobsHouse) -> None:
    """An index's operation and names of nothing are not found; what cannot be listed is refused."""
    client = jobs.house.client
    (index,) = [each.name async for each in client.operations.list("attribution")]
    for name in (index, "operations/attribution-explain-features.nothing", "graphs/g"):
        with pytest.raises(NotFoundError):
            await client.jobs.get(name)
    explaining = await client.labels.explain("t", scope=scope(1))
    with pytest.raises(InvalidArgumentError, match="outcomes"):
        [each async for each in client.jobs.results(explaining.name, outcomes=[99])]  # type: ignore[list-item]
    with pytest.raises(InvalidArgumentError, match="page_size"):
        [each async for each in client.jobs.results(explaining.name, page_size=-1)]


async def test_command_lists_jobs_and_what_came_of_them(jobs: JobsHouse, server: InterpreterServer) -> None:
    """Jobs with their cost, features with reasons, and the same again for what is left."""
    server.faults = [says(None, refusal="I will not")]
    names = [each for at in (0, 1, 2) for each in ("--feature", f"1-{at}")]
    await jobs.house.text("labels", "explain", "t", *names, "--max-calls", "2")
    (job,) = (await jobs.house.json("labels", "jobs", "t"))["jobs"]
    assert (job["state"], job["spend"]["calls"]) == ("JOB_STATE_SUCCEEDED", "2")
    operation = job["operation"].rpartition("/")[2]
    table = await jobs.house.text("labels", "jobs")
    assert operation in table
    assert "2 of 2" in table
    assert "I will not" in await jobs.house.text("labels", "results", operation, "--failures")
    listed = (await jobs.house.json("labels", "results", operation))["features"]
    assert len(listed) == 2
    shown = await jobs.house.text("labels", "resume", operation, "--max-calls", "9")
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["1-0", "1-1", "1-2"]
