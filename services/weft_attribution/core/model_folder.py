"""Frozen weights by model, out of a folder of model folders."""

import threading
from pathlib import Path

from weft_attribution.core.checkpoints import load_linear_weights
from weft_attribution.core.weights import LinearWeights
from weft_common.resource_names import check_id

__all__ = ["ModelFolder"]


class ModelFolder:
    """Frozen weights by model, read once and kept while the same model is asked for."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._lock = threading.Lock()
        self._loaded: tuple[str, LinearWeights] | None = None

    def weights(self, model: str) -> LinearWeights:
        """The frozen weights of a model; the last one asked for stays in memory."""
        with self._lock:
            if self._loaded is None or self._loaded[0] != model:
                self._loaded = None
                self._loaded = (model, load_linear_weights(self._models_dir / check_id(model, field="model")))
            return self._loaded[1]
