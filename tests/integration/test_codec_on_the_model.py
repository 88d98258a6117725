"""The codecs on what SmolLM2 really computes."""

import os
import pydoc_data.topics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from weft_client.plan.estimate import BITS, dataset_bytes
from weft_store import open_store
from weft_store.shard import Basis, CodecSpec, ShardReader, encode_shard, learn_basis

pytestmark = pytest.mark.real

_ROOT = Path(__file__).resolve().parents[2]
_MODEL = Path(os.environ.get("WEFT_TEST_MODELS_DIR", _ROOT / ".weft" / "models")) / "smollm2-135m-instruct"


# Layers: a basis takes a while to learn, and every third layer stands for its neighbours.
_TRIED = {"uniform": slice(None), "klt": slice(1, None, 3), "bf16": slice(None)}
Take = Callable[[int, int, Sequence[str]], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def take() -> Take:
    """Return what takes streams of some sequences of 256 tokens, position 0 left out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(_MODEL, dtype=torch.float32, local_files_only=True).model
    text = "\n".join(pydoc_data.topics.topics.values())
    tokens = AutoTokenizer.from_pretrained(_MODEL, local_files_only=True)(text)["input_ids"]
    taken: dict[str, list[np.ndarray]] = {"mlp_in": [], "resid_mid": [], "mlp_out": []}

    def keep(name: str, tensor: torch.Tensor) -> None:
        taken[name].append(tensor[:, 1:].reshape(-1, tensor.shape[-1]).numpy())

    for layer in model.layers:
        layer.post_attention_layernorm.register_forward_hook(lambda _, given, out: keep("resid_mid", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_in", given[0]))
        layer.mlp.register_forward_hook(lambda _, given, out: keep("mlp_out", out))

    def run(first: int, count: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            model(torch.tensor(tokens[256 * first : 256 * (first + count)]).reshape(count, 256))
        found = {name: np.stack(taken[name]) for name in names}
        for parts in taken.values():
            parts.clear()
        return found

    return run


@pytest.fixture(scope="module")
def streams(take: Take) -> dict[str, np.ndarray]:
    """Take MLP inputs, residuals before the MLP and MLP outputs of 1,020 tokens."""
    return take(0, 4, ["mlp_in", "resid_mid", "mlp_out"])


@pytest.fixture(scope="module")
def basis(take: Take) -> Basis:
    """Learn a basis from 4,080 other tokens, as from those that it is tried on it would fit them and no others."""
    parts = [take(first, 4, ["mlp_in", "mlp_out"]) for first in range(4, 20, 4)]
    return learn_basis(
        {
            stream: np.concatenate([part[name][_TRIED["klt"]] for part in parts], axis=1)
            for stream, name in (("input", "mlp_in"), ("output", "mlp_out"))
        }
    )


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


@pytest.mark.parametrize(("codec", "target"), [("uniform", 1e-3), ("klt", 1e-3), ("bf16", 0.0)])
def test_planned_dataset_bytes_are_those_of_the_model(
    streams: dict[str, np.ndarray], request: pytest.FixtureRequest, codec: str, target: float
) -> None:
    """`weft plan` knows within 15 % how large a shard of what SmolLM2 really computes is."""
    given = {stream: streams[name][_TRIED[codec]] for stream, name in (("input", "mlp_in"), ("output", "mlp_out"))}
    basis = request.getfixturevalue("basis") if codec == "klt" else None
    shard = encode_shard(given, CodecSpec(codec, target), attributes={}, basis=basis)
    layers, num_tokens, width = given["input"].shape
    assert dataset_bytes(layers, width, num_tokens, BITS[codec]) == pytest.approx(len(shard.data), rel=0.15)
