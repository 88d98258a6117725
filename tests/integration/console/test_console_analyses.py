"""The page of analyses: the console's backend before a real activations service with a tiny model, and Chromium."""

import io
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from harvest_fakes import FakeCatalog
from playwright.async_api import Browser, Page, expect
from tiny_models import make_llama, make_whisper

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_client import AsyncClient, Endpoint
from weft_client.metrics import probability
from weft_client.speech import heard
from weft_common.server import serving
from weft_console.serve import Console, serving_console
from weft_console.settings import ConsoleSettings
from weft_store.adapters.memory import MemoryObjectStore

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"
TOKEN, PEER_TOKEN = "a-token-for-tests", "another-token"
TEXT, OTHER_TEXT = "The capital of France is", "A capital of France is"
# Forward passes on a machine that does much else.
ANSWER_MS = 60_000


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", add_bos=True)
    make_whisper(folder / "whisper")
    return folder


@pytest.fixture(scope="module")
def tone() -> bytes:
    """A WAV file of three quarters of a second."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.round(np.sin(np.arange(12_000) * 0.17) * 32767).astype("<i2").tobytes())
    return made.getvalue()


@pytest.fixture
async def target(models_dir: Path) -> AsyncIterator[str]:
    """An activations service."""
    store = MemoryObjectStore()
    settings = ActivationsSettings(
        token=PEER_TOKEN, bucket_url="memory://", models_dir=models_dir, cache_target="unused:1", drain_s=0
    )
    async with (
        registrations(settings, TransformersBackend(models_dir), store, FakeCatalog(store)) as registered,
        serving("activations", settings, registered) as server,
    ):
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
async def inside(settings: ConsoleSettings, target: str) -> AsyncIterator[Console]:
    """A console that knows the service."""
    known = {
        "activations_target": target,
        "activations_token": ConsoleSettings.model_validate(
            settings.model_dump() | {"activations_token": PEER_TOKEN}
        ).activations_token,
    }
    async with serving_console(settings.model_copy(update=known)) as console:
        yield console


@pytest.fixture
def built_page() -> None:
    """Build the page where its sources are newer."""
    subprocess.run([sys.executable, ROOT / "scripts" / "page.py"], check=True)


@asynccontextmanager
async def signed_in(console: Console) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        base_url=console.url.rstrip("/"), timeout=60, headers={"X-Weft-Console": "1"}
    ) as client:
        answer = await client.post("/api/session", json={"token": TOKEN})
        assert answer.status_code == 200
        yield client


async def test_analyses_over_http_are_those_of_the_service(inside: Console, target: str) -> None:
    """Lens, pattern and sweep as JSON hold the numbers that the client gets."""
    async with signed_in(inside) as http, AsyncClient.to(activations=Endpoint(target, PEER_TOKEN)) as client:
        models = (await http.get("/api/models")).json()["models"]
        assert [(model["name"], model["kind"]) for model in models] == [
            ("models/llama", "decoder"),
            ("models/whisper", "speech"),
        ]
        lens = (await http.post("/api/models/llama/lens", json={"prompt": TEXT})).json()
        found = await client.analyses.logit_lens("llama", TEXT, num_top_tokens=3)
        assert lens["kl"] == found["kl"].tolist()
        assert [[[one["text"] for one in tops] for tops in row] for row in lens["top"]] == found["top_token"].tolist()
        asked: dict[str, Any] = {"prompt": TEXT, "layer": 2, "head": 3}
        pattern = (await http.post("/api/models/llama/patterns", json=asked)).json()
        assert pattern["pattern"] == (await client.analyses.attention_patterns("llama", TEXT))["pattern"][2, 3].tolist()
        asked = {"clean": TEXT, "corrupted": OTHER_TEXT, "token": "e", "component": "mlp_out"}
        swept = (await http.post("/api/models/llama/patches", json=asked)).json()
        (token,) = await client.models.tokenize("llama", "e", without_special_tokens=True)
        direct = await client.analyses.sweep_patches(
            "llama", clean=TEXT, corrupted=OTHER_TEXT, metric=probability(token.id), components=["mlp_out"]
        )
        assert swept["clean_metric"] == direct.attrs["clean_metric"]
        np.testing.assert_allclose(swept["restored"], direct["restored"][0], rtol=1e-6, atol=1e-9)
        same = (await http.post("/api/models/llama/patches", json=asked | {"corrupted": TEXT})).json()
        assert same["restored"] == [[None] * len(same["clean_tokens"])] * 3


async def test_hearing_over_http_is_that_of_the_service(inside: Console, target: str, tone: bytes) -> None:
    """Weights of one head over frames, and the spectrogram from its quietest, 0, to its loudest, 255."""
    async with signed_in(inside) as http, AsyncClient.to(activations=Endpoint(target, PEER_TOKEN)) as client:
        asked = {"said": TEXT, "layer": 2, "head": 3}
        wav = {"Content-Type": "audio/wav"}
        answer = (await http.post("/api/models/whisper/hearing", params=asked, content=tone, headers=wav)).json()
        prompt = heard(tone, TEXT)
        found = await client.analyses.attention_patterns("whisper", prompt, kind="cross", layers=[2], heads=[3])
        np.testing.assert_allclose(answer["pattern"], found["pattern"][0, 0], atol=1e-5)
        assert answer["tokens"] == found.coords["token"][1]
        assert answer["frame_s"] == 1 / 50
        features_SN = (await client.models.capture("whisper", prompt, hooks=["encoder.features"]))["encoder.features"]
        loudest_FN = np.maximum(features_SN[::2], features_SN[1::2])
        low, high = features_SN.min(), features_SN.max()
        np.testing.assert_allclose(answer["spectrogram"], 255 * (loudest_FN.T - low) / (high - low), atol=0.51)


async def test_hearing_refuses_in_words(inside: Console, tone: bytes) -> None:
    """Nothing said, no such head, a body of another kind, no recording, one that is too long, a model of text."""
    wav = {"Content-Type": "audio/wav"}
    said = {"said": TEXT, "layer": "0", "head": "0"}
    async with signed_in(inside) as http:
        for model, params, headers, content, words in (
            ("whisper", said | {"said": " "}, wav, tone, "nothing was said"),
            ("whisper", said | {"head": "x"}, wav, tone, "head is 'x'"),
            ("whisper", said | {"head": "4"}, wav, tone, "no head 4"),
            ("whisper", said, {"Content-Type": "text/plain"}, tone, "send audio/wav"),
            ("whisper", said, wav, b"RIFF", "no WAV file"),
            ("whisper", said, wav, bytes((2 << 20) + 1), "shorter recording"),
            ("llama", said, wav, tone, "reads no audio"),
        ):
            answer = await http.post(f"/api/models/{model}/hearing", params=params, headers=headers, content=content)
            assert answer.status_code == 400, answer.text
            assert words in answer.json()["detail"]


async def test_analyses_refuse_in_words(inside: Console, console: Console) -> None:
    """No prompt, a text of two tokens, a prompt too long for a page, and a console that knows no service."""
    async with signed_in(inside) as http:
        for path, body, words in (
            ("lens", {"prompt": " "}, "empty"),
            ("patches", {"clean": TEXT, "corrupted": "France", "token": "e"}, "as many"),
            ("patches", {"clean": TEXT, "corrupted": TEXT, "token": "capital of"}, "tokens; give the text of one"),
            ("patches", {"clean": TEXT, "corrupted": TEXT, "token": "e", "component": "attn.z"}, "does not patch"),
            ("patterns", {"prompt": TEXT, "layer": 9, "head": 0}, "no layer 9"),
        ):
            answer = await http.post(f"/api/models/llama/{path}", json=body)
            assert answer.status_code == 400, answer.text
            assert words in answer.json()["detail"]
    async with signed_in(console) as http:
        answer = await http.get("/api/models")
        assert "WEFT_CONSOLE_ACTIVATIONS_TARGET" in answer.json()["detail"]


@asynccontextmanager
async def opened(
    chromium: Browser, settings: ConsoleSettings, target: str, scheme: Any, width: int
) -> AsyncIterator[Page]:
    """Open the page of analyses; no error may come up in it until it is closed."""
    built = type(settings).model_fields["static_dir"].default
    known = ConsoleSettings.model_validate(
        settings.model_dump() | {"static_dir": built, "activations_target": target, "activations_token": PEER_TOKEN}
    )
    async with serving_console(known) as console:
        context = await chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{console.url}inside?token={TOKEN}")
        yield page
        assert errors == []
        await context.close()


async def photograph(page: Page, name: str) -> None:
    """Keep a picture, in which nothing is wider than the window."""
    scheme = "dark" if await page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    width = await page.evaluate("() => innerWidth")
    await page.screenshot(path=ARTIFACTS / f"inside-{name}-{scheme}-{width}.png", full_page=True)
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("built_page")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
async def test_page_shows_heat_maps(
    chromium: Browser, settings: ConsoleSettings, target: str, scheme: Any, width: int
) -> None:
    """By keyboard alone: a prompt is typed and read, and the tables hold a row a depth, a position, a layer."""
    async with opened(chromium, settings, target, scheme, width) as page:
        cells, rows = page.locator(".heat-table td"), page.locator(".heat-table tbody tr")

        async def choose(after: str, name: str) -> None:
            await page.get_by_role("radio", name=after).focus()
            await page.keyboard.press("ArrowRight")
            await expect(page.get_by_role("radio", name=name)).to_be_checked()

        await page.get_by_label("Prompt").fill(TEXT)
        await page.keyboard.press("Enter")
        await expect(rows).to_have_count(4, timeout=ANSWER_MS)
        num_tokens = await cells.count() // 4
        await photograph(page, "lens")
        await choose("Logit lens", "Attention")
        await expect(page.get_by_label("Prompt")).to_have_value(TEXT)
        await page.get_by_label("Head").fill("1")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("region", name="Where each token looks, table")).to_be_visible(timeout=ANSWER_MS)
        await expect(cells).to_have_count(num_tokens**2)
        await expect(cells.first).to_have_text("1.00")
        await photograph(page, "attention")
        await choose("Attention", "Patching")
        await page.get_by_label("Corrupted prompt").fill(OTHER_TEXT)
        await page.get_by_label("Token").fill("e")
        await page.keyboard.press("Enter")
        await expect(rows).to_have_count(3, timeout=ANSWER_MS)
        # The whole stream of the position where the prompts differ, before the first layer, brings everything back.
        await expect(rows.first.locator("td", has_text="1.00")).to_have_count(1)
        await photograph(page, "patching")
        await page.get_by_label("Token").fill("capital of")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("give the text of one")).to_be_visible(timeout=ANSWER_MS)


# How dark each frame of a strip is, 0 to 255.
_DARKNESS = """canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data;
    return Array.from({length: canvas.width}, (_, at) => data[4 * at + 3]);
}"""


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("built_page")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
async def test_page_draws_what_tokens_look_at_in_a_recording(
    chromium: Browser, settings: ConsoleSettings, target: str, tone: bytes, scheme: Any, width: int
) -> None:
    """A row a token below the spectrogram; how dark its frames are and the words behind them are the service's own."""
    async with opened(chromium, settings, target, scheme, width) as page:
        rows = page.locator(".frame-map tbody tr")
        await page.get_by_label("Model").select_option("models/whisper")
        await page.get_by_role("radio", name="Logit lens").focus()
        await page.keyboard.press("ArrowRight")
        recording: Any = {"name": "tone.wav", "mimeType": "audio/x-wav", "buffer": tone}
        await page.get_by_label("Recording").set_input_files(recording)
        await page.get_by_label("Said so far").fill(TEXT)
        await page.get_by_label("Head").fill("1")
        await page.keyboard.press("Enter")
        heard_strip = rows.first.get_by_role("img")
        await expect(heard_strip).to_have_accessible_name("Spectrogram of 1 seconds", timeout=ANSWER_MS)
        async with AsyncClient.to(activations=Endpoint(target, PEER_TOKEN)) as client:
            found = await client.analyses.attention_patterns("whisper", heard(tone, TEXT), kind="cross", layers=[0])
        weights_PF = found["pattern"][0, 1]
        await expect(rows).to_have_count(1 + len(weights_PF))
        assert await heard_strip.evaluate("canvas => [canvas.width, canvas.height]") == [50, 16]
        for weights_F, row in zip(weights_PF, (await rows.all())[1:], strict=True):
            darkness = await row.locator("canvas").evaluate(_DARKNESS)
            np.testing.assert_allclose(darkness, 255 * weights_F / weights_F.max(), atol=1.5)
            await expect(row.locator("td").last).to_contain_text(f", {100 * weights_F.max():.1f}%")
        await photograph(page, "hearing")
