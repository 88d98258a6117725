"""Feature search in real Chromium over a real attribution service: filters, what is chosen, the keyboard."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from attribution_house import AttributionHouse
from indexed_house import index_features, indexed_house, seen_by_console
from playwright.async_api import Page, expect
from watched_page import Watched

from weft.features.v1 import labels_pb2, queries_pb2
from weft_console.settings import ConsoleSettings

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AttributionHouse]:
    """An attribution service with an index of three layers of twelve features."""
    async with indexed_house(tmp_path / "house") as rig:
        house = rig.house
        await index_features(house)
        yield house


@pytest.fixture
def settings(settings: ConsoleSettings, house: AttributionHouse) -> ConsoleSettings:
    """The console looks at the real service."""
    return settings.model_copy(update=seen_by_console(house))


async def shown(page: Page) -> list[str]:
    """Names of the rows that are there."""
    found: list[str] = await page.locator(".rows-table tbody .is-name a").all_inner_texts()
    return found


def names(features: list[Any]) -> list[str]:
    return [f"L{each.layer} · {each.index}" for each in features]


async def found(page: Page, count: int) -> None:
    """Wait until so many are told and shown."""
    noun = "feature" if count == 1 else "features"
    await expect(page.locator("[data-stat=found]")).to_have_text(re.compile(rf"^{count:,} {noun}\b(?!.*searching)"))


async def bottom(page: Page, selector: str) -> float:
    """Where something ends, in pixels from the window's top."""
    end: float = await page.locator(selector).evaluate("node => node.getBoundingClientRect().bottom")
    return end


async def top(page: Page, selector: str) -> float:
    """Where something begins."""
    start: float = await page.locator(selector).evaluate("node => node.getBoundingClientRect().top")
    return start


def address(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


async def test_filters_are_the_services_and_stay_in_the_address(watched: Watched, house: AttributionHouse) -> None:
    """Figures, states, layers, labels, words and tokens: the service's own answers, after a reload too."""
    features = house.client.features
    await house.client.labels.set("t", layer=1, index=4, text="names of months")
    machine = labels_pb2.Label(layer=2, index=7, text="months", origin=labels_pb2.LABEL_ORIGIN_MODEL, explainer="m")
    await house.client.labels.add("t", [machine])
    everything = [each async for each in features.list("t")]
    page = await watched.open("transcoders/t/features")
    await found(page, 36)
    assert (await shown(page))[:5] == names(everything)[:5]

    await page.get_by_text("Filters").click()
    await page.get_by_label("layers", exact=True).fill("0-1")
    bound = sorted(each.statistics.density for each in everything)[20]
    await page.get_by_label("Most density, % of tokens").fill(f"{100 * bound:.6f}")
    wanted = queries_pb2.FeatureFilter(layers=[0, 1], density=queries_pb2.Bounds(max=float(f"{100 * bound:.6f}") / 100))
    expected = [each async for each in features.list("t", wanted=wanted, order_by="density desc")]
    await page.get_by_role("button", name="Density").click()
    await found(page, len(expected))
    await expect(page.locator(".rows-table tbody .is-name a")).to_have_text(names(expected))
    assert address(page) == {"layers": ["0-1"], "density_max": [f"{100 * bound:.6f}"], "sort": ["density"]}
    await page.get_by_role("button", name="Density").click()
    await expect(page.locator("th[aria-sort=ascending]")).to_have_text("Density ↑")
    rising = [each async for each in features.list("t", wanted=wanted, order_by="density")]
    await expect(page.locator(".rows-table tbody .is-name a").first).to_have_text(names(rising)[0])
    await page.reload()
    await expect(page.locator(".rows-table tbody .is-name a")).to_have_text(names(rising))
    await page.get_by_label("layers", exact=True).fill("first")
    await expect(page.get_by_role("alert")).to_contain_text("write them as 0-3, 7")
    await page.get_by_role("button", name="Clear filters").click()
    await found(page, 36)

    await page.get_by_label("Label state").select_option("human")
    await found(page, 1)
    assert await shown(page) == ["L1 · 4"]
    await page.get_by_label("Label state").select_option("")
    await page.get_by_label("Words of the label").fill("MONTHS")
    await found(page, 2)
    assert await shown(page) == ["L1 · 4", "L2 · 7"]
    await page.get_by_label("Words of the label").fill("weekdays")
    await expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    assert address(page)["label"] == ["weekdays"]

    example = (await features.get("t", layer=1, index=5)).examples[0]
    token_id = example.token_ids[example.peak_at]
    text = next(chr(code) for code in range(0x21, 0x7F) if code % 40 == token_id)
    by_token = [each async for each in features.search("t", token=text)]
    await page.get_by_role("radiogroup", name="Search in").get_by_text("Token").click()
    await page.get_by_label("Token that triggers it").fill(text)
    await found(page, len(by_token))
    assert await shown(page) == names([each.feature for each in by_token])
    stretches = await page.locator(".rows-table tbody tr td:nth-child(4)").all_inner_texts()
    assert stretches == [str(each.num_stretches) for each in by_token]
    assert address(page)["token"] == [text]


async def test_chosen_features_are_copied_and_labelled(watched: Watched, house: AttributionHouse) -> None:
    """Links of what is chosen are copied; one label goes to all of them, but not over what nobody here has seen."""
    page = await watched.open("transcoders/t/features")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await found(page, 36)
    for name in ("L0 · 1", "L0 · 2", "L0 · 3"):
        await page.get_by_role("checkbox", name=f"Choose {name}", exact=True).check()
    chosen = page.get_by_role("region", name="Chosen features")
    await expect(chosen.locator("[data-stat=chosen]")).to_have_text("3 chosen")
    await chosen.get_by_role("button", name="Copy links").click()
    await expect(chosen.get_by_role("button", name="Copied")).to_be_visible()
    copied = await page.evaluate("() => navigator.clipboard.readText()")
    assert copied.splitlines() == [f"{watched.url}transcoders/t/features/0/{index}" for index in (1, 2, 3)]

    await house.client.labels.set("t", layer=0, index=2, text="theirs")
    await chosen.get_by_label("Label them all").fill("brackets")
    await chosen.get_by_role("button", name="Label 3").click()
    await expect(chosen.get_by_role("alert")).to_contain_text("L0 · 2: theirs")
    await expect(chosen.locator("[data-stat=chosen]")).to_have_text("1 chosen")
    await expect(page.locator("[data-row='1'] .label-text")).to_have_text("brackets")
    texts = [(await house.client.labels.get("t", layer=0, index=index)).text for index in (1, 2, 3)]
    assert texts == ["brackets", "theirs", "brackets"]
    # Also with what could not be labelled told below, no row is covered.
    assert await bottom(page, ".rows") <= await top(page, ".selection")
    await page.screenshot(path=ARTIFACTS / "feature-chosen.png")
    await chosen.get_by_role("button", name="Label 1").click()
    await expect(chosen).to_have_count(0)
    await expect(page.locator("[data-stat=found]")).to_contain_text("1 labelled “brackets”")
    await expect(page.locator("[data-stat=found]")).to_be_focused()
    history = [each.text async for each in house.client.labels.history("t", layer=0, index=2)]
    assert history == ["brackets", "theirs"]


async def test_rows_are_reached_by_the_keyboard(watched: Watched, house: AttributionHouse) -> None:
    """The table is one stop of Tab; arrows go over rows, Space chooses, Enter opens, and the way back leads there."""
    page = await watched.open("transcoders/t/features")
    await found(page, 36)
    await page.locator("[data-row='0'] a").focus()
    for _ in range(3):
        await page.keyboard.press("ArrowDown")
    await expect(page.locator("[data-row='3'] a")).to_be_focused()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("checkbox", name="Choose L0 · 3", exact=True)).to_be_checked()
    assert await page.locator(".rows-table tbody a[tabindex='0']").count() == 1
    await page.keyboard.press("End")
    await expect(page.locator("[data-row='35'] a")).to_be_focused()
    assert await bottom(page, "[data-row='35']") <= await top(page, ".selection")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("L2 · 11")
    await expect(page.locator("#main")).to_be_focused()
    await expect(page).to_have_title("L2 · 11 · t · weft")
    await page.go_back()
    await expect(page).to_have_title("Features of t · weft")
    await expect(page.locator("[data-row='35'] a")).to_be_in_viewport()
    await expect(page.locator("[data-row='35'] a")).to_have_attribute("tabindex", "0")
    await expect(page.locator("[data-stat=chosen]")).to_have_text("1 chosen")
    link = page.get_by_role("link", name="Label by a model")
    await expect(link).to_have_attribute("href", "/interpretation?transcoder=t&features=0-3")
