"""Where a rank waits for a collective over a device's tensors, whose work only orders what the device does."""

import pytest
import torch

from weft_clt.mesh import Progress, _UnderWay


@pytest.mark.parametrize(("device", "waits"), [("meta", ["work", "device"]), ("cpu", ["work"])])
def test_rank_waits_for_its_device_where_others_can_be_told_of_it(
    monkeypatch: pytest.MonkeyPatch, device: str, waits: list[str]
) -> None:
    """The host stays within the collective until the device is through, so that a watchdog sees it wait."""
    progress, seen = Progress(), []

    class Work:
        def wait(self) -> None:
            seen.append("work")

    class Stream:
        def synchronize(self) -> None:
            assert progress.inside_since_s is not None
            seen.append("device")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    _UnderWay(Work(), progress, (torch.empty(2, device=device),)).wait()  # type: ignore[arg-type]
    assert seen == waits
    assert (progress.entered, progress.inside_since_s) == (1, None)
