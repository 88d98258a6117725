"""`weft labels jobs`, `results` and `resume`: what became of explaining and scoring."""

from typing import Annotated

import typer

from weft.features.v1 import jobs_pb2
from weft_client.cli.output import as_dict, print_json, print_list, time
from weft_client.cli.session import JsonFlag, NoWait, connected
from weft_client.cli.waiting import print_started, wait
from weft_client.names import full_name, short_id

OperationArgument = Annotated[str, typer.Argument(help="Id of the job's operation, from `weft labels jobs`.")]
_FAILURES = (
    jobs_pb2.FEATURE_OUTCOME_REFUSED,
    jobs_pb2.FEATURE_OUTCOME_REJECTED,
    jobs_pb2.FEATURE_OUTCOME_BROKEN,
    jobs_pb2.FEATURE_OUTCOME_UNANSWERED,
    jobs_pb2.FEATURE_OUTCOME_CHANGED,
)


def jobs(
    transcoder: Annotated[str, typer.Argument(help="Id of the transcoder; default: all.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """List what was explained and scored, newest first, with what it has cost."""
    with connected() as client:
        print_list(
            "jobs",
            client.jobs.list(transcoder),
            {
                "id": lambda each: short_id(each.operation),
                "transcoder": lambda each: short_id(each.parent),
                "state": lambda each: _word(jobs_pb2.JobState.Name(each.state), "JOB_STATE_"),
                "features": lambda each: f"{each.progress.completed} of {each.progress.total}",
                "calls": lambda each: f"{each.spend.calls} of {_max_calls(each)}",
                "tokens": lambda each: str(each.spend.question_tokens + each.spend.answer_tokens),
                "asked for": lambda each: time(each.create_time),
            },
            as_json=as_json,
        )


def results(
    operation: OperationArgument,
    failures: Annotated[bool, typer.Option("--failures", help="Only features that it came to nothing with.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List what came of a job's features so far, with labels, scores and reasons."""
    with connected() as client:
        print_list(
            "features",
            client.jobs.results(operation, outcomes=_FAILURES if failures else ()),
            {
                "id": lambda each: f"{each.layer}-{each.index}",
                "outcome": lambda each: _word(jobs_pb2.FeatureOutcome.Name(each.outcome), "FEATURE_OUTCOME_"),
                "scores": lambda each: " ".join(f"{score.value:.2f}" for score in each.scores),
                "shuffled": lambda each: " ".join(f"{score.value:.2f}" for score in each.control_scores),
                "label": lambda each: each.label,
                "reason": lambda each: each.reason,
            },
            as_json=as_json,
        )


def resume(
    operation: OperationArgument,
    max_calls: Annotated[int, typer.Option(help="Most calls of the new job; 0 means as many as before.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the new job; 0 means as many as before.")] = 0,
    no_wait: NoWait = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask for a job's features again, as a new job; answers that are there cost nothing."""
    with connected() as client:
        job = client.jobs.get(operation)
        started = client.jobs.resume(operation, max_calls=max_calls, max_tokens=max_tokens)
        if no_wait:
            print_started(started, full_name("transcoders", job.parent), validated=False, as_json=as_json)
            return
        done = wait(client, started, "going on", quiet=as_json)
        if as_json:
            print_json(as_dict(done))
            return
    results(short_id(started.name), failures=False, as_json=False)


def _max_calls(job: jobs_pb2.Interpretation) -> int:
    asked = job.explain if job.HasField("explain") else job.score
    return asked.scope.max_calls


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")
