"""Pods of all workloads: restricted, without tokens of the API, secrets by reference, probed, given time to stop."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_rig import CHART, CI_FILES, COMPONENTS, Document, find, kinds, merged, pod_specs, render

from weft_common.settings import variable_name
from weft_trainer.adapters.leader_label import LEADER_LABEL
from weft_trainer.settings import TrainerSettings

pytestmark = pytest.mark.packaging

ci_file = pytest.mark.parametrize("values", CI_FILES, ids=lambda path: path.stem)
# Pod Security Standards, restricted.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
FROM_THE_BUCKET = {"persistentVolumeClaim": "", "bucketPrefix": "models/"}
DIGEST = f"sha256:{'ab' * 32}"


def containers(spec: Document) -> list[Document]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def main_container(documents: list[Document], component: str, prefix: str = "weft") -> Document:
    (container,) = find(documents, "Deployment", f"{prefix}-{component}")["spec"]["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]


@ci_file
def test_pods_meet_the_restricted_level(values: Path) -> None:
    """Every control of Pod Security's restricted level, on pods and on all their containers."""
    seen = 0
    for component, spec in pod_specs(render(values)):
        seen += 1
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & spec.keys(), component
        assert all(set(volume) - {"name"} <= VOLUMES for volume in spec["volumes"])
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod.get("runAsUser") != 0
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"sysctls", "windowsOptions", "seLinuxOptions"} & pod.keys()
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container.get("ports", []))
    assert seen >= 4


@ci_file
def test_only_the_trainer_has_a_token_of_the_api(values: Path) -> None:
    """The controller that starts pods has one; no other pod and no account mounts one by itself."""
    documents = render(values)
    schedules = any(
        "WEFT_TRAINER_KUBERNETES_NAMESPACE" in each["data"] for each in kinds(documents, "ConfigMap").values()
    )
    for component, spec in pod_specs(documents):
        assert spec["automountServiceAccountToken"] is (component == "trainer" and schedules)
    for account in kinds(documents, "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False


def test_controller_labels_the_pod_that_leads() -> None:
    """No pod begins with the label that the Service selects; the controller is told its pod's name to put it on."""
    documents = render(merged({"trainer": {"replicas": 2}}))
    assert find(documents, "Service", "weft-trainer")["spec"]["selector"][LEADER_LABEL] == "true"
    template = find(documents, "Deployment", "weft-trainer")["spec"]["template"]
    assert LEADER_LABEL not in template["metadata"]["labels"]
    entries = {entry["name"]: entry for entry in template["spec"]["containers"][0]["env"]}
    own_pod = {"fieldRef": {"fieldPath": "metadata.name"}}
    assert entries[variable_name(TrainerSettings, "kubernetes_pod")]["valueFrom"] == own_pod


def test_controller_with_ranks_of_its_own_needs_no_label() -> None:
    """With the local launcher nobody puts one on, so nothing may select it."""
    documents = render(merged({"trainer": {"launcher": "local"}}))
    assert LEADER_LABEL not in find(documents, "Service", "weft-trainer")["spec"]["selector"]
    names = {entry["name"] for entry in main_container(documents, "trainer")["env"]}
    assert variable_name(TrainerSettings, "kubernetes_pod") not in names


def test_every_component_has_an_account_of_its_own() -> None:
    """Rights that one gets do not reach another; an existing account is used and not made."""
    documents = render()
    names = {component: spec.get("serviceAccountName") for component, spec in pod_specs(documents)}
    assert names == {**{component: f"weft-{component}" for component in COMPONENTS}, "test": None}
    assert set(kinds(documents, "ServiceAccount")) == {f"weft-{name}" for name in (*COMPONENTS, "rank")}
    existing = render(merged({"cache": {"serviceAccount": {"create": False, "name": "theirs"}}}))
    assert "weft-cache" not in kinds(existing, "ServiceAccount")
    assert dict(pod_specs(existing))["cache"]["serviceAccountName"] == "theirs"


@ci_file
def test_secrets_are_existing_ones_by_reference(values: Path) -> None:
    """No Secret is made, no token or key has a value, and all names are those of the values."""
    given = yaml.safe_load(values.read_text())
    known = {given["auth"]["existingSecret"], given["bucket"]["existingSecret"]}
    known.add(given["models"].get("hubToken", {}).get("existingSecret", ""))
    known.add(given.get("attribution", {}).get("interpreter", {}).get("existingSecret", ""))
    documents = render(values)
    assert not kinds(documents, "Secret")
    for _, spec in pod_specs(documents):
        for entry in (entry for container in containers(spec) for entry in container["env"]):
            if entry["name"].endswith(("_TOKEN", "_KEY")):
                assert entry["valueFrom"]["secretKeyRef"]["name"] in known
        for volume in spec["volumes"]:
            if "secret" in volume:
                source = {"tls": given["tls"], "bucket-ca": given["bucket"].get("ca")}.get(
                    volume["name"], given["auth"]
                )
                assert volume["secret"]["secretName"] == source["existingSecret"]
    for config in kinds(documents, "ConfigMap").values():
        # TLS_KEY names a file, and the launcher is told names of Secrets and of their keys.
        told = {name for name in config["data"] if "_KUBERNETES_" not in name and "_TLS_" not in name}
        assert not {name for name in told if name.endswith(("_TOKEN", "_KEY"))}


def test_tokens_reach_who_asks_and_who_calls() -> None:
    """Each service gets its own token and those of the services that it calls, by the keys of the values."""
    documents = render(CHART / "ci" / "everything-values.yaml")
    keys = {
        component: {
            entry["name"].removeprefix(f"WEFT_{component.upper()}_"): entry["valueFrom"]["secretKeyRef"]["key"]
            for entry in main_container(documents, component, "circuits")["env"]
            if "secretKeyRef" in entry.get("valueFrom", {})
        }
        for component in COMPONENTS
    }
    bucket = {"BUCKET_ACCESS_KEY": "id", "BUCKET_SECRET_KEY": "secret"}
    assert keys == {
        "activations": {"TOKEN": "a", "CACHE_TOKEN": "c", **bucket},
        "cache": {"TOKEN": "c", **bucket},
        "trainer": {"TOKEN": "t", "CACHE_TOKEN": "c", "REPORT_TOKEN": "r", **bucket},
        "attribution": {
            "TOKEN": "g",
            "ACTIVATIONS_TOKEN": "a",
            "CACHE_TOKEN": "c",
            "INTERPRETER_KEY": "token",
            **bucket,
        },
        "console": {
            "TOKEN": "page",
            "ACTIVATIONS_TOKEN": "a",
            "CACHE_TOKEN": "c",
            "TRAINER_TOKEN": "t",
            "ATTRIBUTION_TOKEN": "g",
        },
    }


@ci_file
def test_pods_are_probed_and_given_time(values: Path) -> None:
    """All three probes on the port of the metrics; the grace covers the pause, the drain and more."""
    documents = render(values)
    settings = kinds(documents, "ConfigMap")
    for name, deployment in kinds(documents, "Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        paths = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")}
        assert paths == {
            "startup": {"path": "/livez", "port": "metrics"},
            "readiness": {"path": "/readyz", "port": "metrics"},
            "liveness": {"path": "/livez", "port": "metrics"},
        }
        assert {port["name"]: port["containerPort"] for port in container["ports"]}["metrics"] == 9090
        (drain,) = (float(value) for key, value in settings[name]["data"].items() if key.endswith("_DRAIN_S"))
        # The next controller can only lead once the old one has gone.
        pause = 0 if name.endswith("trainer") else container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause >= 5 or "lifecycle" not in container
        assert spec["terminationGracePeriodSeconds"] > pause + drain


def test_ranks_of_the_controllers_pod_have_time_to_save() -> None:
    """With the local launcher the pod is not killed before its ranks have had their own grace."""
    changes = {"trainer": {"launcher": "local", "drainSeconds": 2.5, "settings": {"stop_grace_s": 100}}}
    spec = dict(pod_specs(render(merged({**changes, "shutdown": {"closeSeconds": 7}}))))["trainer"]
    assert spec["terminationGracePeriodSeconds"] == 100 + 3 + 7


def test_probe_timing_follows_the_values() -> None:
    """The seconds of a start become failures of the startup probe, rounded up."""
    probes = {"startupSeconds": 61, "periodSeconds": 7, "timeoutSeconds": 3, "readinessFailures": 2}
    container = main_container(render(merged({"probes": probes})), "cache")
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 62
    assert (container["readinessProbe"]["periodSeconds"], container["readinessProbe"]["failureThreshold"]) == (7, 2)
    assert container["livenessProbe"]["timeoutSeconds"] == 3


def test_images_are_by_tag_or_digest() -> None:
    """The registry and the default tag, a component's own tag, a digest that wins, and the pull secrets."""
    image = {
        "registry": "registry.example.com/x",
        "tag": "1.2.3",
        "pullSecrets": ["one", "two"],
        "pullPolicy": "Always",
    }
    changes = {"image": image, "cache": {"image": {"tag": "own"}}, "console": {"image": {"tag": "t", "digest": DIGEST}}}
    documents = render(merged(changes))
    images = {name: main_container(documents, name)["image"] for name in COMPONENTS}
    assert images == {
        "activations": "registry.example.com/x/weft-activations:1.2.3",
        "cache": "registry.example.com/x/weft-cache:own",
        "trainer": "registry.example.com/x/weft-trainer:1.2.3",
        "attribution": "registry.example.com/x/weft-attribution:1.2.3",
        "console": f"registry.example.com/x/weft-console@{DIGEST}",
    }
    for _, spec in pod_specs(documents):
        assert spec["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
        assert {container["imagePullPolicy"] for container in containers(spec)} == {"Always"}
    assert main_container(render(), "cache")["image"] == "localhost/weft-cache:0.1.0"


def test_pods_go_where_they_are_told() -> None:
    """Scheduling of `pod` reaches every pod; a component's own keys replace them."""
    documents = render(CHART / "ci" / "everything-values.yaml")
    for component, spec in pod_specs(documents):
        assert spec["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
        assert spec["tolerations"] == [{"key": "weft", "operator": "Exists"}]
        assert "nodeAffinity" in spec["affinity"]
        assert spec["runtimeClassName"] == "gvisor"
        assert spec["priorityClassName"] == ("serving" if component == "activations" else "production")
        (spread,) = spec["topologySpreadConstraints"]
        assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "DoNotSchedule")
        assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == component
    template = find(documents, "Deployment", "circuits-cache")["spec"]["template"]
    assert template["metadata"]["annotations"]["example.com/scanned"] == "yes"
    assert template["metadata"]["labels"]["cost-centre"] == "17"
    container = template["spec"]["containers"][0]
    assert {"name": "SSL_CERT_FILE", "value": "/etc/company/ca.crt"} in container["env"]
    assert {"name": "company-ca", "mountPath": "/etc/company", "readOnly": True} in container["volumeMounts"]
    assert {"name": "company-ca", "configMap": {"name": "company-ca"}} in template["spec"]["volumes"]


def test_replicas_spread_over_nodes_by_default() -> None:
    """Without constraints of the values, replicas go to different nodes where there are any."""
    spec = dict(pod_specs(render()))["cache"]
    (spread,) = spec["topologySpreadConstraints"]
    assert (spread["maxSkew"], spread["topologyKey"], spread["whenUnsatisfiable"]) == (
        1,
        "kubernetes.io/hostname",
        "ScheduleAnyway",
    )


def checksum(documents: list[Document], component: str) -> str:
    template = find(documents, "Deployment", f"weft-{component}")["spec"]["template"]
    return str(template["metadata"]["annotations"]["checksum/config"])


def test_changed_settings_exchange_the_pods_that_read_them() -> None:
    """A setting of one service changes its pods' annotation, and nobody else's."""
    before, after = render(), render(merged({"cache": {"settings": {"presign_s": 60}}}))
    assert find(after, "ConfigMap", "weft-cache")["data"]["WEFT_CACHE_PRESIGN_S"] == "60"
    changed = {name for name in COMPONENTS if checksum(before, name) != checksum(after, name)}
    assert changed == {"cache"}


def test_gpu_profile_asks_for_one_gpu_and_the_cuda_image() -> None:
    """With a GPU: its resource, its device, its image, and a rollout that needs no second one; without: the CPU."""
    gpu = render(CHART / "ci" / "gpu-values.yaml")
    container = main_container(gpu, "activations")
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
    assert container["image"] == "localhost/weft-activations:0.1.0-cuda"
    assert find(gpu, "ConfigMap", "weft-activations")["data"]["WEFT_ACTIVATIONS_DEVICE"] == "cuda"
    deployment = find(gpu, "Deployment", "weft-activations")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert deployment["template"]["spec"]["runtimeClassName"] == "nvidia"
    plain = main_container(render(), "activations")
    assert "nvidia.com/gpu" not in plain["resources"]["limits"]
    assert plain["image"].endswith(":0.1.0")
    assert find(render(), "ConfigMap", "weft-activations")["data"]["WEFT_ACTIVATIONS_DEVICE"] == "cpu"


def test_gpu_profile_gives_every_rank_a_gpu_and_the_cuda_image() -> None:
    """Ranks get the resource beside their own, the image, the runtime's class and the device; without: the CPU."""
    told = find(render(CHART / "ci" / "gpu-values.yaml"), "ConfigMap", "weft-trainer")["data"]
    resources = json.loads(told["WEFT_TRAINER_KUBERNETES_RANK_RESOURCES"])
    assert resources == {
        "requests": {"cpu": "8", "memory": "32Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": 1},
    }
    assert told["WEFT_TRAINER_KUBERNETES_RANK_IMAGE"] == "localhost/weft-trainer:0.1.0-cuda"
    assert told["WEFT_TRAINER_KUBERNETES_RUNTIME_CLASS"] == "nvidia"
    assert told["WEFT_TRAINER_RANK_DEVICE"] == "cuda"
    plain = find(render(), "ConfigMap", "weft-trainer")["data"]
    assert "nvidia.com/gpu" not in plain["WEFT_TRAINER_KUBERNETES_RANK_RESOURCES"]
    assert plain["WEFT_TRAINER_KUBERNETES_RANK_IMAGE"].endswith("weft-trainer:0.1.0")
    assert "WEFT_TRAINER_KUBERNETES_RUNTIME_CLASS" not in plain
    assert plain["WEFT_TRAINER_RANK_DEVICE"] == "cpu"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("existingSecret", {"secret": {"secretName": "ca", "defaultMode": 0o440}}),
        ("existingConfigMap", {"configMap": {"name": "ca"}}),
    ],
)
def test_authority_of_the_bucket_reaches_all_that_use_it(name: str, source: dict[str, Any]) -> None:
    """Services, and what copies models from the bucket, get the file that they are told of; the page does not."""
    documents = render(merged({"bucket": {"ca": {name: "ca", "key": "root.pem"}}, "models": FROM_THE_BUCKET}))
    ((form, told),) = source.items()
    expected = {"name": "bucket-ca", form: {**told, "items": [{"key": "root.pem", "path": "ca.crt"}]}}
    for component, spec in pod_specs(documents):
        volumes = [volume for volume in spec["volumes"] if volume["name"] == "bucket-ca"]
        uses = component not in ("console", "test")
        assert volumes == ([expected] if uses else [])
        for container in containers(spec):
            mounts = [mount for mount in container["volumeMounts"] if mount["name"] == "bucket-ca"]
            assert mounts == (
                [{"name": "bucket-ca", "mountPath": "/etc/weft/bucket-ca", "readOnly": True}] if uses else []
            )
        for container in spec.get("initContainers", []):
            assert {"name": "WEFT_ACTIVATIONS_BUCKET_CA", "value": "/etc/weft/bucket-ca/ca.crt"} in container["env"]
        if uses:
            settings = find(documents, "ConfigMap", f"weft-{component}")["data"]
            assert settings[f"WEFT_{component.upper()}_BUCKET_CA"] == "/etc/weft/bucket-ca/ca.crt"


def test_models_of_the_hub_need_no_authority_of_the_bucket() -> None:
    """Whatever fetches from the hub never sees the bucket."""
    commit = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
    hub = {"persistentVolumeClaim": "", "hub": [{"name": "a", "repository": "b/c", "revision": commit}]}
    spec = dict(pod_specs(render(merged({"bucket": {"ca": {"existingSecret": "ca"}}, "models": hub}))))["activations"]
    (init,) = spec["initContainers"]
    assert "bucket-ca" not in {mount["name"] for mount in init["volumeMounts"]}
    assert "WEFT_ACTIVATIONS_BUCKET_CA" not in {entry["name"] for entry in init["env"]}


def models_of(spec: Document) -> dict[str, Any]:
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "models")
    (mount,) = (mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "models")
    return {"volume": volume, "mount": mount, "init": spec.get("initContainers", [])}


def test_models_come_from_a_claim() -> None:
    """Both services that read models mount the claim, read-only, and copy nothing."""
    specs = dict(pod_specs(render(CHART / "ci" / "everything-values.yaml")))
    for component in ("activations", "attribution"):
        found = models_of(specs[component])
        assert found["volume"]["persistentVolumeClaim"] == {"claimName": "weft-models", "readOnly": True}
        assert found["mount"] == {"name": "models", "mountPath": "/models", "readOnly": True, "subPath": "checked"}
        assert not found["init"]
    assert all(volume["name"] != "models" for volume in specs["cache"]["volumes"])


@pytest.mark.parametrize(
    ("file", "arguments", "environment"),
    [
        (
            "minio-values.yaml",
            ["--bucket-prefix=models/"],
            {"HOME", "WEFT_ACTIVATIONS_BUCKET_URL", "WEFT_ACTIVATIONS_BUCKET_ACCESS_KEY"}
            | {"WEFT_ACTIVATIONS_BUCKET_SECRET_KEY"},
        ),
        (
            "gpu-values.yaml",
            ["--hub=llama-3.2-1b=meta-llama/Llama-3.2-1B@4e20de362430cd3b72f300e6b0f18e50e7166e08"],
            {"HOME", "HF_TOKEN"},
        ),
    ],
)
def test_models_are_fetched_before_the_start(file: str, arguments: list[str], environment: set[str]) -> None:
    """From the bucket or the hub, a container of the activations image fills a volume that the service only reads."""
    specs = dict(pod_specs(render(CHART / "ci" / file)))
    for component in ("activations", "attribution"):
        found = models_of(specs[component])
        (init,) = found["init"]
        assert (init["command"], init["args"]) == (["python", "-m", "weft_activations.fetch", "/models"], arguments)
        assert "/weft-activations:" in init["image"]
        assert {entry["name"] for entry in init["env"]} == environment
        assert found["volume"]["emptyDir"] == {"sizeLimit": "50Gi"}
        assert found["mount"]["readOnly"] is True
        # Waits for no GPU of its own.
        assert "nvidia.com/gpu" not in init["resources"]["limits"]
