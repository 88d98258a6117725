"""Settings of the attribution service."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from weft_common.settings import BucketSettings, PeerSettings, ServiceSettings

__all__ = ["AttributionSettings"]


class AttributionSettings(ServiceSettings, BucketSettings, PeerSettings):
    """What attribution is told when it starts: WEFT_ATTRIBUTION_PORT, WEFT_ATTRIBUTION_BUCKET_URL and so on."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_ATTRIBUTION_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    max_message_bytes: int = Field(default=64 << 20, ge=64 << 10, le=1 << 30)
    """Largest message taken or sent; a graph's JSON travels in one."""
    models_dir: Path
    """Folder of model folders; a model's id is its folder's name. The same models as the activations service's."""
    activations_target: str
    """Where the activations service listens, `host:port`."""
    activations_token: SecretStr | None = None
    """Bearer token of the activations service."""
    activations_timeout_s: float = 300.0
    """Deadline of one call to the activations service, in seconds."""
    max_prompt_tokens: int = 512
    """Longest prompt explained, in tokens."""
    max_features: int = 100_000
    """Most active features of one graph; edges grow with their square."""
    max_waiting_graphs: int = Field(default=1000, ge=1)
    """Most graphs that are asked for one by one and not done; more are refused. A batch counts two at most."""
    memory_bytes: int = Field(default=1 << 30, ge=64 << 20)
    """
    Memory of one graph's sweep, in bytes; decoders beyond half of it lie in scratch files. As much again is held by an
    index of features while it is made, and half of it by encoders for what fires on texts.
    """
    max_capture_bytes: int = 1 << 29
    """Largest tensor accepted from a capture, in bytes."""
    threads: int = 0
    """Threads of one graph's sweep; 0 takes one a core that this process may use, 16 at most."""
