"""
Passes with a caller in the place of MLPs: checks what is asked, and runs them between other work on the models' thread.

Legend: N rows (tokens of all sequences of a batch), D d_model, L layers, V vocabulary.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from weft_activations.core.hooks import INPUT_HOOKS
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Floats, MlpStop, ModelBackend, ModelInfo, Passes, PassPlan, PassScore
from weft_common.errors import InvalidArgumentError, ResourceExhaustedError

__all__ = ["Replacing", "open_replacing"]


class Replacing:
    """
    One batch, pass after pass.

    Args:
        inference: Has the models' thread.
        passes: Of the batch.
        info: The model.
        num_rows: N.
    """

    def __init__(self, inference: Inference, passes: Passes, info: ModelInfo, num_rows: int) -> None:
        self._inference, self._passes, self._info, self._num_rows = inference, passes, info, num_rows

    @property
    def output_shape(self) -> tuple[int, int]:
        """N and D."""
        return self._num_rows, self._info.d_model

    async def begin(self, plan: PassPlan) -> MlpStop | PassScore:
        """
        Begin a pass and run to its first stop, or its end.

        Raises:
            InvalidArgumentError: There is no such layer or row, or they are not rising.
        """
        num_layers = self._info.num_layers
        _check_rising(plan.read_layers, num_layers, "layer", "plan.read_layers")
        _check_rising(plan.replaced_layers, num_layers, "layer", "plan.replaced_layers")
        _check_rising(plan.ablated_layers, num_layers, "layer", "plan.ablated_layers")
        _check_rising(plan.kept_rows, self._num_rows, "row", "plan.kept_rows")
        both = sorted(set(plan.replaced_layers) & set(plan.ablated_layers))
        if both:
            raise InvalidArgumentError(
                f"layers {both} are both replaced and ablated; name each in one of the two", field="plan.ablated_layers"
            )
        return await self._inference.on_model_thread(lambda _: self._passes.begin(plan))

    async def go_on(self, output_ND: Floats | None) -> MlpStop | PassScore:
        """
        Give the output of the MLP where the pass stopped, None where it was only read, and run to the next stop.

        Raises:
            InvalidArgumentError: It has another shape, or holds what is no number.
        """
        if output_ND is not None and output_ND.shape != self.output_shape:
            raise InvalidArgumentError(
                f"the output has shape {list(output_ND.shape)}; float32 {list(self.output_shape)} is waited for",
                field="output",
            )
        if output_ND is not None and not np.isfinite(output_ND).all():
            raise InvalidArgumentError("the output holds NaN or infinity; send finite numbers", field="output")
        return await self._inference.on_model_thread(lambda _: self._passes.go_on(output_ND))


async def open_replacing(
    inference: Inference, model_id: str, sequences: Sequence[Sequence[int]], input_hook: str, *, max_bytes: int
) -> Replacing:
    """
    Prepare the passes of a batch.

    Args:
        inference: Has the models' thread.
        model_id: The model.
        sequences: Token ids, of one length.
        input_hook: What an MLP reads, without the layer.
        max_bytes: Most that the batch may hold from pass to pass: the streams before every layer, and all logits.

    Raises:
        InvalidArgumentError: No such hook, sequences of different lengths or too long, an id outside the vocabulary.
        ResourceExhaustedError: The batch would hold too much.
    """
    if input_hook not in INPUT_HOOKS:
        raise InvalidArgumentError(
            f"{input_hook[:80]!r} is not what an MLP reads; give {' or '.join(INPUT_HOOKS)}", field="start.input_hook"
        )

    def work(backend: ModelBackend) -> Replacing:
        info = backend.describe(model_id)
        lengths = sorted({len(sequence) for sequence in sequences})
        if len(lengths) != 1 or not 2 <= lengths[0] <= info.max_tokens:
            raise InvalidArgumentError(
                f"the sequences have lengths {lengths[:10]}; give some of one length, 2 to {info.max_tokens} tokens",
                field="start.sequences",
            )
        for index, sequence in enumerate(sequences):
            if not all(0 <= token_id < info.vocab_size for token_id in sequence):
                raise InvalidArgumentError(
                    f"sequence {index} has a token id outside the vocabulary of {model_id}; ids go from 0 to "
                    f"{info.vocab_size - 1}",
                    field=f"start.sequences[{index}]",
                )
        num_rows = len(sequences) * lengths[0]
        held = 4 * num_rows * (info.num_layers * info.d_model + info.vocab_size)
        if held > max_bytes:
            raise ResourceExhaustedError(
                f"{num_rows} tokens would hold {held} bytes from pass to pass, more than the {max_bytes} that one "
                "batch may; send fewer sequences at a time",
                field="start.sequences",
            )
        return Replacing(inference, backend.passes(model_id, sequences, input_hook), info, num_rows)

    return await inference.on_model_thread(work)


def _check_rising(found: Sequence[int], end: int, what: str, field: str) -> None:
    if any(not 0 <= number < end for number in found):
        raise InvalidArgumentError(f"a {what} of {field} does not exist; they go from 0 to {end - 1}", field=field)
    if any(later <= earlier for earlier, later in itertools.pairwise(found)):
        raise InvalidArgumentError(f"{field} does not rise; name each {what} once, in order", field=field)
