"""
Where an embedded run keeps its things, and what it tells its clients.

    .weft/bucket/           the bucket, as a folder, where no other one is named
    .weft/models/           base models, one folder each
    .weft/logs/             one file a service
    .weft/trainer/          logs of the ranks
    .weft/endpoints.json    targets and tokens, readable by this user only
    .weft/up.lock           held while a supervisor runs
"""

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weft_client.endpoints import SERVICES, Endpoint, Endpoints, read_endpoints
from weft_client.local.bucket import Bucket
from weft_common.errors import InvalidArgumentError, NotFoundError, UnavailableError

# Whom each service calls; it is given these services' targets and tokens and nobody else's.
PEERS: Mapping[str, tuple[str, ...]] = {
    "cache": (),
    "activations": ("cache",),
    "trainer": ("activations", "cache"),
    "attribution": ("activations", "cache"),
    "console": ("activations", "cache", "trainer", "attribution"),
}


@dataclass(frozen=True)
class Layout:
    """
    The folder of an embedded run.

    Args:
        root: `.weft` of the working folder, absolute.
    """

    root: Path

    @property
    def bucket(self) -> Bucket:
        """The bucket where no other one is named."""
        return Bucket(f"file://{self.root / 'bucket'}")

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def endpoints_path(self) -> Path:
        return self.root / "endpoints.json"

    @property
    def lock_path(self) -> Path:
        return self.root / "up.lock"

    def log_path(self, service: str) -> Path:
        return self.root / "logs" / f"{service}.log"

    def read_endpoints(self) -> Endpoints:
        """
        Read where the services are.

        Raises:
            NotFoundError: Nothing runs here.
        """
        if not self.endpoints_path.exists():
            raise NotFoundError(f"No weft runs in {self.root}: start one with `weft up`.")
        return read_endpoints(self.endpoints_path)

    def read_bucket_url(self) -> str:
        """
        Read which bucket the services that run here keep their things in.

        Raises:
            NotFoundError: Nothing runs here.
        """
        try:
            return str(json.loads(self.endpoints_path.read_text())["bucket"])
        except FileNotFoundError:
            raise NotFoundError(f"No weft runs in {self.root}: start one with `weft up`.") from None

    def write_endpoints(self, endpoints: Endpoints, bucket_url: str) -> None:
        """Write the endpoints and the bucket's URL, without keys, atomically and for this user's eyes only."""
        entries = {
            name: {
                "target": endpoint.target,
                "token": endpoint.token,
                "metrics_port": endpoint.metrics_port,
                **({"url": endpoint.url} if endpoint.url else {}),
            }
            for name, endpoint in endpoints.services.items()
        }
        temporary = self.endpoints_path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"bucket": bucket_url, "services": entries}, file, indent=2, sort_keys=True)
        temporary.replace(self.endpoints_path)


def choose_endpoints(console_port: int = 0) -> Endpoints:
    """
    Take a free loopback port for every service and for its metrics, and make tokens.

    Raises:
        UnavailableError: `console_port` is taken.
        InvalidArgumentError: `console_port` is none.
    """
    if not 0 <= console_port <= 65535:
        raise InvalidArgumentError(f"{console_port} is no port: give one from 1 to 65535, or 0 for any free one.")
    held: list[socket.socket] = []

    def hold(port: int) -> int:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        held.append(listener)
        return int(listener.getsockname()[1])

    try:
        # All at once, so that no two services are given the same one.
        try:
            page = hold(console_port)
        except OSError as error:
            raise UnavailableError(
                f"Port {console_port} cannot be had for the page ({error.strerror}): give another with --console-port."
            ) from error
        ports = {name: page if name == "console" else hold(0) for name in SERVICES}
        return Endpoints(
            {
                name: Endpoint(
                    f"127.0.0.1:{port}",
                    secrets.token_urlsafe(24),
                    url=f"http://127.0.0.1:{port}/" if name == "console" else "",
                    metrics_port=hold(0),
                )
                for name, port in ports.items()
            }
        )
    finally:
        for listener in held:
            listener.close()


def service_environment(name: str, layout: Layout, endpoints: Endpoints, bucket: Bucket) -> dict[str, str]:
    """Return the settings of one service, as environment variables."""
    own = endpoints[name]
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(own.port),
        "METRICS_PORT": str(own.metrics_port),
        "TOKEN": own.token or "",
    }
    if name != "console":
        settings |= bucket.settings()
    if name in ("activations", "attribution"):
        settings["MODELS_DIR"] = str(layout.models)
    if name == "trainer":
        settings["WORK_DIR"] = str(layout.root / "trainer")
    for peer in PEERS[name]:
        settings[f"{peer.upper()}_TARGET"] = endpoints[peer].target
        settings[f"{peer.upper()}_TOKEN"] = endpoints[peer].token or ""
    return {f"WEFT_{name.upper()}_{key}": value for key, value in settings.items()}
