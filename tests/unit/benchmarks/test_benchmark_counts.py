"""What the benchmarks count by formula: memory of the sides, work of the kernels, conditions."""

import footprints
import machine
import pytest
import torch
from kernel_watch import PARTS, watch
from kernel_work import Work, works
from serving import Shape

from weft_clt.active import ActiveLayer
from weft_clt.kernels import CpuKernels, FeatureLists

GIB = 1 << 30
GPT2, SMOLLM2 = Shape(12, 768, 2048, 1024, 16), Shape(30, 576, 1024, 512, 16)


@pytest.mark.parametrize(
    ("needed", "shape", "measured_gib"),
    [
        (footprints.clt_forge_bytes, GPT2, 6.2),
        (footprints.clt_forge_bytes, SMOLLM2, 9.7),
        (footprints.dense_bytes, GPT2, 3.7),
        (footprints.dense_bytes, SMOLLM2, 5.6),
    ],
)
def test_footprints_are_those_that_were_measured(needed: footprints.Needed, shape: Shape, measured_gib: float) -> None:
    """Peaks of the peers' processes at the two shapes."""
    assert needed(shape) / GIB == pytest.approx(measured_gib, rel=0.15)


def test_passes_are_doubled_until_a_step_fits() -> None:
    """As few as fit, none where it fits at once, and no plan where tokens can no longer be halved."""
    needed = footprints.clt_forge_bytes
    shape = Shape(30, 576, 1024, 4096, 16)
    assert footprints.fitting(shape, needed, needed(shape)) == shape
    planned = footprints.fitting(shape, needed, int(17.7 * GIB))
    assert planned is not None
    assert planned.passes == 4
    assert needed(planned) < 17.7 * GIB
    assert footprints.fitting(shape, needed, 1 * GIB) is None


def test_conditions_name_the_allocator_without_its_folder() -> None:
    """No path of the machine gets into what is published."""
    told = machine.conditions(2, {"LD_PRELOAD": "/somewhere/libtcmalloc_minimal.so.4"})
    assert "allocator libtcmalloc_minimal.so.4" in told
    assert "2 thread(s)" in told
    assert "/" not in told
    assert "allocator of the C library" in machine.conditions(1, {})


def _layer(features: list[list[int]]) -> ActiveLayer:
    """Entries of value 1, by token."""
    ends = torch.tensor([0, *(len(each) for each in features)]).cumsum(0).int()
    feature_N = torch.tensor([feature for each in features for feature in each], dtype=torch.int32)
    return ActiveLayer(
        num_features=4,
        row_start_T1=ends,
        row_active_T=ends[1:],
        feature_N=feature_N,
        value_N=torch.ones(len(feature_N)),
        slot_N=torch.arange(len(feature_N), dtype=torch.int32),
    )


def test_work_of_kernels_is_what_a_count_by_hand_gives() -> None:
    """
    Two layers, width 32 (one strip of 128 bytes), 4 features, 3 tokens.

    Layer 0 has 4 entries in 2 rows and writes to 2 targets, layer 1 has 3 entries in 3 rows and writes to itself.
    """
    lists = FeatureLists.of([_layer([[0, 1], [0], [1]]), _layer([[0], [1], [3]])])
    found = works(Shape(2, 32, 4, 3, 2), lists)
    row, stream = 128, 2 * 3 * 128
    assert found[PARTS["encode"]] == Work(2 * 2 * 3 * 4 * 32, 2 * 4 * row + stream, 2 * 2 * 3 * 4 * 4)
    pair_entries, pair_rows = 4 * 2 + 3, 2 * 2 + 3
    indices = 8 * pair_entries
    assert found[PARTS["decode_pass"]] == Work(
        2 * pair_entries * 32, pair_rows * row + 2 * stream, 2 * pair_entries * row + 2 * stream + indices
    )
    assert found[PARTS["value_grad_pass"]] == Work(
        4 * pair_entries * 32, pair_rows * row + stream, pair_entries * row + stream + indices + 8 * pair_entries
    )
    parameters = 3 * 4 * 32
    assert found[PARTS["decoder_adam"]] == Work(
        2 * pair_entries * 32 + 12 * parameters, 6 * 4 * parameters + stream, pair_entries * row + stream + indices
    )
    assert found[PARTS["encode_backward"]] == Work(2 * 7 * 32, stream + 2 * 5 * row, 2 * 7 * row)
    assert found[PARTS["adam"]] == Work(12 * 2 * 4 * 32, 7 * 2 * 4 * row, 0)


def test_watched_kernels_compute_the_same_and_are_timed() -> None:
    """Each call adds to its part's seconds, and to no other's."""
    kernels = CpuKernels()
    values = torch.arange(5.0)
    seconds = watch(kernels)
    assert kernels.sum_squares(values) == 30.0
    assert list(seconds) == [PARTS["sum_squares"]]
    once = seconds[PARTS["sum_squares"]]
    kernels.sum_squares(values)
    assert seconds[PARTS["sum_squares"]] > once > 0


@pytest.mark.parametrize("text", ["1,2,3", "a,2,3,4", "1,2,3,4,5"])
def test_shape_that_is_none_is_refused(text: str) -> None:
    """The message says what a shape looks like."""
    with pytest.raises(SystemExit, match="layers,width,features,tokens"):
        Shape.of_option(text, 3)
