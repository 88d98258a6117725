"""What a newcomer does with the services up: the page of a real prompt's graph in Chromium, and README's example."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_weft import Embedded
from graph_page import select_node
from playwright.async_api import Browser, Page, expect
from small_demo import SmallDemo

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.real,
    pytest.mark.browser,
    pytest.mark.timeout(1200),
    # Playwright leaves its own pipes to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "tests" / "artifacts" / "real"


@pytest.fixture(scope="module")
def up(small_demo: SmallDemo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Embedded, dict[str, Any]]]:
    """Start the services over what the small demo made."""
    run, summary = small_demo.copied_to(tmp_path_factory.mktemp("page")), small_demo.summary
    result = run.weft("up")
    assert result.returncode == 0, result.stderr
    yield run, summary
    assert run.weft("down").returncode == 0


@pytest.fixture
async def page(up: tuple[Embedded, dict[str, Any]], chromium: Browser) -> AsyncIterator[Page]:
    """Sign in on the real page; it must end without an error in the browser's console."""
    console = up[0].endpoints["console"]
    errors: list[str] = []
    opened = await chromium.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    await opened.goto(f"http://{console.target}/?token={console.token}")
    await expect(opened.get_by_role("heading", name="Graphs")).to_be_visible()
    yield opened
    assert errors == []


async def test_graph_of_a_real_prompt_is_read_on_the_page(page: Page, up: tuple[Embedded, dict[str, Any]]) -> None:
    """Hover, click, lists and pruning over the graph that the services made, against its file."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    file = Path(up[1]["graphs"][0]["json"])
    graph = json.loads(file.read_text())  # noqa: ASYNC240  nothing else waits
    console = up[0].endpoints["console"]
    await page.goto(f"http://{console.target}/graphs/{file.stem}")
    await expect(page.locator(".graph-cursor")).to_be_attached()
    await page.screenshot(path=ARTIFACTS / "graph-light.png")

    logit = next(node["node_id"] for node in graph["nodes"] if node["is_target_logit"])
    x, y = await select_node(page, logit)
    await page.keyboard.press("Escape")
    await page.mouse.move(x - 150, y + 200)
    await page.mouse.move(x, y)
    await expect(page.locator(".graph-tip")).to_contain_text("Paris")
    await page.mouse.click(x, y)
    await expect(page.locator("[data-stat=node]")).to_have_text("·Paris")
    into = {link["source"]: link["weight"] for link in graph["links"] if link["target"] == logit}
    total = sum(abs(weight) for weight in into.values())
    strongest = max(into, key=lambda node: abs(into[node]))
    first = page.locator("[data-list=inputs] .edge").first
    assert await first.get_attribute("data-node") == strongest
    share = 100 * into[strongest] / total
    assert await first.locator(".edge-share").inner_text() == f"{'−' if share < 0 else '+'}{abs(share):.1f}%"
    await page.screenshot(path=ARTIFACTS / "graph-selected.png")

    slider = page.get_by_role("slider", name="Influence kept")
    before = await page.locator("[data-stat=nodes]").inner_text()
    await slider.evaluate(
        "input => { input.value = '300'; input.dispatchEvent(new Event('input', { bubbles: true })) }"
    )
    await expect(page.locator("[data-stat=nodes]")).not_to_have_text(before)

    features = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]
    feature = max((node for node in features if node["node_id"] in into), key=lambda node: abs(into[node["node_id"]]))
    await slider.evaluate(
        "input => { input.value = '1000'; input.dispatchEvent(new Event('input', { bubbles: true })) }"
    )
    await select_node(page, feature["node_id"])
    # The first feature asked for loads the unembedding here and the tokenizer there.
    logits = page.locator("[data-list=feature]").get_by_role("row")
    await expect(logits.nth(3)).to_be_visible(timeout=60_000)
    await page.screenshot(path=ARTIFACTS / "feature.png")


async def test_questions_on_the_page_get_the_services_answers(page: Page, up: tuple[Embedded, dict[str, Any]]) -> None:
    """Scores of pins, paths, summary and comparison on the page are those of the command line."""
    run, summary = up
    file, *_ = [Path(graph["json"]) for graph in summary["graphs"]]
    graph = json.loads(file.read_text())
    name, console = file.stem, run.endpoints["console"]

    def asked(*arguments: str) -> Any:
        result = run.weft("graphs", *arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    features = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]
    pins = [node["node_id"] for node in sorted(features, key=lambda node: node["influence"])[:20]]
    logit = next(node["node_id"] for node in graph["nodes"] if node["is_target_logit"])
    await page.goto(f"http://{console.target}/graphs/{name}#pinned={','.join(pins)}")
    scores = asked("score", name, *(part for pin in pins for part in ("--pin", pin)))["subgraph"]
    await expect(page.locator("[data-stat=part-replacement]")).to_have_text(f"{scores['replacement_score']:.3f}")
    await expect(page.locator("[data-stat=part-completeness]")).to_have_text(f"{scores['completeness_score']:.3f}")
    await page.screenshot(path=ARTIFACTS / "part.png")

    await select_node(page, pins[0])
    paths = page.locator("[data-list=paths]")
    await paths.get_by_label("Other end").select_option(logit)
    await paths.get_by_role("button", name="Find").click()
    total = asked("paths", name, pins[0], logit)["total_strength"]
    await expect(page.locator("[data-stat=total-strength]")).to_have_text(f"{100 * total:.2f}%")

    await page.get_by_role("radiogroup", name="View").get_by_text("Summary").click()
    told = asked("summary", name)
    await expect(page.locator("[data-stat=summary-influence]")).to_have_text(f"{100 * told['influence_share']:.1f}%")
    await expect(page.locator(".supernode")).to_have_count(len(told["supernodes"]))
    await page.screenshot(path=ARTIFACTS / "summary.png")

    transcoder = asked("get", name)["spec"]["transcoder"].removeprefix("transcoders/")
    made = run.weft("graphs", "create", "italy", "--prompt", "The capital of Italy is", "--transcoder", transcoder)
    assert made.returncode == 0, made.stderr
    await page.reload()
    await page.get_by_role("radiogroup", name="View").get_by_text("Compare").click()
    await page.get_by_label("Compare with").select_option("italy")
    overlap = asked("compare", name, "italy")["overlap"]
    await expect(page.locator("[data-stat=overlap]")).to_have_text(f"{100 * overlap:.1f}%")
    await page.screenshot(path=ARTIFACTS / "compare.png")
    assert run.weft("graphs", "delete", "italy").returncode == 0


async def test_lab_changes_what_the_model_says(page: Page, up: tuple[Embedded, dict[str, Any]]) -> None:
    """What fires on a real prompt is pinned and ablated; both texts and probabilities are those of the command line."""
    run = up[0]
    prompt, console = "The capital of France is", run.endpoints["console"]
    graph = json.loads(run.weft("graphs", "list", "--json").stdout)["graphs"][0]
    transcoder = graph["spec"]["transcoder"].removeprefix("transcoders/")
    await page.goto(f"http://{console.target}/lab?transcoder={transcoder}&prompt={prompt}&tokens=6")
    # The first text loads the encoders.
    await expect(page.locator(".fires").first).to_be_visible(timeout=60_000)
    await expect(page.locator(".lab-grid tbody tr")).to_have_count(30)
    first = page.locator("[data-list=fires] tbody tr").first
    await first.get_by_role("button", name="Pin").click()
    pin = page.locator("[data-pin]")
    feature = await pin.get_attribute("data-pin")
    await pin.get_by_role("combobox").select_option("ablate")
    await page.get_by_role("button", name="Run both").click()
    steered = run.weft(
        "features", "steer", transcoder, "--prompt", prompt, "--ablate", str(feature), "--tokens", "6", "--json"
    )
    assert steered.returncode == 0, steered.stderr
    told = json.loads(steered.stdout)
    for side in ("undisturbed", "changed"):
        text = prompt + "".join(token["text"] for token in told[side])
        await expect(page.locator(f"[data-stat=text-{side}]")).to_have_text(text, timeout=60_000)
    assert told["undisturbed"][0]["text"] == " Paris"
    likely = page.locator(".lab-next tbody tr").first
    await expect(likely).to_contain_text(f"{100 * told['next_tokens'][0]['probability_before']:.1f}%")
    await page.screenshot(path=ARTIFACTS / "lab.png", full_page=True)


async def test_run_and_dataset_pages_show_the_demos(page: Page, up: tuple[Embedded, dict[str, Any]]) -> None:
    """The pages of the run and the dataset name them and draw without an error."""
    console = up[0].endpoints["console"]
    for name in (up[1]["run"], up[1]["dataset"]):
        await page.goto(f"http://{console.target}/{name}")
        await expect(page.get_by_role("heading", name=re.compile(name.partition("/")[2]))).to_be_visible()
        await page.screenshot(path=ARTIFACTS / f"{name.partition('/')[0]}.png")


def test_readme_example_works_as_pasted(up: tuple[Embedded, dict[str, Any]]) -> None:
    """README's five lines of gRPC print the model's next token."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    assert len(example[1].strip().splitlines()) <= 6
    result = subprocess.run(
        [sys.executable, "-c", example[1]], cwd=up[0].folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout


def test_client_example_works_as_pasted(up: tuple[Embedded, dict[str, Any]]) -> None:
    """The client reference's first example prints the same."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "docs/reference/client.md").read_text(), re.DOTALL)
    assert example is not None
    result = subprocess.run(
        [sys.executable, "-c", example[1]], cwd=up[0].folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
