"""The synchronous client is what the generator makes of the asyncio one."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_sync_client_is_up_to_date(tmp_path: Path) -> None:
    """Committed files equal freshly made ones, and nothing asynchronous is left in them."""
    spec = importlib.util.spec_from_file_location("client_sync", ROOT / "scripts" / "client_sync.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    generator.generate(tmp_path)
    fresh = {path.name: path.read_text() for path in tmp_path.glob("*.py")}
    committed = {path.name: path.read_text() for path in (ROOT / "services/weft_client/sync").glob("*.py")}
    assert committed == fresh
    for name, text in committed.items():
        for word in ("async ", "await ", "Async", "asyncio", "grpc.aio", "Awaitable["):
            assert word not in text, f"{name} still says {word!r}"
