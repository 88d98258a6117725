"""What `weft_client.interventions` sends."""

import numpy as np

from weft.activations.v1 import messages_pb2
from weft_client import interventions
from weft_common.tensors import tensor_from_proto


def test_where_and_what_reach_the_message() -> None:
    """Positions, heads, neurons and a direction stand in the message, the direction as float32."""
    made = interventions.ablate("layers.1.attn.z", positions=[1], heads=[2], direction=[0, 3.0])
    assert (made.hook, made.kind) == ("layers.1.attn.z", messages_pb2.INTERVENTION_KIND_ABLATE)
    assert (list(made.positions), list(made.heads), list(made.neurons)) == ([1], [2], [])
    np.testing.assert_array_equal(tensor_from_proto(made.direction, max_bytes=64), np.array([0, 3], np.float32))
    assert not made.HasField("value")
    scaled = interventions.scale("layers.1.mlp.post", -2.0, neurons=[7])
    assert (scaled.kind, scaled.factor, list(scaled.neurons)) == (messages_pb2.INTERVENTION_KIND_SCALE, -2.0, [7])


def test_other_prompts_are_text_or_token_ids() -> None:
    """A patch and a sample name their source, a mean is given or left to the service."""
    patched = interventions.patch("embed", "other", positions=[0, 1], source_positions=[4, 5])
    assert (patched.source.text, list(patched.source_positions)) == ("other", [4, 5])
    sampled = interventions.resample("embed", [5, 6], seed=9)
    assert (list(sampled.source.token_ids.ids), sampled.seed) == ([5, 6], 9)
    assert sampled.kind == messages_pb2.INTERVENTION_KIND_RESAMPLE
    assert not interventions.mean_ablate("embed").HasField("value")
    assert list(interventions.mean_ablate("embed", np.ones(3)).value.shape) == [3]
