"""A replica that has nothing to do computes rows of a graph that another one makes."""

import asyncio
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
from attribution_house import PROMPT, attribution_house

from weft_attribution import wiring
from weft_attribution.core.model_folder import ModelFolder
from weft_attribution.core.pipeline import Building, Limits, capture_hooks
from weft_attribution.core.row_parts import ROOT, parts_of
from weft_attribution.core.shared_rows import SharedRows
from weft_attribution.core.targets import choose_targets
from weft_attribution.core.transcoder import TranscoderReader

PART = 4


async def test_idle_replica_takes_the_rows_that_are_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of a round are brought, and are what the maker would have computed; its own graphs it makes alone."""
    monkeypatch.setattr(wiring, "_LOOK_S", 0.01)
    async with attribution_house(tmp_path, shared_rows=PART) as house:
        own = await house.make("own")
        assert own.statistics.num_rows_helped == 0
        assert own.statistics.conservation_error < 1e-4
        assert not list(house.store.list(ROOT))

        ids = [token.id for token in await house.runner.tokenize("tiny", PROMPT)]
        capture = await house.runner.capture("tiny", ids, capture_hooks("mlp_in"))
        targets, shares = choose_targets(capture.tensors["logits"], max_logits=3, probability=0.9, targets=())
        weights = ModelFolder(tmp_path / "models").weights("tiny")
        limits = Limits(batch_size=0, workers=1, max_active=5000, max_features=0, memory_bytes=1 << 22)
        building = Building(weights, TranscoderReader(house.store, "t"), capture, targets, shares, limits)
        shared = SharedRows(house.store, "theirs", PART, building.table.logit_start)
        shared.publish(capture, "t", targets, building.features_digest)
        rows = np.arange(building.num_active)
        house.store.put(f"{shared.prefix}rounds/000000", rows.astype("<i8").tobytes())
        parts = len(parts_of(rows, PART))
        for _ in range(6000):
            if len(list(house.store.list(f"{shared.prefix}rows/"))) == parts:
                break
            await asyncio.sleep(0.01)

        def compute(*arguments: Any) -> Never:
            raise AssertionError("every part was brought")

        found: dict[int, Any] = {}
        wanted: dict[int, Any] = {}
        shared.sweep(
            rows,
            compute,
            lambda done, dense: found.update(zip(done.tolist(), dense, strict=True)),
            print,
            building.agrees,
        )
        building.compute(rows, lambda done, dense: wanted.update(zip(done.tolist(), dense, strict=True)), print)
        assert shared.num_helped == len(rows) > 2 * PART
        np.testing.assert_allclose(
            [found[row] for row in rows.tolist()], [wanted[row] for row in rows.tolist()], rtol=1e-4, atol=1e-6
        )
        shared.close()
        await house.client.graphs.delete("own")
        assert not list(house.store.list(ROOT))
