"""`klt` keeps its word in channels, takes what correlation gives, and notices a basis that is not the right one."""

import hashlib
import re

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from weft_common.errors import DataLossError, InvalidArgumentError
from weft_store import ObjectStore, open_store
from weft_store.shard import Basis, CodecSpec, EncodedShard, ShardReader, basis_key, encode_shard, learn_basis

_KEY = "datasets/a/shards/0-00.weft"


def _correlated(num_layers: int, num_tokens: int, d_model: int) -> dict[str, np.ndarray]:
    """Gaussian mixtures of channels, with an outlier channel and a massive token."""
    rng = np.random.default_rng(2)
    streams = {}
    for stream in ("input", "output"):
        mixed = rng.normal(size=(num_layers, d_model, d_model)) * np.geomspace(1, 0.01, d_model)[:, None]
        values = rng.normal(size=(num_layers, num_tokens, d_model)) @ mixed
        values[:, :, 0] = values[:, :, 0] * 30 + 100
        values[:, num_tokens // 2] *= 50
        streams[stream] = values.astype(np.float32)
    return streams


def _stored(streams: dict[str, np.ndarray], spec: CodecSpec) -> tuple[ObjectStore, EncodedShard, Basis]:
    store, basis = open_store("memory://"), learn_basis(streams)
    shard = encode_shard(streams, spec, row_group_tokens=100, attributes={}, basis=basis)
    store.put(_KEY, shard.data)
    store.put(basis_key(_KEY, basis.sha256), basis.data())
    return store, shard, basis


def _bound_bits(values_TD: np.ndarray, fvu: float) -> float:
    """Bits a value of a Gaussian with this covariance at this FVU, by reverse water-filling."""
    variances = np.linalg.eigvalsh(np.cov(values_TD.astype(np.float64), rowvar=False, bias=True))
    low, high = 0.0, float(variances.max())
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(variances, level).sum() < fvu * variances.sum() else (low, level)
    return float(np.maximum(np.log2(variances / high) / 2, 0).mean())


@pytest.mark.parametrize("target", [1e-4, 1e-3, 1e-2, 0.3])
def test_klt_meets_the_wanted_fvu_in_channels(target: float) -> None:
    """What is read loses the wanted fraction of variance, and the statistics say so."""
    streams = _correlated(2, 700, 24)
    store, shard, _ = _stored(streams, CodecSpec("klt", target))
    reader = ShardReader(store, _KEY)
    groups = [reader.read_row_group(group) for group in range(reader.header.num_row_groups)]
    for entry in shard.statistics:
        for stream, figures in (("input", entry.input), ("output", entry.output)):
            values = streams[stream][entry.layer].astype(np.float64)
            read = np.concatenate([group[stream][entry.layer] for group in groups]).astype(np.float64)
            error = ((read - values) ** 2).sum()
            assert error / ((values - values.mean(0)) ** 2).sum() == pytest.approx(target, rel=0.021)
            assert figures.sum_squared_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("target", [1e-3, 1e-2])
def test_klt_is_near_the_gaussian_bound(target: float) -> None:
    """On correlated Gaussians it takes at most half a bit a value more than the bound, and fewer than `uniform`."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(256, 256)) * np.geomspace(1, 0.03, 256)[:, None]
    values = (rng.normal(size=(1, 3000, 256)) @ mixed).astype(np.float32)
    streams = {"input": values, "output": values}
    bits = {
        codec: 8
        * encode_shard(streams, CodecSpec(codec, target), attributes={}, basis=basis).statistics[0].input.size_bytes
        / values.size
        for codec, basis in (("klt", learn_basis(streams)), ("uniform", None))
    }
    assert bits["klt"] <= _bound_bits(values[0], target) + 0.5
    assert bits["klt"] < bits["uniform"] - 0.3


_FINITE = st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32, allow_subnormal=False)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=arrays.arrays(
        np.float32, st.tuples(st.just(2), st.just(1), st.integers(0, 9), st.integers(1, 5)), elements=_FINITE
    ),
    target=st.sampled_from([1e-4, 1e-2, 0.3]),
)
def test_klt_keeps_its_word_or_refuses(values: np.ndarray, target: float) -> None:
    """Whatever finite values come, what is read loses at most what was asked, or the writer says that it cannot."""
    streams = {"input": values[0], "output": values[1]}
    try:
        store, _, _ = _stored(streams, CodecSpec("klt", target))
    except InvalidArgumentError:
        return
    reader = ShardReader(store, _KEY)
    for group in range(reader.header.num_row_groups):
        for stream, read in reader.read_row_group(group).items():
            exact = streams[stream][0].astype(np.float64)
            deviation = ((exact - exact.mean(0)) ** 2).sum()
            assert ((read[0] - exact) ** 2).sum() <= target * 1.02 * deviation * (1 + 1e-5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(2, 300), st.integers(1, 20)),
    massive=st.sampled_from([1.0, 1e3, 1e6]),
    outlier=st.sampled_from([1.0, 1e3, 1e6]),
    seed=st.integers(0, 1 << 30),
)
def test_klt_takes_massive_tokens_and_outlier_channels(
    shape: tuple[int, int, int], massive: float, outlier: float, seed: int
) -> None:
    """A token or a channel a million times the others is coded within the wanted FVU."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    values[:, rng.integers(shape[1])] *= massive
    values[:, :, rng.integers(shape[2])] *= outlier
    streams = {"input": values.astype(np.float32), "output": -values.astype(np.float32)}
    store, shard, _ = _stored(streams, CodecSpec("klt", 1e-3))
    reader = ShardReader(store, _KEY)
    read = np.concatenate([reader.read_row_group(g)["input"] for g in range(reader.header.num_row_groups)], axis=1)
    exact = streams["input"].astype(np.float64)
    errors, deviations = ((read - exact) ** 2).sum((1, 2)), ((exact - exact.mean(1, keepdims=True)) ** 2).sum((1, 2))
    assert (errors <= 1.02e-3 * deviations * (1 + 1e-5)).all()
    assert shard.statistics[0].input.sum_squared_error == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, np.float32(3e38)])
def test_klt_refuses_what_is_not_finite(value: float) -> None:
    """A NaN, an infinity or a value near float32's end is named with its place, also where the basis is sound."""
    streams = _correlated(2, 60, 4)
    basis = learn_basis(streams)
    streams["output"][1, 55, 2] = value
    with pytest.raises(InvalidArgumentError, match="'output' of layer 1"):
        encode_shard(streams, CodecSpec("klt"), attributes={}, basis=basis)


def test_one_block_reads_its_own_matrix_only() -> None:
    """Of a basis, what is fetched is its head and the matrix of that layer and stream."""
    store, _, basis = _stored(_correlated(4, 40, 16), CodecSpec("klt"))

    class Counting:
        taken = 0

        def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
            data = store.get(key, offset=offset, length=length)
            if "bases" in key:
                self.taken += len(data)
            return data

    counting = Counting()
    ShardReader(counting, _KEY).read("output", 2, 0)
    assert counting.taken == 20 + 16 * 2 * 4 + 2 * 16 * 16
    assert len(basis.data()) == 20 + 16 * 2 * 4 + 2 * 4 * 2 * 16 * 16


def test_components_are_bfloat16_of_codes() -> None:
    """Without undoing the basis, bits are of the codes' multiples of the step; with it, of the values."""
    store, _, _ = _stored(_correlated(2, 40, 6), CodecSpec("klt"))
    coded = ShardReader(store, _KEY).read_codes(0)["input"]
    assert coded.step_L is not None
    components = torch.from_numpy(coded.codes_LTD * coded.step_L[:, None, None])
    for bits, wanted in (
        (coded.bf16_bits(undo_basis=False), components),
        (coded.bf16_bits(), torch.from_numpy(coded.values())),
    ):
        np.testing.assert_array_equal(bits, wanted.to(torch.bfloat16).view(torch.uint16).numpy())


def test_klt_reads_blocks_as_row_groups() -> None:
    """A block alone is its part of the row group; the codes are of components, with the basis beside them."""
    streams = _correlated(3, 150, 10)
    store, _, basis = _stored(streams, CodecSpec("klt"))
    reader = ShardReader(store, _KEY)
    group, coded = reader.read_row_group(1)["output"], reader.read_codes(1)["output"]
    assert coded.basis_LCD is not None
    for layer in range(3):
        np.testing.assert_array_equal(reader.read("output", layer, 1), group[layer])
        by_hand = coded.codes_LTD[layer] * np.float64(coded.step_L[layer])
        by_hand = by_hand @ basis.vectors_SLCD[1, layer].astype(np.float64) + coded.mean_LD[layer]
        np.testing.assert_allclose(group[layer], by_hand, rtol=1e-4, atol=1e-3)


def test_klt_of_no_tokens_is_a_shard() -> None:
    """A lease whose tokens were all left out is written and read."""
    empty = {name: np.zeros((2, 0, 5), np.float32) for name in ("input", "output")}
    store, shard, _ = _stored(empty, CodecSpec("klt"))
    assert ShardReader(store, _KEY).header.num_row_groups == 0
    assert shard.statistics[0].input.num_tokens == 0


def test_klt_says_which_quality_it_cannot_reach() -> None:
    """Below what the rounding of the basis loses there is no step, and the error tells what to do."""
    streams = _correlated(1, 300, 16)
    with pytest.raises(InvalidArgumentError, match="its basis alone"):
        encode_shard(streams, CodecSpec("klt", 1e-8), attributes={}, basis=learn_basis(streams))


def test_basis_goes_with_klt_alone() -> None:
    """Neither is taken without the other, and a basis of another model is refused."""
    streams = _correlated(1, 20, 4)
    basis = learn_basis(streams)
    with pytest.raises(InvalidArgumentError, match="needs a basis"):
        encode_shard(streams, CodecSpec("klt"), attributes={})
    with pytest.raises(InvalidArgumentError, match="has no basis"):
        encode_shard(streams, CodecSpec("uniform"), attributes={}, basis=basis)
    with pytest.raises(InvalidArgumentError, match="same model"):
        encode_shard(_correlated(2, 20, 4), CodecSpec("klt"), attributes={}, basis=basis)
    streams["input"][0, 3, 1] = np.nan
    with pytest.raises(InvalidArgumentError, match="not finite"):
        learn_basis(streams)


def test_damaged_or_missing_basis_is_data_loss() -> None:
    """Every flipped byte, a cut and no basis at all are noticed when a row group is read."""
    streams = _correlated(1, 20, 3)
    store, _, basis = _stored(streams, CodecSpec("klt"))
    key, data = basis_key(_KEY, basis.sha256), basis.data()
    candidates = [data[:-1], b""]
    for at in range(len(data)):
        candidates.append(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
    for candidate in candidates:
        store.put(key, candidate)
        with pytest.raises(DataLossError, match="basis"):
            ShardReader(store, _KEY).read_row_group(0)
    store.delete(key)
    with pytest.raises(DataLossError, match="not there"):
        ShardReader(store, _KEY).read("input", 0, 0)


@pytest.mark.parametrize(
    "change", [rb'"basis":"[0-9a-f]{64}",', rb'"basis":"([0-9a-f]{63})[0-9a-f]"', rb'"codec":"klt"'], ids=str
)
def test_header_that_names_no_basis_is_refused(change: bytes) -> None:
    """A signed header without a basis, with half a hash, or of a codec that has none, is damage."""
    _, shard, _ = _stored(_correlated(1, 20, 3), CodecSpec("klt"))
    data = bytearray(shard.data)
    found = re.search(change, bytes(data))
    assert found is not None
    replaced = {b'"ba': b" " * len(found[0]), b'"co': b'"codec":"bf1"'}[found[0][:3]]
    if found.groups():
        replaced = b'"basis":"' + found[1] + b'g"'
    data[found.start() : found.end()] = replaced
    index_bytes = int.from_bytes(data[16:24], "little")
    data[32:64] = hashlib.sha256(data[:32] + data[64 : 64 + index_bytes]).digest()
    store = open_store("memory://")
    store.put(_KEY, bytes(data))
    with pytest.raises(DataLossError):
        ShardReader(store, _KEY)
