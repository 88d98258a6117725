"""What the core needs from outside: something that starts ranks, and the catalog of datasets."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "BAD_CONFIGURATION",
    "DatasetCatalog",
    "DatasetFacts",
    "RankExit",
    "RankGroup",
    "RankJob",
    "RankLauncher",
    "RankLog",
    "RankStatus",
]

# Exit code of a rank that will fail in the same way however often it is started.
BAD_CONFIGURATION = 42


@dataclass(frozen=True)
class DatasetFacts:
    """
    What a run must know of a dataset before it starts.

    Args:
        name: `datasets/{dataset}`.
        sealed: Nothing will be added.
        num_layers: Of the model.
        d_model: Width of inputs and outputs.
        num_train_tokens: To train on.
        num_held_out_tokens: To evaluate on.
        snapshot: Which one these are the facts of; 0 where of the dataset itself.
        create_time: Of the dataset, RFC 3339: tells it from another of its name; empty where nobody said.
    """

    name: str
    sealed: bool
    num_layers: int
    d_model: int
    num_train_tokens: int
    num_held_out_tokens: int
    snapshot: int = 0
    create_time: str = ""


class DatasetCatalog(Protocol):
    """The cache service, as far as the controller needs it."""

    async def describe(self, name: str, snapshot: int = 0) -> DatasetFacts:
        """Describe a dataset, or a snapshot. NotFoundError; UnavailableError where the cache does not answer."""
        ...

    async def snapshot(self, name: str) -> DatasetFacts:
        """
        Take a snapshot of an open dataset; a sealed one is described as it is.

        Raises:
            NotFoundError: No such dataset.
            FailedPreconditionError: Nothing is committed to it yet.
            UnavailableError: The cache does not answer.
        """
        ...

    async def hold(self, name: str, holder: str) -> None:
        """
        Keep a dataset from being deleted until its holder has ended.

        Args:
            name: `datasets/{dataset}`.
            holder: `runs/{run}` or `operations/{operation}`, which is in the bucket by now.

        Raises:
            NotFoundError: No such dataset.
            UnavailableError: The cache does not answer.
        """
        ...


@dataclass(frozen=True)
class RankJob:
    """
    A set of processes that works together.

    Args:
        key: Names it in the bucket: `runs/{run}/attempts/3`; at most one job of a key runs at a time.
        module: Python module that each process runs.
        num_ranks: Processes that find each other through torch.distributed; 0 for one process that needs none of it.
        environment: Settings of the processes.
    """

    key: str
    module: str
    num_ranks: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class RankExit:
    """
    How a job ended.

    Args:
        code: 0 where every process ended well, else the code of the one that failed first; None where the processes
            are gone and nobody saw how.
        detail: The end of what the failed process wrote, for a person.
        disrupted: Whoever owns the machines took some away, so the job is not to blame.
    """

    code: int | None
    detail: str
    disrupted: bool = False


@dataclass(frozen=True)
class RankStatus:
    """
    How a job that has not ended is doing.

    Args:
        pending_reason: What keeps it from running, for a person; empty where nothing does.
        restarts: How often all of its processes were started again without the controller.
    """

    pending_reason: str = ""
    restarts: int = 0


@dataclass(frozen=True)
class RankLog:
    """
    What was written by a process, or about the job.

    Args:
        source: `rank 0` and so on, `ranks` where they write into one, or `events`.
        text: The end of it.
    """

    source: str
    text: str


class RankGroup(Protocol):
    """The processes of one job, started by this controller or by the one before it."""

    async def wait(self) -> RankExit:
        """Wait until all of them have ended; may be called again."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Ask them to stop, wait, then end them; afterwards nothing of the job runs."""
        ...

    async def look(self) -> RankStatus:
        """Look at a job that has not ended."""
        ...

    async def logs(self, max_bytes: int) -> Sequence[RankLog]:
        """Return the last so many bytes of each log; empty ones where nothing is left of the job."""
        ...


class RankLauncher(Protocol):
    """Starts ranks and finds them again."""

    @property
    def ranks_outlive_controller(self) -> bool:
        """Ranks go on without a controller on this machine, so one that stops leaves them be."""
        ...

    async def check(self, job: RankJob) -> None:
        """Find out, as far as it is cheap, whether a job could be started. InvalidArgumentError and others."""
        ...

    async def start(self, job: RankJob, register: Callable[[Mapping[str, Any]], Awaitable[None]]) -> RankGroup:
        """
        Start a job.

        Args:
            job: What to run.
            register: Awaited with a JSON record that `find` takes, before the first instruction of the job runs: where
                it fails, or this process dies in it, nothing of the job runs.
        """
        ...

    async def find(self, key: str, record: Mapping[str, Any]) -> RankGroup:
        """Find the job that a record stands for, running or not."""
        ...

    async def clear(self, key: str) -> None:
        """End whatever still runs under a key, of this controller or another."""
        ...
