"""Labels as CSV and JSON lines."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.features.v1 import labels_pb2
from weft_client.label_files import FORMATS, format_of, read_labels, write_labels
from weft_common.errors import InvalidArgumentError

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=40)
LABELS = st.lists(
    st.builds(
        labels_pb2.Label,
        layer=st.integers(0, 9_999),
        index=st.integers(0, 10**9 - 1),
        text=TEXT.filter(str.strip),
        origin=st.sampled_from([labels_pb2.LABEL_ORIGIN_HUMAN, labels_pb2.LABEL_ORIGIN_MODEL]),
        author=TEXT,
        explainer=TEXT,
        prompt=TEXT,
        prompt_sha256=TEXT,
    ),
    max_size=5,
)


@pytest.mark.parametrize("layout", FORMATS)
@given(labels=LABELS)
def test_labels_come_back_as_they_were(layout: str, labels: list[labels_pb2.Label]) -> None:
    """Quotes, commas, formulas, apostrophes and every script survive both formats."""
    written = "".join(write_labels(labels, layout))
    assert list(read_labels(io.StringIO(written, newline=""), layout, "f")) == labels


@given(labels=LABELS)
def test_no_cell_is_a_formula(labels: list[labels_pb2.Label]) -> None:
    """No cell of a CSV begins with what makes a spreadsheet compute it."""
    written = "".join(write_labels(labels, "csv"))
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert len(rows) == len(labels) + 1
    assert not [cell for row in rows for cell in row if cell[:1] in tuple("=+-@")]


def test_files_of_others_are_read() -> None:
    """Only feature and text are needed; columns come in any order, and unknown ones are passed over."""
    csv_rows = ["note,text,index,layer\r\n", 'n,"a, ""b""",5,1\r\n']
    line = json.dumps({"layer": 1, "index": 5, "text": 'a, "b"', "note": "n"})
    wanted = labels_pb2.Label(layer=1, index=5, text='a, "b"', origin=labels_pb2.LABEL_ORIGIN_HUMAN)
    assert list(read_labels(csv_rows, "csv", "f")) == [wanted]
    assert list(read_labels(["\n", line], "jsonl", "f")) == [wanted]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"layer": 1, "index": 5}, "no text"), ({"layer": 1, "text": "x"}, "index is None"),
        ({"layer": -1, "index": 5, "text": "x"}, "layer is -1"), ({"layer": True, "index": 5, "text": "x"}, "layer is"),
        ({"layer": 1, "index": 10**12, "text": "x"}, "index is"), ({"layer": 1, "index": 5, "text": 7}, "text is 7"),
        ({"layer": 1, "index": 5, "text": "x", "origin": "dog"}, "human or model"),
    ],
)  # fmt: skip
def test_row_that_is_no_label_is_named(row: dict[str, object], match: str) -> None:
    """The message has the file and the line."""
    good = json.dumps({"layer": 0, "index": 0, "text": "x"})
    with pytest.raises(InvalidArgumentError, match=match) as raised:
        list(read_labels([good, json.dumps(row)], "jsonl", "f.jsonl"))
    assert "f.jsonl:2" in raised.value.message


@pytest.mark.parametrize(
    ("lines", "layout", "match"),
    [
        (["{"], "jsonl", "no JSON"), (["[1]"], "jsonl", "no object"), (["[" * 60_000], "jsonl", "no JSON"),
        (["x" * 70_000], "jsonl", "70000 characters"), (["layer,index,text\n", "1,2,x,y\n"], "csv", "more cells"),
        (["layer,index,text\n", '1,2,"x'], "csv", "no CSV"),
        (["layer,index,text\n", "1,9" + "9" * 5000 + ",x\n"], "csv", "index"),
    ],
)  # fmt: skip
def test_file_that_is_none_is_refused(lines: list[str], layout: str, match: str) -> None:
    """Broken, deep and endless files end in a message."""
    with pytest.raises(InvalidArgumentError, match=match):
        list(read_labels(lines, layout, "f"))


def test_format_goes_by_the_name() -> None:
    """Other endings are refused."""
    assert (format_of("a.CSV"), format_of("b.jsonl")) == ("csv", "jsonl")
    with pytest.raises(InvalidArgumentError, match="--format"):
        format_of("labels.txt")
