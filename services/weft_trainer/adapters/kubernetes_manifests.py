"""
The objects that run ranks on Kubernetes, as documents.

    JobSet  ranks of a run or an evaluation, where the cluster serves JobSets
    Job     the same elsewhere, Indexed, beside a headless Service; one process without ranks everywhere

Source: the API references of batch/v1, v1 and jobset.x-k8s.io/v1alpha2. The pods meet the restricted Pod Security
level, hold no token of the API server, and have secrets by reference only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weft_trainer.adapters.kubernetes_api import JOBS, JOBSETS, SERVICES, Manifest
from weft_trainer.core.ports import BAD_CONFIGURATION, RankJob

__all__ = [
    "CONTAINER",
    "JOB_LABEL",
    "RANKS",
    "AuthorityFile",
    "PodOptions",
    "SecretKey",
    "job_name",
    "service_manifest",
    "work_manifest",
]

CONTAINER = "rank"
RANKS = "ranks"
"""Name of the one replicated job in a JobSet."""
JOB_LABEL = "weft.dev/job"
"""Names the object that a pod works for."""

_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_MASTER_PORT = "29500"
# Each rank has a pod and so an address of its own: all can have the same port.
_METRICS_PORT = 9090
_USER = 10001
_GRACE_S = 120
_AMOUNTS = ("requests", "limits")
# The controller deletes what has ended; this is for when there is no controller any more.
_KEPT_S = 24 * 3600
_TLS_FOLDER = "/etc/weft/tls"
_BUCKET_CA_FOLDER = "/etc/weft/bucket-ca"


@dataclass(frozen=True)
class SecretKey:
    """
    One value of a Secret.

    Args:
        name: Of the Secret.
        key: In it.
    """

    name: str
    key: str


@dataclass(frozen=True)
class AuthorityFile:
    """
    A PEM file with the certificate of an authority.

    Args:
        secret: Name of the Secret that holds it; empty where a ConfigMap does.
        config_map: Name of the ConfigMap that holds it; empty where a Secret does.
        key: In it.
    """

    secret: str
    config_map: str
    key: str


@dataclass(frozen=True)
class PodOptions:
    """
    What the pods of ranks are like.

    Args:
        image: That holds the trainer.
        image_pull_policy: Of it; empty leaves it to the cluster.
        pull_secrets: To pull it with.
        resources: `requests` and `limits` of a rank; a process without ranks has them without its devices.
        node_selector: Where ranks may run.
        tolerations: Taints that they stand.
        runtime_class: Class of the container runtime that ranks need for their devices; empty takes the cluster's own.
        service_account: Theirs; its token is not mounted.
        queue: Kueue's local queue; empty asks for none.
        secrets: Environment variables that come from Secrets.
        tls_secret: A kubernetes.io/tls Secret with `ca.crt`, mounted for the ranks' calls; empty calls in the clear.
        bucket_ca: Authority of the bucket's certificate; None trusts those of the image.
        labels: Of everything that is made.
        annotations: Of pods.
        command: What runs the module.
    """

    image: str
    image_pull_policy: str = ""
    pull_secrets: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    runtime_class: str = ""
    service_account: str = ""
    queue: str = ""
    secrets: Mapping[str, SecretKey] = field(default_factory=dict)
    tls_secret: str = ""
    bucket_ca: AuthorityFile | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ("python", "-m")


def job_name(installation: str, key: str) -> str:
    """
    Return the name of the object that runs a job: readable, unique, and short enough for the names of its pods.

    >>> job_name("file:///bucket", "runs/demo/attempts/3")
    'weft-demo-3-d517af887e'
    """
    kind, noun, *rest = key.split("/")
    attempt = f"-{rest[1]}" if kind == "runs" and rest[:1] == ["attempts"] else ""
    digest = hashlib.sha256(f"{installation}#{key}".encode()).hexdigest()[:10]
    return f"weft-{noun[:20].rstrip('-')}{attempt}-{digest}"


def _labels(key: str, name: str, options: PodOptions) -> dict[str, str]:
    kind, noun, *rest = key.split("/")
    own = {
        "app.kubernetes.io/name": "weft",
        "app.kubernetes.io/component": "rank",
        JOB_LABEL: name,
        f"weft.dev/{kind.removesuffix('s')}": noun.rstrip("-"),
    }
    if rest[:1] == ["attempts"]:
        own["weft.dev/attempt"] = rest[1]
    return {**options.labels, **own}


def work_manifest(job: RankJob, name: str, options: PodOptions, *, jobset: bool) -> Manifest:
    """Return the object that runs a job: a JobSet of ranks, or a Job."""
    labels = _labels(job.key, name, options)
    metadata = {"name": name, "labels": {**labels, **({_QUEUE_LABEL: options.queue} if options.queue else {})}}
    # Kueue admits what is suspended, and suspends it again to take its place away.
    suspended = {"suspend": True} if options.queue else {}
    if not (jobset and job.num_ranks):
        spec = {**_job_spec(job, name, labels, options), **suspended, "ttlSecondsAfterFinished": _KEPT_S}
        return {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "metadata": metadata, "spec": spec}
    spec = {
        **suspended,
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            # Whatever else fails is started again by the controller, as another attempt.
            "maxRestarts": 0,
            "restartStrategy": "BlockingRecreate",
            "rules": [
                {
                    "name": "refusedConfiguration",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": [f"exit code {BAD_CONFIGURATION} "],
                },
                {
                    "name": "disruption",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                },
            ],
        },
        "ttlSecondsAfterFinished": _KEPT_S,
        "replicatedJobs": [
            {
                "name": RANKS,
                "replicas": 1,
                "template": {
                    "metadata": {"labels": labels},
                    "spec": _job_spec(job, name, labels, options, master=f"{name}-{RANKS}-0-0.{name}"),
                },
            }
        ],
    }
    return {"apiVersion": JOBSETS.api_version, "kind": JOBSETS.kind, "metadata": metadata, "spec": spec}


def service_manifest(owner: Manifest) -> Manifest:
    """Return the headless Service that gives the pods of an Indexed Job their names; it goes with the Job."""
    metadata = owner["metadata"]
    return {
        "apiVersion": SERVICES.api_version,
        "kind": SERVICES.kind,
        "metadata": {
            "name": metadata["name"],
            "labels": {key: value for key, value in metadata["labels"].items() if key != _QUEUE_LABEL},
            "ownerReferences": [
                {
                    "apiVersion": JOBS.api_version,
                    "kind": JOBS.kind,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                }
            ],
        },
        "spec": {
            "clusterIP": "None",
            # Ranks find each other before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": {JOB_LABEL: metadata["name"]},
        },
    }


def _job_spec(
    job: RankJob, name: str, labels: Mapping[str, str], options: PodOptions, master: str = ""
) -> dict[str, Any]:
    count = max(1, job.num_ranks)
    ranks = {"completionMode": "Indexed"} if job.num_ranks else {}
    own_service = bool(job.num_ranks) and not master
    return {
        **ranks,
        "completions": count,
        "parallelism": count,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [BAD_CONFIGURATION]},
                },
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "metadata": {"labels": dict(labels), "annotations": dict(options.annotations)},
            "spec": {
                **_pod_spec(job, options, master or f"{name}-0.{name}"),
                **({"subdomain": name} if own_service else {}),
            },
        },
    }


def _pod_spec(job: RankJob, options: PodOptions, master: str) -> dict[str, Any]:
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108  the pod's own
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    if options.tls_secret:
        mounts.append({"name": "tls", "mountPath": _TLS_FOLDER, "readOnly": True})
        volumes.append({"name": "tls", "secret": {"secretName": options.tls_secret, "defaultMode": 0o440}})
    if options.bucket_ca is not None:
        mounts.append({"name": "bucket-ca", "mountPath": _BUCKET_CA_FOLDER, "readOnly": True})
        volumes.append({"name": "bucket-ca", **_authority_volume(options.bucket_ca)})
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": options.image,
        "command": [*options.command, job.module],
        "env": _environment(job, options, master),
        "resources": dict(options.resources) if job.num_ranks else _without_devices(options.resources),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if job.num_ranks:
        # By this name Prometheus finds it.
        container["ports"] = [{"name": "metrics", "containerPort": _METRICS_PORT}]
    if options.image_pull_policy:
        container["imagePullPolicy"] = options.image_pull_policy
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if options.runtime_class and job.num_ranks:
        spec["runtimeClassName"] = options.runtime_class
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    if options.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    if options.node_selector:
        spec["nodeSelector"] = dict(options.node_selector)
    if options.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in options.tolerations]
    return spec


def _without_devices(resources: Mapping[str, Any]) -> dict[str, Any]:
    """
    Leave out extended resources: a process without ranks computes on the processor, and would keep a GPU from a rank.

    >>> _without_devices({"requests": {"cpu": "2"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"}})
    {'requests': {'cpu': '2'}, 'limits': {'memory': '4Gi'}}
    """
    # The names of extended resources have a domain; those of Kubernetes itself have none.
    return {
        kind: {name: amount for name, amount in amounts.items() if "/" not in name} if kind in _AMOUNTS else amounts
        for kind, amounts in resources.items()
    }


def _authority_volume(file: AuthorityFile) -> dict[str, Any]:
    items = [{"key": file.key, "path": "ca.crt"}]
    if file.secret:
        return {"secret": {"secretName": file.secret, "items": items, "defaultMode": 0o440}}
    return {"configMap": {"name": file.config_map, "items": items}}


def _environment(job: RankJob, options: PodOptions, master: str) -> list[dict[str, Any]]:
    """Return the settings of a process, how it finds the others, and its secrets by reference."""
    plain = {"HOME": "/tmp", **job.environment}  # noqa: S108  the pod's own
    if options.tls_secret:
        files = {"CA": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"}
        plain |= {f"WEFT_WORKER_TLS_{name}": f"{_TLS_FOLDER}/{file}" for name, file in files.items()}
    if options.bucket_ca is not None:
        plain["WEFT_WORKER_BUCKET_CA"] = f"{_BUCKET_CA_FOLDER}/ca.crt"
    if job.num_ranks:
        host, port = master, _MASTER_PORT
        plain |= {"WORLD_SIZE": str(job.num_ranks), "MASTER_ADDR": host, "MASTER_PORT": port}
        plain["WEFT_WORKER_METRICS_PORT"] = str(_METRICS_PORT)
    entries: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in sorted(plain.items())]
    if job.num_ranks:
        index = {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX_ANNOTATION}']"}}
        entries.append({"name": "RANK", "valueFrom": index})
    for name, secret in sorted(options.secrets.items()):
        reference = {"secretKeyRef": {"name": secret.name, "key": secret.key}}
        entries.append({"name": name, "valueFrom": reference})
    return entries
