"""The pages of interpretation in Chromium, before the real service and an endpoint that speaks OpenAI's protocol."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from interpreter_server import InterpreterServer, held, says, slow
from jobs_fixtures import jobs, server, settings
from jobs_house import EVIL, JobsHouse
from page_windows import look_over
from playwright.async_api import Browser, Locator, Page, expect
from watched_page import Watched

from weft.features.v1 import interpretation_pb2
from weft_common.errors import CancelledError
from weft_console.serve import Console

__all__ = ["jobs", "server", "settings"]

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"
LABELLED = 12


def stat(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stat={name}]")


def scope(**fields: Any) -> interpretation_pb2.InterpretationScope:
    features = [f"transcoders/t/features/1-{index}" for index in range(LABELLED)]
    return interpretation_pb2.InterpretationScope(**{"features": features, "max_calls": 500, **fields})


async def start(page: Page, url: str, *, calls: int = 500) -> Locator:
    """The form, filled in for features by name."""
    await page.goto(f"{url}interpretation?transcoder=t&features=1-0,1-1,1-2,1-3,1-4,1-5")
    form = page.get_by_role("form", name="Start a job")
    await form.get_by_label("Most calls").fill(str(calls))
    return form


async def finished(page: Page, state: str = "succeeded") -> None:
    await expect(page.locator(".page-head .badge")).to_have_text(state, timeout=20_000)


async def test_features_by_figures_are_explained_from_the_page(
    watched: Watched, jobs: JobsHouse, server: InterpreterServer
) -> None:
    """The features that the filter takes come one by one with their labels, which are text whatever they look like."""
    page = await watched.open("interpretation")
    await expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    await expect(stat(page, "index")).to_contain_text("i1")
    server.always = slow(0.05)
    form = page.get_by_role("form", name="Start a job")
    await form.get_by_label("Layers").fill("0-1")
    await form.get_by_label("Activity").select_option("any")
    await form.get_by_label("Most features").fill("8")
    await form.get_by_label("Most calls").fill("40")
    await form.get_by_label("Most tokens").fill("1000000")
    await form.get_by_role("button", name="Explain").click()
    await page.wait_for_url("**/interpretation/attribution-explain-features.*")
    await expect(page.get_by_role("heading", name="Explain 8 features")).to_be_visible()
    await expect(page).to_have_title("Explain 8 features · t · weft")
    await finished(page)

    rows = page.locator("[data-list=results] tbody tr")
    await expect(rows).to_have_count(8)
    labels = {f"{one.layer}-{one.index}": one.text async for one in jobs.house.client.labels.list("t")}
    assert labels
    assert EVIL in labels.values()
    shown = {}
    for row in await rows.all():
        feature, outcome, label = await row.locator("td").all_inner_texts()
        if outcome == "labelled":
            shown[feature] = label
        href = await row.get_by_role("link").get_attribute("href")
        assert href == f"/transcoders/t/features/{feature.replace('-', '/')}"
    assert shown == labels
    assert await page.locator("[data-list=results] img").count() == 0
    assert "owned" not in await page.title()
    # Layers 0 and 1, the strongest first, as ListFeatures has them.
    asked = [each.name async for each in jobs.house.client.features.list("t", order_by="max_activation desc")]
    expected = [name.rpartition("/")[2] for name in asked if name.rpartition("/")[2][0] in "01"][:8]
    assert await rows.locator("td:first-child").all_inner_texts() == expected

    await expect(stat(page, "calls")).to_have_text(str(len(server.requests)))
    await expect(stat(page, "calls-left")).to_have_text(str(40 - len(server.requests)))
    await expect(stat(page, "tokens-in")).to_have_text(f"{100 * len(server.requests):,}")
    await expect(stat(page, "tokens-left")).to_have_text(f"{1_000_000 - 110 * len(server.requests):,}")
    await expect(stat(page, "labelled")).to_have_text(str(len(labels)))

    await page.get_by_role("link", name="other jobs").click()
    row = page.locator("[data-list=jobs] tbody tr")
    await expect(row).to_have_count(1)
    await expect(row).to_contain_text("8 of 8")
    await expect(page.get_by_text("Jobs of t only.")).to_be_visible()
    await page.get_by_role("link", name="Show all").click()
    await expect(page.get_by_text("Jobs of t only.")).to_have_count(0)
    await expect(row).to_have_count(1)


async def test_scores_stand_beside_those_of_shuffled_labels(watched: Watched, jobs: JobsHouse) -> None:
    """Each test's mean and intervals are the response's; features have their own, and links keep what is shown."""
    await jobs.house.client.operations.wait(await jobs.house.client.labels.explain("t", scope=scope()))
    page = watched.page
    form = await start(page, watched.url)
    await form.get_by_text("Score", exact=True).first.click()
    await expect(form.get_by_label("embedding")).to_be_disabled()
    await expect(form.get_by_label("shuffled labels beside")).to_be_checked()
    # Five lines a question, 20 of each side, by detection and fuzzing, with control: 32 calls a feature.
    await expect(stat(page, "most-calls")).to_contain_text("6 features take 192 calls at most")
    await form.get_by_role("button", name="Score").click()
    await page.wait_for_url("**/interpretation/attribution-score-features.*")
    await finished(page)
    assert int(await stat(page, "calls").inner_text()) <= 192
    operation = await jobs.house.client.operations.get("operations/" + page.url.rpartition("/")[2])
    scored = interpretation_pb2.ScoreFeaturesResponse()
    operation.response.Unpack(scored)
    rows = page.locator("[data-list=reports] tbody tr")
    await expect(rows).to_have_count(2)
    for at, report in enumerate(scored.reports):
        texts = await rows.nth(at).locator("th, td").all_inner_texts()
        assert texts[:3] == [("detection", "fuzzing")[at], str(report.num_features), f"{report.mean:.3f}"]
        for text, each in ((texts[3], report.pooled), (texts[6], report.control)):
            assert text == f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})"
        is_at_chance = report.control.low <= 0.5 <= report.control.high
        assert ("are at chance" in texts[7]) == is_at_chance
    whiskers = page.locator(".whisker")
    await expect(whiskers).to_have_count(4)
    await expect(stat(page, "scored")).to_have_text(str(scored.num_scored))
    await expect(page.locator("[data-list=results]")).to_contain_text("shuffled")

    await page.get_by_label("Show").select_option("failures")
    await expect(page.locator("[data-list=results] tbody tr")).to_have_count(0)
    await page.reload()
    await expect(page.get_by_label("Show")).to_have_value("failures")
    await expect(page.get_by_text("None.")).to_be_visible()


async def test_job_is_cancelled_and_gone_on_with(watched: Watched, jobs: JobsHouse, server: InterpreterServer) -> None:
    """What it had found stays on the page; gone on with, no question is sent twice."""
    page, may_answer = watched.page, threading.Event()
    form = await start(page, watched.url, calls=50)
    server.faults, server.always = [slow(0), slow(0)], held(may_answer)
    await form.get_by_role("button", name="Explain").click()
    await expect(page.locator("[data-list=results] tbody tr").first).to_be_visible(timeout=15_000)
    page.once("dialog", lambda dialog: dialog.accept())
    await page.get_by_role("button", name="Cancel").click()
    may_answer.set()
    await finished(page, "cancelled")
    before, sent = await page.locator("[data-list=results] tbody tr").count(), len(server.requests)
    assert 0 < before < 6
    again = page.get_by_role("form", name="Go on")
    await again.get_by_label("Most calls").fill("30")
    await again.get_by_role("button", name="Go on").click()
    await expect(stat(page, "calls-left")).to_have_text(str(30 - (6 - sent)), timeout=15_000)
    await finished(page)
    await expect(page.locator("[data-list=results] tbody tr")).to_have_count(6)
    bodies = [json.dumps(body) for _, body, _ in server.requests]
    assert len(set(bodies)) == len(bodies)


async def test_failures_and_a_spent_budget_are_told(
    watched: Watched, jobs: JobsHouse, server: InterpreterServer
) -> None:
    """Refusals and nonsense stand with their reasons, and what was not come to is counted."""
    server.faults = [says(None, refusal="that I will not"), says("nonsense <b>x</b>")]
    page = watched.page
    form = await start(page, watched.url, calls=3)
    await form.get_by_role("button", name="Explain").click()
    await finished(page)
    await expect(page.get_by_text("3 were not come to, the budget being spent")).to_be_visible()
    await expect(stat(page, "refused")).to_have_text("1")
    await expect(stat(page, "broken")).to_have_text("1")
    await page.get_by_label("Show").select_option("failures")
    rows = page.locator("[data-list=results] tbody tr")
    await expect(rows).to_have_count(2)
    texts = " ".join(await rows.all_inner_texts())
    assert "that I will not" in texts
    assert "nonsense <b>x</b>" in texts
    await page.screenshot(path=ARTIFACTS / "interpretation-failures.png", full_page=True)
    # What could not be read is told, and read once more when a person says so.
    away = {"code": "UNAVAILABLE", "detail": "the service is away"}
    await page.route("**/features?*", lambda route: route.fulfill(status=503, json=away), times=1)
    await page.get_by_label("Show").select_option("good")
    await expect(page.get_by_role("alert")).to_contain_text("the service is away")
    await page.get_by_role("button", name="Try again").click()
    await expect(rows).to_have_count(1)
    await expect(page.get_by_role("alert")).to_have_count(0)
    assert "503" in watched.errors.pop()


async def test_form_says_what_is_wrong_in_the_service_s_words(watched: Watched, jobs: JobsHouse) -> None:
    """Malformed lists are told before anything is sent; what the service refuses is told as it says it."""
    page = watched.page
    form = await start(page, watched.url)
    await form.get_by_label("Features, layer-index").fill("3-14 and others")
    await form.get_by_role("button", name="Explain").click()
    await expect(form.get_by_role("alert")).to_contain_text("layer-index, such as 3-14")
    await form.get_by_text("Of graphs").click()
    await expect(form.get_by_text("No whole graph was made with this transcoder.")).to_be_visible()
    await jobs.house.make("capital")
    await page.goto(f"{watched.url}interpretation?transcoder=t&graph=capital")
    await expect(form.get_by_role("checkbox", name="capital")).to_be_checked()
    await form.get_by_label("Most calls").fill("20")
    await form.get_by_label("Most features").fill("2")
    await form.get_by_role("button", name="Explain").click()
    await finished(page)
    await expect(page.get_by_role("link", name="capital", exact=True)).to_be_visible()
    await expect(page.locator("[data-list=results] tbody tr")).to_have_count(2)
    # One without an index cannot be asked for.
    await page.goto(f"{watched.url}interpretation?transcoder=other")
    await expect(form.get_by_text("It has no whole index")).to_be_visible()
    await expect(form.get_by_role("button", name="Explain")).to_be_disabled()


async def test_pages_fit_and_read_well(
    chromium: Browser, page_console: Console, jobs: JobsHouse, server: InterpreterServer
) -> None:
    """No page is wider than its window, and axe-core finds nothing serious, while work runs and after."""
    client = jobs.house.client
    await client.operations.wait(await client.labels.explain("t", scope=scope()))
    scoring = await client.labels.score("t", scope=scope(), control=True)
    await client.operations.wait(scoring)
    may_answer = threading.Event()
    server.always = held(may_answer)
    running = await client.labels.explain("t", scope=scope(features=["transcoders/t/features/2-3"]))
    await look_over(
        chromium,
        page_console,
        ("interpretations", "interpretation?transcoder=t", "[data-list=jobs]"),
        ("interpretation-score", f"interpretation/{scoring.name.rpartition('/')[2]}", "[data-list=results] tbody tr"),
        ("interpretation-running", f"interpretation/{running.name.rpartition('/')[2]}", ".job-none"),
    )
    await client.operations.cancel(running.name)
    may_answer.set()
    with pytest.raises(CancelledError):
        await client.operations.wait(running)
