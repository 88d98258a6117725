"""Many clients at once on Capture, some of whom go away: no wrong row, and nothing held at the end."""

from pathlib import Path

from capture_load import run_load
from harvest_fakes import FakeCatalog
from tiny_models import make_llama

from weft_activations.settings import ActivationsSettings
from weft_store.adapters.memory import MemoryObjectStore


async def test_many_clients_get_their_own_rows_and_leave_nothing_behind(tmp_path: Path) -> None:
    """Mixed prompts, cancelled calls, missed deadlines and room for a few captures, until sixty-four were answered."""
    make_llama(tmp_path / "llama")
    settings = ActivationsSettings(
        insecure_no_auth=True,
        bucket_url="memory://",
        models_dir=tmp_path,
        cache_target="unused:1",
        drain_s=0,
        max_captured_bytes=1 << 20,
    )
    report = await run_load(
        settings,
        "llama",
        num_clients=64,
        seconds=240.0,
        most_answers=64,
        hooks=["layers.0.mlp_in", "layers.2.mlp_out", "embed", "logits"],
        lengths=(1, 2, 30, 64, 100, 127),
        catalog=FakeCatalog(MemoryObjectStore()),
    )
    assert report.answered >= 64
    assert report.wrong == 0
    assert report.held_bytes == 0
    assert report.waiting == 0
    assert set(report.ended) <= {"cancelled by the client", "DEADLINE_EXCEEDED"}
