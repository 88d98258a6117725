"""What deploy/compose/bucket.py makes in a real MinIO: one bucket, and an account that reaches nothing else."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from minio import Minio
from minio.error import S3Error
from minio_server import MinioServer

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "bucket.py"
MIB = 1 << 20

pytestmark = pytest.mark.s3


def run_script(server: MinioServer, secret_key: str) -> None:
    """Run it as compose does."""
    told = {
        "MINIO_TARGET": server.endpoint,
        "MINIO_ROOT_USER": server.access_key,
        "MINIO_ROOT_PASSWORD": server.secret_key,
        "BUCKET": "compose",
        "BUCKET_ACCESS_KEY": "compose-services",
        "BUCKET_SECRET_KEY": secret_key,
    }
    done = subprocess.run([sys.executable, SCRIPT], env=os.environ | told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def account(minio_server: MinioServer) -> Minio:
    """The services' account, after two runs: the second gives it its new key."""
    run_script(minio_server, "the-first-secret")
    run_script(minio_server, "the-second-secret")
    return Minio(minio_server.endpoint, "compose-services", "the-second-secret", secure=False)


def test_compose_account_does_what_services_do(account: Minio) -> None:
    """It writes, in parts too, lists, reads and deletes."""
    data = bytes(11 * MIB)
    account.put_object("compose", "runs/one", io.BytesIO(data), len(data), part_size=5 * MIB)
    assert [entry.object_name for entry in account.list_objects("compose", recursive=True)] == ["runs/one"]
    assert account.get_object("compose", "runs/one").data == data
    account.remove_object("compose", "runs/one")
    assert not list(account.list_objects("compose", recursive=True))


def test_compose_account_reaches_no_other_bucket(account: Minio, minio_server: MinioServer) -> None:
    """It can neither make or remove a bucket nor read another one."""
    root = Minio(minio_server.endpoint, minio_server.access_key, minio_server.secret_key, secure=False)
    if not root.bucket_exists("private"):
        root.make_bucket("private")
    root.put_object("private", "secret", io.BytesIO(b"x"), 1)
    for forbidden in (
        lambda: account.make_bucket("another"),
        lambda: account.remove_bucket("compose"),
        lambda: account.get_object("private", "secret"),
        lambda: list(account.list_objects("private")),
    ):
        with pytest.raises(S3Error) as refused:
            forbidden()
        assert refused.value.code == "AccessDenied"


def test_compose_bucket_says_when_minio_does_not_come(tmp_path: Path) -> None:
    """Without MinIO the script ends with a sentence, after its patience."""
    code = "import bucket; bucket.PATIENCE_S = 1.0; bucket.wait_for('127.0.0.1:9')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "was not ready within 1 s; look at its log" in done.stderr
