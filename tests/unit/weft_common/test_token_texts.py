"""The text of a run of tokens: whole characters, one string a token, at once and as tokens come."""

from hypothesis import given, settings
from hypothesis import strategies as st

from weft_common.token_texts import TextStream, run_texts

TOKYO = [b"in", b" \xe6", b"\x9d\xb1", b"\xe4\xba", b"\xac", b"."]


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """A text or any bytes, cut anywhere; tokens without bytes are among them."""
    held = draw(st.text().map(str.encode) | st.binary(max_size=20))
    cuts = sorted(draw(st.lists(st.integers(0, len(held)), max_size=8)))
    return [held[low:high] for low, high in zip([0, *cuts], [*cuts, len(held)], strict=True)]


@settings(max_examples=100, deadline=None)
@given(runs(), st.data())
def test_texts_of_a_run_put_together_are_its_text(pieces: list[bytes], data: st.DataObject) -> None:
    """However bytes are cut, whole text or not, whatever weighs most; without weights all weigh the same."""
    level = [0.0] * len(pieces)
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=len(pieces), max_size=len(pieces)))
    for each in (level, weights):
        texts = run_texts(pieces, each)
        assert len(texts) == len(pieces)
        assert "".join(texts) == b"".join(pieces).decode(errors="replace")
    assert run_texts(pieces) == run_texts(pieces, level)


def test_shared_character_stands_at_the_token_with_the_largest_weight() -> None:
    """It is the first of equals, and what is cut off at an end of the run is not hidden."""
    assert run_texts(TOKYO, [0, 1, 2, 2, 2, 0]) == ("in", "", " 東", "京", "", ".")
    assert run_texts(TOKYO, [0, 0, 0, 0, 3, 0]) == ("in", " 東", "", "", "京", ".")
    assert run_texts(TOKYO[2:4], [0, 0]) == ("\ufffd\ufffd", "\ufffd")
    assert run_texts([], []) == run_texts([]) == ()


@settings(max_examples=100, deadline=None)
@given(runs())
def test_stream_tells_the_text_as_soon_as_it_is_whole(pieces: list[bytes]) -> None:
    """What was said after each token is never taken back, and at the end all of the text was said."""
    stream, said, so_far = TextStream(), "", b""
    for at, piece in enumerate(pieces):
        is_last = at == len(pieces) - 1
        said += stream.read(piece, is_last=is_last)
        so_far += piece
        whole = so_far.decode(errors="replace")
        assert whole.startswith(said)
        # At most a character that has begun is kept back.
        assert len(whole) - len(said) == (0 if is_last else stream.has_part)
    assert said == b"".join(pieces).decode(errors="replace")


def test_streamed_character_stands_at_the_token_that_completes_it() -> None:
    """What is left at the end is told as U+FFFD."""
    stream = TextStream()
    assert [stream.read(piece) for piece in TOKYO] == ["in", " ", "東", "", "京", "."]
    assert not stream.has_part
    assert stream.read(b"\xe6") == ""
    assert stream.has_part
    assert stream.read(b"", is_last=True) == "\ufffd"
