"""
Frames a second of the feature search in real Chromium over a million made-up features, while one types and scrolls.

    python benchmarks/console/feature_search.py --features 1000000

The index is the one of `benchmarks/features`; its questions go through the service's own code, in this process, and the
console's. Frames are counted with requestAnimationFrame: the longest is what a person feels. The browser draws in
software, on the same processors as everything else: frames a second mean something on a machine that does nothing
else, processor time a frame of all of the browser's processes on any. Writes .weft/bench/feature_search.json and
prints a line an action.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from opened_page import frame_figures, opened_page, processor_clock
from playwright.async_api import Browser, Page, expect

sys.path.append(str(Path(__file__).resolve().parents[1] / "features"))
from synthetic import make_index, make_labels

from weft.features.v1.service_pb2_grpc import add_FeatureServiceServicer_to_server
from weft_attribution.core.feature_index.labelled import LabelTable
from weft_attribution.core.feature_index.open_indexes import OpenIndexes
from weft_attribution.core.feature_index.queries import FeatureQueries
from weft_attribution.core.standing_labels import StandingLabels
from weft_attribution.features_servicer import FeatureDomain, FeatureServicer
from weft_common.server import Registration
from weft_store.opening import open_store

BENCH = Path(__file__).resolve().parents[2] / ".weft" / "bench"
NUM_LAYERS = 20
WORDS = ("bracket", "digit after", "plural French", "negation place quote", "code")

# Counts frames from here on; `endCount` ends that and gives their lengths and those of long tasks, in milliseconds.
COUNT = """() => {
    const lengths = [];
    const tasks = [];
    const observer = new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)));
    observer.observe({ type: "longtask" });
    let last = performance.now();
    let isOver = false;
    const frame = (now) => {
        lengths.push(now - last);
        last = now;
        if (!isOver) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    window.endCount = () => {
        isOver = true;
        observer.disconnect();
        return { lengths: lengths.slice(1), tasks };
    };
}"""


def servicer_of(folder: Path, num_features: int) -> FeatureServicer:
    """The service's features over a made-up index, which is made where it is not there yet."""
    store = open_store(f"file://{folder.resolve()}")
    if not (folder / "transcoders").is_dir():
        print("making features up", flush=True)
        make_index(store, num_layers=NUM_LAYERS, num_features=num_features // NUM_LAYERS)
    if not (folder / "features" / "made-up" / "labels").is_dir():
        a_layer = num_features // NUM_LAYERS
        make_labels(store, num_layers=NUM_LAYERS, num_features=a_layer, num_labels=num_features // 10)
    queries = FeatureQueries(OpenIndexes(store), LabelTable(StandingLabels(store)))
    fields = dict.fromkeys(FeatureDomain.__dataclass_fields__)
    domain: Any = SimpleNamespace(**{**fields, "queries": queries})
    nothing: Any = None
    return FeatureServicer(store, nothing, nothing, domain, nothing)


async def measure(browser: Browser, page: Page, act: Callable[[], Awaitable[None]]) -> dict[str, float]:
    """Frames and processor time of an action."""
    processor_s = await processor_clock(browser)
    before = await processor_s()
    await page.evaluate(COUNT)
    await act()
    counted = await page.evaluate("() => window.endCount()")
    figures = frame_figures(counted["lengths"], await processor_s() - before)
    return {**figures, "longest_task_ms": max([0.0, *counted["tasks"]])}


async def actions(browser: Browser, page: Page, seconds: float) -> dict[str, dict[str, float]]:
    """Type, scroll by the wheel, and drag the bar over all rows."""
    found = page.locator("[data-stat=found]")
    rows = page.locator(".rows")

    async def type_words() -> None:
        words = page.get_by_label("Words of the label")
        for text in WORDS:
            await words.fill("")
            await words.press_sequentially(text, delay=60)
            await expect(found).not_to_contain_text("searching")

    async def turn_wheel() -> None:
        await rows.hover()
        for _ in range(round(seconds / 0.03)):
            await page.mouse.wheel(0, 180)
            await asyncio.sleep(0.03)

    async def drag_bar() -> None:
        steps = round(seconds / 0.03)
        for step in range(steps):
            await rows.evaluate("(node, share) => { node.scrollTop = share * node.scrollHeight }", step / steps)
            await asyncio.sleep(0.03)

    figures = {"type": await measure(browser, page, type_words)}
    await page.get_by_label("Words of the label").fill("")
    await expect(page.locator("[data-row='0'] a")).to_be_visible()
    figures["turn the wheel"] = await measure(browser, page, turn_wheel)
    figures["drag the bar"] = await measure(browser, page, drag_bar)
    return figures


async def run(options: argparse.Namespace) -> None:
    """Serve the index, open the page, measure, write."""
    BENCH.mkdir(parents=True, exist_ok=True)
    servicer = servicer_of(BENCH / f"feature_search_{options.features}", options.features)
    registration = Registration(
        "weft.features.v1.FeatureService", lambda server: add_FeatureServiceServicer_to_server(servicer, server)
    )
    path = "transcoders/made-up/features"
    async with opened_page(registration, path, chromium=options.chromium) as (browser, page):
        # The first question opens the index and puts labels into columns.
        await page.locator("[data-row='0'] a").wait_for(timeout=120_000)
        await page.get_by_label("Words of the label").fill("bracket")
        await expect(page.locator("[data-stat=found]")).not_to_contain_text("searching", timeout=120_000)
        figures = await actions(browser, page, options.seconds)
        if options.screenshot:
            await page.screenshot(path=options.screenshot)
    result = {"features": options.features, "actions": figures}
    (BENCH / "feature_search.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{options.features:,} features")
    for action, figure in figures.items():
        print(
            f"{action:14} {figure['frames_per_s']:6.1f} frames/s, median {figure['median_ms']:.1f} ms, "
            f"95 of 100 within {figure['p95_ms']:.1f} ms, longest {figure['longest_ms']:.1f} ms, longest task "
            f"{figure['longest_task_ms']:.0f} ms, processor {figure['processor_ms_per_frame']:.1f} ms a frame"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each way of scrolling is measured")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshot", default="", help="write what is shown at the end to this PNG")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
