"""Files of text, JSON lines, Parquet and Arrow: records as other readers find them, broken ones named, no bombs."""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft_activations.adapters.arrow_records import ArrowFiles
from weft_activations.adapters.decompression import pieces
from weft_activations.adapters.parquet_records import ParquetFiles
from weft_activations.adapters.text_records import JsonLines, TextFiles, lines
from weft_activations.core.records import ReadBudget, ReadLimits, Record
from weft_common.errors import CancelledError, FailedPreconditionError

LIMITS = ReadLimits(record_bytes=200, read_bytes=1 << 24, expansion=10.0, seconds=60.0)
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def _budget(path: Path, limits: ReadLimits = LIMITS, **settings: Any) -> ReadBudget:
    budget = ReadBudget(limits, **settings)
    budget.begin_file(path.name, path.stat().st_size)
    return budget


def _write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _read(form: Any, path: Path, field: str = "text", limits: ReadLimits = LIMITS) -> list[Record]:
    return list(form.records(path, path.name, field, _budget(path, limits)))


@pytest.mark.parametrize("ending", PACKERS)
def test_json_lines_are_what_json_finds_line_by_line(tmp_path: Path, ending: str) -> None:
    """Good lines in order with their numbers; each kind of broken line has its reason; empty lines are passed over."""
    good = ["one", "zwei ü", "line\nbreak\r", "", "𝔘"]
    encoded = [json.dumps({"id": index, "text": text}).encode() for index, text in enumerate(good)]
    broken = [b"{", b'{"text": 3}', b'{"body": "x"}', b"[1]", b'"\xff"', b'{"text": "' + b"a" * 300 + b'"}', b"[" * 190]
    data = b"\xef\xbb\xbf" + b"\n".join([*encoded, b"", b"  ", *broken])
    found = _read(JsonLines(), _write(tmp_path, f"a.jsonl{ending}", PACKERS[ending](data)))
    assert [(each.number, each.text) for each in found[:5]] == list(enumerate(good, start=1))
    assert [each.number for each in found[5:]] == list(range(8, 15))
    assert all(each.text is None for each in found[5:])
    reasons = ("not JSON", "no string: int", "no field 'text', only body", "no object: list", "not UTF-8")
    for each, reason in zip(found[5:], (*reasons, "longer than 200", "not JSON"), strict=True):
        assert reason in each.problem


@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5), most=st.integers(1, 20))
def test_lines_do_not_depend_on_the_pieces(data: bytes, cuts: list[int], most: int) -> None:
    """However a stream arrives, its lines are those of `split`, and a long one is None."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[begin:end] for begin, end in pairwise(edges)]
    wanted = data.split(b"\n")
    if wanted[-1] == b"":
        wanted.pop()
    assert list(lines(chunks, most)) == [None if len(line) > most else line for line in wanted]


@pytest.mark.parametrize("ending", PACKERS)
def test_text_file_is_one_record(tmp_path: Path, ending: str) -> None:
    """Whole, broken at a byte, or too long."""
    for data, wanted in (
        ("häuser\n".encode(), Record(1, "häuser\n")),
        (b"ab\xffc", Record(1, None, "it is not UTF-8: invalid start byte at byte 2")),
        (b"x" * 201, Record(1, None, "it is longer than 200 bytes")),
    ):
        assert _read(TextFiles(), _write(tmp_path, f"a.txt{ending}", PACKERS[ending](data))) == [wanted]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(members=st.lists(st.binary(max_size=40), min_size=1, max_size=4))
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_members_and_frames_join(tmp_path: Path, ending: str, members: list[bytes]) -> None:
    """Files that were put one behind the other, empty ones too, decompress to their joined content."""
    path = _write(tmp_path, f"a{ending}", b"".join(map(PACKERS[ending], members)))
    assert b"".join(pieces(path, path.name, _budget(path))) == b"".join(members)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_cut_or_damaged_file_is_refused(tmp_path: Path, ending: str) -> None:
    """Whatever its length, what is left of a file is never taken for the whole; nor is something else."""
    whole = PACKERS[ending](bytes(range(256)) * 40)
    for length in (5, len(whole) // 2, len(whole) - 1):
        path = _write(tmp_path, f"a.jsonl{ending}", whole[:length])
        with pytest.raises(FailedPreconditionError, match=f"a.jsonl{ending} is cut off or no"):
            list(pieces(path, path.name, _budget(path)))
    path = _write(tmp_path, f"a.jsonl{ending}", b"no such thing at all")
    with pytest.raises(FailedPreconditionError, match="is cut off or no"):
        list(pieces(path, path.name, _budget(path)))


def _bombs() -> Iterator[tuple[str, bytes]]:
    zeros = bytes(1 << 20)
    compressor = zstandard.ZstdCompressor(level=19).compressobj()
    yield "a.jsonl.gz", gzip.compress(zeros * 32)
    yield "a.jsonl.zst", b"".join([*(compressor.compress(zeros) for _ in range(256)), compressor.flush()])


@pytest.mark.parametrize(("name", "bomb"), list(_bombs()), ids=["gz", "zst"])
def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, name: str, bomb: bytes) -> None:
    """A file that grows beyond its ratio ends the read after one piece, whether or not it has lines."""
    path = _write(tmp_path, name, bomb)
    arrived: list[int] = []
    with pytest.raises(FailedPreconditionError, match=r"10 times its size.*WEFT_ACTIVATIONS_MAX_CORPUS_EXPANSION"):
        arrived.extend(map(len, pieces(path, name, _budget(path))))
    assert sum(arrived) < 2 << 20


def test_zstd_window_is_bounded(tmp_path: Path) -> None:
    """A frame that asks for more memory than any usual file is refused for that alone."""
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = _write(tmp_path, "a.txt.zst", compressor.compress(b"x" * 10) + compressor.flush())
    with pytest.raises(FailedPreconditionError, match="cut off or no zst"):
        list(pieces(path, path.name, _budget(path)))


def test_budget_ends_by_bytes_and_by_call(tmp_path: Path) -> None:
    """All files together are bounded, and whoever calls the work off is heard."""
    path = _write(tmp_path, "a.txt", b"x" * 1000)
    tight = ReadLimits(record_bytes=1, read_bytes=999, expansion=1.0, seconds=5.0)
    with pytest.raises(FailedPreconditionError, match=r"more than 999 bytes came out of the files by a\.txt"):
        list(pieces(path, path.name, _budget(path, tight)))
    with pytest.raises(CancelledError):
        _budget(path, stopped=lambda: True)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_budget_ends_by_time_though_nothing_comes_out(tmp_path: Path, ending: str) -> None:
    """A million empty members cost time and give no byte: the clock is looked at between them."""
    path = _write(tmp_path, f"a{ending}", PACKERS[ending](b"") * 50)
    ticks = iter(range(1000))
    budget = _budget(path, clock=lambda: 4.0 * next(ticks))
    with pytest.raises(FailedPreconditionError, match="took longer than 60 s"):
        list(pieces(path, path.name, budget))
    assert next(ticks) < 25


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=30)), max_size=30),
    group_rows=st.integers(1, 12),
    large=st.booleans(),
    dictionary=st.booleans(),
)
def test_parquet_rows_are_the_tables(
    tmp_path: Path, texts: list[str | None], group_rows: int, large: bool, dictionary: bool
) -> None:
    """Rows in order with their numbers, however they are encoded; a null is broken, a long one too."""
    texts = [None if text is None else text.encode(errors="ignore").decode() for text in texts]
    column = pa.array(texts, pa.large_string() if large else pa.string())
    table = pa.table({"n": list(range(len(texts))), "body": column.dictionary_encode() if dictionary else column})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=group_rows)
    limits = ReadLimits(record_bytes=20, read_bytes=1 << 20, expansion=100.0, seconds=60.0)
    found = _read(ParquetFiles(), path, "body", limits)
    assert [each.number for each in found] == list(range(1, len(texts) + 1))
    wanted = [text if text is not None and len(text.encode()) <= 20 else None for text in texts]
    assert [each.text for each in found] == wanted
    for each, text in zip(found, texts, strict=True):
        if each.text is None:
            assert each.problem == ("it is null" if text is None else "it is longer than 20 bytes")


def test_parquet_bytes_that_are_no_text_are_broken(tmp_path: Path) -> None:
    """A column may say that it is UTF-8 and not be: the row is broken, and the others are not."""
    lie = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": lie}), tmp_path / "a.parquet")
    first, second = _read(ParquetFiles(), tmp_path / "a.parquet")
    assert first == Record(1, "ok")
    assert (second.text, second.problem) == (None, "it is not UTF-8: invalid start byte at byte 0")


def test_parquet_file_is_refused_with_its_columns(tmp_path: Path) -> None:
    """No such column, a column of numbers, a file that is cut off, and a column that unpacks to too much."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1, 2], "body": ["a", "b"]}), path)
    for field, words in (("text", "there are n, body"), ("n", "'n' of a.parquet is int64; text is expected")):
        with pytest.raises(FailedPreconditionError, match=words):
            _read(ParquetFiles(), path, field)
    whole = path.read_bytes()
    for cut in (whole[:-20], b""):
        with pytest.raises(FailedPreconditionError, match="cut off or no Parquet file"):
            _read(ParquetFiles(), _write(tmp_path, "b.parquet", cut), "body")
    pq.write_table(pa.table({"text": ["a" * (1 << 22)]}), path, compression="zstd")
    with pytest.raises(FailedPreconditionError, match="more than 10 times its size"):
        _read(ParquetFiles(), path)


def test_parquet_string_that_is_repeated_is_held_once(tmp_path: Path) -> None:
    """A row group of one long text many times over costs its dictionary, not its rows."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"text": repeated}), tmp_path / "a.parquet")
    limits = ReadLimits(record_bytes=10, read_bytes=1 << 20, expansion=1.0, seconds=60.0)
    before = pa.total_allocated_bytes()
    most = 0
    path = tmp_path / "a.parquet"
    for record in ParquetFiles().records(path, path.name, "text", _budget(path, limits)):
        assert record.text is None
        if record.number % 500 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 10 << 20


def _stream(path: Path, table: pa.Table, rows: int, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=rows):
            writer.write_batch(batch)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=30)), max_size=30), rows=st.integers(1, 9), large=st.booleans()
)
def test_arrow_rows_are_the_tables(tmp_path: Path, texts: list[str | None], rows: int, large: bool) -> None:
    """Rows in order with their numbers, as `save_to_disk` leaves them; a null is broken, a long one too."""
    texts = [None if text is None else text.encode(errors="ignore").decode() for text in texts]
    column = pa.array(texts, pa.large_string() if large else pa.string())
    path = tmp_path / "data-00000-of-00001.arrow"
    _stream(path, pa.table({"n": list(range(len(texts))), "text": column}), rows)
    found = _read(ArrowFiles(), path, limits=replace(LIMITS, record_bytes=20))
    assert [each.number for each in found] == list(range(1, len(texts) + 1))
    assert [each.text for each in found] == [
        text if text is not None and len(text.encode()) <= 20 else None for text in texts
    ]


def test_arrow_stream_that_is_not_plain_is_refused(tmp_path: Path) -> None:
    """Compressed batches and dictionaries by their headers; wrong columns, formats and damage by what they are."""
    path = tmp_path / "a.arrow"
    table = pa.table({"text": ["a" * 100] * 1000, "n": list(range(1000))})
    for compression in ("zstd", "lz4"):
        _stream(path, table, 100, compression)
        with pytest.raises(FailedPreconditionError, match="record batch that is compressed"):
            _read(ArrowFiles(), path)
    _stream(path, pa.table({"text": pa.array(["a", "b"]).dictionary_encode()}), 10)
    with pytest.raises(FailedPreconditionError, match="has a dictionary"):
        _read(ArrowFiles(), path)
    _stream(path, table, 100)
    with pytest.raises(FailedPreconditionError, match="there are text, n"):
        _read(ArrowFiles(), path, "body")
    with pytest.raises(FailedPreconditionError, match="'n' of a.arrow is int64".replace(".", r"\.")):
        _read(ArrowFiles(), path, "n")
    whole = path.read_bytes()
    for data in (whole[:-50], b"ARROW1" + whole, b""):
        with pytest.raises(FailedPreconditionError, match="cut off or no Arrow stream"):
            _read(ArrowFiles(), _write(tmp_path, "b.arrow", data))


@pytest.mark.parametrize("form", [ArrowFiles(), ParquetFiles()], ids=["arrow", "parquet"])
def test_damaged_columns_are_read_or_refused(tmp_path: Path, form: Any) -> None:
    """Whatever bytes are changed, there is an error of ours or records: no other error, no crash, no endless list."""
    table = pa.table({"n": list(range(10)), "text": pa.array(["a", "b" * 100, None, "é", ""] * 2)})
    path = tmp_path / f"a{form.suffixes[0]}"
    if isinstance(form, ArrowFiles):
        _stream(path, table, 3)
    else:
        pq.write_table(table, path, row_group_size=4)
    whole = path.read_bytes()
    drawn = random.Random(7)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(drawn.randrange(1, 4)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
        try:
            assert len(_read(form, _write(tmp_path, path.name, data), limits=replace(LIMITS, expansion=100.0))) < 10_000
        except FailedPreconditionError:
            refused += 1
    assert 0 < refused < 400
