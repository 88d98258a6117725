"""A bucket whose certificate comes from an authority that this machine does not know."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
import urllib3
from minio_server import MinioServer, running_minio

from weft_common.errors import AlreadyExistsError, InvalidArgumentError, UnavailableError
from weft_store import open_store

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """Speak TLS only."""
    with running_minio(tmp_path_factory.mktemp("minio-tls"), trustme.CA()) as running:
        yield running


def test_bucket_is_used_over_tls_with_its_authority(server: MinioServer, tmp_path: Path) -> None:
    """All ways to the bucket trust it: whole objects, files, conditional writes, and what another process is given."""
    url = server.make_bucket("trusted")
    assert url.startswith("s3+https://")
    store = open_store(url, server.access_key, server.secret_key, ca=server.authority)
    store.put("a", b"bytes", if_absent=True)
    with pytest.raises(AlreadyExistsError):
        store.put("a", b"others", if_absent=True)
    (tmp_path / "file").write_bytes(b"of a file")
    store.put_file("b", tmp_path / "file")
    assert [info.key for info in store.list("")] == ["a", "b"]
    again = pickle.loads(pickle.dumps(store))
    assert (again.get("a"), again.get("b")) == (b"bytes", b"of a file")
    pool = urllib3.PoolManager(ca_certs=str(server.authority))
    assert pool.request("GET", store.presign_get("a", 60)).data == b"bytes"


@pytest.mark.parametrize("known", ["the system's own", "another"])
def test_unknown_authority_is_said(known: str, server: MinioServer, tmp_path: Path) -> None:
    """A server whose certificate is not trusted is no server that does not answer: the message names the setting."""
    url = server.make_bucket(f"untrusted-{len(known)}") + "?region=us-east-1"
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    store = open_store(url, server.access_key, server.secret_key, ca=other if known == "another" else None)
    with pytest.raises(UnavailableError, match="certificate that is not trusted") as caught:
        store.put("a", b"bytes")
    assert "BUCKET_CA" in str(caught.value)


def test_file_without_a_certificate_is_refused(tmp_path: Path) -> None:
    """Before anything is asked of the bucket."""
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(InvalidArgumentError, match="give a PEM file with its certificate"):
        open_store("s3+https://127.0.0.1:1/bucket", "access", "secret-secret", ca=tmp_path / "ca.crt")
