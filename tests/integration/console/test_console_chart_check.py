"""The chart's own check of the console, run as a process against a console that serves, with and without TLS."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from chart_rig import CHART

from weft_console.serve import Console, serving_console
from weft_console.settings import ConsoleSettings

TOKEN = "a-token-for-tests"


async def check(folder: Path, entry: dict[str, str], token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    """Run the check with an endpoints file as the chart mounts it."""
    (folder / "token").write_text(f"{token}\n")
    console = {**entry, "token_file": str(folder / "token")}
    (folder / "endpoints.json").write_text(json.dumps({"services": {"console": console}}))
    environment = {**os.environ, "WEFT_ENDPOINTS": str(folder / "endpoints.json")}
    command = [sys.executable, CHART / "files" / "console_check.py"]
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


async def test_check_signs_in_and_reads_runs(console: Console, tmp_path: Path) -> None:
    """The page's token opens a session, and the runs come from the trainer behind it."""
    answer = await check(tmp_path, {"url": console.url})
    assert (answer.returncode, answer.stdout) == (0, "console: 200, 1 runs\n"), answer.stderr


async def test_check_fails_with_a_wrong_token(console: Console, tmp_path: Path) -> None:
    """A page that does not let in ends the check with an error."""
    answer = await check(tmp_path, {"url": console.url}, token="wrong")
    assert answer.returncode != 0
    assert "401" in answer.stderr


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_check_trusts_the_authority_it_is_given(
    settings: ConsoleSettings, tmp_path: Path, is_trusted: bool
) -> None:
    """Over TLS the check passes with the authority of the certificate, and with no other."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, trusted = (tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt"))
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    (authority if is_trusted else trustme.CA()).cert_pem.write_to_path(trusted)
    secure = settings.model_copy(update={"tls_cert": certificate, "tls_key": key})
    async with serving_console(secure) as console:
        answer = await check(tmp_path, {"url": console.url, "tls_ca": str(trusted)})
    if is_trusted:
        assert (answer.returncode, answer.stdout) == (0, "console: 200, 1 runs\n"), answer.stderr
    else:
        assert answer.returncode != 0
        assert "CERTIFICATE_VERIFY_FAILED" in answer.stderr
