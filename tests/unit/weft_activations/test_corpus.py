"""Corpora are bounded, UTF-8, whole or not there, and never mixed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_activations.core.corpus import CorpusUpload, read_corpus, read_documents, store_corpus
from weft_common.errors import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from weft_store.adapters.memory import MemoryObjectStore


@given(text=st.text(min_size=1), cuts=st.lists(st.integers(0, 50), max_size=4))
def test_pieces_join_wherever_they_are_cut(text: str, cuts: list[int]) -> None:
    """A character may straddle pieces; the document is the text again."""
    data = text.encode("utf-8", errors="ignore") or b"x"
    upload = CorpusUpload(max_bytes=1 << 20)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        upload.add("a", data[begin:end])
    assert upload.finish() == {"a": data}


@given(good=st.text(max_size=20), cut=st.integers(0, 30))
def test_bad_bytes_are_named_by_document_and_offset(good: str, cut: int) -> None:
    """The offset is that of the first bad byte in the whole document, wherever the pieces were cut."""
    prefix = good.encode("utf-8", errors="ignore")
    data = prefix + b"\xff" + b"more"
    upload = CorpusUpload(max_bytes=1 << 20)

    def add_both() -> None:
        for piece in (data[:cut], data[cut:]):
            upload.add("notes.txt", piece)

    with pytest.raises(InvalidArgumentError, match=rf"document 'notes.txt' is not UTF-8: .* at byte {len(prefix)};"):
        add_both()


def test_document_that_ends_inside_a_character_is_refused() -> None:
    """What is missing at the end is noticed at the end."""
    upload = CorpusUpload(max_bytes=100)
    upload.add("a", "né".encode()[:-1])
    with pytest.raises(InvalidArgumentError, match=r"document 'a' is not UTF-8: .* at byte 1"):
        upload.finish()


def test_upload_is_bounded() -> None:
    """Too large a piece, too large a corpus, no name and no text at all are refused."""
    with pytest.raises(InvalidArgumentError, match="pieces of 1048576"):
        CorpusUpload(max_bytes=1 << 30).add("a", bytes((1 << 20) + 1))
    upload = CorpusUpload(max_bytes=10)
    upload.add("a", b"123456")
    with pytest.raises(ResourceExhaustedError, match="10 bytes"):
        upload.add("b", b"12345")
    with pytest.raises(InvalidArgumentError, match="without the name"):
        upload.add("", b"1")
    with pytest.raises(InvalidArgumentError, match="no text"):
        CorpusUpload(max_bytes=10).finish()


def test_corpus_is_read_back_and_stored_once() -> None:
    """The same documents again are success; others under the same name are not."""
    store = MemoryObjectStore()
    stored = store_corpus(store, "c", {"a": b"one", "b": b"two"})
    assert store_corpus(store, "c", {"a": b"one", "b": b"two"}) == stored
    assert list(read_documents(store, read_corpus(store, "c"))) == ["one", "two"]
    assert stored.size_bytes == 6
    for other in ({"b": b"two", "a": b"one"}, {"a": b"onet", "b": b"wo"}, {"a": b"one"}):
        with pytest.raises(AlreadyExistsError, match="other documents"):
            store_corpus(store, "c", other)
    assert list(read_documents(store, read_corpus(store, "c"))) == ["one", "two"]


def test_unfinished_upload_is_no_corpus() -> None:
    """Documents without a manifest do not count, and do not hinder the next upload."""
    store = MemoryObjectStore()
    store_corpus(store, "c", {"a": b"one"})
    store.delete("corpora/c/manifest.json")
    with pytest.raises(NotFoundError, match="UploadCorpus"):
        read_corpus(store, "c")
    store_corpus(store, "c", {"a": b"other"})
    assert list(read_documents(store, read_corpus(store, "c"))) == ["other"]


def test_changed_document_is_data_loss() -> None:
    """Text that is not what was uploaded is never read as if it were."""
    store = MemoryObjectStore()
    key = store_corpus(store, "c", {"a": b"one"}).documents[0][0]
    store.put(key, b"eno")
    with pytest.raises(DataLossError, match="SHA-256"):
        list(read_documents(store, read_corpus(store, "c")))
    store.delete(key)
    with pytest.raises(DataLossError, match="gone"):
        list(read_documents(store, read_corpus(store, "c")))
