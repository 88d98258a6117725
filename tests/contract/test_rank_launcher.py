"""What every launcher of ranks does: the unit tests' fake, processes, and pods of a fake and a real cluster."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_cluster import FakeCluster
from fake_ranks import FakeLauncher
from real_cluster import RealWorld

from weft_trainer.adapters.kubernetes_launcher import RankKind, kubernetes_launcher
from weft_trainer.adapters.kubernetes_manifests import PodOptions
from weft_trainer.adapters.local_launcher import LocalLauncher
from weft_trainer.core.ports import RankGroup, RankJob, RankLauncher

KEY = "runs/r/attempts/1"


class FakeWorld:
    """Fake ranks, ended by the test."""

    def __init__(self) -> None:
        self.launcher: RankLauncher = FakeLauncher()

    def job(self, key: str = KEY) -> RankJob:
        return RankJob(key, "waiting_job", 0, {})

    async def end(self, code: int) -> None:
        assert isinstance(self.launcher, FakeLauncher)
        self.launcher.groups[KEY].finish(code)

    async def anew(self) -> RankLauncher:
        """Return the launcher of a controller that was started again."""
        return self.launcher


class LocalWorld:
    """Real processes, that end with the code that a file holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "waiting_job.py").write_text(
            "import pathlib, sys, time\n"
            f"path = pathlib.Path({str(folder / 'code')!r})\n"
            "while not path.exists():\n    time.sleep(0.02)\n"
            "sys.exit(int(path.read_text()))\n"
        )
        self.launcher: RankLauncher = LocalLauncher(folder / "work")

    def job(self, key: str = KEY) -> RankJob:
        return RankJob(key, "waiting_job", 0, {"PYTHONPATH": str(self.folder)})

    async def end(self, code: int) -> None:
        temporary = self.folder / "code.tmp"
        temporary.write_text(str(code))
        temporary.replace(self.folder / "code")

    async def anew(self) -> RankLauncher:
        return LocalLauncher(self.folder / "work")


class ClusterWorld:
    """Pods of a cluster in memory."""

    launcher: RankLauncher

    def __init__(self, stack: AsyncExitStack, kind: RankKind) -> None:
        self.cluster = FakeCluster()
        self._stack = stack
        self._kind = kind

    def job(self, key: str = KEY) -> RankJob:
        return RankJob(key, "waiting_job", 2, {})

    async def end(self, code: int) -> None:
        for pod in self.cluster.pods(self.cluster.work()["metadata"]["name"]):
            self.cluster.finish(pod, code)

    async def anew(self) -> RankLauncher:
        opened = kubernetes_launcher(self.cluster, PodOptions(image="i"), "here", self._kind)
        return await self._stack.enter_async_context(opened)


World = FakeWorld | LocalWorld | ClusterWorld | RealWorld
WORLDS = [
    "fake",
    pytest.param("local", marks=pytest.mark.distributed),
    "jobset in memory",
    "job in memory",
    pytest.param("jobset", marks=pytest.mark.cluster),
    pytest.param("job", marks=pytest.mark.cluster),
]


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A launcher, and how its jobs are made to end."""
    async with AsyncExitStack() as stack:
        made: World
        if request.param == "fake":
            made = FakeWorld()
        elif request.param == "local":
            made = LocalWorld(tmp_path)
        else:
            kind, _, in_memory = request.param.partition(" ")
            made = ClusterWorld(stack, kind) if in_memory else await stack.enter_async_context(RealWorld.made(kind))
            made.launcher = await made.anew()
            if isinstance(made, ClusterWorld):
                stack.callback(made.cluster.end_watches)
        yield made
        await made.launcher.clear(KEY)


async def _ignore(facts: Mapping[str, Any]) -> None: ...


async def _ended(group: RankGroup) -> int | None:
    async with asyncio.timeout(120):
        return (await group.wait()).code


@pytest.mark.parametrize("code", [0, 42, 1])
async def test_launcher_tells_how_a_job_ended(world: World, code: int) -> None:
    """The code comes back, as often as it is asked for."""
    group = await world.launcher.start(world.job(), _ignore)
    await world.end(code)
    assert await _ended(group) == code
    assert await _ended(group) == code


async def test_launcher_registers_before_anything_runs(world: World) -> None:
    """Where the record cannot be written, nothing runs."""
    kept: list[Mapping[str, Any]] = []

    async def fail(facts: Mapping[str, Any]) -> None:
        kept.append(facts)
        raise OSError("the bucket is away")

    with pytest.raises(OSError, match="bucket is away"):
        await world.launcher.start(world.job(), fail)
    found = await (await world.anew()).find(KEY, kept[0])
    assert await _ended(found) is None


async def test_launcher_finds_a_job_of_the_controller_before(world: World) -> None:
    """A job that runs is found by its record, and can be stopped."""
    kept: list[Mapping[str, Any]] = []

    async def keep(facts: Mapping[str, Any]) -> None:
        kept.append(facts)

    own = await world.launcher.start(world.job(), keep)
    found = await (await world.anew()).find(KEY, kept[0])
    waiting = asyncio.create_task(found.wait())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await found.stop(0.2)
    assert (await waiting).code != 0
    assert await _ended(own) != 0


async def test_launcher_clears_what_runs_under_a_key(world: World) -> None:
    """Clearing ends the job; clearing where nothing runs does nothing."""
    await world.launcher.clear("runs/other/attempts/1")
    group = await world.launcher.start(world.job(), _ignore)
    await (await world.anew()).clear(KEY)
    assert await _ended(group) != 0


async def test_launcher_checks_a_job_without_starting_it(world: World) -> None:
    """A check leaves nothing behind that could be found or would be in the way of a start."""
    await world.launcher.check(world.job())
    found = await (await world.anew()).find(KEY, {})
    assert await _ended(found) is None
    await world.launcher.clear(KEY)
    group = await world.launcher.start(world.job(), _ignore)
    await world.end(0)
    assert await _ended(group) == 0


async def test_launcher_shows_logs_for_as_long_as_a_job_is_there(world: World) -> None:
    """Each log has a source and at most the bytes asked for; a job that is gone has none left."""
    group = await world.launcher.start(world.job(), _ignore)
    await world.end(3)
    assert await _ended(group) == 3
    logs = await group.logs(5)
    assert logs
    assert all(log.source and len(log.text.encode()) <= 5 for log in logs)
    assert (await group.look()).restarts == 0


@pytest.mark.distributed
async def test_local_launcher_gives_the_code_of_the_rank_that_failed(tmp_path: Path) -> None:
    """Through torchrun, also for a controller that is not its parent; the other rank is ended with it."""
    passing = tmp_path / "passing"
    passing.mkdir()
    (tmp_path / "failing_job.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit(42)\ntime.sleep(600)\n"
    )
    kept: list[Mapping[str, Any]] = []

    async def keep(facts: Mapping[str, Any]) -> None:
        kept.append(facts)

    launcher = LocalLauncher(tmp_path / "work")
    environment = {"PYTHONPATH": str(tmp_path), "TMPDIR": str(passing)}
    own = await launcher.start(RankJob(KEY, "failing_job", 2, environment), keep)
    found = await LocalLauncher(tmp_path / "work").find(KEY, kept[0])
    assert await _ended(found) == 42
    assert await _ended(own) == 42
    await own.stop(0)
    assert list(passing.iterdir()) == []


@pytest.mark.distributed
async def test_local_launcher_ends_ranks_whose_torchrun_was_killed(tmp_path: Path) -> None:
    """torchrun gives ranks sessions of their own; they are found all the same."""
    (tmp_path / "endless_job.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, 'rank' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    launcher = LocalLauncher(tmp_path / "work")
    kept: list[Mapping[str, Any]] = []

    async def keep(facts: Mapping[str, Any]) -> None:
        kept.append(facts)

    group = await launcher.start(RankJob(KEY, "endless_job", 2, {"PYTHONPATH": str(tmp_path)}), keep)
    async with asyncio.timeout(60):
        while not ((tmp_path / "rank0").exists() and (tmp_path / "rank1").exists()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    ranks = [int((tmp_path / name).read_text()) for name in ("rank0", "rank1")]
    psutil.Process(kept[0]["pid"]).kill()
    assert await _ended(group) == -9
    assert all(psutil.pid_exists(pid) for pid in ranks)
    await group.stop(0)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in ranks)
