"""All dashboards, as the JSON that Grafana reads."""

import json
from pathlib import Path

from deploy.grafana.attribution import ATTRIBUTION
from deploy.grafana.extraction_and_cache import EXTRACTION_AND_CACHE
from deploy.grafana.fleet import FLEET
from deploy.grafana.panels import build
from deploy.grafana.training_run import TRAINING_RUN
from grafana_foundation_sdk.cog.encoder import JSONEncoder

__all__ = ["FOLDER", "rendered"]

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "weft" / "dashboards"


def rendered() -> dict[str, str]:
    """Return the text of every dashboard, by file name."""
    return {
        f"{board.uid.removeprefix('weft-')}.json": json.dumps(build(board), cls=JSONEncoder, indent=2, sort_keys=True)
        + "\n"
        for board in (FLEET, TRAINING_RUN, EXTRACTION_AND_CACHE, ATTRIBUTION)
    }
