"""
weft's graphs opened in circuit-tracer's own page, by its own local server, in real Chromium.

    npm install --prefix LIBRARIES d3@7 d3-collection@1 d3-jetpack@2.3.0 dagre@0.8.5 pako@2.1.0
    python benchmarks/attribution/open_in_circuit_tracer.py --circuit-tracer PYTHON --libraries LIBRARIES [GRAPH ...]

PYTHON is that of an environment with circuit-tracer 0.5.0. Its page asks the web for d3 with jetpack, dagre and pako:
they come from LIBRARIES. Nothing else is fetched, so that its examples of features stay empty. GRAPH is a file of what
`weft graphs get` writes; without any, a graph of a small random model is made here. For each the page must draw every
node that its own threshold leaves, list every edge of the one that is clicked, put it into its subgraph once it is
pinned, save that and leave nodes and edges as they are, and report no error. A picture of each is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.async_api import Browser, Page, Route

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from attribution_house import attribution_house
from chromium_browser import launched

Json = dict[str, Any]

# What the page asks the web for, by the end of the address; what is not used here is empty.
_LIBRARIES = {
    "d3.js": ("d3/dist/d3.min.js", "d3-collection/dist/d3-collection.min.js"),
    "jetpack_2024-07-20.js": ("d3-jetpack/build/d3-jetpack.cjs",),
    "dagre.min.js": ("dagre/dist/dagre.min.js",),
    "pako.min.js": ("pako/dist/pako.min.js",),
}
_UNUSED = ("npy_v0.js", "hotserver-client-ws.js")
# A module for Node as a script: what it requires is d3, and it adds to d3. The page's build of it draws axes otherwise.
_AS_SCRIPT = """
(() => {
  const require = () => d3, exports = {}, module = { exports };
  %s
  Object.assign(d3, exports);
  const { conventions, drawAxis } = exports;
  d3.conventions = (given) => {
    const c = conventions(given);
    return Object.assign(c, { drawAxis: (svg) => drawAxis({ ...c, svg: svg ?? c.svg }) });
  };
})();
"""
_SERVE = """
import sys
from circuit_tracer.frontend.local_server import serve
print(serve(sys.argv[1], port=0).httpd.server_address[1], flush=True)
sys.stdin.read()
"""


async def made(folder: Path) -> list[Json]:
    """Make a graph of a small random model, as the service writes it."""
    async with attribution_house(folder) as house:
        await house.make(node_threshold=1.0, edge_threshold=1.0)
        return [await house.content()]


def lay_out(graphs: list[Json], folder: Path) -> None:
    """Put graphs where circuit-tracer's server looks for them."""
    folder.mkdir()
    for graph in graphs:
        (folder / f"{graph['metadata']['slug']}.json").write_text(json.dumps(graph))
    (folder / "graph-metadata.json").write_text(json.dumps({"graphs": [graph["metadata"] for graph in graphs]}))


def answering(url: str, libraries: Path, others: list[str]) -> Callable[[Route], Awaitable[None]]:
    """Answer a page's requests from its own server and from the libraries; addresses of others are noted and fail."""

    async def answer(route: Route) -> None:
        name = route.request.url.rsplit("/", 1)[-1]
        if route.request.url.startswith(url):
            await route.continue_()
        elif name in _LIBRARIES:
            files = [libraries / "node_modules" / file for file in _LIBRARIES[name]]
            scripts = [_AS_SCRIPT % file.read_text() if file.suffix == ".cjs" else file.read_text() for file in files]
            await route.fulfill(body="\n".join(scripts), content_type="text/javascript")
        elif name in _UNUSED:
            await route.fulfill(body="", content_type="text/javascript")
        else:
            others.append(route.request.url)
            await route.abort()

    return answer


async def look(browser: Browser, url: str, graph: Json, libraries: Path, picture: Path) -> Json:
    """Open one graph, click a node, and tell what is drawn."""
    page = await browser.new_page(viewport={"width": 1500, "height": 1000})
    troubles: list[str] = []
    # Texts on which a feature fires, which some models have on the web.
    examples: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    await page.route("**/*", answering(url, libraries, examples))
    slug, nodes = graph["metadata"]["slug"], graph["nodes"]
    await page.goto(f"{url}/index.html?slug={slug}")
    await page.wait_for_selector("text.node")
    drawn = await page.locator("text.node").count()
    limit = graph["metadata"]["node_threshold"]
    always = ("embedding", "logit")
    shown = [node for node in nodes if node["feature_type"] in always or node["influence"] <= limit]
    inside = {node["node_id"] for node in shown}
    links = [link for link in graph["links"] if link["source"] in inside and link["target"] in inside]
    wanted = max(inside, key=lambda name: sum(name in (link["source"], link["target"]) for link in links))
    await click(page, wanted)
    # Of nodes at one place the page takes the nearest; it says which in its address.
    clicked = parse_qs(urlsplit(page.url).query)["clickedId"][0]
    listed = await page.locator(".connections .feature-row").count()
    joined = sum(clicked in (link["source"], link["target"]) for link in links)
    await click(page, wanted, pins=True)
    pinned = await page.locator(".supernode-container").count()
    await page.get_by_role("button", name="Save").click()
    await page.get_by_role("button", name="Saved!").wait_for()
    await page.screenshot(path=picture)
    await page.close()
    return {
        "graph": slug, "nodes": len(shown), "drawn": drawn, "clicked": clicked, "edges": joined, "listed": listed,
        "pinned": pinned,
        "troubles": [each for each in troubles if not (examples and each == "Failed to fetch")],
    }  # fmt: skip


async def click(page: Page, name: str, *, pins: bool = False) -> None:
    """Click a node's mark, which is under a layer that takes the pointer."""
    box = await page.locator("text.node").evaluate_all(
        "(marks, name) => { const box = marks.find(mark => mark.__data__.nodeId === name).getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; }",
        name,
    )
    if pins:
        await page.keyboard.down("Control")
    await page.mouse.click(*box)
    await page.keyboard.up("Control")
    await page.wait_for_timeout(300)


async def run(options: argparse.Namespace) -> bool:
    """Open every graph; whether the page drew all of them as they are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = [json.loads(path.read_text()) for path in options.graphs] or await made(folder)
        lay_out(graphs, folder / "data")
        server = await asyncio.create_subprocess_exec(
            options.circuit_tracer, "-c", _SERVE, str(folder / "data"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert server.stdout is not None
        port = int(await server.stdout.readline())
        good = True
        try:
            async with launched() as browser:
                for graph in graphs:
                    slug = graph["metadata"]["slug"]
                    picture = options.pictures / f"{slug}.png"
                    url = f"http://127.0.0.1:{port}"
                    found = await look(browser, url, graph, options.libraries, picture)
                    saved = json.loads((folder / "data" / f"{slug}.json").read_text())
                    found["kept"] = saved["nodes"] == graph["nodes"] and saved["links"] == graph["links"]
                    print(json.dumps(found), flush=True)
                    found["saved"] = saved["qParams"]["pinnedIds"]
                    good &= (found["drawn"], found["listed"]) == (found["nodes"], found["edges"])
                    good &= (found["pinned"], found["saved"]) == (1, found["clicked"])
                    good &= found["kept"] and not found["troubles"]
        finally:
            assert server.stdin is not None
            server.stdin.close()
            await server.wait()
    return good


def main() -> None:
    """Open the graphs and end with 1 where the page does not show one as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="*")
    parser.add_argument("--circuit-tracer", required=True, help="Python of an environment that has it")
    parser.add_argument("--libraries", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--pictures", type=Path, default=Path(".weft/bench/circuit-tracer-page"))
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if asyncio.run(run(options)) else 1)


if __name__ == "__main__":
    main()
