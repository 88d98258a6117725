"""
Elects one of the controller's replicas by a Lease of the cluster.

No clock is compared between machines: a Lease is free when nobody was seen to renew it, here, for as long as it says it
holds. A leader that could not renew it for two thirds of that time stops to lead before anybody else begins. Every
write names the version that was read, so of two that want the Lease one gets it.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from weft_common.errors import AlreadyExistsError, ConflictError, NotFoundError, WeftError
from weft_common.logging import get_logger
from weft_trainer.adapters.kubernetes_api import LEASES, ClusterApi, Manifest

__all__ = ["LeaseElection"]

_log = get_logger(__name__)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LeaseElection:
    """
    One candidate.

    Args:
        api: The cluster.
        name: Of the Lease.
        identity: Of this candidate; no other has it.
        hold_s: Seconds that the Lease holds after it was last renewed.
    """

    def __init__(self, api: ClusterApi, name: str, identity: str, hold_s: float = 15.0) -> None:
        self._api = api
        self._name = name
        self._identity = identity
        self._hold_s = hold_s
        # Holder, version and monotonic time at which they were first seen.
        self._seen: tuple[str, str, float] = ("", "", 0.0)
        self._other_renews = False

    @asynccontextmanager
    async def leading(self, on_lost: Callable[[], None], standby: threading.Event | None = None) -> AsyncIterator[None]:
        """
        Wait for the lead and keep it for as long as the context lasts; give it back then.

        Args:
            on_lost: Called once, where the lead is lost before the context ends.
            standby: Set once another was seen to renew the Lease, which a dead one does not; cleared when this
                candidate leads or waits no more.
        """
        _log.info("waiting_to_lead", lease=self._name, identity=self._identity)
        standby = standby or threading.Event()
        try:
            while not await self._try():
                if self._other_renews and not standby.is_set():
                    _log.info("standing_by", lease=self._name, leader=self._seen[0])
                    standby.set()
                await asyncio.sleep(self._hold_s / 15)
        finally:
            standby.clear()
        _log.info("leading", lease=self._name, identity=self._identity)
        keeping = asyncio.create_task(self._keep(on_lost))
        try:
            yield
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError):
                await keeping
            await self._give_back()

    async def _keep(self, on_lost: Callable[[], None]) -> None:
        renewed_s = time.monotonic()
        while True:
            await asyncio.sleep(self._hold_s / 5)
            begun_s = time.monotonic()
            if await self._try():
                renewed_s = begun_s
            elif self._seen[0] not in ("", self._identity) or time.monotonic() - renewed_s > self._hold_s * 2 / 3:
                _log.error("lead_lost", lease=self._name, holder=self._seen[0])
                on_lost()
                return

    async def _try(self) -> bool:
        """Take or renew the Lease; say whether this candidate holds it."""
        try:
            async with asyncio.timeout(self._hold_s / 3):
                return await asyncio.to_thread(self._take)
        except (ConflictError, AlreadyExistsError):
            return False
        except (WeftError, TimeoutError) as error:
            _log.warning("lease_not_reached", lease=self._name, error=str(error))
            return False

    def _take(self) -> bool:
        try:
            lease = self._api.get(LEASES, self._name)
        except NotFoundError:
            self._api.create(LEASES, self._manifest(0))
            return True
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        if holder != self._identity and not self._is_free(holder, str(lease["metadata"]["resourceVersion"])):
            return False
        transitions = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
        mine = {**self._manifest(transitions), "metadata": lease["metadata"]}
        if holder == self._identity:
            mine["spec"]["acquireTime"] = spec.get("acquireTime") or _now()
        self._api.replace(LEASES, self._name, mine)
        self._seen = (self._identity, "", time.monotonic())
        return True

    def _is_free(self, holder: str, version: str) -> bool:
        if self._seen[:2] != (holder, version):
            self._other_renews = bool(holder) and self._seen[0] == holder
            self._seen = (holder, version, time.monotonic())
        return not holder or time.monotonic() - self._seen[2] > self._hold_s

    def _manifest(self, transitions: int) -> Manifest:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._hold_s)),
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": transitions,
            },
        }

    async def _give_back(self) -> None:
        try:
            async with asyncio.timeout(self._hold_s / 3):
                while not await asyncio.to_thread(self._hand_over):
                    pass
        except (WeftError, TimeoutError) as error:
            # It runs out by itself.
            _log.warning("lease_not_given_back", lease=self._name, error=str(error))

    def _hand_over(self) -> bool:
        """Free the Lease if it is this candidate's; say whether that is settled."""
        lease = self._api.get(LEASES, self._name)
        if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = None
            try:
                self._api.replace(LEASES, self._name, lease)
            except ConflictError:
                # A renewal that was under way when this candidate stopped to renew: its thread goes on.
                return False
        return True
