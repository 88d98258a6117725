"""Opens what starts ranks: processes of this machine, or pods of a cluster that this replica leads."""

import platform
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from weft_trainer.adapters.kubernetes_launcher import kubernetes_launcher
from weft_trainer.adapters.lease_election import LeaseElection
from weft_trainer.adapters.local_launcher import LocalLauncher
from weft_trainer.core.ports import RankLauncher
from weft_trainer.settings import TrainerSettings

__all__ = ["open_launcher"]


@asynccontextmanager
async def open_launcher(settings: TrainerSettings) -> AsyncIterator[RankLauncher]:
    """
    Open the launcher; on Kubernetes, once this replica is the leader.

    Until then the service says that it is not ready, so reads, commands and reports all reach the leader. A leader that
    loses its Lease stops as if it was told to: ranks go on, and its next start waits for the lead again.
    """
    if settings.launcher == "local":
        yield LocalLauncher(settings.resolved_work_dir())
        return
    # An installation on one machine does without the package.
    from weft_trainer.adapters.kubernetes_client import KubernetesClient

    api = KubernetesClient(settings.kubernetes_namespace)
    identity = f"{platform.node()}_{uuid.uuid4().hex[:8]}"
    election = LeaseElection(api, settings.kubernetes_lease, identity)
    async with (
        election.leading(lambda: signal.raise_signal(signal.SIGTERM)),
        kubernetes_launcher(
            api, settings.kubernetes_pods, settings.bucket_url, settings.kubernetes_rank_kind
        ) as launcher,
    ):
        yield launcher
