"""
Whisper: every component of both stacks and of what joins them, against transformers' outputs and plain recomputation in
float64; changes; and recordings as WAV files.

Legend: P positions, F frames, H heads, E head width, N mel bins, S steps of the spectrogram, T samples.
"""

import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_llama, make_whisper
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.core.analyses.head_scores import score_heads
from weft_activations.core.analyses.logit_lens import logit_lens
from weft_activations.core.analyses.patterns import AttentionKind, PatternsStart, attention_patterns
from weft_activations.core.changing import Audio, Change, ChangeKind, Prompt
from weft_activations.core.component import position_dim
from weft_activations.core.components import component_at
from weft_activations.core.generating import Generation, Sampling
from weft_activations.core.harvest_records import HarvestSpec
from weft_activations.core.hooks import expand_hooks, hook_shape
from weft_activations.core.inference import Inference
from weft_activations.core.planning import HarvestPlanner
from weft_activations.core.ports import Freeze, Intervention, InterventionKind, SpeechSizes
from weft_activations.core.speech import read_wav
from weft_common.errors import FailedPreconditionError, InvalidArgumentError
from weft_store.adapters.memory import MemoryObjectStore

IDS = [0, 280, 283, 264, 273, 302]
SIZES = SpeechSizes(2, 2, 40, 50, 100, 16, 16_000, 16_000, 1)
FEATURES = np.random.default_rng(0).normal(size=(16, 100)).astype(np.float32)
OTHER = np.random.default_rng(1).normal(size=(16, 100)).astype(np.float32)
PROMPT = Prompt(token_ids=tuple(IDS), audio=Audio(features_NS=FEATURES))
STACKS = (("encoder", 2, 2), ("decoder", 3, 4))
Captures = dict[str, Any]


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    make_whisper(folder / "whisper")
    make_llama(folder / "llama", num_layers=1)
    return folder


@pytest.fixture(scope="module")
def backend(models_dir: Path) -> TransformersBackend:
    return TransformersBackend(models_dir)


@pytest.fixture
async def inference(backend: TransformersBackend) -> AsyncIterator[Inference]:
    made = Inference(backend)
    yield made
    made.close()


@pytest.fixture(scope="module")
def own(models_dir: Path) -> Any:
    """transformers' own model, in float64."""
    return WhisperForConditionalGeneration.from_pretrained(
        models_dir / "whisper", attn_implementation="eager", dtype=torch.float64
    ).eval()


@pytest.fixture(scope="module")
def found(backend: TransformersBackend) -> Captures:
    """Every component, in float64."""
    info = backend.describe("whisper")
    captures = backend.forward_speech("whisper", FEATURES, IDS, list(expand_hooks(info.components, info)))
    return {name: value.astype(np.float64) for name, value in captures.items()}


def close(value: Any, expected: Any, atol: float = 1e-5) -> None:
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    np.testing.assert_allclose(value, expected, atol=atol, rtol=1e-5)


def linear(module: Any, x: Any) -> Any:
    bias = 0.0 if module.bias is None else module.bias.detach().numpy()
    return x @ module.weight.detach().numpy().T + bias


def normed(module: Any, x: Any) -> tuple[Any, Any]:
    """Return a norm's scale and output."""
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1) + module.eps)
    return scale, centred / scale[..., None] * module.weight.detach().numpy() + module.bias.detach().numpy()


def softmax(scores: Any) -> Any:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def gelu(x: Any) -> Any:
    return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()


def test_every_component_has_its_shape(backend: TransformersBackend, found: Captures) -> None:
    """What is listed is what a capture returns, each stack with sizes of its own."""
    info = backend.describe("whisper")
    assert info.speech == SIZES
    assert (info.num_layers, info.num_heads, info.d_head, info.d_mlp, info.max_tokens) == (3, 4, 8, 48, 64)
    for name, value in found.items():
        assert value.shape == hook_shape(name, info, len(IDS)), name
        assert not np.isnan(value).any(), name
    layers = {"encoder": 2, "decoder": 3}
    assert len(found) == sum(layers[name.split(".")[0]] if "*" in name else 1 for name in info.components)
    assert found["encoder.layers.1.attn.pattern"].shape == (2, 50, 50)
    assert found["decoder.layers.2.cross.pattern"].shape == (4, 6, 50)


@torch.no_grad()
def test_captures_equal_what_transformers_returns(own: Any, found: Captures) -> None:
    """Streams, the patterns of both stacks, cross attention and logits are those of transformers itself."""
    expected = own(
        torch.from_numpy(FEATURES).double()[None],
        decoder_input_ids=torch.tensor([IDS]),
        output_hidden_states=True,
        output_attentions=True,
    )
    close(found["logits_all"], expected.logits[0])
    close(found["logits"], expected.logits[0, -1])
    close(found["encoder.ln_final.normed"], expected.encoder_last_hidden_state[0])
    states = {"encoder": expected.encoder_hidden_states, "decoder": expected.decoder_hidden_states}
    attentions = {"encoder": expected.encoder_attentions, "decoder": expected.decoder_attentions}
    for stack, num_layers, _ in STACKS:
        for layer in range(num_layers):
            close(found[f"{stack}.layers.{layer}.resid_pre"], states[stack][layer][0])
            close(found[f"{stack}.layers.{layer}.attn.pattern"], attentions[stack][layer][0])
        close(found[f"{stack}.embed"], states[stack][0][0])
    for layer in range(3):
        close(found[f"decoder.layers.{layer}.cross.pattern"], expected.cross_attentions[layer][0])


def test_what_enters_and_leaves_is_recomputed(own: Any, found: Captures) -> None:
    """Frames come of the spectrogram by two convolutions, tokens of embeddings, logits of the last norm."""
    close(found["encoder.features"], FEATURES.T, atol=0)
    encoder, decoder = own.model.encoder, own.model.decoder
    padded = np.pad(found["encoder.features"], ((1, 1), (0, 0)))
    first = encoder.conv1.weight.detach().numpy()
    steps = gelu(
        np.stack([np.einsum("kn,dnk->d", padded[t : t + 3], first) for t in range(100)])
        + encoder.conv1.bias.detach().numpy()
    )
    padded, second = np.pad(steps, ((1, 1), (0, 0))), encoder.conv2.weight.detach().numpy()
    frames = gelu(
        np.stack([np.einsum("kn,dnk->d", padded[2 * f : 2 * f + 3], second) for f in range(50)])
        + encoder.conv2.bias.detach().numpy()
    )
    close(found["encoder.embed"], frames + encoder.embed_positions.weight.detach().numpy())
    close(found["decoder.tok_embed"], decoder.embed_tokens.weight[IDS])
    close(found["decoder.pos_embed"], decoder.embed_positions.weight[: len(IDS)])
    close(found["decoder.embed"], found["decoder.tok_embed"] + found["decoder.pos_embed"])
    for stack, num_layers, _ in STACKS:
        body = getattr(own.model, stack)
        close(found[f"{stack}.resid_final"], found[f"{stack}.layers.{num_layers - 1}.resid_post"], atol=0)
        scale, output = normed(body.layer_norm, found[f"{stack}.resid_final"])
        close(found[f"{stack}.ln_final.scale"], scale)
        close(found[f"{stack}.ln_final.normed"], output)
    close(found["logits_all"], linear(own.proj_out, found["decoder.ln_final.normed"]))


def check_attention(
    at: Captures, prefix: str, attention: Any, x: Any, source: Any, num_heads: int, causal: bool
) -> Any:
    """Recompute an attention from what it reads and return what it adds."""
    width = 32 // num_heads
    for name, read in (("q", x), ("k", source), ("v", source)):
        projected = linear(getattr(attention, f"{name}_proj"), read)
        close(at[prefix + name], projected.reshape(-1, num_heads, width).transpose(1, 0, 2))
    scores = at[prefix + "q"] @ at[prefix + "k"].transpose(0, 2, 1) / np.sqrt(width)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    close(at[prefix + "scores"], scores)
    close(at[prefix + "pattern"], softmax(scores))
    close(at[prefix + "z"], at[prefix + "pattern"] @ at[prefix + "v"])
    output = linear(attention.out_proj, at[prefix + "z"].transpose(1, 0, 2).reshape(-1, 32))
    close(at[prefix + "result"].sum(0) + attention.out_proj.bias.detach().numpy(), output)
    return output


@pytest.mark.parametrize(("stack", "num_layers", "num_heads"), STACKS)
def test_layers_are_recomputed(own: Any, found: Captures, stack: str, num_layers: int, num_heads: int) -> None:
    """Each component follows in float64 from the one before and the weights."""
    for layer, block in enumerate(getattr(own.model, stack).layers):
        prefix = f"{stack}.layers.{layer}."
        at = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
        scale, output = normed(block.self_attn_layer_norm, at["resid_pre"])
        close(at["ln1.scale"], scale)
        close(at["ln1.normed"], output)
        x = at["ln1.normed"]
        close(at["attn_out"], check_attention(at, "attn.", block.self_attn, x, x, num_heads, stack == "decoder"))
        close(at["resid_mid"], at["resid_pre"] + at["attn_out"])
        before_mlp = at["resid_mid"]
        if stack == "decoder":
            scale, output = normed(block.encoder_attn_layer_norm, at["resid_mid"])
            close(at["ln_cross.scale"], scale)
            close(at["ln_cross.normed"], output)
            heard = found["encoder.ln_final.normed"]
            added = check_attention(at, "cross.", block.encoder_attn, at["ln_cross.normed"], heard, num_heads, False)
            close(at["cross_out"], added)
            close(at["resid_cross"], at["resid_mid"] + at["cross_out"])
            before_mlp = at["resid_cross"]
        scale, output = normed(block.final_layer_norm, before_mlp)
        close(at["ln2.scale"], scale)
        close(at["ln2.normed"], output)
        close(at["mlp_in"], output)
        close(at["mlp.pre"], linear(block.fc1, at["mlp_in"]))
        close(at["mlp.post"], gelu(at["mlp.pre"]))
        close(at["mlp_out"], linear(block.fc2, at["mlp.post"]))
        close(at["resid_post"], before_mlp + at["mlp_out"])


def test_every_component_can_be_set_and_changed(backend: TransformersBackend, found: Captures) -> None:
    """Its own value set leaves the logits; another one is read back as set, at its position alone, and moves them."""
    rng = np.random.default_rng(0)
    for name, clean in found.items():
        if name in ("logits", "logits_all") or (".layers." in name and ".layers.1." not in name):
            continue
        value, dim = clean.astype(np.float32), position_dim(component_at(name))
        last = value.shape[dim] - 1
        same = Intervention(None, name, InterventionKind.SET, value=value)
        close(backend.forward_speech("whisper", FEATURES, IDS, ["logits"], [same])["logits"], found["logits"], 3e-5)
        rows = value.take([last], axis=dim)
        noise = rng.normal(size=rows.shape).astype(np.float32)
        new = np.where(np.isfinite(rows), rows + noise, rows)
        new = np.abs(new) if name.endswith(("pattern", "scale")) else new
        change = Intervention(None, name, InterventionKind.SET, (last,), new)
        again = backend.forward_speech("whisper", FEATURES, IDS, [name, "logits"], [change])
        expected = value.copy()
        expected[(slice(None),) * dim + (last,)] = new.take(0, axis=dim)
        np.testing.assert_allclose(again[name], expected, atol=1e-5, rtol=1e-5, err_msg=name)
        assert np.abs(again["logits"] - found["logits"]).max() > 1e-6, name


async def test_patching_what_was_heard_gives_the_other_recordings_logits(inference: Inference) -> None:
    """With all frames of another recording, by either end of the encoder, the model says what it says of that one."""
    other = Prompt(token_ids=(0, 281), audio=Audio(features_NS=OTHER))
    whole = Prompt(token_ids=tuple(IDS), audio=Audio(features_NS=OTHER))

    async def logits(prompt: Prompt, *changes: Change) -> Any:
        ran = await inference.run("whisper", prompt, changes, Freeze(), num_top_tokens=1, asked_token_ids=())
        return ran.logits

    expected, plain = await logits(whole), await logits(PROMPT)
    assert np.abs(expected - plain).max() > 1e-3
    for hook in ("encoder.features", "encoder.layers.1.resid_pre", "encoder.ln_final.normed"):
        close(await logits(PROMPT, Change(hook, ChangeKind.PATCH, source=other)), expected)
    last = Change("decoder.layers.2.resid_post", ChangeKind.PATCH, (5,), source=other, source_positions=(1,))
    close(await logits(PROMPT, last), await logits(other))
    mean = Change("encoder.ln_final.normed", ChangeKind.MEAN)
    assert np.abs(await logits(PROMPT, mean) - plain).max() > 1e-4


def test_frozen_patterns_and_scales_stay(backend: TransformersBackend, found: Captures) -> None:
    """Patterns of all three kinds and every scale read as without the change."""
    kept = [
        name
        for name in found
        if name.endswith((".scale", "attn.pattern", "cross.pattern")) and not name.startswith("encoder.layers.0.ln1")
    ]
    value = np.random.default_rng(2).normal(size=32).astype(np.float32)
    changes = [
        Intervention(None, f"{stack}.layers.0.resid_pre", InterventionKind.ADD, value=value)
        for stack in ("encoder", "decoder")
    ]
    freeze = Freeze(attention_patterns=True, norm_scales=True)
    clean = backend.forward_speech("whisper", FEATURES, IDS, kept)
    held = backend.forward_speech("whisper", FEATURES, IDS, kept, changes, freeze)
    free = backend.forward_speech("whisper", FEATURES, IDS, kept, changes)
    for name in kept:
        np.testing.assert_allclose(held[name], clean[name], atol=0, err_msg=name)
        assert np.abs(free[name] - clean[name]).max() > 1e-6, name


def wav(samples_TC: Any, *, rate: int = 16_000, width: int = 2) -> bytes:
    """Write samples from -1 to 1, [T, C], as a WAV file."""
    whole = np.round(samples_TC * ((1 << (8 * width - 1)) - 1)).astype(np.int64)
    data = (whole + 128 if width == 1 else whole).astype("<i8").tobytes()
    kept = np.frombuffer(data, np.uint8).reshape(-1, 8)[:, :width].tobytes()
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((samples_TC.shape[1], width, rate, 0, "NONE", ""))
        file.writeframes(kept)
    return made.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_are_read_as_written(width: int, channels: int) -> None:
    """Samples of any width come back to its step, and channels as their mean."""
    samples_TC = np.random.default_rng(0).uniform(-1, 1, (500, channels))
    read_T = read_wav(wav(samples_TC, width=width), SIZES, "wav")
    np.testing.assert_allclose(read_T, samples_TC.mean(-1), atol=2.0 / (1 << (8 * width - 1)) + 1e-7)


async def test_wav_is_heard_as_its_log_mel_spectrogram(inference: Inference, models_dir: Path) -> None:
    """What the encoder reads of a WAV file is the log-mel spectrogram worked out in float64 from its definition."""
    times = np.arange(12_000) / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * times) + 0.2 * np.sin(2 * np.pi * 1800 * times)
    prompt = Prompt(token_ids=(0,), audio=Audio(wav=wav(tone[:, None])))
    async with inference.capturing("whisper", prompt, ["encoder.features"], (), Freeze()) as passed:
        features_SN = passed.captures["encoder.features"]
    padded = np.pad(np.pad(np.round(tone * 32767) / 32768, (0, 4_000)), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.stack([np.abs(np.fft.rfft(padded[160 * s : 160 * s + 400] * window)) ** 2 for s in range(100)])
    filters = WhisperFeatureExtractor.from_pretrained(models_dir / "whisper").mel_filters
    log_mel = np.log10(np.maximum(power @ filters, 1e-10))
    close(features_SN, (np.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0, atol=1e-3)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_wav_files_are_refused(data: st.DataObject) -> None:
    """A file with bytes changed, added or cut off gives samples from -1 to 1, or is refused; nothing else happens."""
    content = bytearray(wav(np.random.default_rng(0).uniform(-1, 1, (20, 1))))
    for index in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[index] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        samples_T = read_wav(bytes(content[:cut]) + data.draw(st.binary(max_size=8)), SIZES, "wav")
    except InvalidArgumentError:
        return
    assert samples_T.dtype == np.float32
    assert np.abs(samples_T).max() <= 1


SILENCE = np.zeros((160, 1))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (None, "there is none; set prompt.audio.wav"),
        (Audio(), "there is none"),
        (Audio(wav=b"RIFF"), "no WAV file"),
        (Audio(wav=wav(SILENCE)[:17] + b"\x01" + wav(SILENCE)[18:36]), "no WAV file"),
        (Audio(wav=wav(SILENCE)[:-10]), "cut off: 310 of 320 bytes"),
        (Audio(wav=wav(SILENCE, rate=44_100)), "44100 samples a second; send 16000"),
        (Audio(wav=wav(np.zeros((16_001, 1)))), "16001 samples; send 1 to 16000, 1 seconds"),
        (Audio(wav=wav(np.zeros((0, 1)))), "0 samples"),
        (Audio(wav=wav(np.zeros((16, 9)))), "9 channels"),
        (Audio(features_NS=FEATURES[:, :99]), r"\[16, 99\]; whisper reads float32 \[16, 100\]"),
        (Audio(features_NS=np.full((16, 100), np.nan, np.float32)), "NaN"),
    ],
)
async def test_audio_that_does_not_fit_is_refused(inference: Inference, audio: Audio | None, message: str) -> None:
    """The message tells what the model hears."""
    prompt = Prompt(token_ids=(0,), audio=audio)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        await inference.run("whisper", prompt, (), Freeze(), num_top_tokens=1, asked_token_ids=())
    assert str(caught.value.field).startswith("prompt.audio")


@pytest.mark.parametrize(
    ("kind", "own_name", "hook", "num_layers"),
    [
        (AttentionKind.TOKENS, "decoder_attentions", "decoder.layers.{}.attn.pattern", 3),
        (AttentionKind.FRAMES, "encoder_attentions", "encoder.layers.{}.attn.pattern", 2),
        (AttentionKind.CROSS, "cross_attentions", "decoder.layers.{}.cross.pattern", 3),
    ],
)
async def test_patterns_of_each_kind_are_transformers_own(
    models_dir: Path, own: Any, kind: AttentionKind, own_name: str, hook: str, num_layers: int
) -> None:
    """Every layer, of chosen heads and positions, where a pass has room for one layer's pattern and for all of them."""
    with torch.no_grad():
        outputs = own(
            torch.from_numpy(FEATURES.astype(np.float64))[None],
            decoder_input_ids=torch.tensor([IDS]),
            output_attentions=True,
        )
    expected = [layer[0].numpy() for layer in outputs[own_name]]
    for most in (expected[0].size * 4, 1 << 30):
        inference = Inference(TransformersBackend(models_dir), max_capture_bytes=most)
        asked = attention_patterns(inference, "whisper", PROMPT, kind=kind, heads=[1], positions=[0, 4])
        start, *parts = [part async for part in asked]
        inference.close()
        assert isinstance(start, PatternsStart)
        assert (start.kind, start.layers) == (kind, tuple(range(num_layers)))
        for layer, part in enumerate(parts):
            assert not isinstance(part, PatternsStart)
            assert part[0] == hook.format(layer)
            np.testing.assert_allclose(part[1], expected[layer][np.ix_([1], [0, 4])], rtol=1e-4, atol=1e-6)
        assert len(parts) == num_layers


async def test_patterns_refuse_what_a_stack_does_not_have(inference: Inference) -> None:
    """The encoder has two layers of two heads and 50 frames, six tokens were said; a model of text has no frames."""
    silent, text = Prompt(token_ids=tuple(IDS)), Prompt(token_ids=(3, 4))
    for model_id, prompt, kind, asked, field in (
        ("whisper", PROMPT, AttentionKind.FRAMES, {"layers": [2]}, "layers"),
        ("whisper", PROMPT, AttentionKind.FRAMES, {"heads": [2]}, "heads"),
        ("whisper", PROMPT, AttentionKind.FRAMES, {"positions": [50]}, "positions"),
        ("whisper", PROMPT, AttentionKind.CROSS, {"positions": [6]}, "positions"),
        ("whisper", silent, AttentionKind.TOKENS, {}, "prompt.audio"),
        ("llama", text, AttentionKind.CROSS, {}, "kind"),
        ("llama", PROMPT, AttentionKind.TOKENS, {}, "prompt.audio"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await anext(attention_patterns(inference, model_id, prompt, kind=kind, **asked))
        assert caught.value.field == field


async def test_what_is_not_for_speech_is_refused(inference: Inference) -> None:
    """Calls of text alone name those that hear, harvests the kind, and a model of text hears nothing."""

    async def drained(parts: AsyncIterator[Any]) -> None:
        async for _ in parts:
            raise AssertionError("something came")

    for refused in (
        drained(Generation(inference, max_bytes=1 << 20).generate("whisper", PROMPT, (), Sampling(2))),
        drained(logit_lens(inference, "whisper", PROMPT)),
        score_heads(inference, "whisper", num_tokens=4),
    ):
        with pytest.raises(FailedPreconditionError, match="models of text alone; take Capture, Run or GetAtt"):
            await refused
    spec = HarvestSpec("whisper", "d", "none", 100, 0.1, 16, "mlp_in", "mlp_out", "bf16", 0.0, 0.0, 4)
    with pytest.raises(FailedPreconditionError, match="reads speech besides"):
        await HarvestPlanner(MemoryObjectStore(), inference).plan(spec)
    with pytest.raises(InvalidArgumentError, match=r"llama .* reads no audio"):
        await inference.run("llama", PROMPT, (), Freeze(), num_top_tokens=1, asked_token_ids=())


async def test_changes_that_do_not_fit_are_refused(inference: Inference) -> None:
    """Positions, heads and entries are counted in the stack where the component lies."""
    for change, message in (
        (Change("encoder.embed", ChangeKind.ABLATE, (50,)), "no position 50; there are 50"),
        (Change("decoder.embed", ChangeKind.ABLATE, (6,)), "no position 6; there are 6"),
        (Change("encoder.layers.0.attn.z", ChangeKind.ABLATE, heads=(2,)), "no head 2; there are 2"),
        (Change("encoder.layers.2.mlp_out", ChangeKind.ABLATE), "no layer 2; this model has 2"),
        (Change("encoder.layers.0.cross.z", ChangeKind.ABLATE), "no hook"),
        (Change("layers.0.attn.z", ChangeKind.ABLATE), "no hook"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            await inference.run("whisper", PROMPT, [change], Freeze(), num_top_tokens=1, asked_token_ids=())


async def test_a_text_goes_on_where_the_tokenizer_would_end_it(models_dir: Path) -> None:
    """The end token that a tokenizer of transcripts adds is left out of what was said so far."""
    backend = TransformersBackend(models_dir)
    ended = [*backend.tokenize("whisper", "The capital"), SIZES.end_token_id]
    backend.tokenize = lambda model_id, text, **_: ended  # type: ignore[method-assign]
    inference = Inference(backend)
    prompt = Prompt(text="The capital", audio=PROMPT.audio)
    ran = await inference.run("whisper", prompt, (), Freeze(), num_top_tokens=1, asked_token_ids=())
    inference.close()
    assert [token.token_id for token in ran.tokens] == ended[:-1]
    assert ended[0] == 0


def test_folder_without_its_feature_extractor_is_refused(tmp_path: Path) -> None:
    """A missing preprocessor_config.json, and one of another model, are named before anything is loaded."""
    folder = make_whisper(tmp_path / "whisper")
    settings_path = folder / "preprocessor_config.json"
    there = settings_path.read_text()
    settings_path.unlink()
    with pytest.raises(FailedPreconditionError, match=r"put its preprocessor_config\.json"):
        TransformersBackend(tmp_path).describe("whisper")
    settings_path.write_text(there.replace('"feature_size": 16', '"feature_size": 80'))
    with pytest.raises(FailedPreconditionError, match=r"\[80, 100\], its config.json wants \[16, 100\]"):
        TransformersBackend(tmp_path).describe("whisper")
