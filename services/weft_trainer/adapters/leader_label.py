"""
Labels the pod of the controller that leads, so that a Service finds it among those that only wait.

A container that is started again finds the labels of its pod as they were, and a pod on a lost node keeps them: so a
controller takes the label off its own pod before it stands for election, and off all others once it leads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from weft_common.errors import NotFoundError, UnavailableError, WeftError
from weft_common.logging import get_logger
from weft_trainer.adapters.kubernetes_api import PODS, ClusterApi

__all__ = ["LEADER_LABEL", "LeaderLabel"]

_log = get_logger(__name__)

LEADER_LABEL = "weft.dev/leader"
_LEADS = "true"
# What tells one installation's controllers from another's; the chart gives these labels to pods and selects by them.
_SAME = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component")
# A pod that is told to stop has little time left.
_LEAVE_S = 3.0


class LeaderLabel:
    """
    The label of one pod.

    Args:
        api: The cluster.
        pod: Name of the pod that this process runs in.
        retry_s: Seconds between two tries while the API server does not answer.
    """

    def __init__(self, api: ClusterApi, pod: str, retry_s: float = 1.0) -> None:
        self._api = api
        self._pod = pod
        self._retry_s = retry_s
        self._siblings = ""

    async def take_off(self) -> None:
        """Begin without the label; wait for an API server that does not answer. PermissionDeniedError."""
        await self._insist(self._take_off)

    @asynccontextmanager
    async def worn(self) -> AsyncIterator[None]:
        """Wear the label for as long as the context lasts, and be the only one; after `take_off`."""
        await self._insist(self._put_on)
        _log.info("pod_labelled", pod=self._pod, label=LEADER_LABEL)
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(_LEAVE_S):
                    await asyncio.to_thread(self._take_off)
            except (WeftError, TimeoutError) as error:
                # Whoever leads next takes it off.
                _log.warning("label_not_taken_off", pod=self._pod, error=str(error))

    async def _insist(self, change: Callable[[], None]) -> None:
        while True:
            try:
                return await asyncio.to_thread(change)
            except UnavailableError as error:
                _log.warning("pod_not_labelled", pod=self._pod, error=error.message)
                await asyncio.sleep(self._retry_s)

    def _take_off(self) -> None:
        own = self._api.label(PODS, self._pod, {LEADER_LABEL: None})
        labels = own["metadata"].get("labels") or {}
        self._siblings = ",".join(f"{name}={labels[name]}" for name in _SAME if name in labels)

    def _put_on(self) -> None:
        selector = ",".join(part for part in (self._siblings, f"{LEADER_LABEL}={_LEADS}") if part)
        for pod in self._api.list(PODS, selector)[0]:
            name = str(pod["metadata"]["name"])
            if name != self._pod:
                try:
                    self._api.label(PODS, name, {LEADER_LABEL: None})
                except NotFoundError:
                    continue
        self._api.label(PODS, self._pod, {LEADER_LABEL: _LEADS})
