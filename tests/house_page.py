# ruff: noqa: N802  the names of RPCs are given
"""
The console's built page over a real attribution service with a small model: a pytest plugin with `house` and
`page_console`, for modules that import both.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attribution_house import AttributionHouse, attribution_house
from watched_page import TOKEN

from weft.training.v1 import messages_pb2 as training_messages
from weft.training.v1 import service_pb2 as training_pb2
from weft.training.v1.service_pb2_grpc import TrainingServiceServicer, add_TrainingServiceServicer_to_server
from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings
from weft_console.serve import Console, serving_console
from weft_console.settings import ConsoleSettings

__all__ = ["house", "page_console"]


class Transcoders(TrainingServiceServicer):
    """Lists the one transcoder of the house."""

    async def ListTranscoders(self, request: Any, context: Any) -> training_pb2.ListTranscodersResponse:
        one = training_messages.Transcoder(name="transcoders/t", model="models/tiny", num_layers=3, num_features=12)
        return training_pb2.ListTranscodersResponse(transcoders=[one])


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    async with attribution_house(tmp_path) as house:
        yield house


@pytest.fixture
async def page_console(house: AttributionHouse, built_page: None) -> AsyncIterator[Console]:
    """A console in front of the house."""
    attribution = json.loads((house.folder / "endpoints.json").read_text())["services"]["attribution"]
    listing = Registration(
        "weft.training.v1.TrainingService", lambda server: add_TrainingServiceServicer_to_server(Transcoders(), server)
    )
    async with serving("trainer", ServiceSettings(token="integration"), [listing]) as trainer:
        settings = ConsoleSettings(
            token=TOKEN,
            drain_s=2,
            attribution_target=attribution["target"],
            attribution_token=attribution["token"],
            trainer_target=trainer.target,
            trainer_token="integration",
            # Nothing of the lab asks the cache.
            cache_target=trainer.target,
            cache_token="integration",
        )
        async with serving_console(settings) as console:
            yield console
