"""
The console's built page in a browser, watched for errors: a pytest plugin with `built_page` and `watched`.

A conftest takes it in with `from watched_page import built_page, watched`; it has the fixtures `chromium`, the browser,
and `page_console`, a console that serves the built page to who has `TOKEN`.
"""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from weft_console.serve import Console

__all__ = ["TOKEN", "Watched", "built_page", "watched"]

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-for-tests"


@pytest.fixture(scope="session")
def built_page() -> None:
    """Build the page where its sources are newer."""
    subprocess.run([sys.executable, ROOT / "scripts" / "page.py"], check=True)


class Watched:
    """A page whose console errors are kept."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    async def open(self, path: str) -> Page:
        await self.page.goto(f"{self.url}{path}")
        return self.page


@pytest.fixture
async def watched(chromium: Browser, page_console: Console) -> AsyncIterator[Watched]:
    """A signed-in person's page, which must end without an error in the browser's console."""
    context = await chromium.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    watched = Watched(await context.new_page(), page_console.url)
    await watched.open(f"?token={TOKEN}")
    await expect(watched.page.get_by_role("heading", name="Graphs", exact=True)).to_be_visible()
    yield watched
    await context.close()
    assert watched.errors == [], watched.errors
