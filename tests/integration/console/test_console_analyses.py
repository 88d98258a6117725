"""The page of analyses: the console's backend before a real activations service with a tiny model, and Chromium."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from harvest_fakes import FakeCatalog
from playwright.async_api import Browser, expect
from tiny_models import make_llama

from weft_activations.adapters.transformers_backend import TransformersBackend
from weft_activations.settings import ActivationsSettings
from weft_activations.wiring import registrations
from weft_client import AsyncClient, Endpoint
from weft_client.metrics import probability
from weft_common.server import serving
from weft_console.serve import Console, serving_console
from weft_console.settings import ConsoleSettings
from weft_store.adapters.memory import MemoryObjectStore

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"
TOKEN, PEER_TOKEN = "a-token-for-tests", "another-token"
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "llama", add_bos=True)
    return folder


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


async def signed_in(console: Console) -> httpx2.AsyncClient:
    client = httpx2.AsyncClient(base_url=console.url.rstrip("/"), timeout=60, headers={"X-Weft-Console": "1"})
    answer = await client.post("/api/session", json={"token": TOKEN})
    assert answer.status_code == 200
    return client


async def test_analyses_over_http_are_those_of_the_service(inside: Console, target: str) -> None:
    """Lens, pattern and sweep as JSON hold the numbers that the client gets."""
    async with await signed_in(inside) as http, AsyncClient.to(activations=Endpoint(target, PEER_TOKEN)) as client:
        models = (await http.get("/api/models")).json()["models"]
        assert [model["name"] for model in models] == ["models/llama"]
        lens = (await http.post("/api/models/llama/lens", json={"prompt": TEXT})).json()
        found = await client.analyses.logit_lens("llama", TEXT, num_top_tokens=3)
        assert lens["kl"] == found["kl"].tolist()
        assert [[[one["text"] for one in tops] for tops in row] for row in lens["top"]] == found["top_token"].tolist()
        asked: dict[str, Any] = {"prompt": TEXT, "layer": 2, "head": 3}
        pattern = (await http.post("/api/models/llama/patterns", json=asked)).json()
        assert pattern["pattern"] == (await client.analyses.attention_patterns("llama", TEXT))["pattern"][2, 3].tolist()
        asked = {"clean": TEXT, "corrupted": "The capital of Francs is", "token": "e", "component": "mlp_out"}
        swept = await http.post("/api/models/llama/patches", json=asked)
        tokens = await client.models.tokenize("llama", "e", without_special_tokens=True)
        ids = [len(await client.models.tokenize("llama", text)) for text in (TEXT, asked["corrupted"])]
        if ids[0] != ids[1]:
            assert "as many" in swept.json()["detail"]
            asked["corrupted"] = TEXT
            swept = await http.post("/api/models/llama/patches", json=asked)
        direct = await client.analyses.sweep_patches(
            "llama", clean=TEXT, corrupted=asked["corrupted"], metric=probability(tokens[0].id), components=["mlp_out"]
        )
        assert swept.json()["clean_metric"] == direct.attrs["clean_metric"]
        assert len(swept.json()["restored"]) == 3


async def test_analyses_refuse_in_words(inside: Console, console: Console) -> None:
    """No prompt, a text of two tokens, a prompt too long for a page, and a console that knows no service."""
    async with await signed_in(inside) as http:
        for path, body, words in (
            ("lens", {"prompt": " "}, "empty"),
            ("patches", {"clean": TEXT, "corrupted": TEXT, "token": "capital of"}, "tokens; give the text of one"),
            ("patches", {"clean": TEXT, "corrupted": TEXT, "token": "e", "component": "attn.z"}, "does not patch"),
            ("patterns", {"prompt": TEXT, "layer": 9, "head": 0}, "no layer 9"),
        ):
            answer = await http.post(f"/api/models/llama/{path}", json=body)
            assert answer.status_code == 400, answer.text
            assert words in answer.json()["detail"]
    async with await signed_in(console) as http:
        answer = await http.get("/api/models")
        assert "WEFT_CONSOLE_ACTIVATIONS_TARGET" in answer.json()["detail"]


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("built_page")
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_shows_heat_maps(
    chromium: Browser, inside: Console, settings: ConsoleSettings, target: str, scheme: Any
) -> None:
    """By keyboard alone: a prompt is typed and read, and the tables hold a row a depth, a position, a layer."""
    built = type(settings).model_fields["static_dir"].default
    known = ConsoleSettings.model_validate(
        settings.model_dump() | {"static_dir": built, "activations_target": target, "activations_token": PEER_TOKEN}
    )
    async with serving_console(known) as console:
        context = await chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{console.url}inside?token={TOKEN}")
        await page.get_by_label("Prompt").fill(TEXT)
        await page.keyboard.press("Enter")
        await expect(page.locator(".heat-table tbody tr")).to_have_count(4)
        await page.screenshot(path=ARTIFACTS / f"inside-lens-{scheme}.png")
        await page.get_by_role("radio", name="Attention").check(force=True)
        await page.get_by_label("Prompt").fill(TEXT)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("region", name="Where each token looks, table")).to_be_visible()
        await page.screenshot(path=ARTIFACTS / f"inside-attention-{scheme}.png")
        await page.get_by_role("radio", name="Patching").check(force=True)
        await page.get_by_label("Clean prompt").fill(TEXT)
        await page.get_by_label("Corrupted prompt").fill(TEXT)
        await page.get_by_label("Token").fill("e")
        await page.keyboard.press("Enter")
        await expect(page.locator(".heat-table tbody tr")).to_have_count(3)
        await page.screenshot(path=ARTIFACTS / f"inside-patching-{scheme}.png")
        assert await page.evaluate("() => document.documentElement.scrollWidth") <= 1280
        assert errors == []
        await context.close()
