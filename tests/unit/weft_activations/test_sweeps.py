"""Activation and path patching, every cell against plain passes of transformers' model with plain hooks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harvest_fakes import FakeBackend
from tiny_models import make_gpt2, make_llama
from transformers import AutoModelForCausalLM

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.analyses import sweeping
from weft_activations.core.analyses.patching import SweepStart, sweep_patches
from weft_activations.core.analyses.paths import sweep_paths
from weft_activations.core.analyses.sweeping import Cells, Metric, MetricKind
from weft_activations.core.changing import Prompt
from weft_activations.core.inference import Inference
from weft_activations.core.ports import Intervention
from weft_common.errors import InvalidArgumentError, ResourceExhaustedError

CLEAN, CORRUPTED = (280, 283, 264, 273, 302), (280, 283, 290, 273, 276)
PROMPTS = {"clean": Prompt(token_ids=CLEAN), "corrupted": Prompt(token_ids=CORRUPTED)}
DIFFERENCE = Metric(MetricKind.LOGIT_DIFFERENCE, 9, 30)
PROBABILITY = Metric(MetricKind.PROBABILITY, 9)
Hook = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama")
    make_gpt2(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def inference(models_dir: Path) -> Iterator[Inference]:
    made = Inference(TransformersBackend(models_dir))
    yield made
    made.close()


@pytest.fixture(params=["llama", "gpt2"])
def model_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Own:
    """Transformers' own model; its blocks' outputs can be kept and replaced by plain hooks."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float64
        ).eval()
        self.blocks = self.model.transformer.h if hasattr(self.model, "transformer") else self.model.model.layers

    def module(self, layer: int, component: str) -> Any:
        block = self.blocks[layer]
        if component == "attn_out":
            return block.attn if hasattr(block, "attn") else block.self_attn
        return block.mlp if component == "mlp_out" else block

    def run(self, ids: Sequence[int], changes: dict[tuple[int, str], Hook]) -> torch.Tensor:
        """Run once; a change takes a component's [P, D] and returns another. Returns the last logits."""
        with ExitStack() as standing, torch.no_grad():
            for (layer, component), change in changes.items():
                module = self.module(layer, component)
                if component == "resid_pre":
                    hook = self._before(change)
                    standing.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                else:
                    standing.callback(module.register_forward_hook(self._after(change)).remove)
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0, -1]
            return logits

    def values(self, ids: Sequence[int]) -> dict[tuple[int, str], torch.Tensor]:
        """Return every component's [P, D]."""
        kept: dict[tuple[int, str], torch.Tensor] = {}

        def keep(key: tuple[int, str]) -> Hook:
            def change(value: torch.Tensor) -> torch.Tensor:
                kept[key] = value.clone()
                return value

            return change

        keys = [(layer, name) for layer in range(3) for name in ("resid_pre", "attn_out", "mlp_out")]
        self.run(ids, {key: keep(key) for key in keys})
        return kept

    @staticmethod
    def _before(change: Hook) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (change(args[0][0])[None], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"][0])[None]}

        return hook

    @staticmethod
    def _after(change: Hook) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0][0])[None], *output[1:])
            return change(output[0])[None]

        return hook


@pytest.fixture
def own(models_dir: Path, model_id: str) -> Own:
    return Own(models_dir / model_id)


def of(metric: Metric, logits_V: torch.Tensor) -> float:
    """Work out a metric by torch."""
    if metric.kind is MetricKind.PROBABILITY:
        return float(torch.softmax(logits_V, -1)[metric.token_id])
    return float(logits_V[metric.token_id] - logits_V[metric.other_token_id])


def at(position: int, value_PD: torch.Tensor) -> Hook:
    """Put one position of a value in."""

    def change(found_PD: torch.Tensor) -> torch.Tensor:
        return torch.cat([found_PD[:position], value_PD[position : position + 1], found_PD[position + 1 :]])

    return change


async def gathered(parts: AsyncIterator[SweepStart | Cells]) -> tuple[SweepStart, np.ndarray[Any, Any]]:
    """Put a sweep together again; every cell must come once, in order."""
    start, values = None, []
    async for part in parts:
        if isinstance(part, SweepStart):
            start = part
        else:
            assert part.first == len(values)
            values += part.values.tolist()
    assert start is not None
    return start, np.reshape(values, start.shape)


@pytest.mark.parametrize("metric", [DIFFERENCE, PROBABILITY], ids=["difference", "probability"])
async def test_each_patched_cell_is_one_pass_with_one_hook(
    inference: Inference, own: Own, model_id: str, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 45 cells, in batches of seven, and both prompts' own metrics."""
    monkeypatch.setattr(sweeping, "_BATCH_TOKENS", 7 * len(CLEAN))
    start, grid = await gathered(sweep_patches(inference, model_id, **PROMPTS, metric=metric))
    assert start.shape == (3, 3, 5)
    # A token of a tiny model has a probability of about 0.001, which a patch moves by a hundredth.
    atol = 1e-8 if metric is PROBABILITY else 1e-5
    clean = own.values(CLEAN)
    for index in np.ndindex(grid.shape):
        component, layer, position = start.components[index[0]], *index[1:]
        logits = own.run(CORRUPTED, {(layer, component): at(position, clean[layer, component])})
        assert grid[index] == pytest.approx(of(metric, logits), rel=1e-4, abs=atol)
    assert start.clean_metric == pytest.approx(of(metric, own.run(CLEAN, {})), rel=1e-4, abs=atol)
    assert start.corrupted_metric == pytest.approx(of(metric, own.run(CORRUPTED, {})), rel=1e-4, abs=atol)
    assert abs(start.clean_metric - start.corrupted_metric) > 20 * atol


async def test_patching_what_is_the_same_changes_nothing(inference: Inference, model_id: str) -> None:
    """Before the prompts differ nothing moves; the last stream at the last position gives the clean prediction."""
    start, grid = await gathered(
        sweep_patches(inference, model_id, **PROMPTS, metric=DIFFERENCE, components=["resid_pre"], positions=[1, 4])
    )
    np.testing.assert_allclose(grid[0, :, 0], start.corrupted_metric, rtol=1e-5)
    both = Prompt(token_ids=CLEAN)
    start, grid = await gathered(sweep_patches(inference, model_id, clean=both, corrupted=both, metric=DIFFERENCE))
    np.testing.assert_allclose(grid, start.clean_metric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("receiver", ["logits", "layers.2.attn_out", "layers.2.mlp_out", "layers.1.mlp_out"])
async def test_each_path_is_what_holding_everybody_else_gives(
    inference: Inference, own: Own, model_id: str, receiver: str
) -> None:
    """Hooks hold every other part at the corrupted prompt's value; the receiver's output is taken and put in alone."""
    start, grid = await gathered(sweep_paths(inference, model_id, **PROMPTS, metric=DIFFERENCE, receiver=receiver))
    clean, base = own.values(CLEAN), own.values(CORRUPTED)
    to = None if receiver == "logits" else (int(receiver.split(".")[1]), receiver.split(".")[2])
    assert start.layers == tuple(range(3 if to is None else to[0]))
    parts = [(layer, name) for layer in range(3) for name in ("attn_out", "mlp_out")]
    for index in np.ndindex(grid.shape):
        sender, layer, position = start.components[index[0]], *index[1:]
        held: dict[tuple[int, str], Hook] = {key: (lambda found, key=key: base[key]) for key in parts}
        sent = torch.cat(
            [base[layer, sender][:position], clean[layer, sender][position, None], base[layer, sender][position + 1 :]]
        )
        held[layer, sender] = lambda found, sent=sent: sent
        if to is None:
            logits = own.run(CORRUPTED, held)
        else:
            taken: list[torch.Tensor] = []
            held[to] = lambda found, taken=taken: taken.append(found) or found
            own.run(CORRUPTED, held)
            logits = own.run(CORRUPTED, {to: lambda found, taken=taken: taken[0]})
        assert grid[index] == pytest.approx(of(DIFFERENCE, logits), rel=1e-4, abs=1e-5)
    assert np.abs(grid - start.corrupted_metric).max() > 1e-5


class Projections:
    """What output projections of attention read, 8 numbers a head: kept, or changed for one pass."""

    def __init__(self, own: Own) -> None:
        self.own = own
        self.modules = [
            getattr(own.module(at, "attn_out"), "c_proj", None) or own.module(at, "attn_out").o_proj for at in range(3)
        ]

    def read(self, ids: Sequence[int]) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        handles = [m.register_forward_pre_hook(lambda _, args: kept.append(args[0][0].clone())) for m in self.modules]
        self.own.run(ids, {})
        for handle in handles:
            handle.remove()
        return kept


def one_head(base_PE: torch.Tensor, clean_PE: torch.Tensor, head: int, position: int) -> torch.Tensor:
    """One head at one position as on the clean prompt."""
    mixed = base_PE.clone()
    mixed[position, 8 * head : 8 * head + 8] = clean_PE[position, 8 * head : 8 * head + 8]
    return mixed


async def test_each_patched_head_is_one_pass_with_one_hook(inference: Inference, own: Own, model_id: str) -> None:
    """A head's share of what the output projection reads, at one position, from the clean prompt."""
    start, grid = await gathered(
        sweep_patches(
            inference, model_id, **PROMPTS, metric=DIFFERENCE, components=["attn.z"], layers=[0, 2], heads=[1, 3]
        )
    )
    assert start.shape == (1, 2, 2, 5)
    projections = Projections(own)
    clean = projections.read(CLEAN)
    for index in np.ndindex(grid.shape):
        layer, head, position = start.layers[index[1]], start.heads[index[2]], index[3]

        def mix(module: Any, args: Any, at: tuple[int, int, int] = (layer, head, position)) -> Any:
            return (one_head(args[0][0], clean[at[0]], at[1], at[2])[None],)

        handle = projections.modules[layer].register_forward_pre_hook(mix)
        expected = of(DIFFERENCE, own.run(CORRUPTED, {}))
        handle.remove()
        assert grid[index] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.abs(grid - start.corrupted_metric).max() > 1e-5


async def test_each_heads_path_is_what_holding_everybody_else_gives(
    inference: Inference, own: Own, model_id: str
) -> None:
    """A head of a lower layer reaches the last MLP alone, every other part held by hooks."""
    start, grid = await gathered(
        sweep_paths(
            inference,
            model_id,
            **PROMPTS,
            metric=DIFFERENCE,
            receiver="layers.2.mlp_out",
            senders=["attn.result"],
            heads=[0, 2],
            positions=[2, 4],
        )
    )
    assert start.shape == (1, 2, 2, 2)
    base = own.values(CORRUPTED)
    projections = Projections(own)
    clean_reads, base_reads = projections.read(CLEAN), projections.read(CORRUPTED)
    for index in np.ndindex(grid.shape):
        layer, head, position = start.layers[index[1]], start.heads[index[2]], start.positions[index[3]]
        with torch.no_grad():
            sent = projections.modules[layer](one_head(base_reads[layer], clean_reads[layer], head, position)[None])[0]
        held: dict[tuple[int, str], Hook] = {
            (at, name): (lambda found, key=(at, name): base[key]) for at in range(3) for name in ("attn_out", "mlp_out")
        }
        held[layer, "attn_out"] = lambda found, sent=sent: sent
        taken: list[torch.Tensor] = []
        held[2, "mlp_out"] = lambda found, taken=taken: taken.append(found) or found
        own.run(CORRUPTED, held)
        expected = of(DIFFERENCE, own.run(CORRUPTED, {(2, "mlp_out"): lambda found, taken=taken: taken[0]}))
        assert grid[index] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def inside_attention(own: Own, layer: int, component: str, head: int) -> tuple[Any, bool, slice]:
    """Where a head's component lies: the module, whether in what it is given, and the columns."""
    attention = own.module(layer, "attn_out")
    columns = slice(8 * head, 8 * head + 8)
    if component == "attn.z":
        return getattr(attention, "c_proj", None) or attention.o_proj, True, columns
    if not hasattr(attention, "c_attn"):
        return getattr(attention, f"{component[-1]}_proj"), False, columns
    # GPT-2 makes all three of four heads in one product.
    first = 32 * "qkv".index(component[-1])
    return attention.c_attn, False, slice(first + columns.start, first + columns.stop)


def on_columns(place: tuple[Any, bool, slice], change: Hook) -> Any:
    """Stand a hook on some columns, [P, 8]; it takes them and returns others."""
    module, is_input, columns = place

    def changed(whole: torch.Tensor) -> torch.Tensor:
        new = whole.clone()
        new[0, :, columns] = change(whole[0, :, columns])
        return new

    if is_input:
        return module.register_forward_pre_hook(lambda _, args: (changed(args[0]), *args[1:]))
    return module.register_forward_hook(lambda _, args, output: changed(output))


@pytest.mark.parametrize("component", ["attn.q", "attn.k", "attn.v", "attn.z"])
async def test_each_path_to_a_head_is_what_holding_everybody_else_gives(
    inference: Inference, own: Own, model_id: str, component: str
) -> None:
    """Only one head's columns are taken from the pass with a sender, and put in alone."""
    start, grid = await gathered(
        sweep_paths(
            inference,
            model_id,
            **PROMPTS,
            metric=DIFFERENCE,
            receiver=f"layers.2.{component}",
            receiver_heads=[1],
            positions=[2, 4],
        )
    )
    assert start.shape == (2, 2, 2)
    clean, base = own.values(CLEAN), own.values(CORRUPTED)
    place, unchanged = inside_attention(own, 2, component, head=1), of(DIFFERENCE, own.run(CORRUPTED, {}))
    for index in np.ndindex(grid.shape):
        sender, layer, position = start.components[index[0]], start.layers[index[1]], start.positions[index[2]]
        held: dict[tuple[int, str], Hook] = {
            (below, name): (lambda found, key=(below, name): base[key])
            for below in range(2)
            for name in ("attn_out", "mlp_out")
        }
        held[layer, sender] = lambda found, key=(layer, sender), to=position: at(to, clean[key])(base[key])
        taken: list[torch.Tensor] = []
        reading = on_columns(place, lambda found, taken=taken: taken.append(found.clone()) or found)
        own.run(CORRUPTED, held)
        reading.remove()
        writing = on_columns(place, lambda found, taken=taken: taken[0])
        expected = of(DIFFERENCE, own.run(CORRUPTED, {}))
        writing.remove()
        # A tiny model's queries and keys hardly decide anything: what a path changes is compared, not what it leaves.
        assert grid[index] - start.corrupted_metric == pytest.approx(expected - unchanged, rel=1e-3, abs=6e-7)
    assert np.abs(grid - start.corrupted_metric).max() > 6e-6


async def test_a_path_to_all_heads_is_that_to_attention(inference: Inference, model_id: str) -> None:
    """What all heads write goes through the output projection, and nothing else of the layer does."""
    to_heads, to_attention = [
        (await gathered(sweep_paths(inference, model_id, **PROMPTS, metric=DIFFERENCE, receiver=receiver)))[1]
        for receiver in ("layers.1.attn.z", "layers.1.attn_out")
    ]
    np.testing.assert_allclose(to_heads, to_attention, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("receiver", "heads"),
    [("logits", [0]), ("layers.1.mlp_out", [0]), ("layers.1.attn.q", [4]), ("layers.1.attn.k", [2])],
)
async def test_a_path_refuses_heads_that_are_not_there(inference: Inference, receiver: str, heads: list[int]) -> None:
    """Streams have none; the Llama has four query heads and two key and value heads."""
    asked = sweep_paths(
        inference, "llama", **PROMPTS, metric=DIFFERENCE, receiver=receiver, receiver_heads=heads, layers=[0]
    )
    with pytest.raises(InvalidArgumentError) as caught:
        await anext(asked)
    assert caught.value.field == "receiver_heads"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"heads": [1]}, "heads"),
        ({"components": ["attn.z", "mlp_out"]}, "components"),
        ({"components": ["attn.z"], "heads": [4]}, "heads"),
        ({"corrupted": Prompt(token_ids=CORRUPTED[:-1])}, "corrupted"),
        ({"metric": Metric(MetricKind.PROBABILITY, 320)}, "metric.token_id"),
        ({"components": ["resid_mid"]}, "components"),
        ({"components": ["attn_out", "attn_out"]}, "components"),
        ({"layers": [3]}, "layers"),
        ({"positions": [5]}, "positions"),
    ],
)
async def test_a_sweep_refuses_what_is_not_there(inference: Inference, asked: dict[str, Any], field: str) -> None:
    """The field that was wrong is named."""
    with pytest.raises(InvalidArgumentError) as caught:
        await anext(sweep_patches(inference, "llama", **{**PROMPTS, "metric": DIFFERENCE, **asked}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "receiver", ["layers.0.mlp_out", "layers.1.resid_pre", "layers.3.mlp_out", "layers.1.attn.result", "resid_final"]
)
async def test_a_path_refuses_who_cannot_receive(inference: Inference, receiver: str) -> None:
    """Layer 0 has nobody below it, a stream is nobody, and there are three layers."""
    with pytest.raises(InvalidArgumentError) as caught:
        await anext(sweep_paths(inference, "llama", **PROMPTS, metric=DIFFERENCE, receiver=receiver))
    assert caught.value.field == "receiver"


async def test_a_path_sends_upwards_only(inference: Inference) -> None:
    """A sender of the receiver's own layer is refused."""
    asked = sweep_paths(inference, "llama", **PROMPTS, metric=DIFFERENCE, receiver="layers.1.mlp_out", layers=[1])
    with pytest.raises(InvalidArgumentError, match="no layer below the receiver's 1"):
        await anext(asked)


async def test_a_sweep_is_bounded_in_cells_and_bytes(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both bounds are checked before a cell runs."""
    inference = Inference(TransformersBackend(models_dir), max_capture_bytes=4 * 32 * 5 * 9)
    with pytest.raises(ResourceExhaustedError):
        await anext(sweep_patches(inference, "llama", **PROMPTS, metric=DIFFERENCE))
    monkeypatch.setattr("weft_activations.core.analyses.patching.CELLS_LIMIT", 44)
    with pytest.raises(InvalidArgumentError, match="45 cells"):
        await anext(sweep_patches(inference, "llama", **PROMPTS, metric=DIFFERENCE))
    inference.close()


class CountingBackend(FakeBackend):
    """Counts batches of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def forward(self, model_id: str, token_ids: Sequence[int], hooks: Sequence[str], *rest: Any) -> dict[str, Any]:
        return {hook: np.zeros(128 if hook == "logits" else (len(token_ids), 4), np.float32) for hook in hooks}

    def forward_rows(
        self, model_id: str, token_ids: Sequence[int], rows: Sequence[Sequence[Intervention]], hooks: Sequence[str]
    ) -> dict[str, Any]:
        self.batches += 1
        return {hook: np.zeros((len(rows), 128), np.float32) for hook in hooks}


async def test_a_cancelled_sweep_stops_at_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads goes away after the first batch: no further one is run."""
    monkeypatch.setattr(sweeping, "_BATCH_TOKENS", 4)
    backend = CountingBackend()
    inference = Inference(backend)
    prompt = Prompt(text="abcd")
    metric = Metric(MetricKind.LOGIT_DIFFERENCE, 1, 2)
    first = asyncio.Event()

    async def read() -> None:
        async for part in sweep_patches(inference, "fake", clean=prompt, corrupted=prompt, metric=metric):
            if isinstance(part, Cells):
                first.set()

    reading = asyncio.create_task(read())
    await first.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    inference.close()
    assert 1 <= backend.batches < 3 * 2 * 4
