"""Analyses over gRPC, by the client and by the command, with tiny models in a service in this process."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harvest_fakes import FakeCatalog
from structlog.testing import capture_logs
from tiny_models import make_llama
from typer.testing import CliRunner

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_client import AsyncClient, Endpoint
from weft_client.cli import app
from weft_client.metrics import logit_difference, probability
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_common.server import serving
from weft_store.adapters.memory import MemoryObjectStore

TEXT, OTHER_TEXT = "The capital of France is", "The capital of Italy is"
TOKEN = "integration"


class Served:
    """A client of the service, and the command."""

    def __init__(self, client: AsyncClient, endpoints: Path) -> None:
        self.client = client
        self._endpoints = endpoints

    async def weft(self, *arguments: str) -> Any:
        """Run the command in a thread, as its calls block."""
        result = await asyncio.to_thread(CliRunner().invoke, app, ["--endpoints", str(self._endpoints), *arguments])
        assert result.exit_code == 0, (result.stderr, result.exception)
        return result.stdout

    async def json(self, *arguments: str) -> Any:
        """Run the command with --json."""
        return json.loads(await self.weft(*arguments, "--json"))


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", add_bos=True)
    return folder


@pytest.fixture
async def served(models_dir: Path, tmp_path: Path) -> AsyncIterator[Served]:
    store = MemoryObjectStore()
    settings = ActivationsSettings(
        token=TOKEN, bucket_url="memory://", models_dir=models_dir, cache_target="unused:1", drain_s=0
    )
    with capture_logs():
        async with (
            registrations(settings, TransformersBackend(models_dir), store, FakeCatalog(store)) as registered,
            serving("activations", settings, registered) as server,
            AsyncClient.to(activations=Endpoint(f"127.0.0.1:{server.port}", TOKEN)) as client,
        ):
            services: dict[str, Any] = {"activations": {"target": f"127.0.0.1:{server.port}", "token": TOKEN}}
            services["console"] = {"url": "http://127.0.0.1:1/", "token": "page"}
            (tmp_path / "endpoints.json").write_text(json.dumps({"services": services}))
            yield Served(client, tmp_path / "endpoints.json")


async def test_lens_ends_with_the_models_own_prediction(served: Served) -> None:
    """The last depth at the last position is what Run says, its divergence is 0 and the target's figures agree."""
    run = await served.client.models.run("llama", TEXT, num_top_tokens=5, logit_token_ids=[17])
    lens = await served.client.analyses.logit_lens("llama", TEXT, target_token_id=17)
    assert lens.dims("top_probability") == ("depth", "position", "rank")
    assert lens["top_token_id"][-1, -1].tolist() == [top.token.id for top in run.top_tokens]
    assert lens["top_token"][-1, -1].tolist() == [top.token.text for top in run.top_tokens]
    np.testing.assert_allclose(lens["top_probability"][-1, -1], [top.probability for top in run.top_tokens], rtol=1e-4)
    np.testing.assert_allclose(lens["target_logit"][-1, -1], run.asked_tokens[0].logit, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lens["kl"][-1], 0, atol=1e-7)
    assert lens.coords["token"][1] == [token.text for token in run.tokens]
    document = await served.json("analyses", "lens", "llama", "--prompt", TEXT, "--position", "2")
    np.testing.assert_allclose(document["arrays"]["kl"]["values"], lens["kl"][:, 2:3], rtol=1e-6)


async def test_attributed_logits_reach_the_client_whole(served: Served) -> None:
    """Parts by name, in float64, and their sum is the logit that Run says."""
    run = await served.client.models.run("llama", TEXT, logit_token_ids=[3, 4])
    found = await served.client.analyses.attribute_logits("llama", TEXT, token_ids=[3, 4])
    assert found["contribution"].dtype == np.float64
    logits = [asked.logit for asked in run.asked_tokens]
    np.testing.assert_allclose(found["contribution"].sum(0), logits, rtol=1e-4, atol=1e-4)
    assert found.coords["part"][1] == [
        "embed",
        *(f"layers.{layer}.{name}" for layer in range(3) for name in ("attn_out", "mlp_out")),
        "bias",
    ]
    table = await served.weft("analyses", "logits", "llama", "--prompt", TEXT, "--token", "e")
    assert table.splitlines()[0].split() == ["part", "'e'"]
    assert table.splitlines()[-1].split()[0] == "logit"


async def test_patterns_have_dims_and_coordinates(served: Served) -> None:
    """The same numbers as a capture, with layers, heads, positions and sources named."""
    capture = await served.client.models.capture("llama", TEXT, hooks=["layers.*.attn.pattern"])
    found = await served.client.analyses.attention_patterns("llama", TEXT, layers=[0, 2], heads=[1], positions=[1, 3])
    assert found.dims("pattern") == ("layer", "head", "position", "source")
    whole = capture.stacked("attn.pattern")
    np.testing.assert_array_equal(found["pattern"], whole[[0, 2]][:, [1]][:, :, [1, 3]])
    assert found.coords["layer"] == ("layer", [0, 2])
    table = await served.weft("analyses", "patterns", "llama", "--prompt", TEXT, "--layer", "1", "--head", "0")
    assert "1.00" in table.splitlines()[1]


async def test_an_analysis_becomes_an_xarray_dataset(served: Served) -> None:
    """Every dim can be chosen by its coordinate, and the tokens come along."""
    found = await served.client.analyses.attention_patterns("llama", TEXT)
    dataset = found.xarray()
    np.testing.assert_allclose(dataset["pattern"].sum("source"), 1, rtol=1e-5)
    np.testing.assert_array_equal(dataset["pattern"].sel(layer=2, head=3, position=1), found["pattern"][2, 3, 1])
    assert dataset["token"].dims == ("position",)
    assert dataset.attrs["model"] == "models/llama"


async def test_a_dataset_without_xarray_says_what_to_install(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, and the arrays are there all the same."""
    monkeypatch.setitem(sys.modules, "xarray", None)
    found = await served.client.analyses.attention_patterns("llama", TEXT)
    with pytest.raises(FailedPreconditionError, match=r"install weft\[arrays\]"):
        found.xarray()


async def test_head_scores_come_by_layer_and_head(served: Served) -> None:
    """The seed that was asked for is the one that is used."""
    found = await served.client.analyses.score_heads("llama", num_tokens=8, num_sequences=2, seed=1)
    assert [found[name].shape for name in found] == [(3, 4)] * 3
    document = await served.json(
        *("analyses", "heads", "llama", "--num-tokens", "8", "--num-sequences", "2", "--seed", "1")
    )
    np.testing.assert_allclose(document["arrays"]["induction"]["values"], found["induction"], rtol=1e-6)
    other = await served.client.analyses.score_heads("llama", num_tokens=8, num_sequences=2, seed=2)
    assert np.abs(other["induction"] - found["induction"]).max() > 1e-4


async def test_sweeps_stream_cells_and_progress(served: Served) -> None:
    """The grid comes whole and in order; patching every position's stream at layer 0 restores what differs."""
    client = served.client
    ids = [token.id for token in await client.models.tokenize("llama", TEXT)]
    corrupted = [*ids[:2], (ids[2] + 1) % 320, *ids[3:]]
    seen: list[tuple[int, int]] = []
    found = await client.analyses.sweep_patches(
        "llama",
        clean=ids,
        corrupted=corrupted,
        metric=logit_difference(3, 4),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found["metric"].shape == (3, 3, len(ids))
    assert found.dims("restored") == ("component", "layer", "position")
    assert seen[-1] == (9 * len(ids), 9 * len(ids))
    np.testing.assert_allclose(found["restored"][0, 0, 2], 1, rtol=1e-4)
    np.testing.assert_allclose(found["restored"][0, 0, 1], 0, atol=1e-4)
    paths = await client.analyses.sweep_paths(
        "llama", clean=ids, corrupted=corrupted, metric=probability(3), receiver="layers.2.mlp_out"
    )
    assert paths["metric"].shape == (2, 2, len(ids))
    assert paths.coords["sender"] == ("sender", ["attn_out", "mlp_out"])
    clean = await client.models.run("llama", ids, logit_token_ids=[3])
    assert paths.attrs["clean_metric"] == pytest.approx(clean.asked_tokens[0].probability, rel=1e-4)
    with pytest.raises(InvalidArgumentError, match="as many"):
        await client.analyses.sweep_patches("llama", clean=ids, corrupted=ids[:-1], metric=probability(3))


async def test_sweep_commands_print_a_grid(served: Served) -> None:
    """A row a layer, a column a position; equal prompts have nothing to restore, which JSON says as null."""
    same = ("--clean", TEXT, "--corrupted", TEXT, "--token", "e", "--other", "a")
    table = await served.weft("analyses", "patch", "llama", *same)
    assert [line.split()[0] for line in table.splitlines()[:4]] == ["layer", "0", "1", "2"]
    to_head = ("--receiver", "layers.1.attn.k", "--receiver-head", "1")
    document = await served.json("analyses", "paths", "llama", *same, *to_head)
    assert len(document["arrays"]["restored"]["values"][0]) == 1
    document = await served.json("analyses", "paths", "llama", *same, "--receiver", "logits")
    assert document["arrays"]["restored"]["values"][0][0][0] is None
    assert document["coords"]["sender"]["values"] == ["attn_out"]
