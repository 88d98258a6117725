"""The bucket that `weft up` is told about, on its way from the command line to the services."""

from pathlib import Path

import pytest

from weft_client.local.bucket import ACCESS_KEY_VARIABLE, SECRET_KEY_VARIABLE, Bucket
from weft_client.local.layout import SERVICES, Layout, choose_endpoints, service_environment
from weft_common.errors import InvalidArgumentError

URL = "s3+https://s3.example.com/bucket/prefix?region=eu-1"
KEYS = {ACCESS_KEY_VARIABLE: "the-access-key", SECRET_KEY_VARIABLE: "the-secret-key"}


def test_keys_reach_every_service_that_has_a_bucket_and_no_other() -> None:
    """The console has no bucket and gets no keys; the others get URL and keys under their own names."""
    bucket = Bucket.named(URL, KEYS)
    endpoints = choose_endpoints()
    for name in SERVICES:
        told = service_environment(name, Layout(Path("/weft")), endpoints, bucket)
        expected = {"BUCKET_URL": URL, "BUCKET_ACCESS_KEY": "the-access-key", "BUCKET_SECRET_KEY": "the-secret-key"}
        found = {key: told[variable] for key in expected if (variable := f"WEFT_{name.upper()}_{key}") in told}
        assert found == ({} if name == "console" else expected)


def test_service_is_told_of_those_that_it_calls() -> None:
    """Targets and tokens of these and of no others; attribution holds datasets at the cache."""
    endpoints, layout = choose_endpoints(), Layout(Path("/weft"))
    told = service_environment("attribution", layout, endpoints, layout.bucket)
    peers = {key: value for key, value in told.items() if key.endswith(("_TARGET", "_TOKEN"))}
    assert peers.pop("WEFT_ATTRIBUTION_TOKEN") == endpoints["attribution"].token
    assert peers == {
        f"WEFT_ATTRIBUTION_{name.upper()}_{kind}": value
        for name in ("activations", "cache")
        for kind, value in (("TARGET", endpoints[name].target), ("TOKEN", endpoints[name].token))
    }


def test_folder_of_the_run_is_the_bucket_where_none_is_named() -> None:
    """Without a name services get the folder's own bucket, and no keys."""
    assert Layout(Path("/weft")).bucket.settings() == {"BUCKET_URL": "file:///weft/bucket"}


def test_keys_are_not_shown() -> None:
    """A bucket in a message or a log shows its URL only."""
    shown = repr(Bucket.named(URL, KEYS))
    assert URL in shown
    assert "key" not in shown.replace(URL, "")


def test_bucket_may_need_no_keys() -> None:
    """Unset and empty variables mean a bucket that is open to everybody; a folder ignores them."""
    assert Bucket.named(URL, {ACCESS_KEY_VARIABLE: "", SECRET_KEY_VARIABLE: ""}) == Bucket(URL)
    assert Bucket.named("file:///data", KEYS) == Bucket("file:///data")


@pytest.mark.parametrize("there", KEYS)
def test_one_key_without_the_other_is_refused(there: str) -> None:
    """The message names the variable that is missing."""
    (missing,) = set(KEYS) - {there}
    with pytest.raises(InvalidArgumentError, match=f"{there} is set and {missing} is not"):
        Bucket.named(URL, {there: KEYS[there]})


@pytest.mark.parametrize("url", ["memory://", "s3://bucket", "/data", "", "https://me:hunter2@host/bucket"])
def test_what_five_processes_cannot_share_is_refused(url: str) -> None:
    """The refusal gives the forms that there are and never repeats a password."""
    with pytest.raises(InvalidArgumentError, match="give s3") as caught:
        Bucket.named(url, {})
    assert "hunter2" not in caught.value.message
