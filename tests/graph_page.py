"""A graph's page in a browser, as a person uses it."""

from playwright.async_api import Page, expect

__all__ = ["select_node"]


async def select_node(page: Page, node: str) -> tuple[float, float]:
    """Look a node up by its id and return where its middle is, in pixels."""
    await page.get_by_role("combobox", name="Search nodes").fill(node)
    await page.keyboard.press("Enter")
    cursor = page.locator(f".graph-cursor[data-node='{node}']")
    await expect(cursor).to_be_attached()
    box = await cursor.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
