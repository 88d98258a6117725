"""
Exported features opened by the tools that they are for: circuit-tracer's page in real Chromium, SAEDashboard's code.

    npm install --prefix LIBRARIES d3@7 d3-collection@1 d3-jetpack@2.3.0 dagre@0.8.5 pako@2.1.0
    python benchmarks/features/open_export_in_peers.py --circuit-tracer PYTHON --libraries LIBRARIES
        --sae-dashboard CHECKOUT

PYTHON is that of an environment with circuit-tracer of April 2026 or later, CHECKOUT one of jbloomAus/SAEDashboard;
its code needs orjson here. The features are those of a small random model with an index. In the page every feature of
its graph is clicked: groups, texts, logits and density must be what GetFeature tells. SAEDashboard's classes must read
every batch, and its `export_neuronpedia_dashboards` must make of them what Neuronpedia imports, with every example.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from make_peer_schemas import loaded
from playwright.async_api import Page

sys.path += [str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parents[1] / "attribution")]
from chromium_browser import launched
from indexed_house import Indexed, indexed_house
from open_in_circuit_tracer import answering, click, lay_out

from weft.features.v1 import export_pb2

Json = dict[str, Any]
_SERVE = """
import sys
from circuit_tracer.frontend.local_server import serve
print(serve(sys.argv[1], port=0, features_dir=sys.argv[2]).httpd.server_address[1], flush=True)
sys.stdin.read()
"""


async def export(house: Indexed, name: str, layout: export_pb2.ExportFormat.ValueType, folder: Path) -> None:
    """Write an export into a folder."""
    made = await house.house.client.operations.wait(await house.features.export("t", name, layout=layout))
    await house.features.download(made, folder)


async def shown(page: Page) -> Json:
    """What the page shows of the feature that was clicked last."""
    return {
        "groups": [each.strip() for each in await page.locator(".quantile-title").all_text_contents()],
        "texts": await page.locator(".feature-example-list .text-wrapper").all_text_contents(),
        "logits": await page.locator(".feature-example-logits span.token").all_text_contents(),
        "title": " ".join(await page.locator("div.feature-title").all_text_contents()),
    }


async def in_page(house: Indexed, options: argparse.Namespace, folder: Path) -> int:
    """Click every feature of a graph; how many were shown as they are."""
    await house.house.make(node_threshold=1.0, edge_threshold=1.0)
    graph = await house.house.content()
    graph["metadata"]["scan"] = "/t"
    lay_out([graph], folder / "data")
    await export(house, "page", export_pb2.EXPORT_FORMAT_CIRCUIT_TRACER, folder / "features")
    server = await asyncio.create_subprocess_exec(
        options.circuit_tracer, "-c", _SERVE, str(folder / "data"), str(folder / "features"),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    url, count = f"http://127.0.0.1:{int(await server.stdout.readline())}", 0
    try:
        async with launched() as browser:
            page = await browser.new_page(viewport={"width": 1500, "height": 1000})
            troubles: list[str] = []
            page.on("pageerror", lambda error: troubles.append(str(error)))
            await page.route("**/*", answering(url, options.libraries, troubles))
            await page.goto(f"{url}/index.html?slug={graph['metadata']['slug']}")
            await page.wait_for_selector("text.node")
            features = [node for node in graph["nodes"] if node["feature_type"] == "cross layer transcoder"]
            for node in {node["feature"]: node for node in features}.values():
                layer, index, _ = map(int, node["node_id"].split("_"))
                feature = await house.features.get("t", layer=layer, index=index)
                await click(page, node["node_id"])
                await page.wait_for_timeout(300)
                found = await shown(page)
                texts = ["".join(example.tokens) for example in feature.examples]
                assert found["texts"] == texts, (node["node_id"], found["texts"], texts)
                kinds = dict.fromkeys(example.quantile for example in feature.examples)
                assert found["groups"] == [
                    "Top activations" if kind < 0 else f"Quantile {kind + 1} of 3" for kind in kinds
                ]
                assert found["logits"] == [each.text for each in (*feature.top_logits, *feature.bottom_logits)]
                assert f"Freq: {feature.statistics.density * 100:.3f}%" in found["title"], found["title"]
                count += 1
            await page.screenshot(path=options.pictures / "features.png")
            assert not troubles, troubles
    finally:
        server.stdin.close()
        await server.wait()
    return count


def rows_of(folder: Path) -> list[Json]:
    """All rows of a folder of zipped JSON lines."""
    files = sorted(folder.glob("*.gz"))
    return [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]


def is_where_it_says(row: Json) -> bool:
    """Whether a row's token fires within the bounds of its group; a drawn one's hold a share of the activations."""
    told = row["values"][row["qualifyingTokenIndex"]]
    is_drawn = row["binMin"] >= 0
    # Values are rounded to four digits, bounds are not. A window may hold a stronger token than its own.
    within = max(0.0, row["binMin"]) * 0.999 <= told <= row["binMax"] * 1.001
    return bool(told > 0 and within and (row["binContains"] > 0 if is_drawn else row["binContains"] == -1))


async def in_dashboards(house: Indexed, checkout: Path, folder: Path) -> int:
    """Read batches by SAEDashboard's classes and have it convert them; how many examples came through."""
    await export(house, "dashboards", export_pb2.EXPORT_FORMAT_SAE_DASHBOARD, folder / "batches")
    code = checkout / "sae_dashboard" / "neuronpedia"
    classes, exporting = loaded(code / "neuronpedia_dashboard.py"), loaded(code / "neuronpedia_export.py")
    count = 0
    for layer in range(3):
        source = folder / "batches" / f"{layer}-t"
        peaks: list[float] = []
        places: list[int] = []
        for path in sorted(source.glob("batch-*.json")):
            document = json.loads(path.read_text())
            assert classes.NeuronpediaDashboardBatch(**document).to_dict() == document
            examples = [each for feature in document["features"] for each in feature["activations"]]
            peaks += [max(each["values"]) for each in examples]
            places += [each["qualifying_token_index"] for each in examples]
        out = exporting.export_neuronpedia_dashboards(
            exporting.NeuronpediaExportConfig(
                saedashboard_output_dir=str(source), exports_dir=str(folder / "neuronpedia"), creator_name="weft",
                creator_id=exporting.FALLBACK_CREATOR_ID, release_id="t", release_title="t", url="", model_name="tiny",
                neuronpedia_source_set_id="t", neuronpedia_source_set_description="t", hf_weights_repo_id="a/b",
                hf_weights_path="c/d", hook_point="hook_mlp_out", layer_num=layer,
                prompts_huggingface_dataset_path="d", n_prompts_total=12, n_tokens_in_prompt=13,
            )
        )  # fmt: skip
        rows = rows_of(Path(out) / "activations")
        assert [row["maxValue"] for row in rows] == peaks
        assert [row["qualifyingTokenIndex"] for row in rows] == places
        assert all(is_where_it_says(row) for row in rows)
        count += len(rows)
    return count


async def run(options: argparse.Namespace) -> None:
    """Make the features, and have both tools read them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with indexed_house(folder) as house:
            await house.index()
            clicked = await in_page(house, options, folder)
            examples = await in_dashboards(house, options.sae_dashboard, folder)
    print(json.dumps({"features in circuit-tracer's page": clicked, "examples through SAEDashboard": examples}))


def main() -> None:
    """Open them; an assertion says what is not as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuit-tracer", required=True, help="Python of an environment that has it")
    parser.add_argument("--libraries", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--sae-dashboard", type=Path, required=True, help="checkout")
    parser.add_argument("--pictures", type=Path, default=Path(".weft/bench/circuit-tracer-page"))
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
