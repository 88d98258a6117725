"""Every input that fuzzing has kept, and some that hypothesis makes of them, is read or refused with DataLossError."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
from fuzz.targets import TARGETS, seeds
from hypothesis import HealthCheck, given, settings

_CORPORA = Path(__file__).resolve().parents[2] / "fuzz" / "corpora"
_SEEDS = seeds()


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs_are_read_or_refused(target: str) -> None:
    """No committed input breaks a reader, and there are some for each."""
    kept = sorted((_CORPORA / target).iterdir())
    assert len(kept) >= len(_SEEDS[target])
    for path in kept:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_edited_inputs_are_read_or_refused(target: str, data: st.DataObject) -> None:
    """A sound input with bytes changed, left out or put in breaks no reader."""
    made = bytearray(data.draw(st.sampled_from(sorted(_SEEDS[target].values()))))
    for at, gone, put in data.draw(
        st.lists(st.tuples(st.integers(0, len(made)), st.integers(0, 3), st.binary(max_size=4)), max_size=4)
    ):
        made[at : at + gone] = put
    TARGETS[target](bytes(made))
