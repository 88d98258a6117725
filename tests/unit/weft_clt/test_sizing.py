"""The size of a run: counted against tensors that are really made, and refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from clt_cases import D_MODEL, NUM_LAYERS, RECIPES, config_of, normalization, trainer_of
from torch import Tensor

from weft_clt.config import Activation
from weft_clt.data import BatchBuffer
from weft_clt.kernels import CpuKernels
from weft_clt.mesh import Mesh, SingleAxis
from weft_clt.metrics import ReconstructionSums
from weft_clt.parameters import Shape, Share
from weft_clt.selection import kth_largest
from weft_clt.sizing import Workload
from weft_common.errors import InvalidArgumentError

WORK = Workload(
    num_layers=3,
    d_model=16,
    num_features=32,
    activation=Activation.TOP_K,
    active=4,
    near=0.0,
    decoder_span=0,
    step_tokens=32,
    feature_ranks=2,
    data_ranks=1,
)


@pytest.mark.parametrize(
    ("types", "weight_bytes", "moment_bytes"),
    [
        ({}, 8, 8),
        ({"moments": "MOMENTS_BFLOAT16"}, 8, 2),
        ({"parameters": "PARAMETER_TYPE_BFLOAT16"}, 2, 8),
        ({"parameters": "PARAMETER_TYPE_BFLOAT16", "moments": "MOMENTS_BFLOAT16"}, 2, 2),
    ],
)
@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES.keys())
def test_parameters_are_those_of_a_trainer(
    changes: dict[str, object], types: dict[str, str], weight_bytes: int, moment_bytes: int
) -> None:
    """Encoder, decoder, biases and thresholds, to the last one; and the bytes of their state and gradients."""
    trainer = trainer_of(config_of(**changes, **types), CpuKernels())
    shape = trainer.share.shape
    work = replace(
        WORK,
        num_layers=shape.num_layers,
        d_model=shape.d_model,
        num_features=shape.num_features,
        activation=trainer.config.features.activation,
        decoder_span=trainer.config.features.decoder_span,
        linear_skip=trainer.config.features.linear_skip,
        step_tokens=trainer.config.batch.step_tokens,
        feature_ranks=1,
        float_bytes=8,
        first_moment=trainer.adam.first is not None,
        moment_bytes=moment_bytes,
        weight_bytes=weight_bytes,
    )
    assert work.num_parameters == sum(tensor.numel() for _, tensor in trainer.params.named())
    assert work.checkpoint_bytes == sum(tensor.nbytes for _, tensor in trainer.state())
    memory = work.memory()
    assert memory.parameters + memory.moments + memory.clocks == work.checkpoint_bytes
    assert work.last_checkpoint_bytes == sum(tensor.nbytes for _, tensor in trainer.params.named())
    assert memory.gradients == sum(tensor.nbytes for _, tensor in trainer.engine.grads.named())


def test_second_batch_is_counted_where_there_is_one() -> None:
    """A trainer's batch once more: inputs and targets of one rank's tokens."""
    work = replace(WORK, num_layers=NUM_LAYERS, d_model=D_MODEL)
    batch = BatchBuffer(normalization(), work.rank_tokens)
    more = replace(work, batches=2).memory().data - work.memory().data
    assert more == batch.inputs_LOD.nbytes + batch.targets_LOD.nbytes


def test_decoder_span_leaves_out_far_targets() -> None:
    """A span of one is a per-layer transcoder; a span of all layers is a whole cross-layer one."""
    blocks = [replace(WORK, decoder_span=span).num_pairs for span in (0, 1, 2, 3)]
    assert blocks == [6, 3, 5, 6]


def test_counting_over_more_than_a_token_and_layer_exchanges_only_what_is_kept() -> None:
    """BatchTopK and joint TopK agree on a bound before the lists travel."""
    for activation in (Activation.BATCH_TOP_K, Activation.JOINT_TOP_K):
        work = replace(WORK, activation=activation, feature_ranks=4)
        assert work.listed == work.kept == 4


def test_gradient_of_the_decoder_is_in_memory_for_a_sum_over_data_ranks_only() -> None:
    """One data rank keeps what a trainer keeps; several keep as much as there are parameters."""
    trainer = trainer_of(config_of(), CpuKernels())
    shape, held = trainer.share.shape, sum(grad.numel() for _, grad in trainer.engine.grads.named())
    work = replace(
        WORK, num_layers=shape.num_layers, d_model=shape.d_model, num_features=shape.num_features, feature_ranks=1
    )
    assert work.memory().gradients == 4 * held
    summed = replace(work, data_ranks=2).memory()
    assert summed.gradients == summed.parameters > 4 * held


def test_passes_take_less_for_tokens_and_keep_the_decoders_gradient() -> None:
    """What a trainer in passes holds; as many bytes travel for tokens, and norms for each pass."""
    trainer = trainer_of(config_of(micro_batches=4), CpuKernels())
    shape, held = trainer.share.shape, sum(grad.numel() for _, grad in trainer.engine.grads.named())
    whole = replace(
        WORK,
        num_layers=shape.num_layers,
        d_model=shape.d_model,
        num_features=shape.num_features,
        activation=Activation.JOINT_TOP_K,
        step_tokens=256,
    )
    parted = replace(whole, passes=4)
    assert replace(parted, feature_ranks=1).memory().gradients == 4 * held
    assert replace(parted, feature_ranks=1).rank_tokens * 4 == 256
    for part in ("activations", "entries", "data"):
        assert getattr(parted.memory(), part) < getattr(whole.memory(), part)
    assert parted.network().inputs == whole.network().inputs
    assert parted.network().entries == whole.network().entries
    assert parted.network().norms == 4 * whole.network().norms > 0


def test_aux_k_and_a_linear_skip_take_more() -> None:
    """A second batch of errors and lists; a matrix a layer."""
    plain, aux, skip = WORK.memory(), replace(WORK, aux_top_k=8).memory(), replace(WORK, linear_skip=True).memory()
    assert aux.activations > plain.activations
    assert aux.entries > plain.entries
    assert skip.parameters - plain.parameters == 3 * 16 * 16 * 4 // 2


def test_ranks_share_parameters_and_multiply_top_k_lists() -> None:
    """Each rank lists its own k, so the lists grow with the ranks although what is kept does not."""
    four = replace(WORK, feature_ranks=4)
    assert four.rank_parameters * 2 == WORK.rank_parameters
    assert (WORK.listed, four.listed) == (8, 16)
    assert WORK.kept == four.kept == 4
    assert replace(WORK, feature_ranks=16).listed_by_rank == 2


def test_one_rank_sends_nothing() -> None:
    """No neighbours, no messages; a second data rank sends the gradients."""
    assert replace(WORK, feature_ranks=1).network().total == 0
    network = replace(WORK, feature_ranks=1, data_ranks=2).network()
    assert network.gradients == WORK.num_parameters * 4
    assert network.inputs == network.entries == 0


class CountedAxis(SingleAxis):
    """One of two ranks that sum; a ring of two passes on as many bytes as there are."""

    def sum_(self, tensor: Tensor) -> Tensor:
        self.sent_bytes += tensor.nbytes
        return tensor


def test_counts_and_figures_are_those_that_are_summed() -> None:
    """Whole numbers of every feature and float64 of the rest, to the last byte; with the losses and the tokens."""
    work, axis = replace(WORK, feature_ranks=1, data_ranks=2), CountedAxis()
    share = Share(Shape(work.num_layers, work.num_features, work.d_model), 0, 1)
    centre_LC = torch.zeros(work.num_layers, work.d_model)
    ReconstructionSums(share, centre_LC).reduced(Mesh(SingleAxis(), axis))
    three_losses = 3 * 8
    assert work.network().metrics == axis.sent_bytes + three_losses


@pytest.mark.parametrize(
    ("activation", "num_groups"), [(Activation.JOINT_TOP_K, WORK.group_tokens), (Activation.BATCH_TOP_K, 3)]
)
def test_ranks_that_agree_on_a_bound_send_its_counts(activation: Activation, num_groups: int) -> None:
    """A sum for each byte of a value, of all tokens or all layers."""
    axis = CountedAxis()
    values_M = torch.rand(num_groups) + 1
    kth_largest(values_M, torch.arange(num_groups), 1, num_groups=num_groups, sum_=axis.sum_)
    assert replace(WORK, activation=activation).network().selection == axis.sent_bytes
    assert WORK.network().selection == 0


def test_aux_k_sends_its_lists_too() -> None:
    """As many entries as there may be dead features, beside the others."""
    plain, aux = WORK.network(), replace(WORK, aux_top_k=8).network()
    entries, counts = 3 * 32 * 8, 3 * 32 * 4
    assert aux.entries - plain.entries == entries * (2 + 2 * 4) + counts


def test_start_counts_where_it_is_the_largest() -> None:
    """A rank that holds little still draws a whole layer in float64."""
    assert WORK.memory().start == 0
    thin = replace(WORK, num_features=1 << 20, d_model=4096, feature_ranks=4096, step_tokens=4096)
    memory = thin.memory()
    assert memory.start > 0
    assert memory.total == memory.parameters + 8 * 4096 * ((1 << 20) + (1 << 8))


def test_operations_are_those_of_the_products() -> None:
    """Dense encoder, sparse decoder: 2 L F D and 8 P k D."""
    flops = WORK.flops()
    assert flops.encode == 2 * 3 * 32 * 16
    assert flops.decode == 8 * 6 * 4 * 16
    assert flops.norms == 0
    assert flops.total == flops.encode + flops.decode + flops.encode_backward + flops.update


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_features": 33}, "33 features cannot be split evenly over 2"),
        ({"d_model": 15}, "15 columns of d_model"),
        ({"step_tokens": 31}, "31 tokens a step"),
        ({"active": 64}, "64 of 32 features"),
        ({"decoder_span": 4}, "span of 4 does not fit 3 layers"),
        ({"passes": 3}, "2 x 1 ranks in 3 passes"),
        ({"passes": 2, "activation": Activation.BATCH_TOP_K}, "among all tokens of a step"),
    ],
)
def test_run_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    """In the words of the thing that does not fit."""
    with pytest.raises(InvalidArgumentError, match=says):
        replace(WORK, **changes)
