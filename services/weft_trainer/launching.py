"""Opens what starts ranks: processes of this machine, or pods of a cluster that this replica leads."""

import platform
import signal
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from weft_trainer.adapters.kubernetes_launcher import kubernetes_launcher
from weft_trainer.adapters.leader_label import LeaderLabel
from weft_trainer.adapters.lease_election import LeaseElection
from weft_trainer.adapters.local_launcher import LocalLauncher
from weft_trainer.core.ports import RankLauncher
from weft_trainer.settings import TrainerSettings

__all__ = ["open_launcher"]


@asynccontextmanager
async def open_launcher(settings: TrainerSettings, standby: threading.Event) -> AsyncIterator[RankLauncher]:
    """
    Open the launcher; on Kubernetes, once this replica is the leader.

    Until then the service answers UNAVAILABLE and its pod lacks the label that the Service selects, so reads, commands
    and reports all reach the leader. A leader that loses its Lease stops as if it was told to: ranks go on, and its
    next start waits for the lead again.

    Args:
        settings: Of the trainer.
        standby: Set while another replica leads.
    """
    if settings.launcher == "local":
        yield LocalLauncher(settings.resolved_work_dir())
        return
    # An installation on one machine does without the package.
    from weft_trainer.adapters.kubernetes_client import KubernetesClient

    api = KubernetesClient(settings.kubernetes_namespace)
    identity = f"{settings.kubernetes_pod or platform.node()}_{uuid.uuid4().hex[:8]}"
    election = LeaseElection(api, settings.kubernetes_lease, identity)
    label = LeaderLabel(api, settings.kubernetes_pod) if settings.kubernetes_pod else None
    if label is not None:
        await label.take_off()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(election.leading(lambda: signal.raise_signal(signal.SIGTERM), standby))
        if label is not None:
            await stack.enter_async_context(label.worn())
        yield await stack.enter_async_context(
            kubernetes_launcher(api, settings.kubernetes_pods, settings.bucket_url, settings.kubernetes_rank_kind)
        )
