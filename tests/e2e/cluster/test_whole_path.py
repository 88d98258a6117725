"""The demo's whole path on a cluster, with the real model: harvest, train on two pods, export, explain, show."""

import asyncio
import json
from pathlib import Path

import pytest
from cluster_rig.release import Release
from cluster_rig.story import Story
from graph_page import select_node
from playwright.async_api import Browser, Error, Page, expect

from weft.training.v1 import messages_pb2 as training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ARTIFACTS = Path(__file__).resolve().parents[3] / "tests" / "artifacts" / "cluster"


def test_prediction_is_explained_by_what_was_trained_in_pods(story: Story) -> None:
    """Through the Services' addresses, with TLS and tokens; the graph's arithmetic closes."""
    assert story.harvest.tokens_committed == 2000
    assert (story.run.state, story.run.attempt) == (training.RUN_STATE_SUCCEEDED, 1)
    assert len(story.rank_pods) == 2
    assert story.graph.statistics.conservation_error < 1e-4
    assert story.graph.statistics.num_nodes > 10
    assert b"Paris" in story.graph.json


async def _go(page: Page, url: str) -> None:
    """Open a page, again where a pod that came or went has changed the machine's network meanwhile."""
    for attempt in range(5):
        try:
            await page.goto(url)
        except Error as error:
            if "ERR_NETWORK_CHANGED" not in error.message or attempt == 4:
                raise
            await asyncio.sleep(2)
        else:
            return


# Playwright leaves its own pipes to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_graph_is_read_on_the_page(release: Release, story: Story, chromium: Browser) -> None:
    """Over TLS and through a port-forward, signed in with the release's token: a node is hovered and clicked."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    graph = json.loads(story.graph.json)
    console = f"https://localhost:{release.ports['console']}"
    errors: list[str] = []
    # The tests' own authority is known to no browser; the poller and `helm test` check the page's certificate.
    context = await chromium.new_context(
        ignore_https_errors=True, viewport={"width": 1440, "height": 900}, color_scheme="light"
    )
    page = await context.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    await asyncio.to_thread(release.reach, "console")
    await _go(page, f"{console}/?token={release.tokens['console']}")
    await expect(page.get_by_role("heading", name="Graphs")).to_be_visible()
    await _go(page, f"{console}/{story.graph.name}")
    await expect(page.locator(".graph-cursor")).to_be_attached()

    logit = next(node["node_id"] for node in graph["nodes"] if node["is_target_logit"])
    x, y = await select_node(page, logit)
    await page.keyboard.press("Escape")
    await page.mouse.move(x - 150, y + 200)
    await page.mouse.move(x, y)
    await expect(page.locator(".graph-tip")).to_contain_text("Paris")
    await page.mouse.click(x, y)
    await expect(page.locator("[data-stat=node]")).to_have_text("·Paris")
    into = {link["source"]: link["weight"] for link in graph["links"] if link["target"] == logit}
    strongest = page.locator("[data-list=inputs] .edge").first
    assert await strongest.get_attribute("data-node") == max(into, key=lambda node: abs(into[node]))
    await page.screenshot(path=ARTIFACTS / "graph.png")
    await context.close()
    assert errors == []
