"""The text that long runs read, as far as a fast test goes into it."""

from itertools import islice

from benchmarks.training.quality.text import library_docstrings

from weft_client.demo.corpus import python_topics


def test_docstrings_are_documents_of_their_own() -> None:
    """In order of modules, with names that no help topic has, long enough to read, and without code."""
    documents = list(islice(library_docstrings(), 30))
    names = [name for name, _ in documents]
    assert len(set(names)) == len(documents) == 30
    assert not {name for name, _ in python_topics()} & set(names)
    assert all(len(text.decode()) >= 200 for _, text in documents)
    text = dict(documents).get("library-argparse.txt", b"").decode()
    assert "Command-line parsing library" in text
    assert "import os as _os" not in text
