"""A small random model of every family of decoders, for the tests that go through all of them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tiny_models import FAMILIES, make_model

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.inference import Inference


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two layers by family, under the family's name; written once, then only read."""
    folder = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        make_model(folder / family, family, num_layers=2)
    return folder


@pytest.fixture(scope="module")
def backend(models_dir: Path) -> TransformersBackend:
    """These models, loaded as they are asked for."""
    return TransformersBackend(models_dir)


@pytest.fixture
async def inference(backend: TransformersBackend) -> AsyncIterator[Inference]:
    """What RPCs use of them."""
    made = Inference(backend)
    yield made
    made.close()
