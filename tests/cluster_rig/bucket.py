"""A MinIO in the cluster, whose data outlive its pod, so that it can be stopped and started."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster_rig.kubectl import Kubectl, forwarded, until

from weft_store import ObjectStore, open_store

__all__ = ["ClusterBucket", "minio"]

IMAGE = os.environ.get("WEFT_TEST_MINIO_IMAGE", "localhost/minio:1")
BUCKET = "weft"


@dataclass(frozen=True)
class ClusterBucket:
    """
    The bucket, as pods and as this machine reach it.

    Args:
        kubectl: In MinIO's namespace.
        access_key: Its key.
        secret_key: And secret.
        port: On loopback.
    """

    kubectl: Kubectl
    access_key: str
    secret_key: str
    port: int

    @property
    def url(self) -> str:
        """As pods reach it."""
        return f"s3+http://minio.{self.kubectl.namespace}.svc:9000/{BUCKET}"

    def store(self) -> ObjectStore:
        """Open it from this machine."""
        return open_store(f"s3+http://127.0.0.1:{self.port}/{BUCKET}", self.access_key, self.secret_key)

    def upload(self, folder: Path, prefix: str) -> None:
        """Put a folder's files below a prefix."""
        store = self.store()
        for path in sorted(folder.iterdir()):
            if path.is_file():
                store.put_file(f"{prefix}{path.name}", path)

    def empty(self) -> None:
        """Delete everything."""
        store = self.store()
        for item in list(store.list("")):
            store.delete(item.key)

    def stop(self) -> None:
        """Stop the server; what it has stays."""
        self.kubectl("scale", "deployment/minio", "--replicas=0")
        until(lambda: not self.kubectl.items("pods"), "MinIO stops")

    def start(self) -> None:
        """Start it again."""
        self.kubectl("scale", "deployment/minio", "--replicas=1")
        self.kubectl("rollout", "status", "deployment/minio", "--timeout=120s")


@contextmanager
def minio(namespace: str) -> Iterator[ClusterBucket]:
    """Run MinIO in a namespace of its own, with one bucket."""
    from minio import Minio

    kubectl = Kubectl(namespace)
    kubectl.make_namespace()
    access_key, secret_key = f"weft-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
    node = kubectl.json("nodes")["items"][0]["metadata"]["name"]
    kubectl.create_secret("minio", {"MINIO_ROOT_USER": access_key, "MINIO_ROOT_PASSWORD": secret_key})
    labels = {"app": "minio"}
    container = {
        "name": "minio",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["server", "/data", "--address", ":9000"],
        "envFrom": [{"secretRef": {"name": "minio"}}],
        "env": [{"name": "MINIO_BROWSER", "value": "off"}],
        "ports": [{"containerPort": 9000}],
        # Without a request it gets next to nothing while ranks compute, and services lose their leases.
        "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": 9000}, "periodSeconds": 2},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    volume = {"name": "data", "hostPath": {"path": f"/var/tmp/{namespace}-data", "type": "DirectoryOrCreate"}}
    tolerations = [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]
    pod = {"containers": [container], "volumes": [volume], "nodeName": node, "tolerations": tolerations}
    kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "minio"},
            "spec": {
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {**pod, "enableServiceLinks": False}},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "minio"},
            "spec": {"selector": labels, "ports": [{"port": 9000}]},
        },
    )
    try:
        kubectl("rollout", "status", "deployment/minio", "--timeout=120s")
        with forwarded(kubectl, "minio", 9000) as port:
            client = Minio(f"127.0.0.1:{port}", access_key, secret_key, secure=False)
            if not client.bucket_exists(BUCKET):
                client.make_bucket(BUCKET)
            found = ClusterBucket(kubectl, access_key, secret_key, port)
            # What tests that were killed have left on the node.
            found.empty()
            yield found
            found.empty()
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")
