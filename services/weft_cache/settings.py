"""Settings of the cache service."""

from pydantic_settings import SettingsConfigDict

from weft_common.settings import BucketSettings, ServiceSettings


class CacheSettings(ServiceSettings, BucketSettings):
    """What the cache is told when it starts: WEFT_CACHE_PORT, WEFT_CACHE_BUCKET_URL and so on."""

    model_config = SettingsConfigDict(
        env_prefix="WEFT_CACHE_", frozen=True, use_attribute_docstrings=True, extra="ignore"
    )

    presign_s: int = 3600
    """Seconds that the presigned URLs of PlanReads and BeginShard are good for."""
