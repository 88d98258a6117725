"""The pages of transcoders and their indexes in Chromium, before the real attribution service."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jobs_fixtures import settings
from jobs_house import JobsHouse, jobs_house
from page_windows import look_over
from playwright.async_api import Browser, Locator, Page, expect
from watched_page import Watched

from weft_attribution.core.feature_index.settings import IndexKeys
from weft_console.serve import Console
from weft_store.documents import update_json

__all__ = ["settings"]

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[JobsHouse]:
    async with jobs_house(tmp_path, "", num_sequences=20) as made:
        yield made


def stat(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stat={name}]")


async def test_transcoder_tells_how_good_it_is_and_where_it_comes_from(watched: Watched) -> None:
    """From the list to its page: the manifest's evaluation, its charts, its origin and its recipe."""
    page = await watched.open("transcoders")
    rows = page.locator("[data-list=transcoders] tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.nth(0)).to_contain_text("0.720")
    await expect(rows.nth(1)).to_contain_text("imported")
    await page.get_by_role("link", name="t", exact=True).click()
    await expect(page.get_by_role("heading", name="t", exact=True)).to_be_visible()
    for name, value in {"explained-variance": "0.7200", "fvu": "0.28", "l0": "5", "dead": "12.5%"}.items():
        await expect(stat(page, name)).to_have_text(value)
    await expect(page.locator("[data-part=evaluation] [data-stat=recovered]")).to_have_text("66.0%")
    charts = page.locator("figure.chart figcaption > b")
    assert await charts.all_inner_texts() == [
        "Fraction of variance unexplained by layer",
        "Held-out explained variance by layer",
        "Held-out L0 by layer",
        "Silent and dense features by layer",
        "Feature density",
        "One layer replaced: top-1 agreement",
        "One layer replaced: cross-entropy recovered",
        "One layer replaced: KL, nats",
    ]
    fvu = page.get_by_role("img", name="Fraction of variance unexplained by layer")
    await expect(fvu).to_have_attribute("aria-label", "Fraction of variance unexplained by layer: FVU 0.2, 0.26, 0.38")
    origin = page.locator("[data-part=origin]")
    await expect(origin).to_contain_text("ab" * 32)
    assert await origin.get_by_role("link", name="first").get_attribute("href") == "/runs/first"
    # Three encoders of 12 by 8, six decoders of 12 by 8, and biases.
    await expect(origin).to_contain_text("924 parameters")
    await expect(page.locator("[data-part=recipe]")).to_contain_text("learning rate")
    await expect(page.get_by_role("heading", name="No index yet")).to_be_visible()


async def test_index_is_made_from_the_page(watched: Watched, jobs: JobsHouse) -> None:
    """Partly there it says so, cancelled it is gone on with, and whole it answers and leads to its features."""
    jobs.texts.may_read.clear()
    page = await watched.open("transcoders/t")
    form = page.get_by_role("form", name="Make an index")
    # Of the two datasets only one holds what the transcoder reads.
    await expect(form.get_by_label("Dataset").locator("option")).to_have_text(["d"])
    await form.get_by_text("What is kept of a feature").click()
    await form.get_by_label("Tokens a window").fill("6")
    await form.get_by_role("button", name="Make an index").click()
    row = page.locator("tr[data-index=d]")
    await expect(row).to_contain_text("partly there, and not asked yet: 0 of 780 tokens of a layer")
    await page.screenshot(path=ARTIFACTS / "transcoder-indexing.png", full_page=True)
    await row.get_by_role("button", name="Cancel d").click()
    await expect(row).to_contain_text("cancelled", timeout=15_000)
    await expect(page.get_by_role("link", name="Find features")).to_have_count(0)
    jobs.texts.may_read.set()
    await row.get_by_role("button", name="Go on with d").click()
    whole = page.locator("[data-list=indexes] tbody tr")
    await expect(whole).to_contain_text("answers now", timeout=15_000)
    await expect(whole).to_contain_text("260")
    await expect(page.locator("[data-note=counted]")).to_have_count(0)
    made = await jobs.house.client.features.get_index("t", "d")
    assert made.settings.window_tokens == 6
    await expect(page.get_by_role("link", name="Find features")).to_have_attribute("href", "/transcoders/t/features")
    # The next one has an id of its own.
    await expect(form.get_by_label("Index", exact=True)).to_have_value("d-2")


async def test_index_that_failed_says_why(watched: Watched, jobs: JobsHouse) -> None:
    """The reason stands beside it in the service's words, and going on mends it once the cause is gone."""
    jobs.texts.is_gone = True
    page = await watched.open("transcoders/t")
    form = page.get_by_role("form", name="Make an index")
    await form.get_by_label("Index", exact=True).fill("mine")
    await form.get_by_role("button", name="Make an index").click()
    row = page.locator("tr[data-index=mine]")
    await expect(row).to_contain_text("harvest it instead of importing it", timeout=15_000)
    jobs.texts.is_gone = False
    await row.get_by_role("button", name="Go on with mine").click()
    await expect(page.locator("[data-list=indexes] tbody tr")).to_contain_text("answers now", timeout=15_000)
    await form.get_by_label("Index", exact=True).fill("mine")
    await form.get_by_label("Most tokens").fill("20")
    await form.get_by_role("button", name="Make an index").click()
    await expect(form.get_by_role("alert")).to_contain_text("give this one an id of its own")
    assert "409" in watched.errors.pop()


async def test_without_a_language_model_the_page_says_how_to_set_one_up(watched: Watched) -> None:
    """No form that would be refused: the two settings are named."""
    page = await watched.open("interpretation")
    await expect(page.get_by_text("WEFT_ATTRIBUTION_INTERPRETER_URL")).to_be_visible()
    await expect(page.get_by_role("form")).to_have_count(0)


async def test_pages_fit_and_read_well(chromium: Browser, page_console: Console, jobs: JobsHouse) -> None:
    """No page is wider than its window, and axe-core finds nothing serious, with the note on counting too."""
    await jobs.index()
    keys = IndexKeys("t", "i1")
    # As of a transcoder that counts.
    update_json(jobs.house.store, keys.manifest, lambda found: {**found, "activity_rule": "threshold_for_count"})
    await look_over(
        chromium,
        page_console,
        ("transcoders", "transcoders", "[data-list=transcoders]"),
        ("transcoder", "transcoders/t", "[data-note=counted]"),
    )
