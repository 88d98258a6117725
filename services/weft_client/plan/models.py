"""The shape of a base model: a preset's, or what its Hugging Face config.json says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weft_common.errors import FailedPreconditionError, NotFoundError

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelShape:
    """
    What a transcoder's size follows from.

    Args:
        name: Of the preset, or the path of the file.
        num_layers: L.
        d_model: D, the width of the residual stream.
    """

    name: str
    num_layers: int
    d_model: int


PRESETS: Mapping[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("smollm2-135m", 30, 576),
        ModelShape("gpt2", 12, 768),
        ModelShape("qwen3-0.6b", 28, 1024),
        ModelShape("llama-3.2-1b", 16, 2048),
        ModelShape("gemma-2-2b", 26, 2304),
        ModelShape("qwen3-4b", 36, 2560),
        ModelShape("llama-3.2-3b", 28, 3072),
        ModelShape("llama-3.1-8b", 32, 4096),
        ModelShape("llama-3.1-70b", 80, 8192),
    )
}


def find_shape(model: str) -> ModelShape:
    """
    The shape of a preset, of a config.json, or of a folder with one in it.

    Raises:
        NotFoundError: It is neither; the message lists the presets.
        FailedPreconditionError: The file does not say.
    """
    if model in PRESETS:
        return PRESETS[model]
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise NotFoundError(
            f"{model!r} is no preset and no config.json; give a path, or one of {', '.join(PRESETS)}", field="model"
        )
    try:
        with path.open("rb") as file:
            config: Any = json.loads(file.read(_MAX_BYTES))
        # Models that also see or hear keep the language model's shape in a table of its own.
        config = config.get("text_config", config)
        layers = next(config[key] for key in _LAYER_KEYS if key in config)
        width = next(config[key] for key in _WIDTH_KEYS if key in config)
    except (ValueError, AttributeError, StopIteration) as error:
        raise FailedPreconditionError(
            f"{path} does not say how many layers and columns the model has; expected {_LAYER_KEYS[0]} and "
            f"{_WIDTH_KEYS[0]}, as Hugging Face writes them"
        ) from error
    if not (isinstance(layers, int) and isinstance(width, int) and layers > 0 and width > 0):
        raise FailedPreconditionError(f"{path} has {layers!r} layers of width {width!r}; expected whole numbers")
    return ModelShape(str(path), layers, width)
