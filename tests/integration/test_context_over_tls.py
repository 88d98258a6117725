"""A context with an authority, a client's certificate and another name, against a cache that asks for all three."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from typer.testing import CliRunner

from weft_cache.wiring import registration
from weft_client.cli import app
from weft_common.server import serving
from weft_common.settings import ServiceSettings
from weft_store import open_store

NAME = "weft-cache.weft.svc"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Certificates: the server's has only the name of a Service, as on a cluster."""
    for variable in ("WEFT_ENDPOINTS", "WEFT_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    authority = trustme.CA()
    paths = {"ca": tmp_path / "ca.crt", "token": tmp_path / "token"}
    authority.cert_pem.write_to_path(paths["ca"])
    paths["token"].write_text("over-tls\n")
    for name, identity in (("server", NAME), ("client", "client")):
        issued = authority.issue_cert(identity)
        paths[f"{name}_cert"], paths[f"{name}_key"] = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        issued.private_key_pem.write_to_path(paths[f"{name}_key"])
        issued.cert_chain_pems[0].write_to_path(paths[f"{name}_cert"])
    return paths


async def weft(*arguments: object) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, app, [str(each) for each in arguments])


async def test_context_speaks_mutual_tls_under_another_name(files: dict[str, Path]) -> None:
    """By `weft contexts set`, and by an endpoints file as a pod mounts it; without the name nothing gets through."""
    settings = ServiceSettings(
        token="over-tls", tls_cert=files["server_cert"], tls_key=files["server_key"], tls_client_ca=files["ca"]
    )
    with capture_logs():
        async with serving(
            "cache", settings, [registration(open_store("memory://"), registry=CollectorRegistry())]
        ) as server:
            target = f"127.0.0.1:{server.port}"
            made = await weft(
                "contexts", "set", "tls", "--service", "cache", "--target", target, "--token-file", files["token"],
                "--tls-ca", files["ca"], "--tls-cert", files["client_cert"], "--tls-key", files["client_key"],
                "--tls-server-name", NAME,
            )  # fmt: skip
            assert made.exit_code == 0, made.stderr
            listed = await weft("--context", "tls", "datasets", "list", "--json")
            assert json.loads(listed.stdout) == {"datasets": []}

            entry = {
                "target": target,
                "token_file": "token",
                "tls_ca": "ca.crt",
                "tls_cert": "client.crt",
                "tls_key": "client.key",
                "tls_server_name": NAME,
            }
            mounted = files["ca"].parent / "endpoints.json"
            mounted.write_text(json.dumps({"services": {"cache": entry}}))
            listed = await weft("--endpoints", mounted, "datasets", "list", "--json")
            assert json.loads(listed.stdout) == {"datasets": []}

            await weft("contexts", "set", "tls", "--service", "cache", "--unset", "tls_server_name")
            refused = await weft("--context", "tls", "datasets", "list")
            assert refused.exit_code == 1
            assert "weft contexts get tls" in refused.stderr
