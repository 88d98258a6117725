"""Network policies, asked as a network plugin would: who reaches whom, on which port."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from chart_rig import COMPONENTS, NAMESPACE, Document, find, kinds, merged, render

pytestmark = pytest.mark.packaging

GRPC, PAGE, METRICS, REPORTS, RENDEZVOUS = 50051, 8080, 9090, 50052, 29500
PORTS = (GRPC, PAGE, METRICS, REPORTS, RENDEZVOUS, 22)


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, or an address outside of the cluster."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()
    namespace: str = NAMESPACE
    is_pod: bool = True


def pod(component: str) -> Peer:
    labels = {"app.kubernetes.io/name": "weft", "app.kubernetes.io/instance": "weft"}
    return Peer(component, tuple({**labels, "app.kubernetes.io/component": component}.items()))


CLIENT = Peer("client", (("weft.dev/client", "true"),))
STRANGER = Peer("stranger", (("app", "other"),))
FOREIGN_CLIENT = Peer("foreign client", (("weft.dev/client", "true"),), "elsewhere")
PROMETHEUS = Peer("prometheus", namespace="monitoring")
WORLD = Peer("world", is_pod=False)
PODS = [pod(component) for component in (*COMPONENTS, "rank", "test")]
OTHERS = [CLIENT, STRANGER, FOREIGN_CLIENT, PROMETHEUS]


def _selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    assert selector is None or set(selector) <= {"matchLabels"}
    return selector is None or selector.get("matchLabels", {}).items() <= labels.items()


def _is_peer(peer: Peer, rule: Mapping[str, Any]) -> bool:
    assert set(rule) <= {"podSelector", "namespaceSelector"}
    if not peer.is_pod:
        return False
    if "namespaceSelector" in rule:
        in_place = _selects(rule["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace})
    else:
        in_place = peer.namespace == NAMESPACE
    return in_place and _selects(rule.get("podSelector"), dict(peer.labels))


def _allows(rules: list[Document], side: str, peer: Peer, port: int, protocol: str = "TCP") -> bool:
    def on_port(rule: Document) -> bool:
        return "ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"]

    return any(
        on_port(rule) and (side not in rule or any(_is_peer(peer, each) for each in rule[side])) for rule in rules
    )


class Network:
    """The policies of a release, with the meaning that Kubernetes gives them."""

    def __init__(self, documents: list[Document]) -> None:
        self._policies = list(kinds(documents, "NetworkPolicy").values())

    def _of(self, peer: Peer) -> Iterator[Document]:
        for policy in self._policies:
            selected = _selects(policy["spec"]["podSelector"], dict(peer.labels))
            if peer.is_pod and peer.namespace == NAMESPACE and selected:
                assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
                yield policy["spec"]

    def passes(self, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection passes the source's egress and the target's ingress; pods without policy are open."""
        egress = [spec["egress"] for spec in self._of(source)]
        ingress = [spec["ingress"] for spec in self._of(target)]
        leaves = not egress or any(_allows(rules, "to", target, port, protocol) for rules in egress)
        return leaves and (not ingress or any(_allows(rules, "from", source, port, protocol) for rules in ingress))

    def edges(self, peers: list[Peer]) -> set[tuple[str, str, int]]:
        """All connections to the release's pods that pass."""
        return {
            (source.name, target.name, port)
            for source, target, port in itertools.product(peers, PODS, PORTS)
            if self.passes(source, target, port)
        }


def test_components_reach_whom_they_call_and_nobody_else() -> None:
    """Of all pairs of pods and ports, exactly the calls of the design pass; ranks are free among themselves."""
    calls = {
        ("activations", "cache", GRPC),
        ("trainer", "cache", GRPC),
        ("attribution", "activations", GRPC),
        ("attribution", "cache", GRPC),
        ("console", "cache", GRPC),
        ("console", "trainer", GRPC),
        ("console", "attribution", GRPC),
        ("console", "activations", GRPC),
        ("rank", "cache", GRPC),
        ("rank", "activations", GRPC),
        ("rank", "trainer", REPORTS),
        *(("test", name, PAGE if name == "console" else GRPC) for name in COMPONENTS),
        *(("rank", "rank", port) for port in PORTS),
    }
    assert Network(render()).edges(PODS) == calls


def test_outsiders_reach_what_they_are_let_to() -> None:
    """Labelled pods of the namespace call gRPC, Prometheus scrapes, others reach nothing."""
    services = ("activations", "cache", "trainer", "attribution")
    allowed = {("client", name, GRPC) for name in services}
    allowed |= {("prometheus", name, METRICS) for name in (*COMPONENTS, "rank")}
    assert Network(render()).edges(OTHERS) == allowed


def test_page_opens_to_those_who_are_named() -> None:
    """consoleFrom lets an ingress controller in to the page, and nowhere else."""
    controller = Peer("controller", namespace="ingress")
    rule = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
    documents = render(merged({"networkPolicy": {"consoleFrom": [rule]}}))
    assert Network(documents).edges([controller]) == {("controller", "console", PAGE)}


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("s3+https://s3.example.com/weft", 443),
        ("s3+http://s3.example.com/weft", 80),
        ("s3+http://minio.minio.svc:9000/weft/prefix", 9000),
        ("s3+https://[2001:db8::1]:9443/weft", 9443),
        ("s3+https://s3.example.com/weft?region=eu-central-1", 443),
    ],
)
def test_bucket_is_reached_on_its_port(url: str, port: int) -> None:
    """Whoever has the bucket's keys reaches its port outside, and only that; the page does not."""
    network = Network(render(merged({"bucket": {"url": url}, "networkPolicy": {"apiServerPorts": [1]}})))
    reaching = {peer.name for peer in PODS if network.passes(peer, WORLD, port)}
    assert reaching == {"activations", "cache", "trainer", "attribution", "rank"}
    assert not [peer.name for peer in PODS for other in (22, 8443) if network.passes(peer, WORLD, other)]


def test_bucket_elsewhere_is_not_reached() -> None:
    """bucketTo narrows the bucket's port to where the bucket is."""
    place = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minio"}}}
    changes = {"bucket": {"url": "s3+http://minio.minio.svc:9000/weft"}, "networkPolicy": {"bucketTo": [place]}}
    network = Network(render(merged(changes)))
    assert network.passes(pod("cache"), Peer("minio", namespace="minio"), 9000)
    assert not network.passes(pod("cache"), WORLD, 9000)
    assert not network.passes(pod("cache"), STRANGER, 9000)


def test_interpreter_is_reached_by_attribution_alone() -> None:
    """The port of its URL opens for one component, where it is named; without a URL it opens for none."""
    place = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "models"}}}
    interpreter = {"interpreter": {"url": "http://models.models.svc:8001/v1", "model": "m"}}
    there = Peer("models", namespace="models")
    for policy, reaches_world in (({}, True), ({"interpreterTo": [place]}, False)):
        network = Network(render(merged({"attribution": interpreter, "networkPolicy": policy})))
        assert [peer.name for peer in PODS if network.passes(peer, there, 8001)] == ["attribution"]
        assert network.passes(pod("attribution"), WORLD, 8001) == reaches_world
    assert not any(Network(render()).passes(peer, WORLD, 8001) for peer in PODS)


def test_names_are_resolved_by_all() -> None:
    """DNS passes over UDP and TCP for every component, narrowed by dnsTo."""
    network = Network(render())
    assert all(network.passes(peer, WORLD, 53, protocol) for peer in PODS for protocol in ("UDP", "TCP"))
    rule = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    narrowed = Network(render(merged({"networkPolicy": {"dnsTo": [rule]}})))
    assert all(narrowed.passes(peer, Peer("dns", namespace="kube-system"), 53, "UDP") for peer in PODS)
    assert not any(narrowed.passes(peer, WORLD, 53, "UDP") for peer in PODS)


def test_only_the_controller_reaches_the_api_server() -> None:
    """The trainer reaches the API server's ports, where it starts pods; ranks do not."""
    bucket = {"bucket": {"url": "s3+http://s3.example.com:9000/weft"}}
    network = Network(render(merged(bucket)))
    assert {peer.name for peer in PODS if network.passes(peer, WORLD, 6443)} == {"trainer"}
    local = Network(render(merged({**bucket, "trainer": {"launcher": "local"}})))
    assert not [peer.name for peer in PODS if peer.name != "rank" and local.passes(peer, WORLD, 6443)]


def test_hub_and_traces_are_reached_where_they_are_used() -> None:
    """Port 443 opens for models of the hub, the collector's port for traces."""
    commit = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
    changes = {
        "bucket": {"url": "s3+http://s3.example.com:9000/weft"},
        "models": {"persistentVolumeClaim": "", "hub": [{"name": "a", "repository": "b/c", "revision": commit}]},
        "tracing": {"otlpEndpoint": "http://collector:4317"},
        "trainer": {"launcher": "local"},
    }
    network = Network(render(merged(changes)))
    released = [peer for peer in PODS if peer.name != "rank"]
    assert {peer.name for peer in released if network.passes(peer, WORLD, 443)} == {"activations", "attribution"}
    assert all(network.passes(peer, WORLD, 4317) for peer in released)


def test_policies_can_be_left_to_others() -> None:
    """With networkPolicy.enabled false there is none."""
    assert not kinds(render(merged({"networkPolicy": {"enabled": False}})), "NetworkPolicy")


def test_services_forward_the_ports_that_policies_open() -> None:
    """Each Service selects its component's pods and forwards the agreed ports by name."""
    documents = render()
    for component in COMPONENTS:
        service = find(documents, "Service", f"weft-{component}")["spec"]
        leader = {"weft.dev/leader": "true"} if component == "trainer" else {}
        assert service["selector"] == {**dict(pod(component).labels), **leader}
        ports = {each["name"]: each["port"] for each in service["ports"]}
        expected = {"http": PAGE} if component == "console" else {"grpc": GRPC}
        assert ports == {**expected, "metrics": METRICS, **({"reports": REPORTS} if component == "trainer" else {})}
        assert all(each["targetPort"] == each["name"] for each in service["ports"])
