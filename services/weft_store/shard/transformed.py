"""
The codec `klt`: a change of basis, then one step for all components.

In the basis of eigenvectors components are uncorrelated, so that a code of each alone spends bits where the variance
is: those whose variance is far below the step's square cost next to nothing, as reverse water-filling has it.
Source: Goyal 2001, "Theoretical foundations of transform coding". Deviations: one step, no allocation by rounding.
Shapes: T tokens of a shard, D d_model; components stand in the place of channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft_common.errors import InvalidArgumentError
from weft_store.shard.uniform import Moments, quantise

_ACCEPTED = 0.02
_ATTEMPTS = 4
_CHUNK_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Transformed:
    """
    One stream of one layer.

    Attributes:
        components: Moments of the components, about 0.
        step: Of all of them.
        mean_D: Of the channels.
        sum_squared_error: Of the values that a reader makes of the codes.
    """

    components: Moments
    step: np.float32
    mean_D: NDArray[np.float32]
    sum_squared_error: float


def transform_and_quantise(
    values_TD: NDArray[np.float32],
    moments: Moments,
    basis_DD: NDArray[np.float16],
    target_fvu: float,
    codes_TD: NDArray[np.int32],
    what: str,
) -> Transformed:
    """
    Change the basis and find the step for a wanted FVU.

    Args:
        values_TD: Finite values.
        moments: Theirs.
        basis_DD: A component a row.
        target_fvu: Wanted ratio of squared error to squared deviation, of the values.
        codes_TD: Filled, of the components.
        what: The layer and stream, for errors.

    Raises:
        InvalidArgumentError: No step reaches that FVU.
    """
    vectors_DD = basis_DD.astype(np.float32)
    mean_D = moments.mean_D.astype(np.float32)
    components_TD: NDArray[np.float32] = np.ascontiguousarray((values_TD - mean_D) @ vectors_DD.T, np.float32)
    if not np.isfinite(components_TD).all():
        raise InvalidArgumentError(
            f"{what} holds values whose components are beyond float32's range: use 'bf16'.", field="streams"
        )
    components = Moments.about(components_TD, np.zeros(len(mean_D)))
    total, wanted = float(moments.squared_deviation_D.sum()), target_fvu
    for _ in range(_ATTEMPTS):
        coded = quantise(components_TD, components, wanted, codes_TD, what)
        error = _error(values_TD, codes_TD, coded.step, mean_D, vectors_DD)
        if error <= target_fvu * total * (1 + _ACCEPTED):
            return Transformed(components, coded.step, mean_D, error)
        # What the basis itself loses by its rounding leaves less for the step.
        wanted -= error / total - target_fvu if total else 0.0
        if wanted <= target_fvu / 8:
            break
    raise InvalidArgumentError(
        f"{what} cannot be coded by 'klt' with a fraction of variance unexplained of {target_fvu}: its basis alone "
        "loses about as much. Ask for a larger target_fvu, or use 'uniform' or 'bf16'.",
        field="target_fvu",
    )


def undo(
    codes_TD: NDArray[np.signedinteger[Any]],
    step: np.float32,
    mean_D: NDArray[np.float32],
    vectors_DD: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Give the values of codes, [T, D]."""
    components: NDArray[np.float32] = codes_TD.astype(np.float32)
    components *= step
    values: NDArray[np.float32] = np.matmul(components, vectors_DD, dtype=np.float32)
    values += mean_D
    return values


def _error(
    values_TD: NDArray[np.float32],
    codes_TD: NDArray[np.int32],
    step: np.float32,
    mean_D: NDArray[np.float32],
    vectors_DD: NDArray[np.float32],
) -> float:
    error = 0.0
    for start in range(0, len(values_TD), _CHUNK_TOKENS):
        rows = slice(start, start + _CHUNK_TOKENS)
        difference = undo(codes_TD[rows], step, mean_D, vectors_DD).astype(np.float64)
        difference -= values_TD[rows]
        error += float(np.einsum("td,td->", difference, difference))
    return error
