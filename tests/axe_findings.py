"""What axe-core finds wrong on a page."""

from pathlib import Path

from playwright.async_api import Page

__all__ = ["serious"]

WEB = Path(__file__).resolve().parents[1] / "services" / "weft_console" / "web"
# Those of its rules that are on by themselves; by their tag axe-core would run those of level AAA too.
_OF_COLORS = ["color-contrast", "link-in-text-block"]
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"


async def serious(page: Page, *, of_colors: bool = False) -> list[str]:
    """Findings of axe-core that are serious or critical; of its rules on colours alone, where that is asked for."""
    await page.evaluate(AXE.read_text())
    options = {"resultTypes": ["violations"], **({"runOnly": _OF_COLORS} if of_colors else {})}
    found = await page.evaluate("(options) => axe.run(document, options)", options)
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
