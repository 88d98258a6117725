"""The page in real Chromium: what a person sees, does and reads, against the numbers of the graph's file."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graph_page import select_node
from page_windows import fits
from playwright.async_api import Browser, Locator, Page, expect
from watched_page import TOKEN, Watched

from weft_console.serve import Console
from weft_console.settings import ConsoleSettings

pytestmark = [
    pytest.mark.browser,
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[3]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"


def shares_into(graph: dict[str, Any], target: str) -> dict[str, float]:
    """Signed shares of a node's input, straight from the file."""
    into = {link["source"]: link["weight"] for link in graph["links"] if link["target"] == target}
    total = sum(abs(weight) for weight in into.values())
    return {source: weight / total for source, weight in into.items()}


def shown(share: float) -> str:
    return f"{'−' if share < 0 else '+'}{abs(100 * share):.1f}%"


def stat(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stat={name}]")


async def rows(page: Page, name: str) -> list[tuple[str, str]]:
    """Node and share of every row of a list."""
    found = page.locator(f"[data-list={name}] .edge")
    return [
        (await row.get_attribute("data-node") or "", await row.locator(".edge-share").inner_text())
        for row in await found.all()
    ]


async def open_graph(watched: Watched, fragment: str = "") -> Page:
    page = await watched.open(f"graphs/france{fragment}")
    await expect(page.locator(".graph-cursor")).to_be_attached()
    return page


async def test_lists_show_the_files_numbers(watched: Watched, graph_json: dict[str, Any]) -> None:
    """A click on a logit lists all of its inputs, strongest first, with the shares that the file's weights give."""
    page = await open_graph(watched)
    logit = next(node["node_id"] for node in graph_json["nodes"] if node["is_target_logit"])
    x, y = await select_node(page, logit)
    await page.keyboard.press("Escape")
    await expect(stat(page, "node")).to_have_count(0)
    await page.mouse.click(x, y)
    await expect(stat(page, "node")).to_have_text("·Paris")
    expected = shares_into(graph_json, logit)
    await page.locator("[data-list=inputs]").get_by_role("button", name=f"Show all {len(expected)}").click()
    ordered = sorted(expected.items(), key=lambda pair: -abs(pair[1]))
    listed = await rows(page, "inputs")
    assert [share for _, share in listed] == [shown(share) for _, share in ordered]
    assert dict(listed) == {node: shown(share) for node, share in expected.items()}


async def test_feature_panel_tells_what_the_feature_does(watched: Watched, graph_json: dict[str, Any]) -> None:
    """Activation, outputs in percent of each target's input, and the logits that GetFeature gives."""
    page = await open_graph(watched)
    links = graph_json["links"]
    features = [node for node in graph_json["nodes"] if node["feature_type"] == "cross layer transcoder"]
    feature = max(features, key=lambda node: sum(link["source"] == node["node_id"] for link in links))
    await select_node(page, feature["node_id"])
    assert float((await stat(page, "activation").inner_text()).replace(",", "")) == pytest.approx(
        feature["activation"], rel=1e-3
    )
    outputs = dict(await rows(page, "outputs"))
    assert outputs
    for target, share in outputs.items():
        assert share == shown(shares_into(graph_json, target)[feature["node_id"]])
    panel = page.locator("[data-list=feature]")
    await expect(panel.get_by_role("row", name="·Paris +1.400")).to_be_visible()
    await expect(panel.get_by_role("row", name="·Paris −0.900")).to_be_visible()
    cell = page.locator(f"[data-list=on-prompt] [data-node='{feature['node_id']}']")
    await expect(cell).to_have_attribute("aria-current", "true")


async def test_hover_traces_edges_and_names_the_node(watched: Watched, graph_json: dict[str, Any]) -> None:
    """The pointer on a node brings its tip and fades the rest; away from it, all is as before."""
    page = await open_graph(watched)
    x, y = await select_node(page, "E_104_4")
    await page.keyboard.press("Escape")
    host = page.locator(".drawing-host")
    await page.mouse.move(x - 200, y - 130)
    await page.mouse.move(x, y)
    tip = page.locator(".graph-tip")
    await expect(tip).to_be_visible()
    await expect(tip).to_contain_text("Token ·France")
    await expect(host).to_contain_class("is-over is-focused")
    await page.screenshot(path=ARTIFACTS / "hover.png")
    await page.mouse.move(5, 5)
    await expect(host).to_have_class("drawing-host")


async def test_slider_prunes_without_asking_the_server(watched: Watched, graph_json: dict[str, Any]) -> None:
    """The counts follow the file's influence at each threshold, and no request is sent."""
    page = await open_graph(watched)
    kept = {"embedding", "logit"}

    def expected(threshold: float) -> tuple[int, int]:
        ids = {
            node["node_id"]
            for node in graph_json["nodes"]
            if node["feature_type"] in kept or node["influence"] <= threshold + 1e-9
        }
        return len(ids), sum(link["source"] in ids and link["target"] in ids for link in graph_json["links"])

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/api/" in request.url else None)
    slider = page.get_by_role("slider", name="Influence kept")
    for position in (1000, 620, 250, 0):
        await slider.evaluate(
            "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })) }",
            str(position),
        )
        nodes, edges = expected(0.8 * position / 1000)
        await expect(stat(page, "nodes")).to_have_text(f"{nodes:,}")
        await expect(stat(page, "edges")).to_have_text(f"{edges:,}")
    assert asked == []


async def test_graph_is_reachable_by_keyboard(watched: Watched) -> None:
    """Arrows move between nodes with a visible focus that is read out; Enter selects, P pins, Escape clears."""
    page = await open_graph(watched)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    cursor = page.locator(".graph-cursor")
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await cursor.evaluate("node => node === document.activeElement"):
            break
    await expect(cursor).to_be_focused()
    assert await cursor.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    seen = {await cursor.get_attribute("data-node")}
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowDown", "ArrowRight"):
        await page.keyboard.press(key)
        seen.add(await cursor.get_attribute("data-node"))
    assert len(seen) >= 4
    chosen = await cursor.get_attribute("data-node")
    label = await cursor.get_attribute("aria-label")
    assert label
    assert "layer" in label
    await page.keyboard.press("Enter")
    await expect(cursor).to_have_attribute("aria-pressed", "true")
    await page.keyboard.press("p")
    await expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    await page.wait_for_url(f"**#selected={chosen}&pinned={chosen}")
    await page.keyboard.press("Escape")
    await expect(page.locator("[data-list=pinned] .chip")).to_have_count(1)
    await page.wait_for_url(f"**#pinned={chosen}")
    await page.reload()
    await expect(page.locator("[data-list=pinned] .chip")).to_have_count(1)


async def test_intervention_puts_prediction_beside_measurement(
    watched: Watched, world: Any, graph_json: dict[str, Any]
) -> None:
    """Ablating from the panel asks for that node and shows predicted, frozen and free side by side."""
    page = await open_graph(watched)
    feature = next(node for node in graph_json["nodes"] if node["feature_type"] == "cross layer transcoder")
    await select_node(page, feature["node_id"])
    section = page.locator("[data-list=intervention]")
    await section.get_by_role("button", name="Measure").click()
    row = section.get_by_role("row", name="·Paris")
    await expect(row).to_have_text("·Paris−0.420−0.420−0.810−0.65546.0% → 23.0%")
    (asked,) = world.interventions
    assert asked.interventions[0].node_id == feature["node_id"]
    assert asked.interventions[0].factor == 0.0
    await row.scroll_into_view_if_needed()
    await page.screenshot(path=ARTIFACTS / "intervention.png")


async def test_graph_is_made_with_live_progress(watched: Watched, world: Any) -> None:
    """The form asks for a graph, its progress is shown as it comes, and the page opens it once it is there."""
    page = await watched.open("graphs")
    await page.get_by_label("Prompt").fill("Paris is the capital of")
    await page.get_by_role("button", name="Explain").click()
    making = page.locator("[data-making]")
    await expect(making).to_contain_text("sweeping · 128 of 2,117 rows")
    await page.screenshot(path=ARTIFACTS / "making.png")
    (asked,) = world.created
    assert asked.spec.prompt == "Paris is the capital of"
    assert asked.spec.transcoder == "transcoders/demo"
    assert asked.spec.model == "models/smollm2-135m-instruct"
    world.finish_graphs.set()
    await expect(page.locator(".graph-cursor")).to_be_attached()
    assert page.url.endswith(f"/graphs/{asked.graph_id}")


async def test_run_page_updates_live(watched: Watched, world: Any) -> None:
    """A new step of the trainer is on the page without a reload, and evaluations come by layer."""
    page = await watched.open("runs/demo")
    await expect(stat(page, "step")).to_have_text("120")
    await expect(page.get_by_role("img", name="Held-out explained variance by layer")).to_be_visible()
    await page.evaluate("() => { window.stillHere = true }")
    for step in (121, 122, 123):
        await world.steps.put(step)
    await expect(stat(page, "step")).to_have_text("123")
    await expect(stat(page, "sent")).to_have_text("60.1 KiB")
    assert await page.evaluate("() => window.stillHere") is True
    await page.screenshot(path=ARTIFACTS / "run.png", full_page=True)
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator(".page-head .badge")).to_have_text("paused")


async def test_run_page_shows_what_was_measured_on_held_out_data(watched: Watched) -> None:
    """Shares, densities and explained variance over time from evaluations; the replacement model from a checkpoint."""
    page = await watched.open("runs/demo")
    for name in ("Silent and dense features by layer", "Feature density", "One layer replaced: KL, nats"):
        await expect(page.get_by_role("img", name=name)).to_be_visible()
    heat = page.get_by_role("img", name="Held-out explained variance over time, 4 evaluations")
    await expect(heat.locator("rect")).to_have_count(4 * 30)
    await expect(stat(page, "top-1")).to_have_text("41.2%")
    await expect(stat(page, "recovered")).to_have_text("46.2%")
    await page.get_by_role("img", name="Feature density").locator("rect").nth(16).hover()
    await expect(page.get_by_text("1% to 1.8% of tokens")).to_be_visible()


async def test_dataset_page_shows_compression(watched: Watched) -> None:
    """Tokens, bits a value and the error of every layer."""
    page = await watched.open("datasets/demo")
    await expect(stat(page, "train-tokens")).to_have_text("36,000")
    await expect(stat(page, "bits")).to_have_text("4.612")
    await expect(page.locator(".columns rect")).to_have_count(3 * 60)
    await page.screenshot(path=ARTIFACTS / "dataset.png", full_page=True)


async def test_signed_out_person_signs_in(chromium: Browser, page_console: Console) -> None:
    """Without a cookie the page asks for the token, refuses a wrong one in words, and opens with the right one."""
    context = await chromium.new_context()
    page = await context.new_page()
    await page.goto(f"{page_console.url}graphs/france")
    await page.get_by_label("Token").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("not the console's token")
    await page.screenshot(path=ARTIFACTS / "sign-in.png")
    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator(".graph-cursor")).to_be_attached()
    assert await page.evaluate("() => document.cookie") == ""
    await context.close()


async def test_policy_stops_scripts_of_others(watched: Watched) -> None:
    """The content security policy is at work: an inline script that is put into the page does not run."""
    page = await watched.open("graphs")
    ran = await page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.wasInjected = true";
            document.body.append(script);
            return window.wasInjected === true;
        }"""
    )
    assert ran is False
    async with asyncio.timeout(20):
        while not watched.errors:  # noqa: ASYNC110  the browser tells of it when it likes
            await asyncio.sleep(0.05)
    assert len(watched.errors) == 1
    assert "Content Security Policy" in watched.errors.pop()


async def test_page_fits_every_width(chromium: Browser, page_console: Console, graph_json: dict[str, Any]) -> None:
    """No page is wider than its window, light or dark; screenshots are kept to be looked at."""
    feature = min(
        (node for node in graph_json["nodes"] if node["feature_type"] == "cross layer transcoder"),
        key=lambda node: node["influence"],
    )
    pages = (
        ("graphs", "graphs", ".table"),
        ("graph", "graphs/france", ".graph-cursor"),
        ("graph-selected", f"graphs/france#selected={feature['node_id']}", "[data-list=feature] table"),
        ("runs", "runs", ".table"),
        ("run", "runs/demo", ".columns"),
        ("datasets", "datasets", ".table"),
    )
    windows: tuple[tuple[Any, int, int], ...] = (("light", 1440, 900), ("dark", 900, 700), ("light", 390, 780))
    for scheme, width, height in windows:
        context = await chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = await context.new_page()
        await page.goto(f"{page_console.url}?token={TOKEN}")
        for name, path, ready in pages:
            await page.goto("about:blank")
            await page.goto(f"{page_console.url}{path}")
            await page.locator(ready).first.wait_for()
            await page.evaluate("() => document.fonts.ready")
            picture = ARTIFACTS / f"{name}-{scheme}-{width}x{height}.png"
            await page.screenshot(path=picture, animations="disabled")
            assert await fits(page), f"{name} at {width}"
        background = await page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        red = int(background.removeprefix("rgb(").split(",")[0])
        assert (red < 80) == (scheme == "dark")
        await context.close()


def test_pages_own_tests_pass() -> None:
    """Layout, pruning, scales and state of the page, tested in its own language."""
    subprocess.run([sys.executable, ROOT / "scripts" / "page.py", "--test"], check=True)


def test_settings_serve_the_built_page() -> None:
    """The folder that the script writes is the one that the service serves unless told otherwise."""
    assert ConsoleSettings.model_fields["static_dir"].default == ROOT / "services" / "weft_console" / "static"


async def test_large_graph_stays_quick(watched: Watched, world: Any, large_graph_json: dict[str, Any]) -> None:
    """With 5,000 nodes and 100,000 edges, drawing a new hover takes a few frames and pruning not much more."""
    world.json = json.dumps(large_graph_json).encode()
    page = await open_graph(watched)
    await expect(stat(page, "all-nodes")).to_have_text("5,000")
    await page.screenshot(path=ARTIFACTS / "large.png")
    seconds = await page.evaluate(
        """async () => {
            const host = document.querySelector(".drawing-host");
            const box = host.getBoundingClientRect();
            const frame = () => new Promise(requestAnimationFrame);
            const measure = async (act) => {
                const times = [];
                for (let i = 0; i < 20; i++) {
                    const began = performance.now();
                    act(i);
                    await frame();
                    await frame();
                    times.push(performance.now() - began);
                }
                return times.sort((a, b) => a - b)[10] / 1000;
            };
            const hover = await measure((i) => host.dispatchEvent(new PointerEvent("pointermove", {
                bubbles: true,
                clientX: box.left + 80 + i * 37 % (box.width - 100),
                clientY: box.top + 60 + i * 53 % (box.height - 120),
            })));
            const slider = document.querySelector("input[type=range]");
            const prune = await measure((i) => {
                slider.value = String(1000 - 40 * i);
                slider.dispatchEvent(new Event("input", { bubbles: true }));
            });
            return { hover, prune };
        }"""
    )
    (ARTIFACTS / "large.json").write_text(json.dumps(seconds))
    assert seconds["hover"] < 0.25
    assert seconds["prune"] < 0.5
