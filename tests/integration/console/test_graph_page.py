"""What a person does on a graph's page in real Chromium, each action against what the services were asked and said."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_findings import serious
from graph_page import select_node
from page_windows import serious_in_both
from playwright.async_api import Locator, Page, expect
from watched_page import Watched

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"


async def open_graph(watched: Watched, fragment: str = "") -> Page:
    await watched.page.goto("about:blank")
    page = await watched.open(f"graphs/france{fragment}")
    await expect(page.locator(".graph-cursor")).to_be_attached()
    return page


def features_of(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """Features of a file, the most important first."""
    features = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]
    return sorted(features, key=lambda node: node["influence"])


def stat(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stat={name}]")


async def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    await page.mouse.move(*start)
    await page.mouse.down()
    await page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    await page.mouse.move(*end)
    await page.mouse.up()


async def cursor_at(page: Page) -> tuple[float, float]:
    """Where the keyboard's node stands once what was asked for is drawn."""
    await page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = await page.locator(".graph-cursor").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


async def set_slider(slider: Locator, value: int) -> None:
    await slider.evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })) }",
        str(value),
    )


async def test_pinned_part_is_scored_grouped_steered_and_undone(
    watched: Watched, world: Any, graph_json: dict[str, Any]
) -> None:
    """Scores follow the pins, groups keep them, steering changes all of them at once, and every step can be undone."""
    first, second, third = (node["node_id"] for node in features_of(graph_json)[:3])
    page = await open_graph(watched, f"#pinned={first},{second}")
    await expect(stat(page, "part-replacement")).to_have_text("0.020")
    await select_node(page, third)
    await page.keyboard.press("p")
    await page.keyboard.press("Escape")
    await expect(stat(page, "part-replacement")).to_have_text("0.030")
    await expect(stat(page, "part-completeness")).to_have_text("0.330")
    assert world.scored == [[first, second], [first, second, third]]

    pinned = page.locator("[data-list=pinned]")
    await pinned.get_by_role("button", name="Group the pins").click()
    name = pinned.get_by_role("textbox", name="Name of group 1")
    await expect(name).to_have_value("Group 1")
    await name.fill("capitals | cities")
    await page.wait_for_url(lambda url: "capitals" in url)
    steer = page.get_by_role("region", name="Steer the part")
    await steer.get_by_text("Own", exact=True).click()
    await steer.get_by_label("Kind of change").select_option("value")
    await steer.get_by_label("Amount").fill("2.5")
    await steer.get_by_role("button", name="Measure").click()
    await expect(steer.get_by_role("row", name="·Paris")).to_contain_text("−0.810−0.655")
    (asked,) = world.interventions
    assert [(change.node_id, change.value) for change in asked.interventions] == [
        (n, 2.5) for n in (first, second, third)
    ]
    await steer.scroll_into_view_if_needed()
    await page.screenshot(path=ARTIFACTS / "part.png")

    await page.reload()
    await expect(page.locator("[data-group='capitals | cities'] .chip")).to_have_count(3)
    await pinned.get_by_role("button", name="Ungroup").click()
    await expect(pinned.locator("[data-group]")).to_have_count(0)
    await expect(pinned.locator(".chip")).to_have_count(3)
    await pinned.get_by_role("button", name="Clear").click()
    await expect(pinned).to_have_count(0)
    await page.keyboard.press("Control+z")
    await expect(pinned.locator(".chip")).to_have_count(3)
    await page.get_by_role("button", name="Undo").click()
    await expect(page.locator("[data-group='capitals | cities'] .chip")).to_have_count(3)
    await page.keyboard.press("Control+Shift+z")
    await expect(pinned.locator("[data-group]")).to_have_count(0)
    # What the part is did not change: nothing was asked for twice on the way.
    await expect(stat(page, "part-replacement")).to_have_text("0.030")


async def test_steering_shows_every_node_predicted_beside_measured(
    watched: Watched, world: Any, graph_json: dict[str, Any]
) -> None:
    """Nodes come with the largest measured change first, can be gone to, and are asked for again with all held."""
    features = [node for node in graph_json["nodes"] if node["feature_type"] == "cross layer transcoder"]
    node = features_of(graph_json)[0]["node_id"]
    page = await open_graph(watched)
    await select_node(page, node)
    steer = page.get_by_role("region", name="Intervene")
    await steer.get_by_role("button", name="Every node").click()
    effects = steer.locator("[data-list=node-effects]")
    await expect(stat(page, "rank-agreement")).to_have_text("0.721")
    rows = effects.locator("tbody tr")
    await expect(rows).to_have_count(13)
    most = (len(features) - 1) / 10
    await expect(rows.nth(0)).to_contain_text("−0.300−0.200")
    await expect(rows.nth(1)).to_contain_text(f"+{most:.3f}+{most / 2:.3f}")
    await effects.get_by_role("button", name="Show all").click()
    await expect(rows).to_have_count(1 + len(features))
    await steer.get_by_label("What is held").select_option("everything")
    await steer.get_by_role("button", name="Every node").click()
    await expect(rows.nth(1)).to_contain_text(f"+{most:.3f}+{most:.3f}")
    first, second = world.steered
    assert [(list(change.node_ids), change.factor) for change in first.changes] == [([node], 0.0)]
    assert (first.HasField("held"), first.freeze_attention) == (False, False)
    layers = max(int(each["layer"]) for each in features)
    assert (second.held.first, second.freeze_attention) == (0, True)
    assert second.held.last >= layers
    assert await serious(page) == []
    await effects.scroll_into_view_if_needed()
    await page.screenshot(path=ARTIFACTS / "steer-nodes.png")
    await rows.nth(1).get_by_role("button").click()
    await expect(stat(page, "node")).to_be_visible()
    await page.wait_for_url(lambda url: features[-1]["node_id"] in url)


async def test_paths_and_places_are_shown_kept_and_shared(
    watched: Watched, world: Any, graph_json: dict[str, Any]
) -> None:
    """Paths are listed, drawn and pinned; dragged nodes stay where they are in a link; dense features can be hidden."""
    token, logit = "E_104_4", next(node["node_id"] for node in graph_json["nodes"] if node["is_target_logit"])
    page = await open_graph(watched)
    await select_node(page, token)
    paths = page.locator("[data-list=paths]")
    await paths.get_by_label("Other end").select_option(logit)
    await paths.get_by_role("button", name="Find").click()
    await expect(stat(page, "total-strength")).to_have_text("31.00%")
    await expect(paths.locator(".paths > li")).to_have_count(2)
    await expect(paths.locator(".path-steps .chip")).to_have_count(3)
    await expect(paths.locator(".path-steps")).to_contain_text("−0.25")
    await page.screenshot(path=ARTIFACTS / "paths.png")
    outputs = page.locator("[data-list=outputs]")
    target = await outputs.locator(".edge").first.get_attribute("data-node")
    await outputs.get_by_role("button", name="Heads of the edge").first.click()
    # Shares are of the edge as it adds up: 0.6, -0.2, 0.3 and 0.1 of 0.8.
    await expect(page.locator("[data-list=heads] .head-share")).to_have_text(["+75.0%", "−25.0%", "+37.5%", "+12.5%"])
    await expect(page.locator("[data-list=heads]")).to_contain_text("L11 head 2 reads ·France")
    assert world.split == [(token, target)]
    await page.get_by_role("button", name="Why L11 head 2 reads ·France").click()
    why = page.locator("[data-list=attention]")
    await expect(why).to_contain_text("Attends with 43.2%")
    await expect(why.locator(".head-share")).to_have_text(["+1.200", "−0.400", "+0.100", "−0.200"])
    await expect(why.locator("li").nth(1)).to_contain_text("constants")
    # A feature that the file has no node of is named, and cannot be gone to.
    await expect(why.locator("li").nth(2).locator(".is-plain")).to_have_text("L3 · 99")
    ends = next(node["ctx_idx"] for node in graph_json["nodes"] if node["node_id"] == target)
    assert world.attention == [(11, 2, ends, 4)]
    await page.screenshot(path=ARTIFACTS / "heads.png")
    await paths.get_by_role("button", name="Pin this path").click()
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Close the panel").click()
    await expect(page.locator("[data-list=pinned] .chip")).to_have_count(3)
    await page.get_by_role("button", name="Undo").click()

    feature = features_of(graph_json)[0]["node_id"]
    start = await select_node(page, feature)
    end = (start[0] + 60, start[1] + 40)
    await drag(page, start, end)
    assert await cursor_at(page) == pytest.approx(end, abs=1.5)
    await page.wait_for_url(lambda url: "moved=" in url)
    dragged = page.url
    await page.locator(".graph-cursor").focus()
    await page.keyboard.press("Shift+ArrowLeft")
    await expect(page.get_by_role("button", name="Lay out again")).to_be_enabled()
    moved = await cursor_at(page)
    assert moved[0] < end[0] - 2
    await page.wait_for_url(lambda url: url != dragged)
    await page.reload()
    await expect(page.locator(f".graph-cursor[data-node='{feature}']")).to_be_attached()
    assert await cursor_at(page) == pytest.approx(moved, abs=1.5)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.get_by_role("button", name="Copy link").click()
    await expect(page.get_by_role("button", name="Copied")).to_be_visible()
    link = await page.evaluate("() => navigator.clipboard.readText()")
    assert parse_qs(urlsplit(link).fragment)["selected"] == [feature]
    assert parse_qs(urlsplit(link).fragment)["moved"][0].startswith(f"{feature}:")
    await page.get_by_role("button", name="Lay out again").click()
    await expect(page.get_by_role("button", name="Lay out again")).to_be_disabled()
    assert await cursor_at(page) == pytest.approx(start, abs=1.5)
    await page.wait_for_url(lambda url: "moved=" not in url)
    # A link that is pasted while the page is open is taken up at once.
    await page.evaluate("fragment => { location.hash = fragment }", urlsplit(link).fragment)
    await expect(page.get_by_role("button", name="Lay out again")).to_be_enabled()
    assert await cursor_at(page) == pytest.approx(moved, abs=1.5)

    graph = json.loads(json.dumps(graph_json))
    dense = features_of(graph)[1]
    layer, index, position = dense["node_id"].split("_")
    for other in (p for p in range(1, 6) if p != int(position)):
        graph["nodes"].append({**dense, "node_id": f"{layer}_{index}_{other}", "ctx_idx": other})
    world.json = json.dumps(graph).encode()
    page = await open_graph(watched)
    slider = page.get_by_role("slider", name="Most positions of a feature")
    await expect(slider).to_have_attribute("max", "5")
    count = len(graph["nodes"])
    await expect(stat(page, "nodes")).to_have_text(str(count))
    await set_slider(slider, 4)
    await expect(stat(page, "nodes")).to_have_text(str(count - 5))
    await set_slider(slider, 5)
    await expect(stat(page, "nodes")).to_have_text(str(count))


async def test_summary_and_comparison_are_read(watched: Watched, world: Any, graph_json: dict[str, Any]) -> None:
    """A dozen groups with what they keep become the page's own groups; two prompts stand side by side."""
    world.add_graph("italy", world.graphs["graphs/france"].spec, world.graphs["graphs/france"].state)
    italy = world.graphs["graphs/italy"]
    italy.spec.prompt = "The capital of Italy is"
    italy.prompt_tokens[4] = " Italy"
    world.add_graph("elsewhere", world.graphs["graphs/france"].spec, world.graphs["graphs/france"].state)
    world.graphs["graphs/elsewhere"].spec.transcoder = "transcoders/another"
    page = await open_graph(watched)
    await page.get_by_role("radiogroup", name="View").get_by_text("Summary").click()
    groups = page.locator(".supernode")
    await expect(groups).to_have_count(12 + 6 + 3)
    await expect(stat(page, "summary-influence")).to_have_text("87.4%")
    await expect(stat(page, "summary-flow")).to_have_text("91.2%")
    await page.screenshot(path=ARTIFACTS / "summary.png")
    assert await serious(page) == []
    await groups.first.click()
    await expect(page.get_by_role("region", name="Flows out").locator(".edge").first).to_be_visible()
    await page.screenshot(path=ARTIFACTS / "summary-chosen.png")
    await page.get_by_label("Groups at most").select_option("3")
    await expect(groups).to_have_count(3 + 6 + 3)
    assert world.summarized == [(12, 1), (3, 1)]
    await page.get_by_role("button", name="Show these groups in the graph").click()
    await expect(page.locator("[data-group]")).to_have_count(3)
    await expect(stat(page, "part-replacement")).to_have_text("0.240")
    assert len(world.scored[-1]) == 24
    await page.screenshot(path=ARTIFACTS / "groups.png")

    await page.get_by_role("radiogroup", name="View").get_by_text("Compare").click()
    other = page.get_by_label("Compare with")
    await expect(other.locator("option")).to_have_count(2)
    await other.select_option("italy")
    await expect(stat(page, "overlap")).to_have_text("64.3%")
    await expect(page.locator(".alignment td.is-different")).to_have_text(["·France", "·Italy"])
    await expect(page.locator(".butterfly button")).to_have_count(30)
    await page.screenshot(path=ARTIFACTS / "compare.png")
    assert await serious(page) == []
    await page.wait_for_url(lambda url: "view=compare&other=italy" in url)
    await page.locator(".butterfly button").first.click()
    await expect(stat(page, "node")).to_be_visible()


async def test_targets_are_chosen_and_the_graph_so_far_is_shown(
    watched: Watched, world: Any, graph_json: dict[str, Any]
) -> None:
    """Differences, texts and features are asked for as written; a graph in the making is read and cancelled."""
    so_far = json.loads(json.dumps(graph_json))
    kept = {node["node_id"] for node in graph_json["nodes"] if node["feature_type"] != "cross layer transcoder"}
    so_far["nodes"] = [node for node in so_far["nodes"] if node["node_id"] in kept]
    so_far["links"] = [link for link in so_far["links"] if {link["source"], link["target"]} <= kept]
    world.partial_json = json.dumps(so_far).encode()
    page = await open_graph(watched)
    explain = page.locator("[data-list=explain]")
    await explain.get_by_text("Explain something else").click()
    await explain.get_by_label("Logit to take off").select_option("2")
    await explain.get_by_role("button", name="Explain the difference").click()
    await expect(page.get_by_role("region", name="Graph being made")).to_contain_text("128 of 2,117 rows")
    await expect(stat(page, "all-nodes")).to_have_text(str(len(kept)))
    await page.screenshot(path=ARTIFACTS / "partial.png")
    assert await serious(page) == []
    (asked,) = world.created
    assert asked.spec.prompt == "The capital of France is"
    (target,) = asked.spec.targets
    assert (target.difference.token_id, target.difference.minus_token_id) == (500, 502)
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_role("alert")).to_contain_text("cancelled")
    assert world.cancelled == [f"operations/attribution-{asked.graph_id}"]

    world.finish_graphs.clear()
    page = await watched.open("graphs")
    await page.get_by_label("Prompt").fill("Rome is in")
    await page.get_by_text("Choose what to explain").click()
    await page.locator(".create-targets select").first.select_option("own")
    await page.get_by_label("Token of target 1").fill(" Italy")
    await page.get_by_role("button", name="Add a target").click()
    await page.get_by_label("Kind of target 2").select_option("feature")
    await page.get_by_label("Layer of target 2").fill("7")
    await page.get_by_label("Index of target 2").fill("41")
    await page.get_by_role("button", name="Add a target").click()
    await page.get_by_label("Kind of target 3").select_option("difference")
    await page.get_by_label("Token of target 3").fill(" Italy")
    await page.get_by_label("Token to take off of target 3").fill(" Spain")
    await page.get_by_label("Position whose next token is explained").fill("2")
    await page.screenshot(path=ARTIFACTS / "targets.png")
    assert await serious(page) == []
    await page.get_by_role("button", name="Explain", exact=True).click()
    await expect(page.locator("[data-making]")).to_be_visible()
    spec = world.created[1].spec
    assert spec.position == 2
    assert [target.WhichOneof("kind") for target in spec.targets] == ["text", "feature", "difference"]
    assert spec.targets[0].text == " Italy"
    assert (spec.targets[1].feature.layer, spec.targets[1].feature.index) == (7, 41)
    assert (spec.targets[2].difference.text, spec.targets[2].difference.minus_text) == (" Italy", " Spain")
    world.finish_graphs.set()
    await expect(page.locator(".graph-cursor")).to_be_attached()


@pytest.mark.parametrize(("scheme", "width", "height"), [("dark", 390, 780), ("light", 1440, 900)])
async def test_every_view_fits_its_window_and_pleases_axe(
    watched: Watched, world: Any, graph_json: dict[str, Any], scheme: Any, width: int, height: int
) -> None:
    """Graph, part, summary and comparison: no wider than the window, and nothing serious found, light and dark."""
    world.add_graph("italy", world.graphs["graphs/france"].spec, world.graphs["graphs/france"].state)
    first, second, third = (node["node_id"] for node in features_of(graph_json)[:3])
    page = watched.page
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": width, "height": height})
    for name, fragment, ready in (
        ("part", f"#pinned={first}&group=capitals|{second},{third}", "[data-stat=part-replacement]"),
        ("node", f"#selected={first}", "[data-list=feature] table"),
        ("summary", "#view=summary", ".supernode"),
        ("compare", "#view=compare&other=italy", ".butterfly button"),
    ):
        await open_page(page, watched.url, fragment, ready)
        await page.screenshot(path=ARTIFACTS / f"{name}-{scheme}-{width}.png", full_page=True)
        assert await page.evaluate("() => document.documentElement.scrollWidth") <= width, name
        assert await serious_in_both(page, scheme) == [], name


async def open_page(page: Page, url: str, fragment: str, ready: str) -> None:
    await page.goto("about:blank")
    await page.goto(f"{url}graphs/france{fragment}")
    await page.locator(ready).first.wait_for()
    await page.evaluate("() => document.fonts.ready")
    await asyncio.sleep(0.15)
