"""
A real Chromium for tests: a pytest plugin with the fixture `chromium`.

A conftest takes it in with `from chromium_browser import chromium`. The browser is the system's, `make chromium`.
"""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

EXECUTABLE = "/usr/bin/chromium"
# No sandbox: it needs rights that a container does not give. The rest keeps the browser off every network.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser for one test."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=EXECUTABLE, args=FLAGS)
        yield browser
        await browser.close()
