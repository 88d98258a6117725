"""Every command of `docs/operations/sizing.md` prints what the page says it prints."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weft_client.cli import app

PAGE = Path(__file__).resolve().parents[3] / "docs" / "operations" / "sizing.md"
EXAMPLES = re.findall(r"^```console\n\$ weft (.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("command", "printed"), EXAMPLES)
def test_example_of_the_sizing_page_is_what_the_command_prints(command: str, printed: str) -> None:
    """Run it, and compare line by line."""
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.stderr
    assert [line.rstrip() for line in result.stdout.splitlines()] == printed.splitlines()


def test_sizing_page_has_examples_out_to_the_largest_size() -> None:
    """From the demo to Llama-70B with 2^20 features."""
    commands = [command for command, _ in EXAMPLES]
    assert len(commands) >= 5
    assert any("smollm2-135m" in command for command in commands)
    assert any("llama-3.1-70b" in command and str(1 << 20) in command for command in commands)
