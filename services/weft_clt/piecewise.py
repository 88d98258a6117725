"""
Schedules as data: pieces that follow one another over a run, each with a shape and the factor that it ends with.

Shares are of a run's steps, factors of a coefficient's peak. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from weft_common.errors import InvalidArgumentError

__all__ = ["MAX_PIECES", "Piece", "Pieces", "Shape", "check_pieces", "parse_pieces", "value_at"]


class Shape(StrEnum):
    """How a piece goes from the factor before it, 0 at the start, to its own."""

    CONSTANT = "SCHEDULE_SHAPE_CONSTANT"
    """At its own factor throughout."""
    LINEAR = "SCHEDULE_SHAPE_LINEAR"
    """In a straight line."""
    COSINE = "SCHEDULE_SHAPE_COSINE"
    """Along half a cosine."""


@dataclass(frozen=True)
class Piece:
    """One piece; it ends after the share `until` of the steps, at `factor`."""

    until: float
    shape: Shape
    factor: float

    def to_document(self) -> dict[str, object]:
        """Return it as plain JSON values."""
        return {"until": self.until, "shape": str(self.shape), "factor": self.factor}


Pieces = tuple[Piece, ...]

MAX_PIECES = 100
"""Of one schedule: a run's document holds them, and every step looks for its own."""


def value_at(pieces: Sequence[Piece], share: float) -> float:
    """
    Return the factor after a share of the run.

    >>> warm_and_hold = (Piece(0.5, Shape.LINEAR, 1.0), Piece(1.0, Shape.CONSTANT, 1.0))
    >>> [value_at(warm_and_hold, share) for share in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """
    start, before = 0.0, 0.0
    for piece in pieces:
        if share <= piece.until:
            break
        start, before = piece.until, piece.factor
    along = min((share - start) / (piece.until - start), 1.0)
    match piece.shape:
        case Shape.CONSTANT:
            return piece.factor
        case Shape.LINEAR:
            return before + (piece.factor - before) * along
        case Shape.COSINE:
            return before + (piece.factor - before) * (1 - math.cos(math.pi * along)) / 2


def check_pieces(pieces: Sequence[Piece], field: str) -> None:
    """
    Check that pieces cover a run and are not too many; none at all are fine.

    Raises:
        InvalidArgumentError: They do not; the message names the piece.
    """
    if len(pieces) > MAX_PIECES:
        raise _error(field, f"{len(pieces)} pieces are given; give at most {MAX_PIECES}.")
    end = 0.0
    for index, piece in enumerate(pieces):
        where = f"{field}[{index}]"
        if not end < piece.until <= 1:
            raise _error(f"{where}.until", f"{piece.until} is refused; give a share above {end:g}, up to 1.")
        if not (math.isfinite(piece.factor) and piece.factor >= 0):
            raise _error(f"{where}.factor", f"{piece.factor} is refused; give a finite factor of at least 0.")
        end = piece.until
    if pieces and end != 1:
        raise _error(f"{field}[{len(pieces) - 1}].until", f"the last piece ends at {end:g} of the run; give 1.")
    if pieces and not any(piece.factor > 0 for piece in pieces):
        raise _error(field, "every factor is 0, so that nothing would be learnt; give one above 0.")


def parse_pieces(value: object, field: str) -> Pieces:
    """
    Read the JSON form of repeated weft.training.v1.SchedulePiece.

    Raises:
        InvalidArgumentError: It has another form.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _error(field, f"{value!r} is no list; give pieces of until, shape and factor.")
    return tuple(_parse_piece(each, f"{field}[{index}]") for index, each in enumerate(value))


def _parse_piece(value: object, where: str) -> Piece:
    if not isinstance(value, Mapping):
        raise _error(where, f"{value!r} is no piece; give until, shape and factor.")
    for key in value:
        if key not in Piece.__dataclass_fields__:
            raise _error(f"{where}.{key}", "no field of SchedulePiece has this name.")
    numbers = {}
    for key in ("until", "factor"):
        number = value.get(key, 0.0)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise _error(f"{where}.{key}", f"{number!r} is no number.")
        numbers[key] = float(number)
    shape = value.get("shape", "SCHEDULE_SHAPE_UNSPECIFIED")
    if not isinstance(shape, str) or shape not in set(Shape):
        raise _error(f"{where}.shape", f"{shape!r} is unknown; give one of {', '.join(Shape)}.")
    return Piece(numbers["until"], Shape(shape), numbers["factor"])


def _error(field: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}: {message}", field=f"spec.{field}")
