"""
Take the pictures of the console's pages that the documentation shows, into docs/images.

    python scripts/pictures.py             # over the services that run here: `make demo`, then `weft up`
    python scripts/pictures.py .weft/endpoints.json

The finished graph of the shortest prompt is shown, and its transcoder. Where that has no index, one is made of the
training split of its dataset; where features of the graph have no label, they get one by a rule that is told as such:
the token that most of a feature's strongest stretches peak on.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

from weft.attribution.v1 import messages_pb2 as graph_pb2
from weft.features.v1 import index_pb2, labels_pb2, service_pb2
from weft_client import Client
from weft_client.endpoints import Endpoints, read_endpoints
from weft_client.local.layout import Layout

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
RULE = "rule: token of most peaks"
NUM_LABELLED = 60
WIDTH, HEIGHT = 1280, 800


def short_graph(client: Client) -> graph_pb2.Graph:
    """Return the finished graph of the shortest prompt, of which most is seen at a picture's width."""
    done = [graph for graph in client.graphs.list() if graph.state == graph_pb2.GRAPH_STATE_SUCCEEDED]
    if not done:
        sys.exit("pictures: there is no finished graph here; run `make demo` first.")
    return min(done, key=lambda graph: len(graph.spec.prompt))


def make_index(client: Client, transcoder: str) -> None:
    """Index the transcoder's own dataset, unless there is an index."""
    if next(iter(client.features.indexes(transcoder)), None) is not None:
        return
    dataset = client.transcoders.get(transcoder).dataset
    print(f"pictures: indexing the features of {transcoder} over {dataset}", flush=True)
    found = client.operations.wait(client.features.index(transcoder, "pictures", dataset=dataset))
    assert isinstance(found, index_pb2.FeatureIndex)


def rule_of(feature: service_pb2.Feature) -> str | None:
    """Return what most strongest stretches peak on, as a label; None where no two peak alike."""
    peaks = Counter(one.tokens[one.peak_at].strip() for one in feature.examples if one.quantile < 0)
    text, times = peaks.most_common(1)[0] if peaks else ("", 0)
    return f"the token “{text}”" if text and times > 1 else None


def missing_labels(client: Client, transcoder: str, graph: str) -> Iterator[labels_pb2.Label]:
    """Make labels for the most influential features of a graph that have none."""
    for at, found in enumerate(client.features.of_graph(graph)):
        if at == NUM_LABELLED:
            return
        if found.feature.label.text:
            continue
        layer, index = found.feature.layer, found.feature.index
        text = rule_of(client.features.get(transcoder, layer=layer, index=index, fields=["examples"]))
        if text:
            yield labels_pb2.Label(
                layer=layer, index=index, text=text, origin=labels_pb2.LABEL_ORIGIN_MODEL, explainer=RULE
            )


def take(page: Page, name: str) -> None:
    page.evaluate("() => document.fonts.ready")
    # The pointer lies on nothing that would tell of itself.
    page.mouse.move(2, HEIGHT - 2)
    page.screenshot(path=IMAGES / f"{name}.png", animations="disabled")
    print(f"pictures: docs/images/{name}.png", flush=True)


def take_all(endpoints: Endpoints, graph: graph_pb2.Graph, transcoder: str, feature: service_pb2.Feature) -> None:
    place = f"{feature.layer}/{feature.index}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")

        page.goto(endpoints.page(""))
        page.get_by_role("button", name="Sign out").wait_for()

        def look(path: str, *ready: str) -> None:
            page.goto(f"{endpoints['console'].url}/{path}")
            for what in ready:
                page.locator(what).first.wait_for(timeout=120_000)

        look(graph.name, ".graph-cursor", ".legend .label-origin")
        take(page, "graph-light")
        look(f"transcoders/{transcoder}/features/{place}", ".token-line", ".others td.label-text", ".histogram")
        take(page, "feature")
        look(f"transcoders/{transcoder}/features?label=token&sort=max_activation", ".rows-table .label-text")
        page.get_by_role("checkbox", name="Choose").nth(1).check()
        take(page, "feature-search")
        look(f"lab?{urlencode({'transcoder': transcoder, 'prompt': graph.spec.prompt})}", ".fires")
        page.locator(".lab-token").last.click()
        take(page, "lab")
        for row in (0, 1):
            page.locator("[data-list=fires] tbody tr").nth(row).get_by_role("button").click()
            page.locator("[data-pin]").nth(row).get_by_role("combobox").select_option("ablate")
        page.get_by_role("button", name="Run both").click()
        page.locator(".lab-next").wait_for(timeout=120_000)
        page.get_by_role("region", name="Pinned features").scroll_into_view_if_needed()
        page.evaluate("() => document.querySelector('.lab-steer').scrollIntoView()")
        take(page, "lab-changed")
        browser.close()


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Layout(Path.cwd() / ".weft").endpoints_path
    endpoints = read_endpoints(path)
    with Client.connect(path) as client:
        graph = short_graph(client)
        transcoder = graph.spec.transcoder.removeprefix("transcoders/")
        make_index(client, transcoder)
        graph_id = graph.name.removeprefix("graphs/")
        labels = list(missing_labels(client, transcoder, graph_id))
        if labels:
            client.labels.add(transcoder, labels)
        labelled = [found.feature for found in client.features.of_graph(graph_id) if found.feature.label.text]
        if not labelled:
            sys.exit("pictures: no feature of the graph has a label, nor peaks on one token; train for longer.")
        shown = max(labelled, key=lambda feature: feature.statistics.max_activation)
    take_all(endpoints, graph, transcoder, shown)


if __name__ == "__main__":
    main()
