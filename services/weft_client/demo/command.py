"""`weft demo`: starts what is not running, drives it, prints what came out, and stays until Ctrl-C."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.console import Console

from weft_client.aio.client import AsyncClient
from weft_client.demo.memory import PeakMemory
from weft_client.demo.plan import PROMPTS, DemoPlan
from weft_client.demo.progress import Steps
from weft_client.demo.steps import Demo
from weft_client.demo.summary import DemoSummary
from weft_client.endpoints import Endpoints
from weft_client.local.bucket import Bucket
from weft_client.local.commands import DEFAULT_FOLDER, BucketOption, FolderOption, named_bucket
from weft_client.local.control import running
from weft_client.local.layout import Layout

_INTERRUPTED = 130


def demo(
    folder: FolderOption = DEFAULT_FOLDER,
    bucket: BucketOption = None,
    leave: Annotated[bool, typer.Option("--exit", help="Stop everything when done; so does CI=true.")] = False,
    tokens: Annotated[int, typer.Option(help="Tokens to harvest.")] = DemoPlan.num_tokens,
    steps: Annotated[int, typer.Option(help="Training steps.")] = DemoPlan.num_steps,
    features: Annotated[int, typer.Option(help="Features a layer.", min=16)] = DemoPlan.num_features,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt to explain; may be given again.")] = None,
) -> None:
    """Harvest, train, explain and show, on a real model."""
    started = time.monotonic()
    plan = DemoPlan(tokens, features, steps, prompts=tuple(prompt or PROMPTS))
    layout, named = Layout(folder.resolve()), named_bucket(bucket)
    console = Console()
    # A closed terminal or a kill ends the demo the way Ctrl-C does: nothing is left running.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with _services(layout, named, console) as endpoints:
            summary = asyncio.run(_drive(layout, endpoints, plan, console, started))
            _invite(console, summary)
            if not leave and os.environ.get("CI", "").lower() not in ("1", "true"):
                _stay(console)
    except KeyboardInterrupt:
        console.print("Stopped. What was committed is kept; the next run goes on from there.")
        raise typer.Exit(_INTERRUPTED) from None


@contextmanager
def _services(layout: Layout, bucket: Bucket | None, console: Console) -> Iterator[Endpoints]:
    with console.status("Starting the services") as status:
        services = running(
            layout, bucket=bucket, on_wait=lambda waiting: status.update(f"Waiting for {', '.join(waiting)}")
        )
        endpoints, were_running = services.__enter__()
    try:
        if were_running:
            console.print("The services run already; they stay up afterwards.")
        yield endpoints
    finally:
        services.__exit__(None, None, None)


async def _drive(layout: Layout, endpoints: Endpoints, plan: DemoPlan, console: Console, started: float) -> DemoSummary:
    summary = DemoSummary(console_url=endpoints.page(""))
    memory = PeakMemory(layout)
    steps = Steps(console)
    folder = layout.root / "demo"
    async with memory.sampled(), AsyncClient.connect(layout.endpoints_path) as client:
        with steps.shown():
            await Demo(client, plan, folder, steps, summary).run()
    summary.seconds = round(time.monotonic() - started, 1)
    summary.peak_rss_bytes = memory.peak_bytes
    summary.write(folder / "summary.json")
    return summary


def _invite(console: Console, summary: DemoSummary) -> None:
    summary.show(console)
    console.print(f"The page: {summary.console_url}", soft_wrap=True)
    console.print("Next, in another terminal:")
    transcoder = summary.transcoder.removeprefix("transcoders/")
    console.print(
        f"  .venv/bin/weft graphs create --model {summary.model.removeprefix('models/')} "
        f'--transcoder {transcoder} --prompt "Two plus two is" --open',
        soft_wrap=True,
    )
    console.print("  .venv/bin/weft runs list", soft_wrap=True)


def _stay(console: Console) -> None:
    console.print("Ctrl-C stops.")
    with suppress(KeyboardInterrupt):
        signal.pause()
