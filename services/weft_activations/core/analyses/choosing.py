"""What analyses let a caller choose: layers, heads and positions by index."""

from collections.abc import Sequence
from itertools import pairwise

from weft_activations.core.ports import ModelInfo
from weft_common.errors import InvalidArgumentError

__all__ = ["check_token", "choose", "choose_one"]


def choose(asked: Sequence[int], size: int, what: str, field: str) -> tuple[int, ...]:
    """
    Return the indices asked for, all where none are.

    Raises:
        InvalidArgumentError: An index is outside, or they do not rise.

    >>> choose([], 3, "layer", "layers"), choose([0, 2], 3, "layer", "layers")
    ((0, 1, 2), (0, 2))
    """
    for index in asked:
        if not 0 <= index < size:
            raise InvalidArgumentError(
                f"there is no {what} {index}; there are {size}, from 0 to {size - 1}", field=field
            )
    if any(later <= earlier for earlier, later in pairwise(asked)):
        raise InvalidArgumentError(f"the {field} do not rise; name each {what} once, in order", field=field)
    return tuple(asked) or tuple(range(size))


def choose_one(asked: int | None, size: int, what: str, field: str) -> int:
    """
    Return the index asked for, the last where none is.

    Raises:
        InvalidArgumentError: It is outside.

    >>> choose_one(None, 3, "position", "position")
    2
    """
    return size - 1 if asked is None else choose([asked], size, what, field)[0]


def check_token(token_id: int, info: ModelInfo, field: str) -> None:
    """Raise InvalidArgumentError unless the id is in the vocabulary."""
    if not 0 <= token_id < info.vocab_size:
        raise InvalidArgumentError(
            f"token id {token_id} is outside the vocabulary of {info.model_id}; ids go from 0 to {info.vocab_size - 1}",
            field=field,
        )
