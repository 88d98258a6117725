"""Documents, operation states and bucket URLs."""

import pytest

from weft_common.errors import (
    AlreadyExistsError,
    ConflictError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
)
from weft_store import ObjectOperationStore, open_store
from weft_store.documents import create_json, encode_json, keep_json, read_json, update_json


def test_documents_are_equal_bytes_when_equal() -> None:
    """The order of keys does not matter, text stays readable, and NaN is refused."""
    assert encode_json({"b": 1, "a": "ä"}) == encode_json({"a": "ä", "b": 1}) == b'{\n "a": "\xc3\xa4",\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_json({"a": float("nan")})


def test_create_refuses_a_document_that_is_there() -> None:
    """The second creator learns it and changes nothing."""
    store = open_store("memory://")
    create_json(store, "a.json", {"n": 1})
    with pytest.raises(AlreadyExistsError):
        create_json(store, "a.json", {"n": 2})
    assert read_json(store, "a.json")[0] == {"n": 1}


def test_keep_returns_what_is_there() -> None:
    """The first to keep a document gets its own back, everybody after it the first one's."""
    store = open_store("memory://")
    assert keep_json(store, "a.json", {"n": 1}) == {"n": 1}
    assert keep_json(store, "a.json", {"n": 2}) == {"n": 1}
    assert read_json(store, "a.json")[0] == {"n": 1}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000], ids=["empty", "cut", "list", "bytes", "deep"]
)
def test_damaged_documents_are_data_loss(data: bytes) -> None:
    """What is not a JSON object is refused with the key's name."""
    store = open_store("memory://")
    store.put("a.json", data)
    with pytest.raises(DataLossError, match=r"a\.json"):
        read_json(store, "a.json")


def test_update_repeats_on_the_newest_document() -> None:
    """A change that meets another writer's is made again on what that one wrote."""
    store = open_store("memory://")
    create_json(store, "a.json", {"n": 0})
    seen = []

    def change(old: dict[str, int]) -> dict[str, int]:
        seen.append(old["n"])
        if len(seen) < 3:
            store.put("a.json", encode_json({"n": 10 * len(seen)}))
        return {"n": old["n"] + 1}

    assert update_json(store, "a.json", change) == {"n": 21}
    assert seen == [0, 10, 20]
    assert read_json(store, "a.json")[0] == {"n": 21}


def test_update_gives_up_and_says_so() -> None:
    """Where others win every time the caller hears of it; a missing document is not found; an error ends the update."""
    store = open_store("memory://")
    create_json(store, "a.json", {"n": 0})
    numbers = iter(range(1, 100))

    def lose(old: dict[str, int]) -> dict[str, int]:
        store.put("a.json", encode_json({"n": next(numbers)}))
        return {"n": -1}

    with pytest.raises(ConflictError, match="3 times"):
        update_json(store, "a.json", lose, attempts=3)
    assert read_json(store, "a.json")[0] == {"n": 3}
    with pytest.raises(NotFoundError):
        update_json(store, "b.json", lambda old: old)
    with pytest.raises(KeyError):
        update_json(store, "a.json", lambda old: old["missing"])


def test_update_without_a_change_writes_nothing() -> None:
    """An equal document keeps its version."""
    store = open_store("memory://")
    modified = create_json(store, "a.json", {"n": 0}).modified_s
    update_json(store, "a.json", dict)
    assert store.info("a.json").modified_s == modified


def test_operation_store_keeps_each_service_apart() -> None:
    """Names map to keys of their service, conditional writes conflict, and foreign names are refused."""
    store = open_store("memory://")
    operations = ObjectOperationStore(store, "cache")
    name = "operations/cache-verify-1"
    first = operations.put(name, b"one", etag=None, create=True)
    with pytest.raises(ConflictError):
        operations.put(name, b"again", etag=None, create=True)
    second = operations.put(name, b"two", etag=first, create=False)
    with pytest.raises(ConflictError):
        operations.put(name, b"stale", etag=first, create=False)
    assert operations.get(name) == (b"two", second)
    assert [info.key for info in store.list("")] == ["operations/cache/verify-1.json"]
    assert operations.list() == [name]
    assert ObjectOperationStore(store, "trainer").list() == []
    for foreign in ("operations/trainer-1", "cache-1", "operations/cache-a/b", "operations/cache-../x"):
        with pytest.raises(InvalidArgumentError):
            operations.get(foreign)
    operations.delete(name)
    operations.delete(name)
    with pytest.raises(NotFoundError):
        operations.get(name)


@pytest.mark.parametrize(
    "url",
    ["", "bucket", "/folder", "file://host/folder", "file:relative", "http://host/bucket", "s3+http://host", "s3+http:///b",
     "s3+https://user:word@host/b", "s3+http://host/b/../c"],
)  # fmt: skip
def test_open_store_refuses_what_is_no_bucket(url: str) -> None:
    """Every malformed URL is refused, and a password in it is not shown."""
    with pytest.raises(InvalidArgumentError) as caught:
        open_store(url, "access", "secret-secret")
    assert "word" not in str(caught.value)


def test_open_store_refuses_half_of_the_credentials() -> None:
    """An access key without its secret, or the reverse, is a mistake in the settings."""
    for access, secret in (("access", None), (None, "secret")):
        with pytest.raises(InvalidArgumentError, match="set both"):
            open_store("s3+http://host/bucket", access, secret)
