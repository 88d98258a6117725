"""What a rank shows Prometheus where it has a port for that: its bucket requests, memory and processor time."""

from __future__ import annotations

from weft_common.logging import get_logger
from weft_common.metrics import MetricsServer, set_build_info

__all__ = ["export_metrics"]

_log = get_logger(__name__)


def export_metrics(port: int | None) -> MetricsServer | None:
    """
    Answer /metrics on every address, until the process ends; without a port, do nothing.

    How the run learns is the controller's to tell, from this rank's reports. A port that cannot be had is no reason not
    to train.
    """
    if port is None:
        return None
    set_build_info("rank")
    try:
        return MetricsServer("0.0.0.0", port, lambda: True)  # noqa: S104
    except OSError as error:
        _log.warning("metrics_not_exported", port=port, error=error.strerror)
        return None
