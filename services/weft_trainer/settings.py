"""Settings of the trainer service."""

import hashlib
import os
import tempfile
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from weft_common.settings import BucketSettings, PeerSettings, ServiceSettings

__all__ = ["TrainerSettings"]


class TrainerSettings(ServiceSettings, BucketSettings, PeerSettings):
    """What the trainer is told when it starts: WEFT_TRAINER_PORT, WEFT_TRAINER_CACHE_TARGET and so on."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_TRAINER_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    cache_target: str
    """host:port of the cache service."""
    cache_token: SecretStr | None = None
    """Bearer token of the cache service."""
    work_dir: Path | None = None
    """Folder for the logs and exit codes of ranks; one of the system's temporary folder where unset."""
    report_port: int = Field(default=0, ge=0, le=65535)
    """Port that ranks report to, on loopback; 0 takes a free one and keeps it for the next start."""
    max_ranks: int = Field(default=16, ge=1)
    """Most ranks that one run may ask for."""
    rank_threads: int = Field(default=0, ge=0)
    """Threads of one rank; 0 shares the processors between the ranks of a run."""
    stop_grace_s: float = Field(default=6.0, ge=0)
    """Seconds that ranks are given to save and stop before they are ended."""
    drain_s: float = Field(default=2.0, ge=0)
    """Seconds that open calls are given to end when the service is told to stop; its ranks are stopped after that."""

    def resolved_work_dir(self) -> Path:
        """Return the folder for logs and exit codes: the same one at every start on the same bucket."""
        if self.work_dir is not None:
            return self.work_dir
        bucket = hashlib.sha256(self.bucket_url.encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"weft-trainer-{os.getuid()}" / bucket

    def threads_for(self, num_ranks: int) -> int:
        """Return the threads of one rank among so many."""
        return self.rank_threads or max(1, (os.cpu_count() or 1) // max(1, num_ranks))
