"""Features of the real model with a known meaning are found, labelled and scored as what they are."""

from pathlib import Path

import pytest
from attribution_real import REAL_MODEL, models_dir
from planted_transcoder import planted_house
from rule_interpreter import LABELS, PLACES

from weft.features.v1 import labels_pb2

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

KINDS = [labels_pb2.SCORE_KIND_DETECTION, labels_pb2.SCORE_KIND_FUZZING]


async def test_planted_features_are_labelled_and_scored_as_what_they_are(tmp_path: Path) -> None:
    """Through harvest, index and an endpoint over HTTP: labels are right and above .95, shuffled ones are chance."""
    async with planted_house(tmp_path, models_dir(), REAL_MODEL, num_documents=8, num_tokens=4_000) as house:
        for right, alone, missed in (await house.fires_right()).values():
            assert right > 50
            assert alone + missed <= right // 50
        explained, scored = await house.interpret(KINDS)
        labels = {(each.layer, each.index): each async for each in house.client.labels.list("planted")}
    assert (explained.num_labelled, scored.num_scored) == (5, 5)
    assert explained.spend.calls + scored.spend.calls == len(house.endpoint.requests)
    assert [labels[place].text for place in PLACES] == LABELS
    detection = [
        {score.kind: score.value for score in labels[place].scores}[labels_pb2.SCORE_KIND_DETECTION] for place in PLACES
    ]
    assert min(detection) > 0.95
    report = next(each for each in scored.reports if each.kind == labels_pb2.SCORE_KIND_DETECTION)
    assert report.mean > 0.95
    assert report.pooled.value > 0.95
    assert report.pooled.num_trials >= 150
    assert report.control.num_trials == report.pooled.num_trials
    assert report.control.low <= 0.5 <= report.control.high
