"""Pages at a desk and on a phone, light and dark: what sticks out of the window, and what axe-core finds."""

from pathlib import Path
from typing import Literal

from axe_findings import serious
from playwright.async_api import Browser, Page
from watched_page import TOKEN

from weft_console.serve import Console

__all__ = ["WINDOWS", "fits", "look_over"]

ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"
# Each scheme and each width once: what axe-core says of colours does not hang on the width, nor the layout on colours.
WINDOWS: tuple[tuple[Literal["light", "dark"], int, int], ...] = (("light", 1440, 900), ("dark", 360, 740))


async def fits(page: Page) -> bool:
    """Whether a page is no wider than its window."""
    return bool(await page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"))


async def look_over(chromium: Browser, console: Console, *pages: tuple[str, str, str]) -> None:
    """Open pages at a desk and on a phone; each is a name, a path and what is there once it is whole."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    for scheme, width, height in WINDOWS:
        context = await chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = await context.new_page()
        await page.goto(f"{console.url}?token={TOKEN}")
        for name, path, ready in pages:
            await page.goto(f"{console.url}{path}")
            await page.locator(ready).first.wait_for()
            await page.evaluate("() => document.fonts.ready")
            await page.screenshot(
                path=ARTIFACTS / f"{name}-{scheme}-{width}.png", full_page=True, animations="disabled"
            )
            assert await fits(page), f"{name} at {width}"
            assert await serious(page) == [], f"{name} in {scheme}"
        await context.close()
