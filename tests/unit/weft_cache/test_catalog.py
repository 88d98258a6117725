"""Datasets come, are listed, are sealed and go."""

from collections.abc import Callable

import numpy as np
import pytest

from weft_cache.core.records import DatasetSpec, Split, State
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)


def test_create_again_with_the_same_spec_is_success(house, spec) -> None:
    """A repeated request finds what the first one made; another spec is refused with the difference."""
    first = house.catalog.create("a", spec())
    assert house.catalog.create("a", spec()) == first
    with pytest.raises(AlreadyExistsError, match=r"d_model 8, not 16"):
        house.catalog.create("a", spec(d_model=16))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "m"}, "name"),
        ({"model_revision": "xyz"}, "spec.model_revision"),
        ({"num_layers": 0}, "spec.num_layers"),
        ({"d_model": 0}, "spec.d_model"),
        ({"input_hook": ""}, "spec.input_hook"),
        ({"codec": "zip"}, "spec.codec"),
        ({"codec": "uniform", "target_fvu": 0.0}, "spec.target_fvu"),
    ],
)
def test_create_names_the_field_that_is_wrong(
    house, spec: Callable[..., DatasetSpec], changes: dict[str, object], field: str
) -> None:
    """A spec that no shard could fit is refused before anything is written."""
    with pytest.raises(InvalidArgumentError) as caught:
        house.catalog.create("a", spec(**changes))
    assert caught.value.field == field
    assert list(house.store.list("")) == []


def test_list_shows_newest_first_page_by_page(house, spec) -> None:
    """Pages join without a gap, also where a dataset is made in between."""
    for name in ("b", "c", "a"):
        house.catalog.create(name, spec())
    page, token = house.catalog.list(2, "")
    assert [each.id for each in page] == ["a", "c"]
    house.catalog.create("d", spec())
    rest, end = house.catalog.list(2, token)
    assert ([each.id for each in rest], end) == (["b"], "")


def test_sealed_statistics_are_those_of_the_training_rows(house, spec) -> None:
    """Merged moments equal NumPy's over all training rows; held-out rows stay out of them."""
    house.catalog.create("a", spec())
    parts = [house.add("a", index, 30 + index)[1] for index in range(3)]
    house.add("a", 3, 25, Split.HELD_OUT)
    dataset = house.sealing.seal("a", 4)
    assert (dataset.num_tokens(Split.TRAIN), dataset.num_tokens(Split.HELD_OUT)) == (93, 25)
    for layer in house.sealing.train_statistics(dataset):
        for name in ("input", "output"):
            rows = np.concatenate([part[name][layer.layer] for part in parts]).astype(np.float64)
            stream = getattr(layer, name)
            assert stream.num_tokens == 93
            np.testing.assert_allclose(stream.mean, rows.mean(axis=0), atol=1e-12)
            np.testing.assert_allclose(stream.sum_squared_deviation, ((rows - rows.mean(0)) ** 2).sum(), rtol=1e-12)
            np.testing.assert_allclose(stream.mean_norm, np.linalg.norm(rows, axis=1).mean(), rtol=1e-9)


def test_seal_refuses_what_is_not_complete(house, spec) -> None:
    """Missing, surplus and empty shards each say what to do; nothing changes."""
    house.catalog.create("a", spec())
    house.add("a", 1)
    with pytest.raises(FailedPreconditionError, match=r"lacks 2 of 3 shards \(0, 2\)"):
        house.sealing.seal("a", 3)
    house.add("a", 0)
    with pytest.raises(FailedPreconditionError, match="seal with 2"):
        house.sealing.seal("a", 1)
    assert house.catalog.get("a").state is State.OPEN
    house.catalog.create("empty", spec())
    house.add("empty", 0, 0)
    with pytest.raises(FailedPreconditionError, match="no tokens"):
        house.sealing.seal("empty", 1)


def test_sealed_dataset_is_immutable(house, spec) -> None:
    """Sealing again is success; no shard joins any more; only manifest, statistics and shards are left."""
    house.catalog.create("a", spec())
    record, _ = house.add("a", 0)
    sealed = house.sealing.seal("a", 1)
    assert house.sealing.seal("a", 1) == sealed
    with pytest.raises(FailedPreconditionError, match="sealed with 1 shards, not 2"):
        house.sealing.seal("a", 2)
    with pytest.raises(FailedPreconditionError, match="takes no more"):
        house.commits.begin("a", 1)
    assert house.commits.begin("a", 0).committed == record
    assert [item.key for item in house.store.list("")] == [
        "datasets/a/manifest.json",
        record.key,
        "datasets/a/statistics.json",
    ]


def test_plan_of_an_open_dataset_says_what_to_do(house, spec) -> None:
    """An unsealed dataset cannot be planned."""
    house.catalog.create("a", spec())
    house.add("a", 0)
    with pytest.raises(FailedPreconditionError, match="SealDataset"):
        house.reading.plan("a", Split.TRAIN, rank=0, world_size=1, epoch=0, seed=0)


def test_delete_that_was_cut_short_is_finished_by_the_next(house, spec, monkeypatch) -> None:
    """After a crash in the middle nobody sees or reuses the dataset; deleting again leaves nothing."""
    house.catalog.create("a", spec())
    house.add("a", 0)
    house.sealing.seal("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(house.store, "delete", lambda key: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            house.deletion.delete("a")
    with pytest.raises(NotFoundError):
        house.catalog.get("a")
    assert house.catalog.list(0, "") == ([], "")
    with pytest.raises(FailedPreconditionError, match="being deleted"):
        house.catalog.create("a", spec())
    house.deletion.delete("a")
    assert list(house.store.list("")) == []
    with pytest.raises(NotFoundError):
        house.deletion.delete("a")
    house.catalog.create("a", spec())


def test_verify_finds_every_flipped_byte(house, spec) -> None:
    """A changed byte anywhere in a shard is named with its shard; reading it is DATA_LOSS."""
    house.catalog.create("a", spec())
    record, _ = house.add("a", 0, 5)
    good, _ = house.add("a", 1, 5)
    house.sealing.seal("a", 2)
    assert house.reading.verify("a").problems == ()
    data = house.store.get(record.key)
    for at in range(0, len(data), 7):
        house.store.put(record.key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        problems = house.reading.verify("a").problems
        assert len(problems) == 1
        assert problems[0].startswith("shard 0:")
    house.store.put(record.key, data[:-1] + bytes([data[-1] ^ 1]))
    shard, blocks = house.reading.blocks("a", 0, 1, [])
    with pytest.raises(DataLossError):
        house.reading.read(shard, 1, blocks[-1])
    house.store.delete(good.key)
    assert "shard 1:" in house.reading.verify("a").problems[1]


def test_compression_is_measured_over_both_splits(house, spec) -> None:
    """Bits a value and bytes a token come from what the shards weigh."""
    house.catalog.create("a", spec())
    sizes = [house.add("a", 0, 32)[0].size_bytes, house.add("a", 1, 8, Split.HELD_OUT)[0].size_bytes]
    open_figures = house.reading.compression("a")
    house.sealing.seal("a", 2)
    figures = house.reading.compression("a")
    assert figures == open_figures
    assert figures.bytes_per_token == sum(sizes) / 40
    assert figures.bits_per_value == 8 * sum(sizes) / (40 * 2 * 2 * 8)
    assert len(figures.streams) == 4
    # bfloat16 keeps 8 bits of a mantissa: a relative error of at most 2 ** -9 a value.
    assert 0 < figures.fvu_max < 2**-16
