"""Settings of the trainer for ranks that run as pods: WEFT_TRAINER_KUBERNETES_*."""

import math
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from weft_trainer.adapters.kubernetes_manifests import AuthorityFile, PodOptions, SecretKey

__all__ = ["KubernetesSettings"]


class KubernetesSettings(BaseSettings):
    """Where and as what ranks are started; mixed into the trainer's settings, and used where `launcher` says so."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore")

    kubernetes_namespace: str = ""
    """Namespace of the ranks and of the controllers' Lease."""
    kubernetes_lease: str = "weft-trainer"
    """Name of the Lease by which the controller's replicas elect a leader."""
    kubernetes_pod: str = ""
    """Name of the controller's own pod, which gets the label weft.dev/leader while it leads; unset labels none."""
    kubernetes_rank_image: str = ""
    """Image of the ranks; the trainer's own."""
    kubernetes_rank_image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    """When the image is pulled; unset leaves it to the cluster."""
    kubernetes_pull_secrets: tuple[str, ...] = ()
    """Names of Secrets to pull the image with, as a JSON list."""
    kubernetes_rank_kind: Literal["auto", "jobset", "job"] = "auto"
    """What runs ranks: `jobset`, `job`, or `auto` for a JobSet where the cluster serves them."""
    kubernetes_reports_service: str = ""
    """host:port that ranks in pods report to."""
    kubernetes_rank_resources: dict[str, Any] = Field(default_factory=dict)
    """`requests` and `limits` of one rank, as JSON."""
    kubernetes_node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that ranks may run on, as JSON."""
    kubernetes_tolerations: tuple[dict[str, Any], ...] = ()
    """Tolerations of ranks, as a JSON list."""
    kubernetes_runtime_class: str = ""
    """Class of the container runtime of ranks, as GPUs need it on some clusters; unset takes the cluster's own."""
    kubernetes_queue: str = ""
    """Kueue's local queue that ranks wait in; unset uses no queue."""
    kubernetes_service_account: str = ""
    """Service account of ranks, whose token they are not given; unset takes the namespace's default."""
    kubernetes_auth_secret: str = ""
    """Name of the Secret that holds the tokens that ranks send."""
    kubernetes_cache_token_key: str = "cache"  # noqa: S105  a key's name
    """Its key with the cache service's token."""
    kubernetes_activations_token_key: str = ""
    """Its key with the activations service's token; unset sends none."""
    kubernetes_report_token_key: str = "reports"  # noqa: S105  a key's name
    """Its key with the token for reports."""
    kubernetes_bucket_secret: str = ""
    """Name of the Secret that holds the bucket's keys."""
    kubernetes_access_key_key: str = "access-key"
    """Its key with the access key."""
    kubernetes_secret_key_key: str = "secret-key"  # noqa: S105  a key's name
    """Its key with the secret key."""
    kubernetes_bucket_ca_secret: str = ""
    """Name of the Secret with the authority of the bucket's certificate, for `bucket_ca` in ranks."""
    kubernetes_bucket_ca_config_map: str = ""
    """Name of the ConfigMap with it, in place of a Secret."""
    kubernetes_bucket_ca_key: str = "ca.crt"
    """Key of that Secret or ConfigMap."""
    kubernetes_tls_secret: str = ""
    """Name of a kubernetes.io/tls Secret (tls.crt, tls.key, ca.crt) for the ranks' calls; unset calls in the clear."""
    kubernetes_pod_labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of ranks, as JSON."""
    kubernetes_pod_annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of ranks, as JSON."""

    @property
    def kubernetes_rank_cpus(self) -> int:
        """The whole processors that one rank is given; 1 where nothing is asked for."""
        for part in ("limits", "requests"):
            text = str(self.kubernetes_rank_resources.get(part, {}).get("cpu", ""))
            number = text.removesuffix("m")
            if number.replace(".", "", 1).isdigit():
                return max(1, math.floor(float(number) / (1000 if text.endswith("m") else 1)))
        return 1

    @property
    def kubernetes_pods(self) -> PodOptions:
        """What the pods of ranks are like."""
        secrets = {}
        if self.kubernetes_auth_secret:
            secrets["WEFT_WORKER_CACHE_TOKEN"] = SecretKey(self.kubernetes_auth_secret, self.kubernetes_cache_token_key)
            secrets["WEFT_WORKER_TRAINER_TOKEN"] = SecretKey(
                self.kubernetes_auth_secret, self.kubernetes_report_token_key
            )
        if self.kubernetes_auth_secret and self.kubernetes_activations_token_key:
            secrets["WEFT_WORKER_ACTIVATIONS_TOKEN"] = SecretKey(
                self.kubernetes_auth_secret, self.kubernetes_activations_token_key
            )
        if self.kubernetes_bucket_secret:
            access, secret = self.kubernetes_access_key_key, self.kubernetes_secret_key_key
            secrets["WEFT_WORKER_BUCKET_ACCESS_KEY"] = SecretKey(self.kubernetes_bucket_secret, access)
            secrets["WEFT_WORKER_BUCKET_SECRET_KEY"] = SecretKey(self.kubernetes_bucket_secret, secret)
        authority = None
        if self.kubernetes_bucket_ca_secret or self.kubernetes_bucket_ca_config_map:
            authority = AuthorityFile(
                secret=self.kubernetes_bucket_ca_secret,
                config_map=self.kubernetes_bucket_ca_config_map,
                key=self.kubernetes_bucket_ca_key,
            )
        return PodOptions(
            image=self.kubernetes_rank_image,
            image_pull_policy=self.kubernetes_rank_image_pull_policy,
            pull_secrets=self.kubernetes_pull_secrets,
            resources=self.kubernetes_rank_resources,
            node_selector=self.kubernetes_node_selector,
            tolerations=self.kubernetes_tolerations,
            service_account=self.kubernetes_service_account,
            runtime_class=self.kubernetes_runtime_class,
            queue=self.kubernetes_queue,
            secrets=secrets,
            tls_secret=self.kubernetes_tls_secret,
            bucket_ca=authority,
            labels=self.kubernetes_pod_labels,
            annotations=self.kubernetes_pod_annotations,
        )
