"""The commands of docs/how-to/serve-by-vllm.md, as a reader would run them, in vLLM's environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import ROOT, blocks
from vllm_machine import on_vllm

pytestmark = on_vllm
PAGE = ROOT / "docs" / "how-to" / "serve-by-vllm.md"
RUN_HERE = "`make vllm` runs it"


@pytest.mark.timeout(600)
def test_page_starts_a_service_that_answers(tmp_path: Path) -> None:
    """The service starts by vLLM, runs the real model, and names the likeliest next tokens."""
    commands = [block.text for block in blocks(PAGE) if (block.reason or "").startswith(RUN_HERE)]
    assert len(commands) == 2
    (tmp_path / ".venv-vllm").symlink_to(sys.prefix)
    (tmp_path / ".weft").mkdir()
    models = Path(os.environ.get("WEFT_TEST_MODELS_DIR", ROOT / ".weft" / "models"))
    (tmp_path / ".weft" / "models").symlink_to(models.resolve())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
    # Whatever happens, the service ends with the shell.
    script = "set -eo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n" + "\n".join(commands)
    result = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment | {"XDG_CONFIG_HOME": str(tmp_path / "config")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "Paris" in result.stdout
    assert "model loaded by vLLM" in result.stdout + result.stderr
