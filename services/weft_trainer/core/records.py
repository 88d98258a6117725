"""
What the bucket says of a run: `runs/{run}/run.json`, changed by compare-and-swap only.

    PENDING ──first report──▶ RUNNING ──▶ SUCCEEDED
       ▲                        │ ├─────▶ FAILED ────┐
       │◀──ranks died, retried──┘ └─────▶ PAUSED ──┐ │
       └────────────────────ResumeRun──────────────┴─┘      CANCELLED from every state that is not final
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from weft_common.errors import DataLossError, FailedPreconditionError

__all__ = ["Epoch", "Measurement", "RunRecord", "RunState", "Transition", "check_transition", "epoch_at", "now"]

# Metrics of a step or an evaluation, by the names of their proto fields.
Measurement = dict[str, Any]


def now() -> str:
    """Return the present moment as documents write it: RFC 3339, UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class RunState(StrEnum):
    """Where a run stands; `RUN_STATE_` left out."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Nothing goes on by itself; a failed run can be resumed by somebody."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)


_ALLOWED: Mapping[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset(
        {RunState.PENDING, RunState.RUNNING, RunState.PAUSED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}
    ),
    RunState.RUNNING: frozenset(
        {RunState.PENDING, RunState.PAUSED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}
    ),
    RunState.PAUSED: frozenset({RunState.PENDING, RunState.CANCELLED}),
    RunState.FAILED: frozenset({RunState.PENDING}),
    RunState.SUCCEEDED: frozenset(),
    RunState.CANCELLED: frozenset(),
}


def check_transition(old: RunState, new: RunState) -> None:
    """Raise FailedPreconditionError where a run cannot go from one state to the other."""
    if new not in _ALLOWED[old]:
        raise FailedPreconditionError(f"a run that is {old} cannot become {new}: look at it with GetRun.")


@dataclass(frozen=True)
class Transition:
    """
    A change of state, or news in the same one.

    Args:
        state: From then on.
        time: When, RFC 3339.
        reason: Why, for a person.
    """

    state: RunState
    time: str
    reason: str


@dataclass(frozen=True)
class Epoch:
    """
    What one pass over the data goes over, of a run on snapshots, or several passes over the same.

    Args:
        index: From 0; of the first pass.
        snapshot: Of the dataset; 0 means the sealed dataset.
        since_snapshot: That of the epoch before, whose shards are left out; 0 leaves out none.
        num_tokens: To train on, that the epoch goes over.
        snapshot_tokens: To train on, in the whole snapshot.
        passes: Epochs that go over the same, one after the other.
        create_time: Of the dataset, RFC 3339; empty in documents of versions that did not keep it.
    """

    index: int
    snapshot: int
    since_snapshot: int
    num_tokens: int
    snapshot_tokens: int
    passes: int = 1
    create_time: str = ""

    @property
    def end(self) -> int:
        """Index of the epoch after the last pass."""
        return self.index + self.passes

    @property
    def is_last(self) -> bool:
        """All later epochs go over the same, which is everything there will be."""
        return not self.snapshot and not self.since_snapshot


def epoch_at(epochs: Sequence[Epoch], index: int) -> Epoch | None:
    """
    Find what an epoch goes over, as one pass; None where nobody has settled it.

    >>> known = [Epoch(0, 1, 0, 10, 10), Epoch(1, 1, 0, 10, 10, passes=3), Epoch(4, 0, 0, 12, 12)]
    >>> [found and (found.index, found.snapshot) for found in (epoch_at(known, index) for index in (-1, 2, 9))]
    [None, (2, 1), (9, 0)]
    """
    for epoch in epochs:
        if epoch.index <= index and (index < epoch.end or epoch.is_last):
            return replace(epoch, index=index, passes=1)
    return None


@dataclass(frozen=True)
class RunRecord:
    """
    A run as the bucket has it.

    Args:
        run: Its id.
        spec: The fields of TrainingSpec; what the ranks read.
        create_time: When it was asked for.
        request_id: Of the request that made it.
        operation: Name of the operation that does the work.
        operation_count: Operations so far; every resume of a failed run starts one.
        state: Where it stands.
        transitions: How it came there.
        pause_wanted: Somebody asked for a pause that has not happened yet.
        attempt: Starts of the ranks so far.
        attempt_open: Its ranks may still run.
        failures: Attempts in a row that ended badly without a new checkpoint.
        failure_step: Newest checkpoint when the last of them ended.
        step: Steps done, as far as they were reported.
        metrics: The last reported ones.
        evaluation: The last one.
        error_message: Why it failed.
        pending_reason: What keeps the ranks of the open attempt from running, as far as somebody said; empty otherwise.
        rank_error: What a rank of this attempt gave as its reason to give up.
        peak_memory_bytes: Of all ranks together.
        epochs: What those that were begun go over; empty where the run is not on snapshots.
    """

    run: str
    spec: Mapping[str, Any]
    create_time: str
    request_id: str = ""
    operation: str = ""
    operation_count: int = 0
    state: RunState = RunState.PENDING
    transitions: tuple[Transition, ...] = ()
    pause_wanted: bool = False
    attempt: int = 0
    attempt_open: bool = False
    failures: int = 0
    failure_step: int = 0
    step: int = 0
    metrics: Measurement = field(default_factory=dict)
    evaluation: Measurement = field(default_factory=dict)
    error_message: str = ""
    pending_reason: str = ""
    rank_error: str = ""
    peak_memory_bytes: int = 0
    epochs: tuple[Epoch, ...] = ()

    @property
    def name(self) -> str:
        return f"runs/{self.run}"

    @property
    def num_steps(self) -> int:
        return int(self.spec["num_steps"])

    @property
    def num_ranks(self) -> int:
        return int(self.spec["feature_ranks"]) * int(self.spec["data_ranks"])

    def moved(self, state: RunState, reason: str, **changes: Any) -> "RunRecord":
        """
        Return the run in another state, with the transition appended; what it waited for is over.

        Raises:
            FailedPreconditionError: There is no way from here to there.
        """
        check_transition(self.state, state)
        transitions = (*self.transitions, Transition(state, now(), reason))
        return replace(self, state=state, transitions=transitions, pending_reason="", **changes)

    def noted(self, reason: str) -> "RunRecord":
        """Return the run with an entry in its history that changes no state; the same one twice is one."""
        if any(entry.reason == reason for entry in self.transitions):
            return self
        return replace(self, transitions=(*self.transitions, Transition(self.state, now(), reason)))

    def to_document(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "RunRecord":
        """
        Read the JSON form.

        Raises:
            DataLossError: It is not one.
        """
        try:
            fields = dict(document)
            fields["state"] = RunState(fields["state"])
            fields["transitions"] = tuple(
                Transition(RunState(entry["state"]), entry["time"], entry["reason"]) for entry in fields["transitions"]
            )
            fields["epochs"] = tuple(Epoch(**entry) for entry in fields.get("epochs", ()))
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise DataLossError(
                f"run.json of {document.get('run', 'a run')!s} is not what a trainer writes ({error}): "
                "restore it from a backup, or start another run."
            ) from error
