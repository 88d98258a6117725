"""Shards are read as they were written, and say truly what was lost."""

import hashlib
import itertools

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from weft_common.errors import InvalidArgumentError, NotFoundError
from weft_store import open_store
from weft_store.shard import CodecSpec, EncodedShard, ShardReader, encode_shard, learn_basis, merge_statistics, verify

_FINITE = st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32, allow_subnormal=False)


def _reader(shard: EncodedShard) -> ShardReader:
    store = open_store("memory://")
    store.put("shard", shard.data)
    return ShardReader(store, "shard")


def _read_all(shard: EncodedShard) -> dict[str, np.ndarray]:
    reader = _reader(shard)
    parts = [reader.read_row_group(group) for group in range(reader.header.num_row_groups)]
    shape = (reader.header.num_layers, 0, reader.header.d_model)
    return {
        stream: np.concatenate([np.empty(shape, np.float32), *(part[stream] for part in parts)], axis=1)
        for stream in ("input", "output")
    }


def _activations(num_layers: int, num_tokens: int, d_model: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal values with a spread by channel, an outlier channel and a massive token, which codecs fail on."""
    rng = np.random.default_rng(seed)
    streams = {}
    for stream in ("input", "output"):
        values = rng.normal(size=(num_layers, num_tokens, d_model)) * rng.lognormal(0, 1, d_model)
        values[:, :, 0] = values[:, :, 0] * 40 + 300
        values[:, num_tokens // 2, :] *= 60
        streams[stream] = values.astype(np.float32)
    return streams


def _nearest_bf16(value: float) -> float:
    """Find the nearest bfloat16 by searching the two neighbours on its grid, ties to the even one."""
    if value == 0:
        return 0.0
    spacing = 2.0 ** (max(int(np.floor(np.log2(abs(value)))), -126) - 7)
    return round(value / spacing) * spacing


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=arrays.arrays(
        np.float32, st.tuples(st.just(2), st.integers(1, 3), st.integers(0, 9), st.integers(1, 7)), elements=_FINITE
    ),
    row_group_tokens=st.integers(1, 10),
)
def test_bf16_reads_the_nearest_bfloat16(values: np.ndarray, row_group_tokens: int) -> None:
    """Over ragged shapes, every value comes back as its nearest bfloat16, ties to even."""
    streams = {"input": values[0], "output": values[1]}
    shard = encode_shard(streams, CodecSpec("bf16"), row_group_tokens=row_group_tokens, attributes={})
    for stream, read in _read_all(shard).items():
        expected = np.vectorize(_nearest_bf16, otypes=[np.float64])(streams[stream].astype(np.float64))
        np.testing.assert_array_equal(read.astype(np.float64), expected)


@pytest.mark.parametrize("codec", ["bf16", "uniform", "klt"])
def test_shard_does_not_depend_on_threads(codec: str) -> None:
    """Layers that are encoded at once give the bytes and figures that they give one after the other."""
    streams = _activations(num_layers=5, num_tokens=700, d_model=24)
    basis = learn_basis(streams) if codec == "klt" else None
    shards = [encode_shard(streams, CodecSpec(codec), attributes={}, basis=basis, threads=n) for n in (1, 3, 16)]
    assert shards[0] == shards[1] == shards[2]


def test_bf16_is_lossless_for_bfloat16() -> None:
    """Values that are bfloat16, minus zero and subnormals among them, come back bit for bit without any error."""
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    values = bits.view(np.float32)
    values = values[np.abs(values) <= 2.0**120].reshape(1, -1, 2)
    shard = encode_shard({"input": values, "output": values}, CodecSpec("bf16"), attributes={})
    for read in _read_all(shard).values():
        np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32))
    assert shard.statistics[0].input.sum_squared_error == 0.0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(1, 9)),
    row_group_tokens=st.integers(1, 50),
    scale=st.floats(-20, 20),
    target=st.sampled_from([1e-6, 1e-3, 0.1]),
    seed=st.integers(0, 1 << 30),
)
def test_uniform_never_exceeds_the_wanted_fvu(
    shape: tuple[int, int, int], row_group_tokens: int, scale: float, target: float, seed: int
) -> None:
    """Over ragged shapes and all magnitudes, the loss of what is read stays within 2 % above the wanted one."""
    rng = np.random.default_rng(seed)
    streams = {name: (rng.normal(size=shape) * 10.0**scale).astype(np.float32) for name in ("input", "output")}
    shard = encode_shard(streams, CodecSpec("uniform", target), row_group_tokens=row_group_tokens, attributes={})
    for stream, read in _read_all(shard).items():
        for layer, values in enumerate(streams[stream].astype(np.float64)):
            deviation = ((values - values.mean(0)) ** 2).sum() if len(values) else 0.0
            assert ((read[layer] - values) ** 2).sum() <= target * 1.02 * deviation * (1 + 1e-9)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=arrays.arrays(
        np.float32, st.tuples(st.just(2), st.just(1), st.integers(1, 9), st.integers(1, 5)), elements=_FINITE
    )
)
def test_uniform_keeps_its_word_or_refuses(values: np.ndarray) -> None:
    """Whatever finite values come, what is read loses at most what was asked, or the writer says that it cannot."""
    streams = {"input": values[0], "output": values[1]}
    try:
        shard = encode_shard(streams, CodecSpec("uniform", 1e-3), attributes={})
    except InvalidArgumentError:
        return
    for stream, read in _read_all(shard).items():
        exact = streams[stream][0].astype(np.float64)
        deviation = ((exact - exact.mean(0)) ** 2).sum()
        assert ((read[0] - exact) ** 2).sum() <= 1.02e-3 * deviation * (1 + 1e-6)


@pytest.mark.parametrize("target", [1e-6, 1e-4, 1e-3, 1e-2, 0.1])
def test_uniform_meets_the_wanted_fvu(target: float) -> None:
    """With outlier channels and massive tokens, every layer and stream is within 2 % of what was asked."""
    streams = _activations(3, 700, 64)
    shard = encode_shard(streams, CodecSpec("uniform", target), attributes={})
    read = _read_all(shard)
    for entry in shard.statistics:
        for stream, figures in (("input", entry.input), ("output", entry.output)):
            values = streams[stream][entry.layer].astype(np.float64)
            deviation = ((values - values.mean(0)) ** 2).sum()
            error = ((read[stream][entry.layer] - values) ** 2).sum()
            assert error / deviation == pytest.approx(target, rel=0.02)
            assert figures.sum_squared_error == pytest.approx(error, rel=1e-9)


def test_uniform_takes_codes_of_any_size() -> None:
    """One value a million times the others needs codes of three bytes and more, and is read rightly."""
    values = np.random.default_rng(0).normal(size=(1, 300, 8)).astype(np.float32)
    values[0, 100, 3] = 1e6
    streams = {"input": values, "output": values}
    shard = encode_shard(streams, CodecSpec("uniform", 1e-8), attributes={})
    read = _read_all(shard)["input"]
    assert shard.statistics[0].input.fvu == pytest.approx(1e-8, rel=0.02)
    assert abs(read[0, 100, 3] - 1e6) < 1e4
    tight = _read_all(encode_shard(streams, CodecSpec("uniform", 1e-8), row_group_tokens=7, attributes={}))["input"]
    np.testing.assert_array_equal(tight, read)


def test_constant_streams_are_exact() -> None:
    """Without variance there is nothing to lose, and nothing is lost."""
    values = np.broadcast_to(np.float32([3.25, -1e10, 0.1]), (2, 50, 3)).copy()
    shard = encode_shard({"input": values, "output": values}, CodecSpec("uniform"), attributes={})
    np.testing.assert_array_equal(_read_all(shard)["output"], values)
    assert shard.statistics[1].output.fvu == 0.0


def test_statistics_are_float64_moments() -> None:
    """Mean, deviation, norm, sizes and entropy agree with a plain computation in float64."""
    streams = _activations(2, 530, 12)
    shard = encode_shard(streams, CodecSpec("uniform"), row_group_tokens=100, attributes={})
    assert [entry.layer for entry in shard.statistics] == [0, 1]
    for entry in shard.statistics:
        for stream, figures in (("input", entry.input), ("output", entry.output)):
            values = streams[stream][entry.layer].astype(np.float64)
            np.testing.assert_allclose(figures.mean, values.mean(0), rtol=1e-12)
            assert figures.sum_squared_deviation == pytest.approx(((values - values.mean(0)) ** 2).sum(), rel=1e-12)
            assert figures.mean_norm == pytest.approx(np.sqrt((values**2).sum(1)).mean(), rel=1e-12)
            assert figures.num_tokens == 530
            assert 0 < figures.entropy_bits < 12
    blocks = sum(entry.input.size_bytes + entry.output.size_bytes for entry in shard.statistics)
    assert blocks < len(shard.data) < blocks + 5000


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 90), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_merged_statistics_are_those_of_all_tokens(cuts: list[int], seed: int) -> None:
    """Shards cut anywhere, empty ones too, merge into the moments of the whole."""
    streams = _activations(2, 90, 5, seed)
    bounds = [0, *sorted(cuts), 90]
    parts = [
        encode_shard(
            {name: values[:, low:high] for name, values in streams.items()}, CodecSpec("bf16"), attributes={}
        ).statistics
        for low, high in itertools.pairwise(bounds)
    ]
    for entry in merge_statistics(parts):
        for stream, figures in (("input", entry.input), ("output", entry.output)):
            values = streams[stream][entry.layer].astype(np.float64)
            np.testing.assert_allclose(figures.mean, values.mean(0), rtol=1e-9)
            assert figures.num_tokens == 90
            assert figures.sum_squared_deviation == pytest.approx(((values - values.mean(0)) ** 2).sum(), rel=1e-9)
            assert figures.mean_norm == pytest.approx(np.sqrt((values**2).sum(1)).mean(), rel=1e-9)


def test_merge_refuses_other_layers() -> None:
    """Statistics of different models do not merge."""
    left = encode_shard(_activations(2, 4, 3), CodecSpec("bf16"), attributes={}).statistics
    with pytest.raises(InvalidArgumentError, match="layers"):
        merge_statistics([left, left[:1]])
    narrow = encode_shard(_activations(2, 4, 2), CodecSpec("bf16"), attributes={}).statistics
    with pytest.raises(InvalidArgumentError, match="channels"):
        merge_statistics([left, narrow])


def test_single_blocks_are_those_of_the_row_group() -> None:
    """A block read alone equals its part of the row group, and the header tells what was written."""
    streams = _activations(3, 25, 4)
    shard = encode_shard(streams, CodecSpec("uniform"), row_group_tokens=10, attributes={"model": "models/x"})
    reader = _reader(shard)
    assert (reader.header.num_layers, reader.header.num_tokens, reader.header.d_model) == (3, 25, 4)
    assert (reader.header.num_row_groups, [reader.header.rows(group) for group in range(3)]) == (3, [10, 10, 5])
    assert reader.header.attributes == {"model": "models/x"}
    group = reader.read_row_group(2)
    assert group["input"].shape == (3, 5, 4)
    for layer in range(3):
        np.testing.assert_array_equal(reader.read("output", layer, 2), group["output"][layer])


@pytest.mark.parametrize("codec", ["bf16", "uniform"])
def test_bits_of_bfloat16_are_those_of_the_values(codec: str) -> None:
    """What codes give as bfloat16 is the nearest one to what they give as float32."""
    store = open_store("memory://")
    store.put("shard", encode_shard(_activations(2, 30, 5), CodecSpec(codec), attributes={}).data)
    coded = ShardReader(store, "shard").read_codes(0)["output"]
    expected = torch.from_numpy(coded.values()).to(torch.bfloat16)
    np.testing.assert_array_equal(coded.bf16_bits(), expected.view(torch.uint16).numpy())


def test_equal_activations_give_equal_shards() -> None:
    """Encoding is a function of its input, and the hash is that of the bytes."""
    first, second = (
        encode_shard(_activations(2, 40, 6), CodecSpec("uniform"), attributes={"b": "2", "a": "1"}) for _ in "ab"
    )
    assert first.data == second.data
    assert first.sha256 == hashlib.sha256(first.data).hexdigest()
    store = open_store("memory://")
    store.put("shard", first.data)
    assert verify(store, "shard", first.sha256).num_tokens == 40


@pytest.mark.parametrize("codec", ["bf16", "uniform"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_values_that_are_not_finite_are_refused(codec: str, value: float) -> None:
    """A NaN, an infinity or a value near float32's end is the caller's mistake, named with its place."""
    streams = _activations(2, 600, 3)
    streams["output"][1, 555, 2] = value
    with pytest.raises(InvalidArgumentError, match="'output' of layer 1"):
        encode_shard(streams, CodecSpec(codec), attributes={})


def test_encode_refuses_what_is_no_shard() -> None:
    """Missing streams, other types, other shapes, other codecs and impossible sizes are refused with what to do."""
    good = _activations(2, 4, 3)
    for streams in (
        {"input": good["input"]},
        {**good, "residual": good["input"]},
        {**good, "input": good["input"].astype(np.float64)},
        {**good, "input": good["input"][:, :3]},
        {name: values[0] for name, values in good.items()},
        {name: values[:0] for name, values in good.items()},
        {name: values[:, :, :0] for name, values in good.items()},
    ):
        with pytest.raises(InvalidArgumentError):
            encode_shard(streams, CodecSpec("bf16"), attributes={})
    for row_group_tokens in (0, -1, 1 << 40):
        with pytest.raises(InvalidArgumentError, match="row_group_tokens"):
            encode_shard(good, CodecSpec("uniform"), row_group_tokens=row_group_tokens, attributes={})
    with pytest.raises(InvalidArgumentError, match="attributes"):
        encode_shard(good, CodecSpec("bf16"), attributes={"x": "y" * (1 << 20)})
    with pytest.raises(InvalidArgumentError, match="codec"):
        CodecSpec("zip")
    for target in (0.0, -1.0, 0.9, float("nan")):
        with pytest.raises(InvalidArgumentError, match="target_fvu"):
            CodecSpec("uniform", target)


def test_reader_refuses_places_outside_the_shard() -> None:
    """A stream, layer or row group that is not there is the caller's mistake; a missing object is not found."""
    reader = _reader(encode_shard(_activations(2, 4, 3), CodecSpec("bf16"), attributes={}))
    for stream, layer, group in (
        ("residual", 0, 0),
        ("input", 2, 0),
        ("input", -1, 0),
        ("input", 0, 1),
        ("input", 0, -1),
    ):
        with pytest.raises(InvalidArgumentError):
            reader.read(stream, layer, group)
    with pytest.raises(InvalidArgumentError):
        reader.read_row_group(1)
    with pytest.raises(NotFoundError):
        ShardReader(open_store("memory://"), "nothing")
