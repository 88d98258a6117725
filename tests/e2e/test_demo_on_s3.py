"""The whole thread with its bucket on a real MinIO server that goes away during the harvest and during training."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from embedded_weft import SMALL, Embedded, demo_folder, run_demo
from minio_server import MinioServer, running_minio
from small_demo import SmallDemo

from weft_client.local.bucket import ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE
from weft_store import ObjectStore, open_store

pytestmark = [pytest.mark.e2e, pytest.mark.s3, pytest.mark.real, pytest.mark.timeout(1500)]

# Longer than a call to the bucket is repeated for, and than the trainer's lease on its work.
_AWAY_S = 7.0


@dataclass(frozen=True)
class OnS3:
    """A demo whose bucket is on a server of its own."""

    run: Embedded
    server: MinioServer
    url: str

    @property
    def keys(self) -> dict[str, str]:
        return {ACCESS_KEY_VARIABLE: self.server.access_key, SECRET_KEY_VARIABLE: self.server.secret_key}

    def open(self) -> ObjectStore:
        return open_store(self.url, self.server.access_key, self.server.secret_key)


@pytest.fixture(scope="module")
def on_s3(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[OnS3]:
    """Run a server with an empty bucket, and prepare a folder with the model."""
    with running_minio(tmp_path_factory.mktemp("minio")) as server:
        url = server.make_bucket("weft") + "/team"
        yield OnS3(demo_folder(tmp_path_factory.mktemp("demo"), models_dir), server, url)


class Outages(threading.Thread):
    """Stops the server once in the middle of the harvest and once in the middle of training, and watches for keys."""

    def __init__(self, on_s3: OnS3) -> None:
        super().__init__(daemon=True)
        self._on_s3 = on_s3
        self._store = on_s3.open()
        self.happened: list[str] = []
        self.exposed: list[list[str]] = []

    def run(self) -> None:
        self._wait_for(lambda: any("/shards/" in info.key for info in self._store.list("datasets/")))
        assert not self._there("runs/", "run.json")
        self._strike("harvest")
        self._wait_for(lambda: self._there("runs/", "/attempts/1/recent.json"))
        assert not self._there("runs/", "/manifest.json")
        self._strike("training")

    def _there(self, prefix: str, suffix: str) -> bool:
        return any(info.key.endswith(suffix) for info in self._store.list(prefix))

    def _strike(self, what: str) -> None:
        self._on_s3.server.stop()
        back = time.monotonic() + _AWAY_S
        self._look_for_keys()
        time.sleep(max(0.0, back - time.monotonic()))
        self._on_s3.server.start()
        self.happened.append(what)

    def _look_for_keys(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if any(self._on_s3.server.secret_key in argument for argument in command):
                self.exposed.append(command)

    @staticmethod
    def _wait_for(what: Callable[[], bool], timeout_s: float = 600) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_demo_on_s3_bears_a_bucket_that_goes_away(on_s3: OnS3, small_demo: SmallDemo) -> None:
    """The server stops twice for some seconds, and the demo ends with the figures of one over a folder."""
    undisturbed = small_demo.summary
    outages = Outages(on_s3)
    outages.start()
    summary = run_demo(on_s3.run, "--bucket", on_s3.url, *SMALL, **on_s3.keys)
    outages.join(timeout=10)
    assert outages.happened == ["harvest", "training"]
    for figure in ("tokens_harvested", "tokens_held_out", "tokens_skipped", "train_tokens", "world_size"):
        assert summary[figure] == undisturbed[figure], figure
    for figure in ("explained_variance", "explained_variance_exported", "bits_per_value", "cache_fvu_max"):
        assert summary[figure] == pytest.approx(undisturbed[figure], rel=1e-4), figure
    assert summary["graphs"][0]["target"] == undisturbed["graphs"][0]["target"]
    assert summary["graphs"][0]["nodes"] == pytest.approx(undisturbed["graphs"][0]["nodes"], rel=0.01)
    assert summary["graphs"][0]["conservation_error"] < 1e-4
    assert outages.exposed == []


def test_everything_of_a_demo_on_s3_is_in_its_bucket(on_s3: OnS3) -> None:
    """Nothing lies in the folder's own bucket, no key lies in any file there, and every shard is whole."""
    root = on_s3.run.layout.root
    assert not (root / "bucket").exists()
    files = [
        path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and "models" not in path.parts
    ]
    assert files
    for path in files:
        assert on_s3.server.secret_key.encode() not in path.read_bytes(), path
    assert {info.key.split("/")[0] for info in on_s3.open().list("")} >= {"corpora", "datasets", "runs", "transcoders"}
    result = on_s3.run.weft("up", "--bucket", on_s3.url, **on_s3.keys)
    assert result.returncode == 0, result.stderr
    try:
        status = on_s3.run.weft("status")
        assert on_s3.url in status.stdout
        assert on_s3.server.secret_key not in status.stdout
        (dataset,) = {info.key.split("/")[1] for info in on_s3.open().list("datasets/")}
        verified = on_s3.run.weft("datasets", "verify", dataset)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        elsewhere = on_s3.run.weft("demo", "--exit", "--bucket", "file:///tmp/another", *SMALL)
        assert elsewhere.returncode == 1
        assert "has the bucket" in elsewhere.stderr
    finally:
        assert on_s3.run.weft("down").returncode == 0


@pytest.mark.parametrize(
    ("bucket", "keys", "says"),
    [
        ("{server}/nowhere", {}, "create the bucket"),
        ("{server}/weft", {SECRET_KEY_VARIABLE: "wrong"}, "check access key"),
        ("{server}/weft", {SECRET_KEY_VARIABLE: ""}, f"{SECRET_KEY_VARIABLE} is not"),
        ("s3+http://127.0.0.1:1/weft", {}, "check that it runs"),
        ("memory://", {}, "give s3+https://"),
        ("s3+http://me:hunter2@127.0.0.1:9000/weft", {}, "no credentials"),
    ],
)
def test_up_refuses_a_bucket_that_cannot_be_used(
    on_s3: OnS3, tmp_path: Path, bucket: str, keys: dict[str, str], says: str
) -> None:
    """A wrong bucket is told before anything starts, with what to do, and nothing is left running."""
    run = Embedded(tmp_path)
    url = bucket.format(server=f"s3+http://{on_s3.server.endpoint}")
    result = run.weft("up", "--bucket", url, **(on_s3.keys | keys))
    assert result.returncode in (1, 2)
    assert says in " ".join(result.stderr.split())
    assert "hunter2" not in result.stderr
    assert not run.layout.endpoints_path.exists()
