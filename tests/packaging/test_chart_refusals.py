"""Wrong values end the install with a sentence: by the schema, else by the chart's own checks."""

from typing import Any

import pytest
from chart_rig import CHART, MINIMAL, merged, refusal, render, run

pytestmark = pytest.mark.packaging

AUTOSCALED = {"autoscaling": {"enabled": True, "minReplicas": 9}}
INGRESS = {"console": {"ingress": {"enabled": True, "hosts": ["weft.example.com"]}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activatoins": {"replicas": 2}}, "additional properties 'activatoins' not allowed"),
        ({"cache": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"cache": {"settings": {"presign": 60}}}, "additional properties 'presign' not allowed"),
        ({"pod": {"nodeselector": {}}}, "additional properties 'nodeselector' not allowed"),
        ({"labels": {"app.kubernetes.io/name": "other"}}, "invalid propertyName 'app.kubernetes.io/name'"),
        ({"cache": {"replicas": "two"}}, "at '/cache/replicas': got string, want integer"),
        ({"cache": {"image": {"digest": "sha256:short"}}}, "at '/cache/image/digest'"),
        ({"user": {"runAsUser": 0}}, "at '/user/runAsUser': minimum: got 0, want 1"),
        ({"bucket": {"url": "https://s3.example.com/weft"}}, "at '/bucket/url'"),
        ({"bucket": {"url": "s3+https://key:secret@s3.example.com/weft"}}, "at '/bucket/url'"),
        ({"bucket": {"url": "file:///bucket"}}, "at '/bucket/url'"),
        ({"trainer": {"launcher": "slurm"}}, "at '/trainer/launcher': value must be one of 'kubernetes', 'local'"),
        ({"models": {"hub": [{"name": "a", "repository": "b/c", "revision": "main"}]}}, "at '/models/hub/0/revision'"),
        ({"attribution": {"interpreter": {"url": "https://key@host/v1"}}}, "at '/attribution/interpreter/url'"),
        ({"auth": {"token": "secret"}}, "additional properties 'token' not allowed"),
    ],
)
def test_schema_refuses_and_names_the_value(changes: dict[str, Any], message: str) -> None:
    """A typo, a wrong type, a secret in the values: helm names the place before anything is rendered."""
    assert message in refusal(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auth": {"existingSecret": ""}}, "auth.existingSecret is empty: name an existing Secret"),
        ({"tls": {"existingSecret": ""}}, "tls.existingSecret is empty while tls.enabled is true"),
        ({"tls": {"enabled": False}}, "tls.enabled is false, which contradicts tls.existingSecret"),
        (
            {"tls": {"enabled": False, "existingSecret": "", "mutual": True}},
            "tls.existingSecret and tls.mutual",
        ),
        ({"tls": {"keys": {"authority": "root.pem"}}}, "tls.keys are not the usual ones, which ranks need"),
        ({"bucket": {"url": ""}}, "bucket.url is empty: give the bucket as s3+https://"),
        ({"bucket": {"existingSecret": ""}}, "bucket.existingSecret is empty: name an existing Secret"),
        (
            {"bucket": {"ca": {"existingSecret": "a", "existingConfigMap": "b"}}},
            "bucket.ca.existingSecret and bucket.ca.existingConfigMap exclude each other",
        ),
        (
            {"bucket": {"url": "s3+http://minio:9000/weft", "ca": {"existingSecret": "a"}}},
            "bucket.ca is the authority of a bucket with TLS, but bucket.url is not s3+https",
        ),
        (
            {"attribution": {"interpreter": {"url": "https://models.example.com/v1"}}},
            "attribution.interpreter.url is set without a model",
        ),
        (
            {"attribution": {"interpreter": {"existingSecret": "key"}}},
            "attribution.interpreter has a model or a Secret, but no url",
        ),
        ({"models": {"persistentVolumeClaim": ""}}, "no source of models: set one of models.persistentVolumeClaim"),
        ({"models": {"bucketPrefix": "models/"}}, "models.persistentVolumeClaim and models.bucketPrefix exclude each"),
        ({"models": {"hubToken": {"existingSecret": "hub"}}}, "models.hubToken is for models.hub, which is empty"),
        (
            {"models": {"persistentVolumeClaim": "", "bucketPrefix": "models/", "subPath": "a"}},
            "models.subPath is a folder of models.persistentVolumeClaim, which is empty",
        ),
        ({"cache": {"enabled": False}}, "activations.enabled is true, which needs cache.enabled"),
        ({"trainer": {"enabled": False}}, "console.enabled is true, which needs trainer.enabled"),
        ({"console": {"maxSurge": 0}}, "console.maxSurge and console.maxUnavailable are both 0"),
        ({"cache": AUTOSCALED}, "cache.autoscaling.minReplicas is 9, more than maxReplicas, 8"),
        ({"trainer": {"launcher": "local", "replicas": 2}}, "trainer.replicas is 2, but with trainer.launcher local"),
        ({"trainer": {"launcher": "local", "ranks": {"queue": "q"}}}, "trainer.ranks.queue and trainer.ranks.kind are"),
        ({"console": {"ingress": {"enabled": True}}}, "console.ingress.hosts is empty"),
        (INGRESS, "networkPolicy.consoleFrom is empty, so that no ingress controller reaches the page"),
    ],
)
def test_chart_refuses_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    """What is missing, contradicts itself or excludes another is said in words, with what to do."""
    assert message in refusal(changes)


def test_old_cluster_is_refused() -> None:
    """A cluster without what the chart uses is told apart before anything is made."""
    answer = run("template", "weft", CHART, "--kube-version", "1.29.0", values=MINIMAL)
    assert answer.returncode != 0
    assert "kubeVersion: >=1.30.0-0 which is incompatible with Kubernetes v1.29.0" in answer.stderr


def test_models_are_needed_only_where_they_are_served() -> None:
    """A release without activations and attribution asks for no models."""
    left_out = {name: {"enabled": False} for name in ("activations", "attribution", "console")}
    assert render(merged({**left_out, "models": {"persistentVolumeClaim": ""}}))
