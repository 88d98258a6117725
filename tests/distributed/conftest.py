"""A cache service as a process, with a small dataset."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest
from free_ports import free_port
from worker_rig import Rig, harvest


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A bucket with a sealed dataset, and a cache service that plans its reads."""
    folder = tmp_path_factory.mktemp("rig")
    (folder / "bucket").mkdir()
    port = free_port()
    rig = Rig(folder, f"127.0.0.1:{port}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")} | {
        "WEFT_CACHE_PORT": str(port),
        "WEFT_CACHE_BUCKET_URL": rig.bucket_url,
        "WEFT_CACHE_INSECURE_NO_AUTH": "true",
    }
    with (folder / "cache.log").open("wb") as log:
        cache = subprocess.Popen([sys.executable, "-m", "weft_cache"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                harvest(rig)
                break
            except grpc.RpcError:
                assert cache.poll() is None, (folder / "cache.log").read_text()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield rig
    finally:
        for group in rig.groups:
            if group.poll() is None:
                rig.kill(group)
        cache.terminate()
        cache.wait(20)
