"""
A page of the console in real Chromium before one service, and what its frames cost.

    async with opened_page(registration, "graphs/g") as (browser, page):
        clock = await processor_clock(browser)
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, Page

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from chromium_browser import launched

from weft_common.server import Registration, serving
from weft_common.settings import ServiceSettings
from weft_console.serve import serving_console
from weft_console.settings import ConsoleSettings

__all__ = ["frame_figures", "opened_page", "processor_clock"]

_TOKEN = "a-token-for-measuring"


@asynccontextmanager
async def opened_page(registration: Registration, path: str, *, chromium: str) -> AsyncIterator[tuple[Browser, Page]]:
    """Serve a console whose only peer has one service, and open a page of it."""
    peer = ServiceSettings(token=_TOKEN, max_message_bytes=64 << 20)
    async with serving("attribution", peer, [registration]) as server:
        settings = ConsoleSettings(
            token=_TOKEN,
            attribution_target=server.target,
            attribution_token=_TOKEN,
            cache_target=server.target,
            trainer_target=server.target,
        )
        async with serving_console(settings) as console, launched(chromium) as browser:
            page = await browser.new_page(viewport={"width": 1440, "height": 900})
            await page.goto(f"{console.url}{path}?token={_TOKEN}")
            yield browser, page


async def processor_clock(browser: Browser) -> Callable[[], Awaitable[float]]:
    """A clock of the processor time that all of the browser's processes have had, in seconds."""
    session = await browser.new_browser_cdp_session()

    async def processor_s() -> float:
        answer = await session.send("SystemInfo.getProcessInfo")
        return float(sum(process["cpuTime"] for process in answer["processInfo"]))

    return processor_s


def frame_figures(lengths_ms: Sequence[float], processor_s: float) -> dict[str, float]:
    """
    Frames a second over the whole time, the median, the 95th of 100 frames, the longest, and processor time a frame.

    Args:
        lengths_ms: How long each frame was.
        processor_s: Processor time of all of them.
    """
    ordered = sorted(lengths_ms)
    return {
        "frames_per_s": 1000 * len(ordered) / sum(ordered),
        "median_ms": ordered[len(ordered) // 2],
        "p95_ms": ordered[int(0.95 * len(ordered))],
        "longest_ms": ordered[-1],
        "processor_ms_per_frame": 1000 * processor_s / len(ordered),
    }
