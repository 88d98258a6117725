"""
The lab in real Chromium over a real attribution service with a small model: every action against what its RPCs say.

A text's characters are its tokens there.
"""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from attribution_house import AttributionHouse
from axe_findings import serious
from house_page import house, page_console
from page_windows import serious_in_both
from playwright.async_api import Locator, Page, Route, expect
from watched_page import Watched

from weft.features.v1 import labels_pb2, steering_pb2
from weft_client.names import feature_name

__all__ = ["house", "page_console"]

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"
TEXT = "capital"
EVIL = "<img src=x onerror=alert(1)>"


def stat(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stat={name}]")


async def looked_at(watched: Watched, query: str = "") -> Page:
    """The lab with a text in it."""
    await watched.page.goto("about:blank")
    page = await watched.open(f"lab?transcoder=t&prompt={TEXT}{query}")
    await expect(page.locator(".fires").first).to_be_visible()
    return page


async def label(house: AttributionHouse, layer: int, index: int, text: str, **more: Any) -> None:
    origin = labels_pb2.LABEL_ORIGIN_MODEL if more else labels_pb2.LABEL_ORIGIN_HUMAN
    await house.client.labels.add("t", [labels_pb2.Label(layer=layer, index=index, text=text, origin=origin, **more)])


async def test_text_shows_what_fires_where(watched: Watched, house: AttributionHouse) -> None:
    """Cells hold the strongest feature of their layer and token; lists, filters and pins follow, the address too."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    answer = await house.client.features.on_prompt("t", TEXT, max_features=1000)
    fired = {(each.layer, position): {} for each in answer.features for position in each.positions}  # type: dict[tuple[int, int], dict[int, float]]
    for each in answer.features:
        for position, activation in zip(each.positions, each.activations, strict=True):
            fired[each.layer, position][each.index] = activation
    page = await watched.open("lab")
    await expect(page.get_by_role("heading", name="Nothing is looked at yet")).to_be_visible()
    field = page.get_by_label("Text", exact=True)
    await field.fill(TEXT)
    await field.press("Enter")
    await expect(stat(page, "active")).to_have_text(str(answer.num_active_features))
    await expect(field).to_be_focused()
    await expect(page).to_have_title("capital · Lab · weft")
    rows = page.locator(".lab-grid tbody tr")
    await expect(rows).to_have_count(3)
    for row, layer in enumerate((2, 1, 0)):
        for position in range(len(TEXT)):
            chips = rows.nth(row).locator("td").nth(position).locator(".fires")
            here = fired.get((layer, position), {})
            await expect(chips).to_have_text([str(max(here, key=lambda index: here[index]))] if here else [])
    (layer, position), here = max(fired.items(), key=lambda item: len(item[1]))
    cell = rows.nth(2 - layer).locator("td").nth(position)
    assert len(((await cell.get_attribute("title")) or "").splitlines()) == min(len(here), 7)
    await page.get_by_label("Features a cell").select_option("4")
    ranked = sorted(here, key=lambda index: -here[index])[:4]
    await expect(cell.locator(".fires")).to_have_text([str(index) for index in ranked])

    await page.locator(".lab-token").nth(position).click()
    listed = page.locator("[data-list=fires] tbody tr")
    await expect(listed).to_have_count(sum(len(cells) for (_, at), cells in fired.items() if at == position))
    await page.get_by_label("Layers").fill(str(layer))
    await expect(rows).to_have_count(1)
    await expect(listed).to_have_count(len(here))
    await page.get_by_label("Words of a label").fill(f"{layer}-{ranked[0]}")
    await expect(listed).to_have_count(1)
    await listed.first.get_by_role("button", name="Pin").click()
    await expect(page.locator(f"[data-pin='{layer}-{ranked[0]}']")).to_be_visible()
    await page.wait_for_url(lambda url: "pin=" in url and "layers=" in url)
    query = parse_qs(urlsplit(page.url).query)
    assert query == {
        "transcoder": ["t"], "prompt": [TEXT], "layers": [str(layer)], "token": [str(position)], "cell": ["4"],
        "pin": [f"{layer}-{ranked[0]}"],
    }  # fmt: skip
    assert (
        await listed.first.get_by_role("link").get_attribute("href")
    ) == f"/transcoders/t/features/{layer}/{ranked[0]}"
    await page.get_by_label("Layers").fill("7")
    await expect(page.locator("#lab-layers-note")).to_contain_text("go from 0 to 2")
    assert await serious(page) == []


async def test_changes_are_run_beside_the_undisturbed_text(watched: Watched, house: AttributionHouse) -> None:
    """What the page shows of both runs is the RPC's answer, and a link does it again."""
    answer = await house.client.features.on_prompt("t", TEXT, max_features=1000)
    first, second = sorted(answer.features, key=lambda each: -max(each.activations))[:2]
    at = second.positions[0]
    page = await looked_at(watched, f"&pin={first.layer}-{first.index}&pin={second.layer}-{second.index}")
    run = page.get_by_role("button", name="Run both")
    await expect(run).to_be_disabled()
    one, two = page.locator("[data-pin]").nth(0), page.locator("[data-pin]").nth(1)
    await one.get_by_role("combobox").select_option("ablate")
    await expect(one).to_contain_text("wherever it is active")
    await two.get_by_role("combobox").select_option("value")
    await two.get_by_role("spinbutton").fill("9")
    await two.locator(".cell").nth(at).click()
    await expect(two).to_contain_text(f"at position {at}")
    # A strip of tokens is one stop of Tab; arrows go over it.
    assert await two.locator(".cell[tabindex='0']").count() == 1
    is_last = at == len(TEXT) - 1
    await page.keyboard.press("ArrowLeft" if is_last else "ArrowRight")
    # The first token has no button.
    await expect(two.locator("button.cell").nth(at - 2 if is_last else at)).to_be_focused()
    await page.get_by_label("Tokens to go on for").fill("6")
    # A run that takes too long is stopped, and nothing of it is shown.
    await page.route("**/api/lab/steering", lambda route: None)
    await run.click()
    await page.get_by_role("button", name="Stop").click()
    await page.unroute("**/api/lab/steering")
    await expect(page.locator("[data-list=result]")).to_have_count(0)
    await run.click()
    changes = [
        steering_pb2.PromptChange(feature=feature_name("t", first.layer, first.index), factor=0),
        steering_pb2.PromptChange(feature=feature_name("t", second.layer, second.index), value=9, positions=[at]),
    ]
    told = await house.client.features.steer("t", TEXT, changes=changes, max_new_tokens=6)
    await expect(stat(page, "text-undisturbed")).to_have_text(TEXT + "".join(each.text for each in told.undisturbed))
    await expect(stat(page, "text-changed")).to_have_text(TEXT + "".join(each.text for each in told.changed))
    rows = page.locator(".lab-next tbody tr")
    await expect(rows).to_have_count(len(told.next_tokens))
    for row, each in zip(await rows.all(), told.next_tokens, strict=True):
        cells = await row.locator(".num").all_inner_texts()
        assert cells[:2] == [f"{100 * each.probability_before:.1f}%", f"{100 * each.probability_after:.1f}%"]
        assert float(cells[2].replace("−", "-")) == pytest.approx(each.logit_change, abs=0.006)
    assert float((await stat(page, "kl").inner_text()).split()[0]) == pytest.approx(told.kl_divergence, rel=1e-3)
    await page.get_by_text("What was changed").click()
    await expect(page.locator(".lab-made li")).to_have_count(2)
    assert await serious(page) == []
    await page.wait_for_url(lambda url: "run=1" in url)
    link = page.url
    await one.get_by_role("combobox").select_option("add")
    await expect(page.locator("[data-list=result]")).to_contain_text("The changes are others by now")
    await page.goto("about:blank")
    await page.goto(link)
    await expect(stat(page, "text-changed")).to_have_text(TEXT + "".join(each.text for each in told.changed))
    await page.get_by_role("button", name=f"Unpin L{first.layer} · {first.index}", exact=True).click()
    await expect(page.locator("[data-pin]")).to_have_count(1)
    # Another text keeps the pin, lets its places go, and the browser's way back leads to the first one.
    await page.get_by_label("Text", exact=True).fill("tame")
    await page.get_by_role("button", name="Look").click()
    await expect(page.locator(".lab-token")).to_have_count(4)
    assert "%40" not in page.url
    await page.go_back()
    await expect(page.locator(".lab-token")).to_have_count(len(TEXT))


async def test_text_keeps_its_lines(watched: Watched, house: AttributionHouse) -> None:
    """A text from a link stands in the field with its line ends, and what is asked next has them too."""
    page = await watched.open("lab?transcoder=t&prompt=ab%0Acd&token=99")
    field = page.get_by_label("Text", exact=True)
    await expect(page.locator(".lab-token")).to_have_count(5)
    await expect(field).to_have_value("ab\ncd")
    # There is no token 99: the list is of all.
    await expect(page.locator("[data-list=fires] h2")).to_contain_text("on any token")
    low = (await field.bounding_box() or {})["height"]
    await field.press("Control+End")
    await field.press("Shift+Enter")
    await page.keyboard.type("e")
    await expect(field).to_have_value("ab\ncd\ne")
    assert (await field.bounding_box() or {})["height"] > low
    await page.get_by_role("button", name="Look").click()
    await expect(page.locator(".lab-token")).to_have_count(7)
    assert parse_qs(urlsplit(page.url).query)["prompt"] == ["ab\ncd\ne"]


async def test_silent_features_limits_and_errors_are_told(watched: Watched, house: AttributionHouse) -> None:
    """A pinned feature that is silent says so; what the service refuses is shown in its own words."""
    answer = await house.client.features.on_prompt("t", TEXT, max_features=1000)
    active = {(each.layer, each.index) for each in answer.features}
    silent = next((layer, index) for layer in range(3) for index in range(12) if (layer, index) not in active)
    page = await looked_at(watched, f"&pin={silent[0]}-{silent[1]}x0&run=1")
    await expect(page.locator("[data-pin]")).to_contain_text("silent on this text: nothing to multiply")
    await expect(stat(page, "kl")).to_have_text("0 nats")
    await page.get_by_text("What was changed").click()
    await expect(page.locator(".lab-made")).to_contain_text("nowhere: it is silent on this text")
    await page.get_by_label("Text", exact=True).fill("a" * 30)
    await page.get_by_role("button", name="Look").click()
    await expect(page.get_by_role("alert")).to_contain_text("prompt has 30 tokens; give 2 to 20")
    watched.errors.clear()  # Chromium writes down what was answered with 400.
    page = await looked_at(watched, "&pin=2-99x0&run=1")
    await expect(page.get_by_role("alert").first).to_contain_text("has no feature 99; it has 12")
    await page.goto(f"{watched.url}lab?transcoder=gone&prompt=x")
    await expect(page.get_by_role("alert")).to_contain_text("There is no transcoder “gone” here")
    watched.errors.clear()


async def test_texts_and_labels_stay_text(watched: Watched, house: AttributionHouse) -> None:
    """What looks like markup in labels and tokens is shown as written; who said a label stands beside it."""
    answer = await house.client.features.on_prompt("t", EVIL[:18], max_features=1000)
    one, two = answer.features[:2]
    await label(house, one.layer, one.index, EVIL)
    await label(house, two.layer, two.index, "from elsewhere", explainer="m-1")
    page = watched.page
    await page.goto("about:blank")
    await page.goto(
        f"{watched.url}lab?transcoder=t&prompt={EVIL[:18].replace('=', '%3D')}&cell=4&pin={one.layer}-{one.index}"
    )
    listed = page.locator("[data-list=fires] tbody tr")
    await expect(listed.filter(has_text=EVIL)).to_have_count(1)
    await expect(listed.filter(has_text=EVIL).locator("[data-origin]")).to_have_text("person")
    await expect(listed.filter(has_text="from elsewhere").locator("[data-origin]")).to_have_text("imported")
    await expect(page.locator("[data-pin]")).to_contain_text(EVIL)
    await page.get_by_label("Words of a label").fill("ELSEWHERE")
    await expect(listed).to_have_count(1)
    assert await page.locator("img[src=x]").count() == 0


async def test_grid_is_walked_by_keyboard_and_becomes_a_graph(watched: Watched, house: AttributionHouse) -> None:
    """Arrows move between the chips of the grid, Enter pins, and the same text is explained as a graph."""
    page = await looked_at(watched)
    chips = page.locator(".lab-grid tbody tr").first.locator(".fires")
    assert await page.locator(".fires[tabindex='0']").count() == 1
    tokens = page.locator(".lab-token")
    assert await page.locator(".lab-token[tabindex='0']").count() == 1
    await tokens.first.focus()
    await page.keyboard.press("ArrowRight")
    await expect(tokens.nth(1)).to_be_focused()
    await expect(tokens.nth(1)).to_have_attribute("tabindex", "0")
    assert await page.locator(".lab-token[tabindex='0']").count() == 1
    await chips.first.focus()
    await page.keyboard.press("ArrowRight")
    await expect(chips.nth(1)).to_be_focused()
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("Enter")
    feature = await chips.first.get_attribute("data-feature")
    await expect(page.locator(f"[data-pin='{feature}']")).to_be_visible()
    await expect(chips.first).to_have_attribute("aria-pressed", "true")
    await page.keyboard.press("ArrowDown")
    column = await page.evaluate(
        "() => [...document.activeElement.closest('tr').children].indexOf(document.activeElement.closest('td'))"
    )
    assert column == await chips.first.evaluate("chip => [...chip.closest('tr').children].indexOf(chip.closest('td'))")
    # Who has gone elsewhere by the time that the graph is begun is left there.
    begun, may_answer = asyncio.Event(), asyncio.Event()

    async def late(route: Route) -> None:
        answer = await route.fetch()
        begun.set()
        await may_answer.wait()
        await route.fulfill(response=answer)

    await page.route("**/api/graphs", late)
    await page.get_by_role("button", name="Explain as a graph").click()
    await begun.wait()
    await page.get_by_role("link", name="Transcoders").click()
    await expect(page.locator("[data-list=transcoders]")).to_be_visible()
    await expect(page.locator("#main")).to_be_focused()
    async with page.expect_event("requestfinished", lambda request: request.url.endswith("/api/graphs")):
        may_answer.set()
    await page.evaluate("() => new Promise((done) => setTimeout(done, 50))")
    assert urlsplit(page.url).path == "/transcoders"
    await page.unroute("**/api/graphs")
    await page.go_back()
    await page.get_by_role("button", name="Explain as a graph").click()
    await page.wait_for_url(lambda url: "/graphs/capital-" in url)
    await expect(page.locator(".graph-cursor")).to_be_attached(timeout=30_000)


@pytest.mark.parametrize(("scheme", "width", "height"), [("dark", 360, 780), ("light", 1440, 900)])
async def test_lab_fits_its_window_and_pleases_axe(
    watched: Watched, house: AttributionHouse, scheme: Any, width: int, height: int
) -> None:
    """No wider than the window, and nothing serious found, with pins and both runs shown."""
    answer = await house.client.features.on_prompt("t", TEXT, max_features=1000)
    first, second = answer.features[:2]
    await label(house, first.layer, first.index, "the middle of a word, whatever the word may be about")
    page = watched.page
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": width, "height": height})
    await looked_at(
        watched, f"&cell=2&pin={first.layer}-{first.index}x0&pin={second.layer}-{second.index}%2B4@2.3&run=1&tokens=8"
    )
    await expect(stat(page, "text-changed")).to_be_visible()
    await page.evaluate("() => document.fonts.ready")
    await page.screenshot(path=ARTIFACTS / f"lab-{scheme}-{width}.png", full_page=True)
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert await serious_in_both(page, scheme) == []
