"""
Make MinIO's bucket, and the account that the services use: it reaches this bucket and nothing else.

Runs once in the cache's image. Told by MINIO_TARGET (host:port), MINIO_ROOT_USER, MINIO_ROOT_PASSWORD, BUCKET,
BUCKET_ACCESS_KEY and BUCKET_SECRET_KEY. A second run changes nothing but the account's key.
"""

import os
import sys
import time

import urllib3
from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

PATIENCE_S = 60.0


def wait_for(target: str) -> None:
    """Wait until MinIO takes requests."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        try:
            if urllib3.request("GET", f"http://{target}/minio/health/ready", retries=False, timeout=2).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            pass
        time.sleep(0.5)
    sys.exit(f"bucket: MinIO at {target} was not ready within {PATIENCE_S:.0f} s; look at its log.")


def policy(bucket: str) -> dict[str, object]:
    """Return what the services may do."""
    of_bucket = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    of_objects = [f"s3:{verb}" for verb in ("GetObject", "PutObject", "DeleteObject")]
    of_objects += ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": of_bucket, "Resource": [f"arn:aws:s3:::{bucket}"]},
            {"Effect": "Allow", "Action": of_objects, "Resource": [f"arn:aws:s3:::{bucket}/*"]},
        ],
    }


def make(target: str, root: tuple[str, str], bucket: str, account: tuple[str, str]) -> None:
    """Make the bucket, the policy and the account."""
    client = Minio(target, access_key=root[0], secret_key=root[1], secure=False)
    if not client.bucket_exists(bucket):
        client.make_bucket(bucket)
    admin = MinioAdmin(endpoint=target, credentials=StaticProvider(*root), secure=False)
    admin.policy_add("weft-services", policy=policy(bucket))
    admin.user_add(*account)
    admin.policy_set("weft-services", user=account[0])


if __name__ == "__main__":
    told = os.environ
    wait_for(told["MINIO_TARGET"])
    make(
        told["MINIO_TARGET"],
        (told["MINIO_ROOT_USER"], told["MINIO_ROOT_PASSWORD"]),
        told["BUCKET"],
        (told["BUCKET_ACCESS_KEY"], told["BUCKET_SECRET_KEY"]),
    )
    print(f"bucket: {told['BUCKET']} is there, and {told['BUCKET_ACCESS_KEY']} may use it")
