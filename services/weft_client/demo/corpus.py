"""The demo's text: Python's own help topics, which come with every Python."""

from collections.abc import Iterator
from pydoc_data.topics import topics


def python_topics() -> Iterator[tuple[str, bytes]]:
    """
    Yield each help topic as a document, in order of name.

    >>> names = [name.removesuffix(".txt") for name, _ in python_topics()]
    >>> names == sorted(names), "lambda" in names
    (True, True)
    """
    for name in sorted(topics):
        yield f"{name}.txt", topics[name].encode()
