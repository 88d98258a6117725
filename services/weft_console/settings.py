"""Settings of the console, read from WEFT_CONSOLE_*."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from weft_common.settings import PeerSettings, ServiceSettings

__all__ = ["ConsoleSettings"]


class ConsoleSettings(ServiceSettings, PeerSettings):
    """What the console is told when it starts. `token` is what a person signs in with."""

    model_config = SettingsConfigDict(env_prefix="WEFT_CONSOLE_", frozen=True)

    port: int = Field(default=0, ge=0, le=65535)
    """Port of the page (HTTP); 0 takes a free one and logs it."""
    cache_target: str
    """Address of the cache service, host:port."""
    cache_token: SecretStr | None = None
    """Bearer token of the cache service."""
    trainer_target: str
    """Address of the trainer service, host:port."""
    trainer_token: SecretStr | None = None
    """Bearer token of the trainer service."""
    activations_target: str = ""
    """Address of the activations service, host:port; empty where there is none, and then nothing is taken apart."""
    activations_token: SecretStr | None = None
    """Bearer token of the activations service."""
    attribution_target: str
    """Address of the attribution service, host:port."""
    attribution_token: SecretStr | None = None
    """Bearer token of the attribution service."""
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names under which browsers may ask for the page, as a JSON list; others are refused (DNS rebinding)."""
    static_dir: Path = Path(__file__).resolve().parent / "static"
    """Folder of the built page."""
    max_body_bytes: int = Field(default=64 << 10, ge=1 << 10)
    """Largest body of a request."""
    max_graph_bytes: int = Field(default=256 << 20, ge=1 << 20)
    """Largest graph that is fetched from the attribution service."""
    call_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for an answer of another service; interventions and pruning may take ten times that."""
    session_s: int = Field(default=30 * 24 * 3600, ge=60)
    """Seconds that a browser stays signed in."""
