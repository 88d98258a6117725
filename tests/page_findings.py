"""What axe-core finds on a page."""

from pathlib import Path

from playwright.async_api import Page

_AXE = (
    Path(__file__).resolve().parents[1]
    / "services" / "weft_console" / "web" / "node_modules" / "axe-core" / "axe.min.js"
)  # fmt: skip


async def serious(page: Page) -> list[str]:
    """Findings that are serious or critical, one a node."""
    await page.evaluate(_AXE.read_text())
    found = await page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
