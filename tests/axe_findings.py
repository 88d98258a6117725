"""What axe-core finds wrong on a page."""

from pathlib import Path

from playwright.async_api import Page

__all__ = ["serious"]

WEB = Path(__file__).resolve().parents[1] / "services" / "weft_console" / "web"
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"


async def serious(page: Page) -> list[str]:
    """Findings of axe-core that are serious or critical."""
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
