"""A feature's page in real Chromium over a real attribution service: what it shows, and what a person says on it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from attribution_house import AttributionHouse
from axe_findings import serious
from indexed_house import index_features, indexed_house, seen_by_console
from page_windows import WINDOWS, fits, serious_in_both
from playwright.async_api import Browser, Locator, Page, expect
from watched_page import TOKEN, Watched

from weft.features.v1 import labels_pb2, service_pb2
from weft_attribution.core.label_store import LabelStore
from weft_attribution.core.labels import Place, Score, ScoreKind
from weft_console.serve import Console
from weft_console.settings import ConsoleSettings

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"
HOSTILE = "<img src=x onerror=window.wasInjected=1>"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    """An attribution service with a dataset, and no index yet."""
    async with indexed_house(tmp_path / "house") as rig:
        house = rig.house
        yield house


@pytest.fixture
def settings(settings: ConsoleSettings, house: AttributionHouse) -> ConsoleSettings:
    """The console looks at the real service."""
    return settings.model_copy(update=seen_by_console(house))


@pytest.fixture
async def indexed(house: AttributionHouse) -> AttributionHouse:
    """The same with an index."""
    await index_features(house)
    return house


def part(page: Page, name: str) -> Locator:
    return page.locator(f"[data-part={name}]")


def stat(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stat={name}]")


async def rows_of(table: Locator) -> list[tuple[str, str]]:
    """Head and last cell of every row of a table."""
    return [
        (await row.locator("th").inner_text(), await row.locator("td").last.inner_text())
        for row in await table.locator("tbody tr").all()
    ]


def logits(shown: Any) -> list[tuple[str, str]]:
    """As the page writes them."""
    return [(each.text, f"{'−' if each.weight < 0 else '+'}{abs(each.weight):.3f}") for each in shown]


async def lines_of(page: Page) -> list[list[str]]:
    """The tokens of every stretch that is shown."""
    found: list[list[str]] = await page.locator(".token-line").evaluate_all(
        "lines => lines.map((line) => [...line.querySelectorAll('.tok')].map((token) => token.textContent))"
    )
    return found


def failed_loads(watched: Watched) -> None:
    """A refusal is told on the page, and the browser notes it; nothing else may stand in its console."""
    assert watched.errors
    assert all("Failed to load resource" in error for error in watched.errors)
    watched.errors.clear()


async def test_page_shows_what_the_service_says(watched: Watched, indexed: AttributionHouse) -> None:
    """Figures, text by strength and quantile, logits in all and by layer, norms, likes: each against GetFeature."""
    feature = await indexed.client.features.get("t", layer=1, index=5)
    details = await indexed.client.features.get("t", layer=1, index=5, fields=["target_logits", "quiet_examples"])
    page = await watched.open("transcoders/t/features/1/5")
    await expect(page.get_by_role("heading", level=1)).to_have_text("L1 · 5")
    await expect(stat(page, "density")).to_have_text(f"{100 * feature.statistics.density:.2f}%")
    await expect(stat(page, "state")).to_have_text("dense" if feature.statistics.density > 0.1 else "active")

    examples = part(page, "examples")
    strongest = [each for each in feature.examples if each.quantile < 0]
    await expect(examples.locator(".token-line")).to_have_count(len(strongest))
    assert await lines_of(page) == [list(each.tokens) for each in strongest]
    peak = examples.locator(".token-line").first.locator(".is-peak")
    most = feature.statistics.max_activation
    heat = await peak.evaluate("node => node.style.getPropertyValue('--heat')")
    assert int(heat) == round(100 * strongest[0].activations[strongest[0].peak_at] / most)
    await peak.hover()
    told = await peak.evaluate("node => getComputedStyle(node, '::after').content")
    assert f"{float(f'{strongest[0].peak:.4g}'):g}" in told
    assert "100% of its largest" in told
    await examples.get_by_text("By quantile").click()
    drawn = [each for each in feature.examples if each.quantile >= 0]
    await expect(examples.locator(".token-line")).to_have_count(len(drawn))
    assert await lines_of(page) == [list(each.tokens) for each in drawn]
    names = [f"Quantile {n + 1} of 3" for n in sorted({each.quantile for each in drawn}, reverse=True)]
    for name in names:
        await expect(examples.get_by_role("heading", name=name)).to_be_visible()
    await examples.get_by_text("Quiet", exact=True).click()
    if details.quiet_examples:
        await expect(examples.locator(".token-line")).to_have_count(len(details.quiet_examples))
    else:
        await expect(examples).to_contain_text("There are none")

    written = part(page, "logits")
    tables = written.locator("table")
    assert await rows_of(tables.first) == logits(feature.top_logits)
    assert await rows_of(tables.last) == logits(feature.bottom_logits)
    await written.get_by_label("through").select_option("2")
    (through,) = [each for each in details.target_logits if each.layer == 2]
    await expect(tables.first.locator("tbody th").first).to_have_text(through.top_logits[0].text)
    assert await rows_of(tables.first) == logits(through.top_logits)
    norms = page.get_by_role("img", name="Where it writes")
    await expect(norms.locator("rect")).to_have_count(len(feature.decoder_norms))
    filled = [place for place, count in enumerate(feature.statistics.histogram) if count]
    await expect(page.locator(".histogram i")).to_have_count(filled[-1] - filled[0] + 1)
    likes = part(page, "relations").locator("table")
    assert await rows_of(likes.first) == [
        (f"L1 · {each.index}", f"{each.cosine:.3f}".replace("-", "−")) for each in feature.neighbours
    ]
    assert [value for _, value in await rows_of(likes.last)] == [
        f"{100 * each.share:.1f}%" for each in feature.partners
    ]
    lab = parse_qs(urlsplit(await page.get_by_role("link", name="Try in the lab").get_attribute("href") or "").query)
    assert lab == {"transcoder": ["t"], "prompt": ["".join(strongest[0].tokens)], "pin": ["1-5"]}
    await page.set_viewport_size({"width": 1440, "height": 500})
    link = likes.first.get_by_role("link").first
    await link.scroll_into_view_if_needed()
    scrolled = await page.evaluate("() => window.scrollY")
    assert scrolled > 0
    await link.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"L1 · {feature.neighbours[0].index}")
    assert await page.evaluate("() => window.scrollY") == 0
    await page.go_back()
    await expect(page.get_by_role("heading", level=1)).to_have_text("L1 · 5")
    await page.wait_for_function("top => window.scrollY === top", arg=scrolled)
    await page.get_by_role("link", name="6 →").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("L1 · 6")


async def test_tokens_are_read_by_the_keyboard(watched: Watched, indexed: AttributionHouse) -> None:
    """A stretch is one stop of Tab; arrows go over its tokens and tell each activation."""
    feature = await indexed.client.features.get("t", layer=1, index=5)
    first = feature.examples[0]
    page = await watched.open("transcoders/t/features/1/5")
    text = page.locator(".token-text").first
    await text.focus()
    await page.keyboard.press("ArrowRight")
    at = text.locator(".is-at")
    await expect(at).to_have_text(first.tokens[first.peak_at])
    await page.keyboard.press("Home")
    await expect(at).to_have_text(first.tokens[0])
    await expect(part(page, "examples").get_by_role("status").first).to_contain_text(f"{first.tokens[0]}, activation")
    await page.keyboard.press("Escape")
    await expect(at).to_have_count(0)


async def test_graphs_that_it_stands_in_are_linked(watched: Watched, indexed: AttributionHouse) -> None:
    """The graph is listed with the feature's positions, opens with its node selected, and leads back."""
    await indexed.make("g1", node_threshold=1.0)
    found = await anext(aiter(indexed.client.features.of_graph("g1")))
    layer, index = found.feature.layer, found.feature.index
    page = await watched.open(f"transcoders/t/features/{layer}/{index}")
    graphs = part(page, "graphs")
    await expect(graphs).to_contain_text("It is a node of the only graph of this transcoder")
    row = graphs.get_by_role("row").nth(1)
    await expect(row.locator("td").first).to_have_text(", ".join(map(str, found.positions)))
    await row.get_by_role("link", name="capital").click()
    await expect(page.get_by_role("button", name="Close the panel")).to_be_visible()
    await page.get_by_role("link", name="all else about this feature").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"L{layer} · {index}")


async def test_label_is_said_changed_and_withdrawn(watched: Watched, indexed: AttributionHouse) -> None:
    """A person's label stands before the model's; who was overtaken is told, and no word of either is lost."""
    labels = indexed.client.labels
    machine = labels_pb2.Label(
        layer=0, index=3, text="digits", origin=labels_pb2.LABEL_ORIGIN_MODEL, explainer="a-model", prompt="explain-1"
    )
    await labels.add("t", [machine])
    score = Score(0.82, 0.74, 0.89, 40, 2, "a-scorer", "detection-1", "ab")
    LabelStore(indexed.store).add_scores("t", Place(0, 3), 1, {ScoreKind.DETECTION: score})
    page = await watched.open("transcoders/t/features/0/3")
    label = part(page, "label")
    await expect(stat(page, "label")).to_have_text("digits")
    await expect(label.locator(".label-stands")).to_contain_text("model a-model, explain-1")
    cells = label.locator("[data-score=detection] td")
    await expect(cells).to_have_text(["0.82", "0.74 to 0.89", "0.5", "40", "2", "a-scorer, detection-1"])

    await label.get_by_role("button", name="Change").click()
    words = label.get_by_label("What it stands for")
    await expect(words).to_be_focused()
    await words.fill("months of the year")
    await label.get_by_label("Your name").fill("the night shift")
    await label.get_by_role("button", name="Save").click()
    await expect(stat(page, "label")).to_have_text("months of the year")
    await expect(label.get_by_role("heading", name="Label", exact=True)).to_be_focused()
    await expect(label.locator(".label-stands")).to_contain_text("person the night shift")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("months of the year")
    said = await labels.get("t", layer=0, index=3)
    assert (said.text, said.author, said.origin) == (
        "months of the year", "the night shift", labels_pb2.LABEL_ORIGIN_HUMAN,
    )  # fmt: skip

    await label.get_by_role("button", name="Change").click()
    await words.fill("names of months")
    await labels.set("t", layer=0, index=3, text="weekdays", author="somebody else")
    await label.get_by_role("button", name="Save").click()
    await expect(label.get_by_role("alert")).to_contain_text("somebody else has said something meanwhile")
    await expect(stat(page, "label")).to_have_text("weekdays")
    await expect(words).to_have_value("names of months")
    assert (await labels.get("t", layer=0, index=3)).text == "weekdays"
    await page.screenshot(path=ARTIFACTS / "feature-conflict.png", full_page=True)
    assert await serious(page) == []
    await label.get_by_role("button", name="Save after theirs").click()
    await expect(stat(page, "label")).to_have_text("names of months")
    failed_loads(watched)

    await label.get_by_text("Everything that was said (4)").click()
    history = label.locator("[data-list=revisions] .label-text")
    await expect(history).to_have_text(["names of months", "weekdays", "months of the year", "digits"])
    await label.get_by_role("button", name="Withdraw person’s label", exact=True).click()
    await expect(stat(page, "label")).to_have_text("digits")
    await expect(label.get_by_role("heading", name="Label", exact=True)).to_be_focused()
    assert (await labels.get("t", layer=0, index=3)).text == "digits"
    await expect(label.locator("[data-list=revisions] li").first).to_contain_text("withdrawn")
    await label.get_by_role("button", name="Withdraw model’s label", exact=True).click()
    await expect(label).to_contain_text("Nobody has said")
    # Nothing stands, and something was said: the next label still follows what was seen.
    await label.get_by_role("button", name="Label it").click()
    await label.get_by_label("What it stands for").fill("again")
    await label.get_by_role("button", name="Save").click()
    await expect(stat(page, "label")).to_have_text("again")


async def test_text_of_labels_and_corpora_stays_text(watched: Watched, indexed: AttributionHouse) -> None:
    """Markup in a label and in tokens is shown letter by letter, on both pages, and nothing of it runs."""

    async def detokenize(model: str, token_ids: Any) -> tuple[str, ...]:
        return (HOSTILE,) * len(token_ids)

    indexed.runner.detokenize = detokenize  # type: ignore[method-assign]
    await indexed.client.labels.set("t", layer=1, index=5, text=HOSTILE, author=HOSTILE)
    page = await watched.open("transcoders/t/features/1/5")
    await expect(stat(page, "label")).to_have_text(HOSTILE)
    await expect(page.locator(".tok").first).to_have_text(HOSTILE)
    await expect(part(page, "logits").locator("tbody th").first).to_have_text(HOSTILE)
    for path in ("transcoders/t/features/1/5", "transcoders/t/features?label=img"):
        await watched.open(path)
        await expect(page.locator(".label-text").first).to_have_text(HOSTILE)
        assert await page.locator("main img").count() == 0
        assert await page.evaluate("() => window.wasInjected === undefined")


async def test_transcoder_without_an_index_says_what_to_do(watched: Watched, house: AttributionHouse) -> None:
    """What the weights tell is there, and the command that makes an index; a feature that is not there is told so."""
    feature: service_pb2.Feature = await house.client.features.get("t", layer=0, index=1)
    page = await watched.open("transcoders/t/features/0/1")
    await expect(page.get_by_text("weft features index t --dataset")).to_be_visible()
    assert await rows_of(part(page, "logits").locator("table").first) == logits(feature.top_logits)
    await expect(part(page, "graphs")).to_contain_text("There are no finished graphs")
    await watched.open("transcoders/t/features")
    await expect(page.get_by_text("weft features index t --dataset")).to_be_visible()
    await watched.open("transcoders/t/features/0/99")
    await expect(page.get_by_role("alert")).to_contain_text("has no feature 99")
    async with asyncio.timeout(20):
        while not watched.errors:  # noqa: ASYNC110  the browser tells of it when it likes
            await asyncio.sleep(0.05)
    failed_loads(watched)


async def test_pages_fit_and_are_accessible(
    chromium: Browser, page_console: Console, indexed: AttributionHouse
) -> None:
    """Both pages at a desk and on a phone, light and dark: nothing sticks out, and axe-core finds nothing serious."""
    await indexed.make("g1", node_threshold=1.0)
    await indexed.client.labels.set(
        "t", layer=1, index=5, text="names of months and of days of the week, as lists have them"
    )
    await indexed.client.labels.set("t", layer=0, index=2, text="closing brackets", author="the night shift")
    for scheme, width, height in WINDOWS:
        context = await chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = await context.new_page()
        await page.goto(f"{page_console.url}?token={TOKEN}")
        for name, path, ready in (
            ("feature", "transcoders/t/features/1/5", "[data-part=graphs] table"),
            ("feature-search", "transcoders/t/features?states=dense,active&sort=density", ".rows-table .label-text"),
        ):
            await page.goto(f"{page_console.url}{path}")
            await page.locator(ready).first.wait_for()
            await page.locator(".others .label-text, .rows-table").first.wait_for()
            if name == "feature-search":
                await page.get_by_role("checkbox", name="Choose").first.check()
            await page.evaluate("() => document.fonts.ready")
            await page.screenshot(path=ARTIFACTS / f"{name}-{scheme}-{width}.png", full_page=True)
            assert await fits(page), name
            assert await serious_in_both(page, scheme) == [], name
            if name == "feature":
                # The one that is furthest to the right: what it tells of itself stays within the page too.
                tokens = page.locator(".token-line .tok")
                ends = await tokens.evaluate_all("nodes => nodes.map((node) => node.getBoundingClientRect().right)")
                await tokens.nth(ends.index(max(ends))).hover()
                assert await fits(page), "hint"
        await context.close()
