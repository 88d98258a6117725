"""Captured tensors, and interventions on their way out."""

import numpy as np
import pytest

from weft.activations.v1 import components_pb2, messages_pb2
from weft_client import Capture
from weft_client.interventions import ablate, add, replace
from weft_common.errors import FailedPreconditionError
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


def heard() -> Capture:
    """Of 2 tokens and 4 frames of half a second."""
    position, head, frame = components_pb2.DIM_POSITION, components_pb2.DIM_HEAD, components_pb2.DIM_FRAME
    model = messages_pb2.Model(
        name="models/m",
        speech={"num_frames": 4, "num_steps": 8, "max_samples": 8000, "sampling_rate": 16_000},
        components=[
            {"name": "encoder.layers.*.attn.pattern", "dims": [head, frame, frame]},
            {"name": "decoder.layers.*.attn.pattern", "dims": [head, position, position]},
            {"name": "decoder.layers.*.cross.pattern", "dims": [head, position, frame]},
        ],
    )
    arrays = {
        "encoder.layers.0.attn.pattern": np.zeros((3, 4, 4), np.float32),
        "decoder.layers.1.attn.pattern": np.zeros((2, 2, 2), np.float32),
        "decoder.layers.1.cross.pattern": np.arange(16, dtype=np.float32).reshape(2, 2, 4),
    }
    return Capture(model, [messages_pb2.Token(text=" a"), messages_pb2.Token(text=" b")], arrays)


def test_dims_of_a_capture_have_names() -> None:
    """Stacks have heads of their own, what is looked at is a source, tokens and seconds stand along."""
    found = heard()
    assert found.dims("encoder.layers.0.attn.pattern") == ("encoder_head", "frame", "source_frame")
    assert found.dims("decoder.layers.1.attn.pattern") == ("head", "position", "source")
    dataset = found.xarray()
    cross = dataset["decoder.layers.1.cross.pattern"]
    assert cross.dims == ("head", "position", "frame")
    assert float(cross.isel(head=1, position=0, frame=2)) == 10.0
    assert cross.coords["token"].values.tolist() == [" a", " b"]
    np.testing.assert_allclose(cross.coords["frame_s"], [0, 0.125, 0.25, 0.375])
    assert dataset.attrs["model"] == "models/m"


def test_dims_that_a_service_does_not_tell_are_named() -> None:
    """An older service has no components in its answer."""
    with pytest.raises(FailedPreconditionError, match=r"did not tell the dims of layers\.0\.mlp_in"):
        capture().dims("layers.0.mlp_in")


def test_interventions_carry_float32() -> None:
    """A list or a float64 array goes out as float32, at the positions given."""
    for build, kind in ((add, messages_pb2.INTERVENTION_KIND_ADD), (replace, messages_pb2.INTERVENTION_KIND_SET)):
        message = build("layers.0.mlp_out", [1.5, 2.0], positions=[3])
        assert (message.kind, list(message.positions)) == (kind, [3])
        np.testing.assert_array_equal(tensor_from_proto(message.value, max_bytes=8), np.float32([1.5, 2.0]))
    assert ablate("layers.0.mlp_out").kind == messages_pb2.INTERVENTION_KIND_ABLATE
