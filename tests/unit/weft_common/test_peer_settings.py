"""The TLS files with which services and ranks call other services."""

from pathlib import Path

import pytest
import trustme
from pydantic_settings import BaseSettings, SettingsConfigDict

from weft_activations.settings import ActivationsSettings
from weft_attribution.settings import AttributionSettings
from weft_common.client import aio_channel
from weft_common.server import Registration, serving
from weft_common.settings import PeerSettings, ServiceSettings, load_settings
from weft_console.settings import ConsoleSettings
from weft_trainer.settings import TrainerSettings
from weft_trainer.worker.settings import ExportSettings, RankSettings


class CallerSettings(PeerSettings):
    model_config = SettingsConfigDict(env_prefix="WEFT_CALLER_", frozen=True)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """An authority, and a certificate of it for both sides."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    return paths


@pytest.mark.parametrize("settings", [ActivationsSettings, TrainerSettings, AttributionSettings, ConsoleSettings])
def test_peer_tls_is_one_mixin_of_every_service_that_calls_others(settings: type[BaseSettings]) -> None:
    """The variables are called the same, up to the service's prefix, and no service has others of its own."""
    assert issubclass(settings, PeerSettings)
    named = {name for name in settings.model_fields if "tls_ca" in name}
    assert named == {"peers_tls_ca"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"PEERS_TLS_CA": "nowhere.pem"}, "WEFT_CALLER_PEERS_TLS_CA: cannot be read"),
        ({"PEERS_TLS_CERT": "cert.pem"}, "WEFT_CALLER_PEERS_TLS_CERT and WEFT_CALLER_PEERS_TLS_KEY go together"),
        ({"PEERS_TLS_KEY": "key.pem"}, "WEFT_CALLER_PEERS_TLS_CERT and WEFT_CALLER_PEERS_TLS_KEY go together"),
    ],
)
def test_peer_tls_that_is_incomplete_is_refused(
    names: dict[str, str],
    said: str,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A missing file and half of an identity are named."""
    for name, file in names.items():
        monkeypatch.setenv(f"WEFT_CALLER_{name}", str(files["ca"].parent / file))
    with pytest.raises(SystemExit):
        load_settings(CallerSettings)
    assert said in capsys.readouterr().err


async def test_peer_tls_opens_a_mutual_connection(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the settings give is what a channel takes, and a server that asks for certificates accepts it."""
    for name in ("ca", "cert", "key"):
        monkeypatch.setenv(f"WEFT_CALLER_PEERS_TLS_{name.upper()}", str(files[name]))
    caller = load_settings(CallerSettings)
    server_settings = ServiceSettings(
        token="t", tls_cert=files["cert"], tls_key=files["key"], tls_client_ca=files["ca"]
    )
    nothing = Registration("weft.Nothing", lambda server: None)
    async with (
        serving("nothing", server_settings, [nothing]) as server,
        aio_channel(server.target, token="t", **caller.peers_tls) as channel,
    ):
        answer = await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
    assert answer == b"\x08\x01"


@pytest.mark.parametrize("settings", [RankSettings, ExportSettings])
def test_ranks_are_told_of_tls_by_their_environment(
    settings: type[RankSettings | ExportSettings], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """WEFT_WORKER_TLS_* are the arguments of a rank's channels; half of an identity is refused."""
    told = {"RUN": "r", "BUCKET_URL": "memory://", "CACHE_TARGET": "c:1", "CHECKPOINT_STEP": "1", "TRANSCODER": "t"}
    for name, value in told.items():
        monkeypatch.setenv(f"WEFT_WORKER_{name}", value)
    for name in ("ca", "cert", "key"):
        monkeypatch.setenv(f"WEFT_WORKER_TLS_{name.upper()}", str(files[name]))
    assert load_settings(settings).tls == {"tls_ca": files["ca"], "tls_cert": files["cert"], "tls_key": files["key"]}
    monkeypatch.delenv("WEFT_WORKER_TLS_KEY")
    with pytest.raises(SystemExit):
        load_settings(settings)
