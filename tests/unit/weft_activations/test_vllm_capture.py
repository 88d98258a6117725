"""Rows of passes that hold chunks of many requests, against each prompt run whole by a plain loop in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from weft_activations.adapters.vllm_capture import CHANGED, CHANGED_ON_ONE_RANK, SHOWN, SHOWN_ON_ONE_RANK, Recorder
from weft_activations.adapters.vllm_rows import Asked
from weft_activations.core.components import MODEL_COMPONENTS, component_at
from weft_activations.core.ports import Intervention, InterventionKind

NUM_LAYERS, D, H, K, E, M, V = 2, 6, 4, 2, 3, 5, 11


def of_layers(names: tuple[str, ...]) -> list[str]:
    return [
        name if name in MODEL_COMPONENTS else f"layers.{layer}.{name}"
        for name in names
        for layer in range(1 if name in MODEL_COMPONENTS else NUM_LAYERS)
    ]


HOOKS = of_layers(SHOWN + SHOWN_ON_ONE_RANK)
CHANGEABLE = of_layers(CHANGED + CHANGED_ON_ONE_RANK)


def shape_of(hook: str, positions: int) -> tuple[int, ...]:
    sizes = {"P": positions, "D": D, "H": H, "K": K, "E": E, "M": M, "V": V}
    return tuple(sizes[dim] for dim in component_at(hook).dims)


class Norm(nn.Module):
    """RMSNorm as vLLM calls it: with one addend, or with two, which it adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(D, dtype=torch.float64)
        self.variance_epsilon = 1e-5

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            return normed(self, x)
        residual.add_(x)
        x.copy_(normed(self, residual))
        return x, residual


def scale(norm: Norm, x: Tensor) -> Tensor:
    return (x.square().mean(-1) + norm.variance_epsilon).sqrt()


def normed(norm: Norm, x: Tensor) -> Tensor:
    return x / scale(norm, x)[..., None] * norm.weight


class Projection(nn.Linear):
    """A product that comes with a bias of its own to add later, as vLLM's do."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, dtype=torch.float64)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class Mixing(nn.Module):
    """In the place of attention's kernel: it does not look at other rows."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q + (k * v).unflatten(-1, (K, E)).repeat_interleave(H // K, dim=-2).flatten(-2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.q_size, self.kv_size = E, H * E, K * E
        self.qkv_proj, self.o_proj = Projection(D, (H + 2 * K) * E), Projection(H * E, D)
        self.attn = Mixing()

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(hidden_states)[0].split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        turned = torch.cos(positions[:, None].double())
        out: Tensor = self.o_proj(self.attn(q * turned, k * turned, v))[0]
        return out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = Projection(D, 2 * M), Projection(M, D)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x)[0].chunk(2, dim=-1)
        out: Tensor = self.down_proj(torch.tanh(gate) * up)[0]
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn, self.mlp = Attention(), Mlp()


class Model(nn.Module):
    """The order in which vLLM runs a Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([Layer() for _ in range(NUM_LAYERS)])
        self.model.norm = Norm()
        self.embedding = nn.Embedding(V, D, dtype=torch.float64)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        hidden, residual = self.embedding(token_ids), None
        for layer in self.model.layers:
            if residual is None:
                residual = hidden
                hidden = layer.input_layernorm(hidden)
            else:
                hidden, residual = layer.input_layernorm(hidden, residual)
            hidden = layer.self_attn(positions=positions, hidden_states=hidden)
            hidden, residual = layer.post_attention_layernorm(hidden, residual)
            hidden = layer.mlp(hidden)
        return self.model.norm(hidden, residual)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embedding.weight.T


def change_plainly(x: np.ndarray, change: Intervention, dims: str) -> np.ndarray:
    """Make a change entry by entry along every dim, in the component's order."""
    picks = [
        {"P": change.positions, "H": change.heads, "K": change.heads}.get(dim, change.neurons) or range(size)
        for dim, size in zip(dims, x.shape, strict=True)
    ]
    chosen = x[np.ix_(*picks)]
    value = None if change.value is None else np.broadcast_to(change.value, chosen.shape).astype(np.float64)
    new = {"add": lambda: chosen + value, "set": lambda: value, "scale": lambda: chosen * change.factor}.get(
        change.kind.value, lambda: 0 * chosen
    )()
    if change.direction is not None:
        along = change.direction.astype(np.float64)
        new = chosen + ((new - chosen) @ along)[..., None] * along
    x = x.copy()
    x[np.ix_(*picks)] = new
    return x


def run_whole(model: Model, token_ids: Tensor, changes: dict[str, list[Intervention]]) -> dict[str, Tensor]:
    """Run a prompt by itself, place by place."""
    found: dict[str, Tensor] = {}

    def at(name: str, x: Tensor) -> Tensor:
        dims = component_at(name).dims
        by_head = dims[0] in "HK"
        value = (x.unflatten(-1, (-1, E)).transpose(0, 1) if by_head else x).numpy()
        for change in changes.get(name, []):
            value = change_plainly(value, change, dims)
        found[name] = torch.from_numpy(value.copy())
        return found[name].transpose(0, 1).flatten(1) if by_head else found[name]

    turned = torch.cos(torch.arange(len(token_ids))[:, None].double())
    x = at("embed", model.embedding(token_ids))
    for index, layer in enumerate(model.model.layers):
        name, attention, mlp = f"layers.{index}.", layer.self_attn, layer.mlp
        x = at(name + "resid_pre", x)
        found[name + "ln1.scale"] = scale(layer.input_layernorm, x)
        y = at(name + "ln1.normed", normed(layer.input_layernorm, x))
        parts = attention.qkv_proj(y)[0].split([H * E, K * E, K * E], dim=-1)
        q, k, v = (at(f"{name}attn.{kind}", part) for kind, part in zip("qkv", parts, strict=True))
        q, k = at(name + "attn.q_rot", q * turned), at(name + "attn.k_rot", k * turned)
        z = at(name + "attn.z", attention.attn.forward(q, k, v))
        x = at(name + "resid_mid", x + at(name + "attn_out", attention.o_proj(z)[0]))
        found[name + "ln2.scale"] = scale(layer.post_attention_layernorm, x)
        y = at(name + "mlp_in", at(name + "ln2.normed", normed(layer.post_attention_layernorm, x)))
        gate, up = mlp.gate_up_proj(y)[0].chunk(2, dim=-1)
        post = torch.tanh(at(name + "mlp.pre", gate)) * at(name + "mlp.pre_linear", up)
        y = mlp.down_proj(at(name + "mlp.post", post))[0]
        x = at(name + "resid_post", x + at(name + "mlp_out", y))
    x = at("resid_final", x)
    found["ln_final.scale"] = scale(model.model.norm, x)
    found["ln_final.normed"] = normed(model.model.norm, x)
    found["logits"] = found["ln_final.normed"][-1] @ model.embedding.weight.T
    return found


def room(num_tokens: int, skipped: int = 0) -> dict[str, Tensor]:
    """Make room for every hook, full of what is no number."""
    return {hook: torch.full(shape_of(hook, num_tokens - skipped), torch.nan, dtype=torch.float64) for hook in HOOKS}


def without_first(value: Tensor, hook: str, skipped: int) -> Tensor:
    dims = component_at(hook).dims
    return value.narrow(dims.index("P"), skipped, value.shape[dims.index("P")] - skipped) if "P" in dims else value


def run_pass(
    model: Model, recorder: Recorder, scheduled: list[tuple[str, int, int]], prompts: dict[str, Tensor]
) -> None:
    """Run one pass as the worker does."""
    token_ids = torch.cat([prompts[name][first : first + count] for name, first, count in scheduled])
    positions = torch.cat([torch.arange(first, first + count) for _, first, count in scheduled])
    recorder.start_pass(scheduled, token_ids, positions)
    hidden = model(token_ids, positions)
    ends = torch.tensor([count for _, _, count in scheduled]).cumsum(0) - 1
    model.compute_logits(hidden[ends])
    recorder.end_pass()


@pytest.fixture(scope="module", name="hooked")
def hooked_model() -> tuple[Model, Recorder]:
    torch.manual_seed(0)
    model = Model().requires_grad_(False)
    return model, Recorder(model, "LlamaForCausalLM", NUM_LAYERS)


@st.composite
def asked_changes(draw: st.DrawFn, num_tokens: int) -> Intervention:
    """Any change that fits a prompt of so many tokens."""
    hook = draw(st.sampled_from(CHANGEABLE))
    dims, shape = component_at(hook).dims, shape_of(hook, num_tokens)

    def some(size: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(0, size - 1), unique=True, max_size=3)))

    positions = some(num_tokens)
    heads = some(shape[0]) if dims[0] in "HK" else ()
    along = np.random.default_rng(1).normal(size=shape[-1]) if draw(st.booleans()) else None
    neurons = some(shape[-1]) if along is None else ()
    picked = {"P": positions, "H": heads, "K": heads}
    chosen = [len(picked.get(dim, neurons)) or size for dim, size in zip(dims, shape, strict=True)]
    kept = draw(st.integers(0, len(chosen)))
    sizes = [size if draw(st.booleans()) else 1 for size in chosen[kept:]]
    value = np.random.default_rng(draw(st.integers(0, 99))).normal(size=sizes).astype(np.float32)
    return Intervention(
        layer=int(hook.split(".")[1]) if hook.startswith("layers.") else None,
        hook=component_at(hook).name,
        kind=draw(st.sampled_from(InterventionKind)),
        positions=positions,
        value=value,
        factor=0.5,
        heads=heads,
        neurons=neurons,
        direction=None if along is None else (along / np.linalg.norm(along)).astype(np.float32),
    )


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), skipped=st.integers(0, 1), data=st.data())
def test_capture_of_any_chunks_equals_prompts_run_whole(
    hooked: tuple[Model, Recorder], lengths: list[int], skipped: int, data: st.DataObject
) -> None:
    """However prompts are cut, mixed, put off and begun again, each is captured as if it had run alone."""
    model, recorder = hooked
    generator = torch.Generator().manual_seed(len(lengths))
    prompts = {str(i): torch.randint(V, (n,), generator=generator) for i, n in enumerate(lengths)}
    sinks, changes = {}, {}
    for name, token_ids in prompts.items():
        own: dict[str, list[Intervention]] = {}
        # Every second request is changed, so that its neighbours show whether they are left alone.
        for change in data.draw(st.lists(asked_changes(len(token_ids)), max_size=3)) if int(name) % 2 == 0 else []:
            own.setdefault(change.name, []).append(change)
        sinks[name], changes[name] = room(len(token_ids), skipped), own
        recorder.begin(name, Asked(token_ids, sinks[name], skipped, own))
    at = dict.fromkeys(prompts, 0)
    begun_again = False
    while left := [name for name in prompts if at[name] < len(prompts[name])]:
        names = data.draw(st.permutations(left))[: data.draw(st.integers(1, len(left)))]
        scheduled = []
        for name in names:
            if at[name] and not begun_again and data.draw(st.booleans()):
                at[name], begun_again = 0, True
            count = data.draw(st.integers(1, len(prompts[name]) - at[name]))
            scheduled.append((name, at[name], count))
            at[name] += count
        run_pass(model, recorder, scheduled, prompts)
    for name, token_ids in prompts.items():
        ended = recorder.end(name)
        assert ended is not None
        assert ended.missing() == ""
        expected = run_whole(model, token_ids, changes[name])
        for hook, sink in sinks[name].items():
            # Scales are worked out in float32, as the transformers backend does.
            tolerance = 1e-5 if "scale" in hook else 1e-9
            right = without_first(expected[hook], hook, skipped)
            torch.testing.assert_close(sink, right, rtol=tolerance, atol=1e-9, msg=lambda m, hook=hook: f"{hook}: {m}")


@pytest.mark.parametrize(
    ("scheduled", "said"),
    [
        ([("a", 0, 3)], "3 of 6 positions"),
        ([("a", 0, 3), ("a", 4, 2)], "went on at position 4 and not at 3"),
        ([("a", 0, 3), ("a", 2, 4)], "went on at position 2 and not at 3"),
        ([("a", 2, 4)], "went on at position 2 and not at 0"),
        ([], "0 of 6 positions"),
    ],
)
def test_capture_with_a_hole_says_so(
    hooked: tuple[Model, Recorder], scheduled: list[tuple[str, int, int]], said: str
) -> None:
    """Positions that are missing, as with a prefix cache, or come twice are told, whatever the hook."""
    model, recorder = hooked
    prompts = {"a": torch.arange(6)}
    recorder.begin("a", Asked(prompts["a"], room(6)))
    for part in scheduled:
        run_pass(model, recorder, [part], prompts)
    ended = recorder.end("a")
    assert ended is not None
    assert said in ended.missing()


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_that_saw_nothing_is_told(hooked: tuple[Model, Recorder], hook: str) -> None:
    """A pass that leaves out one hook alone, as a compiled one does, is told by that hook's name."""
    model, recorder = hooked
    prompts = {"a": torch.arange(4)}
    recorder.begin("a", Asked(prompts["a"], room(4)))
    # Only this request's list of those who want the hook is emptied; the model and its other hooks are as they were.
    own_start = recorder.start_pass

    def start_without(*arguments: Any) -> None:
        own_start(*arguments)
        del recorder._wanting[hook]

    recorder.start_pass = start_without  # type: ignore[method-assign]
    try:
        run_pass(model, recorder, [("a", 0, 4)], prompts)
    finally:
        del recorder.start_pass
    ended = recorder.end("a")
    assert ended is not None
    assert ended.missing() == ("" if hook == "logits" else f"{hook} saw 0 of 4 positions")


def test_capture_of_other_tokens_says_so(hooked: tuple[Model, Recorder]) -> None:
    """Rows that are not the prompt's, by token or by position, are told."""
    model, recorder = hooked
    for token_ids, positions in ((torch.tensor([0, 1, 9]), torch.arange(3)), (torch.arange(3), torch.arange(1, 4))):
        recorder.begin("a", Asked(torch.arange(3), room(3)))
        recorder.start_pass([("a", 0, 3)], token_ids, positions)
        model(token_ids, positions)
        recorder.end_pass()
        ended = recorder.end("a")
        assert ended is not None
        assert "other tokens than the prompt's" in ended.missing()


def test_rows_of_an_unknown_request_are_passed_over(hooked: tuple[Model, Recorder]) -> None:
    """A request that was dropped may still be in a pass; it harms nobody."""
    model, recorder = hooked
    prompts = {"gone": torch.arange(3), "a": torch.arange(2)}
    sinks = room(2)
    recorder.begin("a", Asked(prompts["a"], sinks))
    run_pass(model, recorder, [("gone", 0, 3), ("a", 0, 2)], prompts)
    assert recorder.end("gone") is None
    torch.testing.assert_close(sinks["resid_final"], run_whole(model, prompts["a"], {})["resid_final"])


def test_models_of_another_shape_are_refused() -> None:
    """An architecture that is not known, and layers that are not here, are said at once."""
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel .* LlamaForCausalLM"):
        Recorder(Model(), "GPT2LMHeadModel", NUM_LAYERS)
    with pytest.raises(ValueError, match="2 layers with an MLP were found where the model has 3"):
        Recorder(Model(), "LlamaForCausalLM", 3)
