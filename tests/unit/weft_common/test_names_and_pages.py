"""Resource names and pagination."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_common.errors import InvalidArgumentError
from weft_common.pages import MAX_PAGE_SIZE, newest_first, paginate
from weft_common.resource_names import check_id, parse_child_name, parse_name


@pytest.mark.parametrize("value", ["a", "smollm2-135m-instruct", "SmolLM2_135M.v1", "9", "a" * 63])
def test_check_id_accepts(value: str) -> None:
    """Letters, digits, dots, underscores and hyphens make an id."""
    assert check_id(value) == value


@pytest.mark.parametrize("value", ["", ".", "..", "a..b", "-a", ".a", "a/b", "a b", "é", "a\n", "a" * 64, "a\x00"])
def test_check_id_refuses(value: str) -> None:
    """What could leave its folder, or is no plain word, is refused with the field named."""
    with pytest.raises(InvalidArgumentError, match="dataset_id") as caught:
        check_id(value, field="dataset_id")
    assert caught.value.field == "dataset_id"


def test_parse_name_takes_the_id_out() -> None:
    """The id stands after the collection."""
    assert parse_name("datasets/x", "datasets") == "x"
    assert parse_child_name("runs/r/checkpoints/7", "runs", "checkpoints") == ("r", "7")


@pytest.mark.parametrize(
    "name", ["", "x", "datasets", "datasets/", "models/x", "datasets/x/y", "/datasets/x", "datasets/../x"]
)
def test_parse_name_refuses_and_shows_the_form(name: str) -> None:
    """A wrong name is answered with the form that is needed, or with the id at fault."""
    with pytest.raises(InvalidArgumentError, match=r"datasets/\{id\}|whose id") as caught:
        parse_name(name, "datasets", field="dataset")
    assert caught.value.field == "dataset"


def test_long_name_is_cut_in_the_message() -> None:
    """A caller's megabyte does not come back as a message."""
    with pytest.raises(InvalidArgumentError) as caught:
        parse_name("x" * 1_000_000, "datasets")
    assert len(caught.value.message) < 300


@given(st.sets(st.text(max_size=5), max_size=30), st.integers(0, 8))
def test_pages_show_every_item_once_in_order(items: set[str], size: int) -> None:
    """Walking the tokens gives each item once, sorted, whatever the size."""
    shown: list[str] = []
    token = ""
    while True:
        page, token = paginate(items, size, token)
        shown += page
        assert len(page) <= (size or 50)
        if not token:
            break
    assert shown == sorted(items)


def test_pages_survive_deletion_of_the_last_shown() -> None:
    """The next page goes on after an item that was deleted meanwhile."""
    _, token = paginate(["a", "b", "c", "d"], 2, "")
    assert paginate(["a", "c", "d"], 2, token)[0] == ["c", "d"]


def test_page_size_is_capped() -> None:
    """Nobody gets more than the cap at once."""
    page, token = paginate(range(MAX_PAGE_SIZE + 5), 10**9, "", key=lambda item: f"{item:06}")
    assert len(page) == MAX_PAGE_SIZE
    assert token


def test_negative_page_size_is_refused() -> None:
    """A negative size is the caller's mistake."""
    with pytest.raises(InvalidArgumentError) as caught:
        paginate([], -1, "")
    assert caught.value.field == "page_size"


@pytest.mark.parametrize("token", ["x", "AAAA", "é", "////", "AQ", "Af8="])
def test_foreign_page_token_is_refused(token: str) -> None:
    """A token that no list call gave is refused, not guessed at."""
    with pytest.raises(InvalidArgumentError) as caught:
        paginate(["a"], 1, token)
    assert caught.value.field == "page_token"


@given(st.lists(st.integers(0, 2 * 10**15), min_size=1, max_size=20), st.integers(1, 5))
def test_newest_come_first_and_each_once(times_us: list[int], size: int) -> None:
    """Page by page, the last that was made leads, and of one time the names rise."""
    made = [(time_us, f"n{number:02d}") for number, time_us in enumerate(times_us)]
    shown: list[tuple[int, str]] = []
    token = ""
    while not shown or token:
        page, token = paginate(made, size, token, key=lambda item: newest_first(item[0] / 1e6, item[1]))
        shown += page
    assert shown == sorted(made, key=lambda item: (-item[0], item[1]))
