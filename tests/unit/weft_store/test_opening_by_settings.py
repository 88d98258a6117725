"""The bucket that settings name."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from weft_common.settings import BucketSettings
from weft_store import open_bucket, opening


@pytest.mark.parametrize("keys", [(None, None), ("user", "secret")])
def test_bucket_is_opened_with_all_that_settings_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keys: tuple[str | None, str | None]
) -> None:
    """Keys as they are, or none at all; the authority beside them."""
    seen: list[Any] = []
    monkeypatch.setattr(opening, "open_store", lambda *given, ca: seen.append((*given, ca)))
    authority = tmp_path / "ca.crt"
    authority.write_text("a certificate")
    access_key, secret_key = (SecretStr(key) if key else None for key in keys)
    open_bucket(
        BucketSettings(
            bucket_url="s3+https://lab/weft",
            bucket_access_key=access_key,
            bucket_secret_key=secret_key,
            bucket_ca=authority,
        )
    )
    assert seen == [("s3+https://lab/weft", *keys, authority)]
