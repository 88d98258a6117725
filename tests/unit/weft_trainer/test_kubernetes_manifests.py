"""The objects that run ranks, field group by field group."""

from typing import Any

import pytest
from kubernetes import client
from pydantic import ValidationError

from weft_common.settings import load_settings, variable_name
from weft_trainer.adapters.kubernetes_api import Manifest
from weft_trainer.adapters.kubernetes_manifests import (
    AuthorityFile,
    PodOptions,
    SecretKey,
    job_name,
    service_manifest,
    work_manifest,
)
from weft_trainer.core.ports import RankJob
from weft_trainer.worker.settings import RankSettings, WorkerSettings

KEY = "runs/demo/attempts/3"
NAME = job_name("bucket", KEY)
OPTIONS = PodOptions(
    image="registry/weft-trainer:1",
    image_pull_policy="IfNotPresent",
    pull_secrets=("pull",),
    resources={"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"}},
    node_selector={"pool": "gpu"},
    tolerations=({"key": "gpu", "operator": "Exists"},),
    runtime_class="nvidia",
    service_account="ranks",
    secrets={"WEFT_WORKER_CACHE_TOKEN": SecretKey("auth", "cache")},
    tls_secret="tls",
    labels={"app.kubernetes.io/instance": "prod", "app.kubernetes.io/component": "trainer"},
    annotations={"team": "a"},
)
RANKS = RankJob(KEY, "weft_trainer.worker", 4, {"WEFT_WORKER_RUN": "demo"})
EXPORT = RankJob("transcoders/demo/export", "weft_trainer.worker.export", 0, {})
KINDS = ("jobset", "job")


def made(kind: str = "job", job: RankJob = RANKS, **changes: Any) -> Manifest:
    options = PodOptions(**{**{name: getattr(OPTIONS, name) for name in OPTIONS.__dataclass_fields__}, **changes})
    return work_manifest(job, NAME, options, jobset=kind == "jobset")


def job_spec(kind: str, **changes: Any) -> Manifest:
    manifest = made(kind, **changes)
    spec: Manifest = manifest["spec"]
    return spec if kind == "job" else dict(spec["replicatedJobs"][0]["template"]["spec"])


def pod_spec(kind: str = "job", **changes: Any) -> Manifest:
    return dict(job_spec(kind, **changes)["template"]["spec"])


def variables(kind: str = "job", **changes: Any) -> dict[str, Any]:
    return {entry["name"]: entry for entry in pod_spec(kind, **changes)["containers"][0]["env"]}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_one_indexed_job_that_is_never_retried(kind: str) -> None:
    """As many completions as ranks, none of them tried twice by the cluster, none replaced before it is gone."""
    spec = job_spec(kind)
    fields = ("completionMode", "completions", "parallelism", "backoffLimit", "podReplacementPolicy")
    assert [spec[field] for field in fields] == ["Indexed", 4, 4, 0, "Failed"]
    assert pod_spec(kind)["restartPolicy"] == "Never"


@pytest.mark.parametrize("kind", KINDS)
def test_pod_failures_are_told_apart(kind: str) -> None:
    """Exit code 42 and disruptions end the job at once, in this order."""
    refused, disrupted = job_spec(kind)["podFailurePolicy"]["rules"]
    assert refused == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "rank", "operator": "In", "values": [42]},
    }
    assert disrupted == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_jobset_restarts_after_disruptions_only() -> None:
    """Exit code 42 fails the set, a disruption restarts it without a count, everything else is the controller's."""
    manifest = made("jobset")
    policy = manifest["spec"]["failurePolicy"]
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert (policy["maxRestarts"], policy["restartStrategy"]) == (0, "BlockingRecreate")
    refused, disrupted = policy["rules"]
    assert (refused["action"], refused["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    message = "Container rank for pod ns/p failed with exit code 42 matching FailJob rule at index 0"
    assert all(pattern in message for pattern in refused["onJobFailureMessagePatterns"])
    assert (disrupted["action"], disrupted["onJobFailureReasons"]) == (
        "RestartJobSetAndIgnoreMaxRestarts",
        ["PodFailurePolicy"],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rendezvous_is_static(kind: str) -> None:
    """The rank is the pod's index, the master the first pod's stable name, which resolves before it is ready."""
    env = variables(kind)
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env["RANK"]["valueFrom"] == {"fieldRef": {"fieldPath": path}}
    assert env["WORLD_SIZE"]["value"] == "4"
    master = f"{NAME}-ranks-0-0.{NAME}" if kind == "jobset" else f"{NAME}-0.{NAME}"
    assert env["MASTER_ADDR"]["value"] == master
    assert env["MASTER_PORT"]["value"].isdigit()
    if kind == "jobset":
        assert made(kind)["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
        assert "subdomain" not in pod_spec(kind)
    else:
        assert pod_spec(kind)["subdomain"] == NAME


def test_headless_service_names_the_pods_and_goes_with_its_job() -> None:
    """No cluster address, addresses before readiness, the Job as its owner."""
    owner = {**made(), "metadata": {**made()["metadata"], "uid": "u"}}
    service = service_manifest(owner)
    assert service["metadata"]["name"] == NAME
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"weft.dev/job": NAME},
    }
    assert service["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": NAME, "uid": "u"}
    ]
    assert service["spec"]["selector"].items() <= job_spec("job")["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_show_metrics_on_a_port_that_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank reads the port from its variable and Prometheus finds it by its name; an export has none to show."""
    (port,) = pod_spec(kind)["containers"][0]["ports"]
    assert (port["name"], port["containerPort"]) == ("metrics", 9090)
    told = variables(kind)[variable_name(RankSettings, "metrics_port")]["value"]
    for name, value in {"RUN": "r", "BUCKET_URL": "memory://", "CACHE_TARGET": "c:1", "METRICS_PORT": told}.items():
        monkeypatch.setenv(f"WEFT_WORKER_{name}", value)
    assert load_settings(RankSettings).metrics_port == 9090
    export = made(kind, EXPORT)["spec"]["template"]["spec"]["containers"][0]
    assert "ports" not in export
    assert "WEFT_WORKER_METRICS_PORT" not in {entry["name"] for entry in export["env"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("authority", "source"),
    [
        (AuthorityFile("s", "", "root.pem"), {"secret": {"secretName": "s", "defaultMode": 0o440}}),
        (AuthorityFile("", "m", "root.pem"), {"configMap": {"name": "m"}}),
    ],
)
def test_authority_of_the_bucket_is_mounted(kind: str, authority: AuthorityFile, source: dict[str, Any]) -> None:
    """From a Secret or a ConfigMap, under a name that ranks and exports are told; without one nothing is."""
    for job in (RANKS, EXPORT):
        manifest = made("job", job, bucket_ca=authority) if job is EXPORT else made(kind, job, bucket_ca=authority)
        inner = manifest["spec"]["replicatedJobs"][0]["template"] if manifest["kind"] == "JobSet" else manifest
        spec = inner["spec"]["template"]["spec"]
        (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "bucket-ca")
        (container,) = spec["containers"]
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "bucket-ca")
        ((form, told),) = source.items()
        assert volume == {"name": "bucket-ca", form: {**told, "items": [{"key": "root.pem", "path": "ca.crt"}]}}
        assert mount["readOnly"] is True
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert environment[variable_name(WorkerSettings, "bucket_ca")] == f"{mount['mountPath']}/ca.crt"
    assert "bucket-ca" not in {volume["name"] for volume in pod_spec(kind)["volumes"]}
    assert "WEFT_WORKER_BUCKET_CA" not in variables(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pods_meet_the_restricted_level(kind: str) -> None:
    """No root, no privileges, a read-only root, and no token of the API server."""
    spec = pod_spec(kind)
    pod, container = spec["securityContext"], spec["containers"][0]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert (pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) == (10001, 10001, 10001)
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert (spec["serviceAccountName"], spec["runtimeClassName"]) == ("ranks", "nvidia")


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_have_time_and_room_to_save(kind: str) -> None:
    """Two minutes after SIGTERM, and a folder to write to, which is the home too."""
    spec = pod_spec(kind)
    assert spec["terminationGracePeriodSeconds"] == 120
    assert {"name": "tmp", "emptyDir": {}} in spec["volumes"]
    assert {"name": "tmp", "mountPath": "/tmp"} in spec["containers"][0]["volumeMounts"]
    assert variables(kind)["HOME"]["value"] == "/tmp"


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_references_only(kind: str) -> None:
    """Tokens come by secretKeyRef, TLS files by a mounted Secret that ranks are told of."""
    env = variables(kind)
    assert env["WEFT_WORKER_CACHE_TOKEN"] == {
        "name": "WEFT_WORKER_CACHE_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "auth", "key": "cache"}},
    }
    spec = pod_spec(kind)
    volume = next(volume for volume in spec["volumes"] if volume["name"] == "tls")
    mount = next(mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "tls")
    assert volume["secret"] == {"secretName": "tls", "defaultMode": 0o440}
    assert mount["readOnly"] is True
    assert env["WEFT_WORKER_TLS_CA"]["value"] == f"{mount['mountPath']}/ca.crt"
    assert env["WEFT_WORKER_TLS_KEY"]["value"] == f"{mount['mountPath']}/tls.key"
    assert not [name for name in variables(kind, tls_secret="") if "TLS" in name]


@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_placed_as_asked(kind: str) -> None:
    """Image, resources, node selector, tolerations and pull secrets are the options'."""
    spec = pod_spec(kind)
    container = spec["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == (OPTIONS.image, "IfNotPresent")
    assert container["command"] == ["python", "-m", "weft_trainer.worker"]
    assert container["resources"] == OPTIONS.resources
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"pool": "gpu"}, [{"key": "gpu", "operator": "Exists"}])
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert job_spec(kind)["template"]["metadata"]["annotations"] == {"team": "a"}


def test_process_without_ranks_keeps_no_gpu() -> None:
    """It computes on the processor: neither the devices of ranks nor the runtime that they need, and all else."""
    spec = pod_spec(job=EXPORT)
    assert spec["containers"][0]["resources"] == {
        "requests": {"cpu": "2", "memory": "4Gi"},
        "limits": {"memory": "4Gi"},
    }
    assert "runtimeClassName" not in spec
    assert spec["nodeSelector"] == {"pool": "gpu"}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_carries_its_run_and_attempt(kind: str) -> None:
    """The labels of the object and of its pods say whose they are; nothing overwrites the component."""
    wanted = {
        "app.kubernetes.io/name": "weft",
        "app.kubernetes.io/instance": "prod",
        "app.kubernetes.io/component": "rank",
        "weft.dev/run": "demo",
        "weft.dev/attempt": "3",
        "weft.dev/job": NAME,
    }
    assert made(kind)["metadata"]["labels"] == wanted
    assert job_spec(kind)["template"]["metadata"]["labels"] == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_queue_admits_what_is_suspended(kind: str) -> None:
    """With a queue the object names it and begins suspended; without one it does neither."""
    queued, free = made(kind, queue="gpus"), made(kind)
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert queued["spec"]["suspend"] is True
    assert "suspend" not in free["spec"]
    assert "kueue.x-k8s.io/queue-name" not in free["metadata"]["labels"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_controller_deletes_goes_after_a_day(kind: str) -> None:
    """The object as a whole has a time to live."""
    assert made(kind)["spec"]["ttlSecondsAfterFinished"] == 86400


@pytest.mark.parametrize("kind", KINDS)
def test_work_without_ranks_is_a_plain_job(kind: str) -> None:
    """An export is one pod that needs to find nobody, whatever runs ranks."""
    manifest = made(kind, job=EXPORT)
    assert manifest["kind"] == "Job"
    spec = manifest["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (1, 1, 0)
    assert "completionMode" not in spec
    pod = spec["template"]["spec"]
    assert "subdomain" not in pod
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & {entry["name"] for entry in pod["containers"][0]["env"]}
    assert manifest["metadata"]["labels"]["weft.dev/transcoder"] == "demo"


@pytest.mark.parametrize("job", [RANKS, EXPORT])
def test_documents_have_only_fields_that_the_api_knows(job: RankJob) -> None:
    """The models of the client refuse others; a JobSet's template is a Job's."""
    plain = made(job=job, queue="gpus")
    client.V1Job.model_validate(plain)
    (replicated,) = made("jobset")["spec"]["replicatedJobs"]
    client.V1JobTemplateSpec.model_validate(replicated["template"])
    client.V1Service.model_validate(service_manifest({"metadata": {**plain["metadata"], "uid": "u"}}))
    plain["spec"]["template"]["spec"]["containers"][0]["securityContext"]["runAsNotRoot"] = True
    with pytest.raises(ValidationError, match="runAsNotRoot"):
        client.V1Job.model_validate(plain)


def test_job_names_are_short_and_differ() -> None:
    """The longest id leaves room for the names of a JobSet's pods; another attempt or bucket is another name."""
    long = job_name("bucket", f"runs/{'a' * 63}/attempts/1000")
    assert len(f"{long}-ranks-0-999-abcde") <= 63
    names = {
        job_name("bucket", "runs/a/attempts/1"),
        job_name("bucket", "runs/a/attempts/2"),
        job_name("other", "runs/a/attempts/1"),
        job_name("bucket", "runs/a/checkpoints/00000001/evaluation"),
        job_name("bucket", "transcoders/a/export"),
    }
    assert len(names) == 5
