"""Settings of the attribution service."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from weft_attribution.core.interpretation.answers import EXPLAIN_TOKENS, SCORE_TOKENS
from weft_common.settings import BucketSettings, PeerSettings, ServiceSettings, variable_name

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
    cache_target: str = ""
    """host:port of the cache service, which keeps a dataset from being deleted while an index reads it; unset, a
    deletion meanwhile ends the index with an error."""
    cache_token: SecretStr | None = None
    """Bearer token of the cache service."""
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
    export_scratch_bytes: int = Field(default=3 << 30, ge=1 << 20)
    """
    Most bytes that an export of features takes of the temporary folder: a layer's file for circuit-tracer, and the
    index's tokens where they are many. On Kubernetes raise `tmpSizeLimit` with it.
    """
    lease_s: float = Field(default=20.0, gt=0)
    """Seconds without a sign of life after which another replica takes over a layer of an index."""
    shared_rows: int = Field(default=0, ge=0, le=1 << 20)
    """Rows of a graph that another replica may take at a time; 0 has each replica make its graphs alone."""
    max_capture_bytes: int = 1 << 29
    """Largest tensor accepted from a capture, in bytes."""
    interpreter_url: str | None = None
    """Base URL of an endpoint that speaks OpenAI's protocol and labels features, such as https://host/v1."""
    interpreter_key: SecretStr | None = None
    """Key of that endpoint, where it asks for one."""
    interpreter_model: str = Field(default="", max_length=200)
    """Model of that endpoint that explains and scores; needed with interpreter_url."""
    interpreter_embedding_model: str = Field(default="", max_length=200)
    """Model of that endpoint that embeds, for scores by embedding; empty where it has none."""
    interpreter_structured: bool = False
    """True has the endpoint hold answers to a JSON schema, which vLLM and some others can; small models need it."""
    interpreter_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What that endpoint calls the longest answer; OpenAI's models that think first take the second alone."""
    interpreter_explain_tokens: int = Field(default=EXPLAIN_TOKENS, ge=16, le=100_000)
    """
    Longest answer that explains, in tokens; 640 hold every label that the JSON schema allows. A model that thinks first
    counts its thoughts, and needs thousands.
    """
    interpreter_score_tokens: int = Field(default=SCORE_TOKENS, ge=16, le=100_000)
    """The same of an answer that scores."""
    interpreter_greedy: bool = True
    """False sends no temperature, for models that refuse it; otherwise it is 0."""
    interpreter_timeout_s: float = Field(default=60.0, gt=0, le=3600)
    """Longest that one request to that endpoint may take, in seconds."""
    interpreter_attempts: int = Field(default=5, ge=1, le=20)
    """How often a question is sent before it counts as not answered."""
    interpreter_concurrency: int = Field(default=4, ge=1, le=256)
    """Questions under way at once."""
    threads: int = 0
    """Threads of one graph's sweep; 0 takes one a core that this process may use, 16 at most."""

    @model_validator(mode="after")
    def _interpreter_is_whole(self) -> Self:
        url, variable = self.interpreter_url, variable_name(type(self), "interpreter_url")
        if url is None:
            return self
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{variable} is no URL such as https://host/v1; give one, or unset it")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"{variable} holds more than host and path; a key goes to {variable[:-3]}KEY")
        key = "" if self.interpreter_key is None else self.interpreter_key.get_secret_value()
        if not all(33 <= ord(character) <= 126 for character in key):
            raise ValueError(
                f"{variable[:-3]}KEY holds a blank, a line end or what no header can carry, as at the end of a file; "
                "give the key alone"
            )
        if not self.interpreter_model:
            raise ValueError(f"{variable} is set without a model; set {variable[:-3]}MODEL to one that it has")
        return self
