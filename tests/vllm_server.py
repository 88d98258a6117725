"""vLLM's own server on loopback, as the endpoint that labels are asked of."""

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from free_ports import free_port

__all__ = ["MODEL", "vllm_server"]

MODEL = "smollm2"
_PATIENCE_S = 300


@contextmanager
def vllm_server(python: str | Path, model: Path, log: Path, *, max_model_len: int = 3072) -> Iterator[str]:
    """
    Serve a model folder as `MODEL` until the end of the block, and give the base URL once it is ready.

    Args:
        python: Of an environment with vLLM.
        model: The folder.
        log: Where the server's output goes.
        max_model_len: Most tokens of a question with its answer.
    """
    port = free_port()
    command = [
        # Its command `vllm` asks for a package of that name, which the build for processors is not.
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--max-model-len", str(max_model_len), "--enforce-eager"),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + _PATIENCE_S
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)
