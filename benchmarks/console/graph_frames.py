"""
Frames a second of the graph page in real Chromium, while the pointer hovers, drags a node and drags the page.

    python benchmarks/console/graph_frames.py --nodes 2000 --edges 50000

Every frame gets a new position of the pointer, so that every frame has something to draw; frames are counted with
requestAnimationFrame. The browser draws in software, on the same processors as everything else: frames a second mean
something on a machine that does nothing else, processor time a frame of all of the browser's processes on any. Writes
.weft/bench/console.json and prints a line an action.
"""

import argparse
import asyncio
import json
import random
from pathlib import Path
from typing import Any

from opened_page import frame_figures, opened_page, processor_clock
from playwright.async_api import Browser, Page

from weft.attribution.v1 import messages_pb2
from weft.attribution.v1.service_pb2_grpc import AttributionServiceServicer, add_AttributionServiceServicer_to_server
from weft_common.server import Registration

RESULT = Path(__file__).resolve().parents[2] / ".weft" / "bench" / "console.json"
NUM_LAYERS = 26
NUM_TOKENS = 24
NUM_LOGITS = 8

# Sends one pointer event a frame for some seconds, and returns each frame's length in milliseconds.
MEASURE = """async ({ kind, seconds, start }) => {
    const host = document.querySelector(".drawing-host");
    const box = host.getBoundingClientRect();
    const send = (type, x, y) => host.dispatchEvent(
        new PointerEvent(type, { bubbles: true, button: 0, clientX: x, clientY: y }));
    const middle = [box.left + box.width / 2, box.top + box.height / 2];
    const [x0, y0] = start ?? middle;
    if (kind !== "hover") send("pointerdown", x0, y0);
    const frame = () => new Promise(requestAnimationFrame);
    const lengths = [];
    let last = await frame();
    const end = last + 1000 * seconds;
    for (let i = 1; last < end; i++) {
        if (kind === "hover") {
            const x = box.left + 60 + (i * 97.3) % (box.width - 80);
            send("pointermove", x, box.top + 40 + (i * 61.7) % (box.height - 120));
        } else {
            send("pointermove", x0 + 120 * Math.sin(i / 9), y0 + 80 * Math.sin(i / 7));
        }
        const now = await frame();
        lengths.push(now - last);
        last = now;
    }
    if (kind !== "hover") send("pointerup", x0, y0);
    return lengths;
}"""


def synthetic_graph(num_nodes: int, num_edges: int) -> dict[str, Any]:
    """A graph file of given size, from a fixed seed: features over all layers, edges upwards and to the right."""
    rng = random.Random(11)
    tokens = [f" word{i}" for i in range(NUM_TOKENS)]
    nodes: list[dict[str, Any]] = []

    def add(name: str, layer: int | str, position: int, kind: str, **more: Any) -> None:
        fields = {"node_id": name, "layer": str(layer), "ctx_idx": position, "feature_type": kind, "feature": None}
        nodes.append({**fields, "clerp": "", "jsNodeId": name, **more})

    for position in range(NUM_TOKENS):
        add(f"E_{position}_{position}", "E", position, "embedding")
    names: set[str] = set()
    while len(names) < num_nodes - NUM_TOKENS - NUM_LOGITS:
        layer, position = rng.randrange(NUM_LAYERS), rng.randrange(1, NUM_TOKENS)
        name = f"{layer}_{rng.randrange(16_384)}_{position}"
        if name not in names:
            names.add(name)
            share = len(names) / num_nodes
            add(name, layer, position, "cross layer transcoder", influence=share, activation=rng.random())
    for place in range(NUM_LOGITS):
        label = f'Output " word{place}" (p=0.100)'
        add(f"{NUM_LAYERS + 1}_{place}_{NUM_TOKENS - 1}", NUM_LAYERS + 1, NUM_TOKENS - 1, "logit", clerp=label)
        nodes[-1]["token_prob"] = 0.1
    depth = [-1 if node["layer"] == "E" else int(node["layer"]) for node in nodes]
    links: dict[tuple[int, int], float] = {}
    while len(links) < num_edges:
        source, target = rng.randrange(len(nodes)), rng.randrange(len(nodes))
        if depth[source] < depth[target] and nodes[source]["ctx_idx"] <= nodes[target]["ctx_idx"]:
            links[source, target] = rng.lognormvariate(-1.5, 1.2) * (-1 if rng.random() < 0.3 else 1)
    return {
        "metadata": {
            "slug": "synthetic",
            "scan": "synthetic",
            "prompt": "".join(tokens),
            "prompt_tokens": tokens,
            "node_threshold": 1.0,
        },
        "nodes": nodes,
        "links": [
            {"source": nodes[source]["node_id"], "target": nodes[target]["node_id"], "weight": weight}
            for (source, target), weight in links.items()
        ],
    }


class OneGraph(AttributionServiceServicer):
    """Has one finished graph."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self._graph = messages_pb2.Graph(
            name="graphs/synthetic",
            state=messages_pb2.GRAPH_STATE_SUCCEEDED,
            spec=messages_pb2.GraphSpec(model="models/synthetic", transcoder="transcoders/synthetic"),
            prompt_tokens=graph["metadata"]["prompt_tokens"],
            json=json.dumps(graph).encode(),
        )

    async def GetGraph(self, request: Any, context: Any) -> messages_pb2.Graph:  # noqa: N802
        return self._graph


async def measure(browser: Browser, page: Page, seconds: float) -> dict[str, dict[str, float]]:
    """Measure each action."""
    processor_s = await processor_clock(browser)

    async def act(kind: str, start: list[float] | None) -> dict[str, float]:
        before = await processor_s()
        lengths = await page.evaluate(MEASURE, {"kind": kind, "seconds": seconds, "start": start})
        return frame_figures(lengths, await processor_s() - before)

    found = {"hover": await act("hover", None)}
    # A node of the middle: the strongest feature's place is where the keyboard's button stands once it is chosen.
    await page.get_by_role("combobox", name="Search nodes").fill("feature")
    await page.keyboard.press("Enter")
    box = await page.locator(".graph-cursor").bounding_box()
    if box is None:
        raise SystemExit("the page shows no node; look at it with the same graph")
    start = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    found["drag a node"] = await act("node", start)
    await page.keyboard.press("Escape")
    zoom = page.get_by_role("button", name="Zoom in")
    for _ in range(3):
        await zoom.click()
    host = page.locator(".drawing-host")
    box = await host.bounding_box()
    if box is None:
        raise SystemExit("the page shows no drawing; look at it with the same graph")
    # The lower left corner, left of the first column, holds no node.
    start = [box["x"] + 8, box["y"] + box["height"] / 2]
    found["drag the page"] = await act("page", start)
    return found


async def run(num_nodes: int, num_edges: int, seconds: float, chromium: str, screenshot: str) -> None:
    """Serve the graph, open it, measure, write."""
    graph = OneGraph(synthetic_graph(num_nodes, num_edges))
    registration = Registration(
        "weft.attribution.v1.AttributionService", lambda server: add_AttributionServiceServicer_to_server(graph, server)
    )
    async with opened_page(registration, "graphs/synthetic", chromium=chromium) as (browser, page):
        await page.locator(".graph-cursor").wait_for(state="attached")
        figures = await measure(browser, page, seconds)
        if screenshot:
            await page.screenshot(path=screenshot)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"nodes": num_nodes, "edges": num_edges, "actions": figures}, indent=2) + "\n")
    print(f"{num_nodes:,} nodes, {num_edges:,} edges")
    for action, figure in figures.items():
        print(
            f"{action:14} {figure['frames_per_s']:6.1f} frames/s, median {figure['median_ms']:.1f} ms, "
            f"95 of 100 within {figure['p95_ms']:.1f} ms, processor {figure['processor_ms_per_frame']:.1f} ms a frame"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2_000)
    parser.add_argument("--edges", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each action is measured")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshot", default="", help="write what is shown at the end to this PNG")
    options = parser.parse_args()
    asyncio.run(run(options.nodes, options.edges, options.seconds, options.chromium, options.screenshot))


if __name__ == "__main__":
    main()
