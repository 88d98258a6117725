"""Pages at a desk and on a phone, each light and dark: what sticks out of the window, and what axe-core finds."""

from pathlib import Path
from typing import Literal, get_args

from axe_findings import serious
from playwright.async_api import Browser, Page
from watched_page import TOKEN

from weft_console.serve import Console

__all__ = ["WINDOWS", "Scheme", "fits", "look_over", "serious_in_both"]

ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = ROOT / "tests" / "artifacts" / "console"
Scheme = Literal["light", "dark"]
# How pages are opened: each scheme and each width once. The other scheme is looked at in the same visit.
WINDOWS: tuple[tuple[Scheme, int, int], ...] = (("light", 1440, 900), ("dark", 360, 740))


async def fits(page: Page) -> bool:
    """Whether a page is no wider than its window."""
    return bool(await page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"))


async def serious_in_both(page: Page, scheme: Scheme) -> list[str]:
    """What axe-core finds on a page as it stands: in its scheme, and of colours in the other one."""
    (other,) = set(get_args(Scheme)) - {scheme}
    found = [f"{scheme}: {each}" for each in await serious(page)]
    # Colours on their way from one scheme to the other are those of neither.
    await page.emulate_media(color_scheme=other, reduced_motion="reduce")
    found += [f"{other}: {each}" for each in await serious(page, of_colors=True)]
    await page.emulate_media(color_scheme=scheme, reduced_motion="no-preference")
    return found


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
            assert await serious_in_both(page, scheme) == [], f"{name} at {width}"
        await context.close()
