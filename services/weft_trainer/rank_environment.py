"""What ranks are told by their environment; secrets only where they are processes of this machine."""

from collections.abc import Callable, Mapping

from pydantic import SecretStr

from weft_trainer.settings import TrainerSettings

__all__ = ["RankEnvironment"]


class RankEnvironment:
    """
    Makes the environment of a rank.

    Args:
        settings: Of the trainer.
        report_target: host:port of the reports of ranks on this machine, once that is known.
        report_token: Makes the token of a run's reports.
    """

    def __init__(
        self, settings: TrainerSettings, report_target: Callable[[], str], report_token: Callable[[str], str]
    ) -> None:
        self._settings = settings
        self._report_target = report_target
        self._report_token = report_token

    def __call__(self, run: str, attempt: int, num_ranks: int) -> Mapping[str, str]:
        """Return the variables of one of a run's ranks."""
        settings = self._settings
        threads = str(settings.threads_for(num_ranks))
        told = {
            "WEFT_WORKER_RUN": run,
            "WEFT_WORKER_ATTEMPT": str(attempt),
            "WEFT_WORKER_BUCKET_URL": settings.bucket_url,
            "WEFT_WORKER_CACHE_TARGET": settings.cache_target,
            **({"WEFT_WORKER_ACTIVATIONS_TARGET": settings.activations_target} if settings.activations_target else {}),
            "WEFT_WORKER_DEVICE": settings.rank_device,
            "WEFT_WORKER_THREADS": threads,
            "WEFT_WORKER_KEEP_CHECKPOINTS": str(settings.keep_checkpoints),
            "WEFT_WORKER_MIXED_ROW_GROUPS": str(settings.mixed_row_groups),
            "WEFT_WORKER_READ_AHEAD_BYTES": str(settings.read_ahead_bytes),
            "WEFT_WORKER_READ_THREADS": str(settings.read_threads),
            "WEFT_WORKER_KEPT_READ_BYTES": str(settings.kept_read_bytes),
            "WEFT_WORKER_RETRY_S": str(settings.rank_retry_s),
            "WEFT_WORKER_HANG_S": str(settings.rank_hang_s),
            "WEFT_WORKER_MODE": "train",
            "OMP_NUM_THREADS": threads,
        }
        if settings.launcher == "kubernetes":
            # Secrets and TLS files come from the Secrets that the pods' manifests name.
            return told | {"WEFT_WORKER_TRAINER_TARGET": settings.kubernetes_reports_service}
        told |= {
            "WEFT_WORKER_TRAINER_TARGET": self._report_target(),
            "WEFT_WORKER_TRAINER_TOKEN": self._report_token(run),
            "WEFT_WORKER_BUCKET_ACCESS_KEY": _text(settings.bucket_access_key),
            "WEFT_WORKER_BUCKET_SECRET_KEY": _text(settings.bucket_secret_key),
            "WEFT_WORKER_BUCKET_CA": str(settings.bucket_ca or ""),
            "WEFT_WORKER_CACHE_TOKEN": _text(settings.cache_token),
            "WEFT_WORKER_ACTIVATIONS_TOKEN": _text(settings.activations_token),
            "WEFT_WORKER_TLS_CA": str(settings.peers_tls_ca or ""),
            "WEFT_WORKER_TLS_CERT": str(settings.peers_tls_cert or ""),
            "WEFT_WORKER_TLS_KEY": str(settings.peers_tls_key or ""),
        }
        # An unset secret is not there, rather than empty.
        return {name: value for name, value in told.items() if value}


def _text(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()
