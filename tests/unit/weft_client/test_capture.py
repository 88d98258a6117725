"""Captured tensors, and interventions on their way out."""

import numpy as np
import pytest

from weft.activations.v1 import messages_pb2
from weft_client import Capture
from weft_client.interventions import ablate, add, replace
from weft_common.tensors import tensor_from_proto


def capture() -> Capture:
    arrays = {f"layers.{layer}.mlp_in": np.full((3, 2), layer, np.float32) for layer in range(2)}
    return Capture(messages_pb2.Model(num_layers=2), [messages_pb2.Token(id=5, text=" a")], arrays)


def test_capture_stacks_the_layers_of_a_hook() -> None:
    """Layers come first, in order."""
    np.testing.assert_array_equal(capture().stacked("mlp_in")[:, 0, 0], [0, 1])
    with pytest.raises(KeyError):
        capture().stacked("mlp_out")


def test_capture_gives_torch_tensors_that_share_memory() -> None:
    """Nothing is copied on the way to torch."""
    found = capture()
    tensors = found.torch()
    assert list(tensors) == list(found)
    tensors["layers.1.mlp_in"][0, 0] = 9
    assert found["layers.1.mlp_in"][0, 0] == 9


def test_interventions_carry_float32() -> None:
    """A list or a float64 array goes out as float32, at the positions given."""
    for build, kind in ((add, messages_pb2.INTERVENTION_KIND_ADD), (replace, messages_pb2.INTERVENTION_KIND_SET)):
        message = build("layers.0.mlp_out", [1.5, 2.0], positions=[3])
        assert (message.kind, list(message.positions)) == (kind, [3])
        np.testing.assert_array_equal(tensor_from_proto(message.value, max_bytes=8), np.float32([1.5, 2.0]))
    assert ablate("layers.0.mlp_out").kind == messages_pb2.INTERVENTION_KIND_ABLATE
