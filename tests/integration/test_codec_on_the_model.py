"""The uniform codec on what SmolLM2 really computes."""

import os
import pydoc_data.topics
from pathlib import Path

import numpy as np
import pytest

from weft_client.plan.estimate import BITS, dataset_bytes
from weft_store import open_store
from weft_store.shard import CodecSpec, ShardReader, encode_shard

pytestmark = pytest.mark.real

_ROOT = Path(__file__).resolve().parents[2]
_MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", _ROOT / ".weft" / "models")) / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def streams() -> dict[str, np.ndarray]:
    """Take MLP inputs, residuals before the MLP and MLP outputs of 1,020 tokens, position 0 left out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(_MODEL, dtype=torch.float32, local_files_only=True)
    tokens = AutoTokenizer.from_pretrained(_MODEL, local_files_only=True)("\n".join(pydoc_data.topics.topics.values()))
    taken: dict[str, list[np.ndarray]] = {"mlp_in": [], "resid_mid": [], "mlp_out": []}

    def keep(name: str, tensor: torch.Tensor) -> None:
        taken[name].append(tensor[:, 1:].reshape(-1, tensor.shape[-1]).numpy())

    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda _, given, out: keep("resid_mid", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_in", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_out", out))
    with torch.inference_mode():
        model(torch.tensor(tokens["input_ids"][: 4 * 256]).reshape(4, 256))
    return {name: np.stack(layers) for name, layers in taken.items()}


@pytest.mark.parametrize("target", [1e-3, 1e-2])
@pytest.mark.parametrize("source", ["mlp_in", "resid_mid"])
def test_uniform_meets_the_wanted_fvu_on_the_model(streams: dict[str, np.ndarray], source: str, target: float) -> None:
    """What is read back loses the wanted fraction of variance within 2 %, at every layer, in both streams."""
    given = {"input": streams[source], "output": streams["mlp_out"]}
    store = open_store("memory://")
    store.put("shard", encode_shard(given, CodecSpec("uniform", target), attributes={}).data)
    reader = ShardReader(store, "shard")
    groups = [reader.read_row_group(group) for group in range(reader.header.num_row_groups)]
    for stream, values in given.items():
        read = np.concatenate([group[stream] for group in groups], axis=1).astype(np.float64)
        exact = values.astype(np.float64)
        error = ((read - exact) ** 2).sum((1, 2))
        deviation = ((exact - exact.mean(1, keepdims=True)) ** 2).sum((1, 2))
        assert len(error) == 30
        np.testing.assert_allclose(error / deviation, target, rtol=0.02)


# A basis of a thousand tokens fits these tokens and no others: klt's size here would say nothing of a dataset's.
@pytest.mark.parametrize(("codec", "target"), [("uniform", 1e-3), ("bf16", 0.0)])
def test_planned_dataset_bytes_are_those_of_the_model(
    streams: dict[str, np.ndarray], codec: str, target: float
) -> None:
    """`weft plan` knows within 15 % how large a shard of what SmolLM2 really computes is."""
    given = {"input": streams["mlp_in"], "output": streams["mlp_out"]}
    shard = encode_shard(given, CodecSpec(codec, target), attributes={})
    layers, num_tokens, width = streams["mlp_in"].shape
    assert dataset_bytes(layers, width, num_tokens, BITS[codec]) == pytest.approx(len(shard.data), rel=0.15)
