"""
The few things that are asked of a Kubernetes API server, as a Protocol.

Everything is a plain document, as the API's own reference has it; every call blocks, so callers use threads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "EVENTS",
    "JOBS",
    "JOBSETS",
    "LEASES",
    "PODS",
    "SERVICES",
    "WORKLOADS",
    "ClusterApi",
    "Manifest",
    "Resource",
    "WatchExpiredError",
]

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """
    A kind of object.

    Args:
        group: Of the API; empty for the core.
        version: Of the group.
        plural: As it stands in addresses.
        kind: As it stands in documents.
    """

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As it stands in documents."""
        return f"{self.group}/{self.version}" if self.group else self.version


PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("", "v1", "events", "Event")
JOBS = Resource("batch", "v1", "jobs", "Job")
JOBSETS = Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload")


class WatchExpiredError(Exception):
    """The server no longer has what came after a version (410 Gone): list again."""


class ClusterApi(Protocol):
    """One namespace of a cluster. Every method raises UnavailableError where the server does not answer."""

    def serves(self, resource: Resource) -> bool:
        """Tell whether the cluster knows a kind of object."""
        ...

    def create(self, resource: Resource, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Create an object, or have it checked. AlreadyExistsError, InvalidArgumentError, PermissionDeniedError."""
        ...

    def get(self, resource: Resource, name: str) -> Manifest:
        """Read an object. NotFoundError."""
        ...

    def replace(self, resource: Resource, name: str, manifest: Manifest) -> Manifest:
        """Write an object if it still is of the version that the manifest names. ConflictError, NotFoundError."""
        ...

    def label(self, resource: Resource, name: str, labels: Mapping[str, str | None]) -> Manifest:
        """Set labels of an object, None takes one off, and return the object. NotFoundError, PermissionDeniedError."""
        ...

    def delete(self, resource: Resource, name: str, *, grace_s: int | None = None) -> None:
        """Delete an object and, before it, what it owns; one that is not there is as good."""
        ...

    def list(self, resource: Resource, selector: str = "") -> tuple[list[Manifest], str]:
        """List objects by their labels, and the version of the list."""
        ...

    def watch(self, resource: Resource, selector: str, version: str, timeout_s: int) -> Iterator[tuple[str, Manifest]]:
        """Yield what happens after a version: ADDED, MODIFIED, DELETED or BOOKMARK. WatchExpiredError."""
        ...

    def log(self, pod: str, tail_lines: int) -> str:
        """Return the end of what a pod wrote. InvalidArgumentError where it has not started, NotFoundError."""
        ...
