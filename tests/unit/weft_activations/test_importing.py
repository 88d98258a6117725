"""An import keeps each document once, in order; counts, names and limits what is broken; and is whole or not there."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pydoc_data.topics import topics
from typing import Any

import pytest
import zstandard
from harvest_fakes import Fate, KilledError, Mortal
from hypothesis import given, settings
from hypothesis import strategies as st

from weft_activations.adapters.text_records import JsonLines, TextFiles
from weft_activations.core import corpus_parts
from weft_activations.core.corpus import Corpus, corpus_ids, read_corpus, read_documents, store_corpus
from weft_activations.core.corpus_origin import ImportSpec
from weft_activations.core.importing import CorpusImporter, ImportLimits, ImportProgress
from weft_activations.core.records import ReadLimits
from weft_common.errors import (
    AlreadyExistsError,
    CancelledError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    WeftError,
)
from weft_store.adapters.memory import MemoryObjectStore

LIMITS = ImportLimits(
    prefixes=("corpora/",),
    file_bytes=1 << 20,
    corpus_bytes=1 << 20,
    documents=10_000,
    reading=ReadLimits(record_bytes=1 << 18, read_bytes=1 << 24, expansion=100.0, seconds=600.0),
)
SOURCE = "corpora/c/files/"
TOPICS = [topics[name] for name in sorted(topics)]


def _jsonl(texts: list[Any]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def _store(files: dict[str, bytes]) -> MemoryObjectStore:
    store = MemoryObjectStore()
    for name, data in files.items():
        store.put(SOURCE + name, data)
    return store


def _importer(store: Any, **limits: Any) -> CorpusImporter:
    return CorpusImporter(store, [TextFiles(), JsonLines()], replace(LIMITS, **limits), weft_version="9")


def _import(store: Any, corpus_id: str = "c", limits: dict[str, Any] | None = None, **spec: Any) -> Corpus:
    wanted = ImportSpec(**({"source": SOURCE} | spec))
    return _importer(store, **(limits or {})).run(corpus_id, wanted, ImportProgress())


def test_python_topics_arrive_whole_in_the_order_of_files() -> None:
    """Real text over three kinds of files, some in folders, is read in the order of keys and lines, and digested so."""
    store = _store(
        {
            "b/second.jsonl.zst": zstandard.compress(_jsonl(TOPICS[30:60])),
            "a.jsonl.gz": gzip.compress(_jsonl(TOPICS[:30])),
            "c.txt": TOPICS[60].encode(),
            "README.md": b"left alone",
        }
    )
    corpus = _import(store)
    assert list(read_documents(store, corpus)) == TOPICS[:61]
    assert corpus == read_corpus(store, "c")
    assert (corpus.num_documents, corpus.size_bytes) == (61, sum(len(text.encode()) for text in TOPICS[:61]))
    digest = hashlib.sha256()
    for text in TOPICS[:61]:
        digest.update(f"{len(text.encode())}\n{text}".encode())
    assert corpus.digest == digest.hexdigest()
    origin = corpus.origin
    assert origin is not None
    assert [file.key for file in origin.files] == [
        SOURCE + "a.jsonl.gz",
        SOURCE + "b/second.jsonl.zst",
        SOURCE + "c.txt",
    ]
    for file in origin.files:
        data = store.get(file.key)
        assert (file.sha256, file.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (origin.num_records, origin.num_empty, origin.num_broken, origin.weft_version) == (61, 0, 0, "9")


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=30), part_bytes=st.integers(1, 200))
def test_documents_come_back_however_parts_are_cut(texts: list[str], part_bytes: int) -> None:
    """Every text that UTF-8 can hold is read back, empty ones left out, whatever the size of parts."""
    store = _store({"a.jsonl": _jsonl(texts)})
    wanted = [text for text in texts if text and text.encode(errors="ignore").decode() == text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_parts, "_PART_BYTES", part_bytes)
        if not wanted:
            with pytest.raises(FailedPreconditionError, match="give no document"):
                _import(store, max_broken=100)
            assert not list(store.list("corpora/c/parts/"))
            return
        corpus = _import(store, max_broken=100)
    assert list(read_documents(store, corpus)) == wanted
    assert corpus.origin is not None
    assert corpus.origin.num_empty == texts.count("")
    assert corpus.origin.num_broken == len(texts) - len(wanted) - texts.count("")


def test_broken_lines_are_counted_named_and_limited() -> None:
    """Up to the limit they are left out and told; one more ends the import with file and line, and leaves nothing."""
    data = b'{"text": "one"}\n{"text": 1}\n{"text": "two"}\nnonsense\n{"text": "\\ud800"}\n'
    store = _store({"a.jsonl": data, "b.txt": b"\xff"})
    corpus = _import(store, max_broken=4)
    assert list(read_documents(store, corpus)) == ["one", "two"]
    assert corpus.origin is not None
    assert corpus.origin.num_broken == 4
    assert [(each.file[len(SOURCE) :], each.number) for each in corpus.origin.broken] == [
        ("a.jsonl", 2),
        ("a.jsonl", 4),
        ("a.jsonl", 5),
        ("b.txt", 1),
    ]
    assert "surrogate" in corpus.origin.broken[2].problem
    with pytest.raises(
        FailedPreconditionError, match=r"files/a.jsonl, record 4: it is not JSON.* 2 broken .* max_broken, 1"
    ):
        _import(store, "d", max_broken=1)
    assert corpus_ids(store) == ["c"]
    assert not list(store.list("corpora/d/"))


def test_sample_is_drawn_by_file_place_and_seed() -> None:
    """A share is near its size, the same each time, another for another seed; what else is imported changes nothing."""
    store = _store({"a.jsonl": _jsonl([f"a{n}" for n in range(400)]), "b.jsonl": _jsonl([f"b{n}" for n in range(400)])})
    drawn = list(read_documents(store, _import(store, "half", sample_share=0.5)))
    assert 320 < len(drawn) < 480
    again = _import(store, "again", sample_share=0.5)
    assert list(read_documents(store, again)) == drawn
    other = list(read_documents(store, _import(store, "other", sample_share=0.5, sample_seed=1)))
    assert 100 < len(set(other) & set(drawn)) < 300
    alone = list(read_documents(store, _import(store, "alone", sample_share=0.5, source=SOURCE + "b")))
    assert alone == [text for text in drawn if text[0] == "b"]
    few = _import(store, "few", sample_share=0.5, max_documents=10)
    assert list(read_documents(store, few)) == drawn[:10]
    assert few.origin is not None
    assert len(few.origin.files) == 1


def test_same_import_again_is_found_and_another_is_refused() -> None:
    """A corpus is immutable: files that change later do not change it, and other settings need another id."""
    store = _store({"a.txt": b"one"})
    corpus = _import(store)
    store.put(SOURCE + "a.txt", b"two")
    assert _import(store) == corpus
    assert list(read_documents(store, corpus)) == ["one"]
    with pytest.raises(AlreadyExistsError, match="choose another id"):
        _import(store, max_broken=1)
    store_corpus(store, "u", {"a": b"one"})
    with pytest.raises(AlreadyExistsError, match="choose another id"):
        _import(store, "u")


@pytest.mark.parametrize(
    ("spec", "limits", "kind", "words"),
    [
        ({"source": "datasets/"}, {}, InvalidArgumentError, "below corpora/ only"),
        ({"source": "/etc/"}, {}, InvalidArgumentError, "no key prefix"),
        ({"source": "corpora/../datasets/"}, {}, InvalidArgumentError, "no key prefix"),
        ({"source": "https://example.org/a.txt"}, {}, InvalidArgumentError, "no key prefix"),
        ({"source": "corpora/none/"}, {}, NotFoundError, "no file to read"),
        ({"sample_share": float("nan")}, {}, InvalidArgumentError, "sample_share is nan"),
        ({"sample_share": 1.5}, {}, InvalidArgumentError, "sample_share is 1.5"),
        ({"max_broken": -1}, {}, InvalidArgumentError, "max_broken is below 0"),
        ({"max_documents": -1}, {}, InvalidArgumentError, "max_documents is below 0"),
        ({}, {"file_bytes": 10}, FailedPreconditionError, r"a.jsonl has \d+ bytes; a file has 10 at most"),
        ({}, {"corpus_bytes": 7}, FailedPreconditionError, "by record 3 of .* more than 7 bytes of text"),
        ({}, {"documents": 1}, FailedPreconditionError, "by record 2 of .* more than 1 documents"),
        ({"sample_share": 1e-9}, {}, FailedPreconditionError, "give no document"),
    ],
)
def test_bad_imports_are_refused(spec: Any, limits: Any, kind: type[WeftError], words: str) -> None:
    """Each refusal says what was expected, and leaves no corpus and no part behind."""
    store = _store({"a.jsonl": _jsonl(["one", "two", "three"])})
    with pytest.raises(kind, match=words):
        _import(store, limits=limits, **spec)
    assert corpus_ids(store) == []
    assert [info.key for info in store.list("corpora/")] == [SOURCE + "a.jsonl"]


def test_import_that_is_called_off_leaves_nothing() -> None:
    """What was written before is deleted, and the next import of that name is free to go."""
    store = _store({f"{n}.txt": b"x" * 100 for n in range(5)})
    looks: Iterator[bool] = iter([False] * 6 + [True] * 20)
    with pytest.raises(CancelledError):
        _importer(store).run("c", ImportSpec(SOURCE), ImportProgress(), stopped=lambda: next(looks))
    assert not list(store.list("corpora/c/parts/"))
    assert _import(store).num_documents == 5


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_import_killed_at_any_call_is_made_good_by_the_next(monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """Whichever call to the bucket is the last, there is no corpus or the whole; the next import clears up."""
    monkeypatch.setattr(corpus_parts, "_PART_BYTES", 30)
    texts = [f"document {n}" for n in range(8)]
    deaths = 0
    for step in range(200):
        store = _store({"a.jsonl": _jsonl(texts)})
        try:
            _import(Mortal(store, Fate(step, after=after)))
        except KilledError:
            deaths += 1
        else:
            break
        for corpus_id in corpus_ids(store):
            assert list(read_documents(store, read_corpus(store, corpus_id))) == texts
        corpus = _import(store)
        assert list(read_documents(store, corpus)) == texts
        assert {info.key for info in store.list("corpora/c/parts/")} == {part.key for part in corpus.parts}
    assert deaths > 8


def test_changed_part_is_data_loss() -> None:
    """Text that is not what was imported is never read as if it were."""
    store = _store({"a.txt": b"one"})
    corpus = _import(store)
    key = corpus.parts[0].key
    store.put(key, zstandard.compress(b'"two"\n'))
    with pytest.raises(DataLossError, match="SHA-256"):
        list(read_documents(store, corpus))
    store.delete(key)
    with pytest.raises(DataLossError, match="gone"):
        list(read_documents(store, corpus))
