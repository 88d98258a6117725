"""
A real MinIO server for tests: a pytest plugin with the fixtures `minio_server` and `minio_store`.

A conftest takes it in with `from minio_server import minio_server, minio_store`. The server is built by
`python scripts/minio.py` (or `make minio`); where it is not there the tests fail and say so.
"""

import itertools
import os
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
import urllib3
from built_tool import built_tool
from free_ports import free_port
from minio import Minio

from weft_store import ObjectStore, open_store

_START_S = 60.0


@dataclass(slots=True)
class MinioServer:
    """A server on a loopback port of its own: its address, the credentials of its root user, its authority for TLS."""

    folder: Path
    endpoint: str
    access_key: str
    secret_key: str
    authority: Path | None = None
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it over its data, and wait until it answers."""
        environment = os.environ | {
            "HOME": str(self.folder),
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }
        log = self.folder / "log"
        command = [built_tool("minio"), "server", "--quiet", "--address", self.endpoint]
        command += ["--certs-dir", self.folder / "certs", self.folder / "data"]
        with open(log, "ab") as output:
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        self._wait_until_ready(log)

    def stop(self) -> None:
        """Stop it; its data stays."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def make_bucket(self, name: str) -> str:
        """Make a bucket and give its URL for `open_store`."""
        pool = urllib3.PoolManager(ca_certs=str(self.authority)) if self.authority else None
        secure = self.authority is not None
        Minio(self.endpoint, self.access_key, self.secret_key, secure=secure, http_client=pool).make_bucket(name)
        return f"s3+{'https' if secure else 'http'}://{self.endpoint}/{name}"

    def _wait_until_ready(self, log: Path) -> None:
        context = ssl.create_default_context(cafile=self.authority) if self.authority else None
        url = f"{'https' if context else 'http'}://{self.endpoint}/minio/health/cluster"
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=1, context=context):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        pytest.fail(f"MinIO did not come up at {self.endpoint}: {log.read_text(errors='replace')[-2000:]}")


@contextmanager
def running_minio(folder: Path, authority: trustme.CA | None = None) -> Iterator[MinioServer]:
    """Run a server over a folder for as long as this lasts; over TLS where an authority makes its certificate."""
    server = MinioServer(folder, f"127.0.0.1:{free_port()}", secrets.token_hex(8), secrets.token_hex(16))
    if authority is not None:
        (folder / "certs").mkdir()
        issued = authority.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(folder / "certs" / "public.crt"))
        issued.private_key_pem.write_to_path(str(folder / "certs" / "private.key"))
        server.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(server.authority))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """Run a server on a free loopback port for the session."""
    with running_minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def minio_store(minio_server: MinioServer) -> Callable[[], ObjectStore]:
    """Make a store over a new, empty bucket at each call."""
    numbers = itertools.count()

    def make() -> ObjectStore:
        url = minio_server.make_bucket(f"bucket-{next(numbers)}")
        return open_store(url, minio_server.access_key, minio_server.secret_key)

    return make
