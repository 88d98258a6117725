"""Labels on a graph's page in real Chromium, over a real attribution service with a small model."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from attribution_house import AttributionHouse
from axe_findings import serious
from graph_page import select_node
from house_page import house, page_console
from playwright.async_api import Locator, Page, expect
from watched_page import Watched

from weft.features.v1 import labels_pb2

__all__ = ["house", "page_console"]

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ARTIFACTS = Path(__file__).resolve().parents[3] / "tests" / "artifacts" / "console"
EVIL = "<img src=x onerror=alert(1)>"


def features_of(graph: dict[str, Any]) -> list[str]:
    """Ids of feature nodes, one a feature, the most important first."""
    nodes = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]
    found: dict[str, str] = {}
    for node in sorted(nodes, key=lambda node: node["influence"]):
        found.setdefault(node["node_id"].rpartition("_")[0], node["node_id"])
    return list(found.values())


async def say(house: AttributionHouse, node: str, text: str, **more: Any) -> None:
    """Label a node's feature: as a person, or with `explainer` as a model elsewhere."""
    layer, index, _ = map(int, node.split("_"))
    origin = labels_pb2.LABEL_ORIGIN_MODEL if more else labels_pb2.LABEL_ORIGIN_HUMAN
    await house.client.labels.add("t", [labels_pb2.Label(layer=layer, index=index, text=text, origin=origin, **more)])


@pytest.fixture
async def nodes(house: AttributionHouse) -> list[str]:
    """Feature nodes of the graph `g1`, whose first four features have labels."""
    await house.make("g1")
    nodes = features_of(await house.content("g1"))
    await say(house, nodes[0], "ends of names")
    await say(house, nodes[1], "middles of names", explainer="elsewhere-1")
    await say(house, nodes[2], EVIL)
    await say(house, nodes[3], "made here", explainer="model-1", prompt="explain-1", prompt_sha256="ab" * 32)
    return nodes


async def opened(watched: Watched, fragment: str = "") -> Page:
    await watched.page.goto("about:blank")
    page = await watched.open(f"graphs/g1{fragment}")
    await expect(page.locator(".graph-cursor")).to_be_attached()
    await expect(page.locator(".legend .label-origin").first).to_be_visible()
    return page


def stat(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stat={name}]")


async def test_nodes_have_their_labels_and_are_found_by_them(watched: Watched, nodes: list[str]) -> None:
    """Lists, tips and panels show label and origin as text; the search finds words of labels; links lead on."""
    page = await opened(watched)
    strongest = page.locator("[data-list=strongest]")
    row = strongest.locator(f"[data-node='{nodes[0]}']")
    await expect(row).to_contain_text("ends of names")
    await expect(row.locator("[data-origin]")).to_have_text("person")
    await expect(strongest.locator(f"[data-node='{nodes[1]}'] [data-origin]")).to_have_text("imported")
    await expect(strongest.locator(f"[data-node='{nodes[2]}']")).to_contain_text(EVIL)
    await expect(strongest.locator(f"[data-node='{nodes[3]}'] [data-origin]")).to_have_text("model")
    assert await page.locator("img[src=x]").count() == 0
    search = page.get_by_role("combobox", name="Search nodes")
    await search.fill("NAMES middles")
    hits = page.locator("#search-hits li")
    await expect(hits.first).to_contain_text("middles of names")
    await search.press("Enter")
    await expect(stat(page, "node")).to_have_text("middles of names")
    layer, index, _ = nodes[1].split("_")
    assert await page.locator(f".graph-cursor[data-node^='{layer}_{index}_']").count() == 1
    link = page.get_by_role("link", name="Feature page")
    assert await link.get_attribute("href") == f"/transcoders/t/features/{layer}/{index}"
    await expect(page.locator(".node-feature")).to_contain_text(f"L{layer} · {index}")
    lab = await page.get_by_role("link", name="In the lab").get_attribute("href")
    assert lab == f"/lab?transcoder=t&prompt=capital&pin={layer}-{index}"
    await select_node(page, nodes[2])
    await expect(stat(page, "node")).to_have_text(EVIL)
    assert await page.locator("img[src=x]").count() == 0
    assert await serious(page) == []


async def test_label_is_changed_from_the_nodes_panel(
    watched: Watched, house: AttributionHouse, nodes: list[str]
) -> None:
    """What is said in the panel stands at once wherever the feature is shown, and in the service."""
    page = await opened(watched, f"#selected={nodes[1]}")
    part = page.locator(".node-label")
    await expect(part).to_contain_text("middles of names")
    await part.get_by_role("button", name="Change").click()
    await part.get_by_label("What it stands for").fill("the middle of a name")
    await part.get_by_label("Your name").fill("the night shift")
    await part.get_by_role("button", name="Save").click()
    await expect(stat(page, "node")).to_have_text("the middle of a name")
    await expect(page.locator(".node-feature [data-origin]")).to_have_text("person")
    layer, index, _ = map(int, nodes[1].split("_"))
    said = await house.client.labels.get("t", layer=layer, index=index)
    assert (said.text, said.author, said.origin) == (
        "the middle of a name", "the night shift", labels_pb2.LABEL_ORIGIN_HUMAN,
    )  # fmt: skip
    await page.get_by_role("button", name="Close the panel").click()
    await expect(page.locator(f"[data-list=strongest] [data-node='{nodes[1]}']")).to_contain_text(
        "the middle of a name"
    )
    # Withdrawn, the model's label stands again.
    await select_node(page, nodes[1])
    await part.get_by_role("button", name="Withdraw").click()
    await expect(stat(page, "node")).to_have_text("middles of names")
    await expect(page.locator(".node-feature [data-origin]")).to_have_text("imported")
    assert await serious(page) == []


async def test_groups_are_named_by_what_labels_share(watched: Watched, nodes: list[str]) -> None:
    """A group of pins gets a proposed name, marked until somebody writes another; the summary's groups get one too."""
    page = await opened(watched, f"#pinned={nodes[0]},{nodes[1]},{nodes[4]}")
    pinned = page.locator("[data-list=pinned]")
    await pinned.get_by_role("button", name="Group the pins").click()
    name = pinned.get_by_label("Name of group 1")
    await expect(name).to_have_value("names")
    mark = pinned.locator(".is-proposed")
    await expect(mark).to_have_attribute("title", re.compile("the labels of 2 of 3 features"))
    await page.wait_for_url(lambda url: "proposed=0" in url)
    await page.reload()
    await expect(mark).to_be_visible()
    await name.fill("mine")
    await expect(mark).to_have_count(0)
    await page.wait_for_url(lambda url: "proposed" not in url)
    await pinned.get_by_role("button", name="Name by labels").click()
    await expect(name).to_have_value("names")
    await expect(mark).to_be_visible()
    await page.screenshot(path=ARTIFACTS / "labels-group.png")

    await page.get_by_role("radiogroup", name="View").get_by_text("Summary").click()
    boxes = page.locator(".supernode:has(.is-proposed)")
    await expect(boxes.first).to_be_visible()
    named = await boxes.first.locator("b").inner_text()
    assert named
    await page.screenshot(path=ARTIFACTS / "labels-summary.png")
    assert await serious(page) == []
    await page.get_by_role("button", name="Show these groups in the graph").click()

    def groups(url: str) -> list[str]:
        return parse_qs(urlsplit(url).fragment).get("group", [])

    await page.wait_for_url(lambda url: any(group.startswith(f"{named}|") for group in groups(url)))


@pytest.mark.parametrize(("scheme", "width", "height"), [("dark", 360, 780), ("light", 1440, 900)])
async def test_labels_fit_their_window(
    watched: Watched, nodes: list[str], scheme: Any, width: int, height: int
) -> None:
    """With labels the page is no wider than the window, and nothing serious is found."""
    page = watched.page
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": width, "height": height})
    await opened(watched, f"#selected={nodes[2]}&pinned={nodes[0]},{nodes[3]}")
    await expect(page.locator(".node-label")).to_contain_text(EVIL)
    await page.evaluate("() => document.fonts.ready")
    await page.screenshot(path=ARTIFACTS / f"labels-{scheme}-{width}.png", full_page=True)
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert await serious(page) == []
