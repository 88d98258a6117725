"""The error tree and its mapping to google.rpc.Status."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

import weft_common.errors
from weft_common.errors import Code, InternalError, InvalidArgumentError, StorageFullError, WeftError, error_class
from weft_common.server import PortTakenError
from weft_common.status import error_from_status, status_from_error


def walk(root: type[WeftError] = WeftError) -> Iterator[type[WeftError]]:
    for child in root.__subclasses__():
        if child.__module__ == "weft_common.errors":
            yield child
            yield from walk(child)


CLASSES = list(walk())


def test_tree_drawing_names_every_class_with_its_code() -> None:
    """The tree at the top of the module is the tree of the module."""
    drawn = dict(re.findall(r"── (\w+)\s+([A-Z_]+)  ", weft_common.errors.__doc__ or ""))
    assert drawn == {cls.__name__: cls.code.name for cls in CLASSES}


def test_tree_drawing_marks_what_is_retryable() -> None:
    """The drawing says (retryable) of exactly those that are."""
    lines = (weft_common.errors.__doc__ or "").splitlines()
    drawn = {re.findall(r"── (\w+)", line)[0] for line in lines if line.endswith("(retryable)")}
    assert drawn == {cls.__name__ for cls in CLASSES if cls.retryable}


def test_codes_are_googles() -> None:
    """The numbers are those of google.rpc.Code."""
    assert {code.name: int(code) for code in Code} == dict(code_pb2.Code.items())


def test_reasons_are_unique_and_in_form() -> None:
    """A reason names one class, in the form that AIP-193 asks for."""
    reasons = [cls.reason for cls in CLASSES]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", reason) for reason in reasons)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_status_gives_the_same_error_back(cls: type[WeftError]) -> None:
    """Class, message and every detail survive the way through google.rpc.Status."""
    error = cls("what, expected, do: é", field="a.b[3]", metadata={"k": "v"}, retry_after_s=2.25)
    back = error_from_status(status_pb2.Status.FromString(status_from_error(error).SerializeToString()))
    assert type(back) is cls
    assert (back.message, back.field, back.metadata, back.retry_after_s) == (
        "what, expected, do: é",
        "a.b[3]",
        {"k": "v"},
        2.25,
    )


def test_status_holds_only_the_details_that_the_error_has() -> None:
    """Without a field there is no BadRequest, without a delay no RetryInfo."""
    (detail,) = status_from_error(InternalError("x")).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("INTERNAL", "weft")


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=30))
def test_status_of_any_text_fits_in_metadata(message: str, field: str, metadata: dict[str, str]) -> None:
    """No text makes a status that does not serialise or outgrows the room in trailing metadata."""
    error = InvalidArgumentError(
        message * 200, field=field * 200, metadata={k * 99: v * 99 for k, v in metadata.items()}
    )
    status = status_from_error(error)
    assert len(status.SerializeToString()) < 7000
    assert status.message == message * 200 or status.message.endswith("...") or "?" in status.message


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (8, "STORAGE_FULL", StorageFullError),
        (3, "STORAGE_FULL", InvalidArgumentError),
        (3, "OF_A_LATER_VERSION", InvalidArgumentError),
        (11, "", InvalidArgumentError),
        (2, "", InternalError),
        (99, "", InternalError),
    ],
)
def test_error_class_falls_back_to_the_code(code: int, reason: str, expected: type[WeftError]) -> None:
    """A reason counts only together with its code; unknown codes are internal errors."""
    assert error_class(code, reason) is expected


def test_foreign_domain_does_not_choose_the_class() -> None:
    """Another system's reason that happens to be one of ours says nothing."""
    status = status_from_error(StorageFullError("full"))
    info = error_details_pb2.ErrorInfo(reason="STORAGE_FULL", domain="example.com")
    status.details[0].Pack(info)
    assert type(error_from_status(status)).__name__ == "ResourceExhaustedError"


def test_undecodable_detail_is_passed_over() -> None:
    """A broken detail costs the detail, not the error."""
    status = status_from_error(InvalidArgumentError("bad", field="f"))
    status.details[1].value = b"\xff\xff"
    back = error_from_status(status)
    assert isinstance(back, InvalidArgumentError)
    assert back.field is None


def test_reference_lists_every_error() -> None:
    """The table for operators has each reason with its code and whether a retry helps."""
    page = Path(__file__).parents[3] / "docs" / "reference" / "errors.md"
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \| (yes|no) \|", page.read_text(), flags=re.MULTILINE)
    wanted = {(cls.reason, cls.code.name, "yes" if cls.retryable else "no") for cls in (*CLASSES, PortTakenError)}
    assert set(rows) == wanted
