"""A catalog over memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from cache_house import SPEC, House

from weft_cache.core.records import DatasetSpec


@pytest.fixture
def house() -> House:
    """An empty cache."""
    return House()


@pytest.fixture
def spec() -> Callable[..., DatasetSpec]:
    """A spec that differs in what is given."""
    return lambda **changes: replace(SPEC, **changes)


@pytest.fixture
def aged_store(house: House, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes all uploads look so many seconds older than they are."""
    listed = house.store.list

    def older(seconds: float) -> None:
        monkeypatch.setattr(
            house.store,
            "list",
            lambda prefix: (replace(item, modified_s=item.modified_s - seconds) for item in listed(prefix)),
        )

    return older
