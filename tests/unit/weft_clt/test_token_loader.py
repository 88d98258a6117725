"""Batches out of row groups: mixed over the whole dataset, whatever the ranks, and resumable at the very token."""

import json
import threading
from collections import Counter
from concurrent.futures import wait
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from numbered_tokens import SIZES, NumberedTokens, normalization

from weft_clt.data import BatchBuffer, CodedRowGroup, CodedStream, RowGroup, held_out_batches
from weft_clt.dealing import Dealer
from weft_clt.loader import LoaderOptions, TokenLoader
from weft_clt.normalization import Moments, Normalization
from weft_common.errors import DataLossError, FailedPreconditionError

STEP_TOKENS = 12


def _loader(
    source: NumberedTokens, rank: int = 0, world_size: int = 1, num_streams: int = 3, passes: int = 1
) -> TokenLoader:
    options = LoaderOptions(num_streams=num_streams)
    return TokenLoader(
        source,
        normalization(),
        step_tokens=STEP_TOKENS,
        rank=rank,
        world_size=world_size,
        options=options,
        passes=passes,
    )


def _draw(loader: TokenLoader) -> list[int]:
    batch = loader.draw()
    assert (batch.targets_LOD == -batch.inputs_LOD).all()
    assert (batch.inputs_LOD[1] == 2 * batch.inputs_LOD[0]).all()  # sqrt(4) / 2 and sqrt(4) / 1
    return [int(value) for value in batch.inputs_LOD[0, :, 0]]


@pytest.mark.parametrize("num_streams", [1, 3, 5, 16])
def test_loader_gives_every_token_once_an_epoch(num_streams: int) -> None:
    """96 tokens of a dataset of 32 give each three times, but for those that the streams still hold."""
    source = NumberedTokens(SIZES)
    loader = _loader(source, num_streams=num_streams)
    drawn = Counter(number for _ in range(8) for number in _draw(loader))
    assert set(drawn) == set(source.numbers)
    state = loader.state()
    held: Counter[int] = Counter()
    for epoch, position, start, stop in [*state["rests"], *filter(None, state["streams"])]:
        row_group = source.at(epoch, position)
        assert row_group is not None
        held.update(100 * position + int(row) for row in row_group.order()[start:stop])
    begun = Counter(dict.fromkeys(source.numbers, state["epoch"]))
    for position in range(state["position"]):
        begun.update(100 * position + row for row in range(SIZES[position]))
    assert drawn + held == begun


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 12])
def test_step_tokens_do_not_depend_on_ranks(world_size: int) -> None:
    """The ranks' batches one after the other are the batch of one rank alone, for numbers that cut streams too."""
    alone = _loader(NumberedTokens(SIZES))
    ranks = [_loader(NumberedTokens(SIZES), rank, world_size) for rank in range(world_size)]
    for _ in range(9):
        assert [number for rank in ranks for number in _draw(rank)] == _draw(alone)


@pytest.mark.parametrize(("world_size", "passes"), [(1, 2), (1, 12), (2, 3), (3, 4)])
def test_step_tokens_do_not_depend_on_passes(world_size: int, passes: int) -> None:
    """A rank's passes one after the other are its batch; what a checkpoint keeps moves with whole steps only."""
    ranks = [_loader(NumberedTokens(SIZES), rank, world_size) for rank in range(world_size)]
    parted = [_loader(NumberedTokens(SIZES), rank, world_size, passes=passes) for rank in range(world_size)]
    for _ in range(9):
        for rank, parts in zip(ranks, parted, strict=True):
            before, drawn = parts.state(), []
            for _ in range(passes):
                assert parts.state() == before == rank.state()
                drawn += _draw(parts)
            assert drawn == _draw(rank)
            assert parts.state() == rank.state() != before


def test_step_mixes_row_groups_of_the_whole_dataset() -> None:
    """With as many streams as row groups, nearly every step has tokens of most of them, out of order."""
    loader = _loader(NumberedTokens([24] * 6), num_streams=6)
    batches = [_draw(loader) for _ in range(12)]
    assert np.mean([len({number // 100 for number in batch}) for batch in batches]) > 4
    within = [number % 100 for batch in batches for number in batch if number // 100 == 2]
    assert within != sorted(within)


@pytest.mark.parametrize("draws", range(0, 13, 3))
@pytest.mark.parametrize("world_size", [1, 4])
def test_loader_resumes_at_the_very_token_on_other_ranks(draws: int, world_size: int) -> None:
    """A loader made from a saved state, through JSON, draws what the other one would have drawn."""
    loader = _loader(NumberedTokens(SIZES))
    for _ in range(draws):
        loader.draw()
    state = json.loads(json.dumps(loader.state()))
    resumed = [_loader(NumberedTokens(SIZES), rank, world_size, num_streams=7) for rank in range(world_size)]
    for rank in resumed:
        rank.restore(state)
    for _ in range(6):
        assert [number for rank in resumed for number in _draw(rank)] == _draw(loader)


def test_loader_refuses_a_state_of_another_plan() -> None:
    """A row group that is not in the plan is no place to resume from."""
    loader = _loader(NumberedTokens(SIZES))
    loader.draw()
    with pytest.raises(FailedPreconditionError, match="the plan lacks"):
        _loader(NumberedTokens([2])).restore(loader.state())


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_loader_refuses_an_empty_split(sizes: list[int]) -> None:
    """A split without tokens says so instead of waiting for ever."""
    with pytest.raises(FailedPreconditionError, match="no tokens"):
        _loader(NumberedTokens(sizes)).draw()


def test_first_row_groups_run_out_at_different_steps() -> None:
    """The streams' first row groups are cut at different lengths, so that reads spread over steps."""
    source = NumberedTokens([64] * 99)
    dealer = Dealer(source.at, step_tokens=16, num_streams=8)
    begun, before = [], set[tuple[int, int]]()
    for _ in range(64):
        now = {piece.row_group.key for piece in dealer.deal()}
        begun.append(len(now - before))
        before |= now
    assert max(begun[1:]) <= 2


@dataclass
class SlowTokens(NumberedTokens):
    """Reads from the fifth row group on wait until they are let."""

    begun: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        if row_group.position >= 4:
            self.begun.set()
            assert self.gate.wait(60)
        return super().read(row_group)


def test_loader_reads_ahead_within_bounds() -> None:
    """While nobody draws, what comes next is read, but no more than the bytes allow."""
    source = NumberedTokens([24] * 50)
    one = source.read(RowGroup(0, 0, 24, 0, 0)).nbytes
    source.reads.clear()
    options = LoaderOptions(num_streams=4, ahead_bytes=2 * one, read_threads=2)
    loader = TokenLoader(source, normalization(), step_tokens=4, rank=0, world_size=1, options=options)
    for _ in range(2):
        loader.draw()
        assert not wait(loader._reads.values(), 60).not_done
    assert 4 + 1 <= len(set(source.reads)) <= 4 + 2
    loader.close()


def test_loader_reads_in_the_background() -> None:
    """The row group that a step will need is being read while no draw waits for it."""
    source = SlowTokens([24] * 50)
    options = LoaderOptions(num_streams=4, read_threads=2)
    loader = TokenLoader(source, normalization(), step_tokens=4, rank=0, world_size=1, options=options)
    drawn = _draw(loader)
    assert {number // 100 for number in drawn} == {0, 1, 2, 3}
    assert source.begun.wait(60)
    source.gate.set()
    loader.close()


def test_loader_frees_what_it_is_through_with() -> None:
    """After many epochs no more row groups are in memory than are mixed and read ahead."""
    loader = _loader(NumberedTokens([48] * 6))
    for _ in range(90):
        loader.draw()
    assert len(loader._reads) <= 3 + 3 + 3
    assert set(loader._orders) <= set(loader._reads)


class DamagedTokens(NumberedTokens):
    def read(self, row_group: RowGroup) -> CodedRowGroup:
        raise DataLossError("shard 'x' is damaged")


def test_loader_passes_on_what_a_read_says() -> None:
    """What went wrong in a thread is told by the draw that needs the row group."""
    with pytest.raises(DataLossError, match="shard 'x'"):
        _loader(DamagedTokens(SIZES)).draw()


@dataclass
class BrokenTokens(NumberedTokens):
    """The output of row 5 at position 3 overflows in layer 1."""

    def read(self, row_group: RowGroup) -> CodedRowGroup:
        coded = super().read(row_group)
        if row_group.position == 3:
            bits_LTD = np.zeros(coded.outputs.codes_LTD.shape, np.uint16)
            bits_LTD[1, 5, 2] = 0x7FC0
            return CodedRowGroup(coded.inputs, CodedStream(bits_LTD))
        return coded


def test_value_that_is_not_finite_is_found_with_its_place() -> None:
    """The search names epoch, position, row, stream and layer; in a sound batch it finds nothing."""
    loader = _loader(BrokenTokens(SIZES))
    found = []
    for _ in range(3):
        loader.draw()
        found.append(loader.find_not_finite())
        assert loader.is_finite() == (found[-1] is None)
    assert (0, 3, 5, 1, 1) in found
    assert None in found


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "bf16", "klt"])
def test_codes_become_the_normalised_numbers(kind: str) -> None:
    """What the device makes of codes is the float64 value of the same codes, to float32's precision."""
    random = np.random.default_rng(4)
    units = Normalization(*random.uniform(0.5, 3, (2, 3)), *np.zeros((2, 3, 8)))
    if kind == "bf16":
        exact = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
        stream = CodedStream(exact.view(torch.uint16).numpy())
        values = exact.double().numpy()
    else:
        codes = random.integers(-100, 100, (3, 9, 8)).astype("int16" if kind == "klt" else kind)
        stream = CodedStream(
            codes, random.uniform(0.1, 1, 3).astype(np.float32), random.standard_normal((3, 8)).astype(np.float32)
        )
        assert stream.step_L is not None
        assert stream.mean_LD is not None
        values = codes * stream.step_L.astype(np.float64)[:, None, None]
        if kind == "klt":
            basis_LCD = random.standard_normal((3, 8, 8)).astype(np.float16)
            stream = replace(stream, basis_LCD=basis_LCD)
            values = values @ basis_LCD.astype(np.float64)
        values = values + stream.mean_LD[:, None]
    buffer = BatchBuffer(units, 6)
    rows = np.array([7, 0, 3])
    assert buffer.fill(2, CodedRowGroup(stream, stream), rows) == 5
    batch = buffer.batch(5)
    for found, scale_L in ((batch.inputs_LOD, units.input_scale_L), (batch.targets_LOD, units.output_scale_L)):
        np.testing.assert_allclose(
            found[:, 2:5].numpy(),
            values[:, rows] * scale_L[:, None, None],
            rtol=3e-6,
            atol=1e-5 if kind != "klt" else 1e-3,
        )
        assert not found[:, :2].any()


@pytest.mark.parametrize("most_tokens", [1, 4, 7, 32])
def test_held_out_batches_give_the_first_tokens_once(most_tokens: int) -> None:
    """Tokens come in order up to the limit; then batches are empty."""
    source = NumberedTokens(SIZES)
    batches = held_out_batches(source, normalization(), batch_tokens=4, most_tokens=most_tokens)
    numbers: list[int] = []
    for _ in range(-(-most_tokens // 4)):
        batch = next(batches)
        numbers += [int(value) for value in batch.inputs_LOD[0, : batch.num_valid, 0]]
    assert numbers == source.numbers[:most_tokens]
    assert next(batches).num_valid == 0


def test_normalization_refuses_a_stream_of_zeros() -> None:
    """Nothing can be learnt from it, and nothing may be divided by it."""
    with pytest.raises(FailedPreconditionError, match="layer 1"):
        Normalization.from_moments([Moments(1.0, np.zeros(4)), Moments(0.0, np.zeros(4))], [])
