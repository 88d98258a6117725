"""
A real Chromium: `launched` for any program, and a pytest plugin with the fixture `chromium`.

A conftest takes it in with `from chromium_browser import chromium`. The browser is the system's, `make chromium`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

__all__ = ["chromium", "launched"]

EXECUTABLE = "/usr/bin/chromium"
# No sandbox: it needs rights that a container does not give. The rest keeps the browser off every network.
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@asynccontextmanager
async def launched(executable: str = EXECUTABLE) -> AsyncIterator[Browser]:
    """Run a browser until the block ends."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield browser
        await browser.close()


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A browser for one test."""
    async with launched() as browser:
        yield browser
