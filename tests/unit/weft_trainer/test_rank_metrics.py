"""A rank shows metrics where it has a port, and trains where it has none."""

import socket
import urllib.request

from weft_trainer.worker.exporting import export_metrics


def test_rank_without_a_port_shows_nothing() -> None:
    """On one machine many ranks run side by side; none listens."""
    assert export_metrics(None) is None


def test_rank_with_a_port_names_itself() -> None:
    """Prometheus finds the rank's component."""
    server = export_metrics(0)
    assert server is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    server.close()
    assert 'weft_build_info{component="rank"' in text


def test_taken_port_does_not_stop_a_rank() -> None:
    """Training goes on without metrics."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        assert export_metrics(taken.getsockname()[1]) is None
