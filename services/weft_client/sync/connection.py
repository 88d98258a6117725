# Generated from `weft_client/aio` by `scripts/client_sync.py`; edit that.
"""Channels to the services, opened when they are first needed."""

import grpc

from weft_client.endpoints import Endpoints
from weft_common.client import channel

MAX_MESSAGE_BYTES = 256 << 20
"""The JSON of a large graph comes in one message."""


class Connection:
    """One channel a service."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._channels: dict[str, grpc.Channel] = {}

    def channel(self, service: str) -> grpc.Channel:
        """The channel to one service; FailedPreconditionError where the client was not told about it."""
        if service not in self._channels:
            endpoint = self.endpoints[service]
            self._channels[service] = channel(
                endpoint.target, **endpoint.channel_arguments, max_message_bytes=MAX_MESSAGE_BYTES
            )
        return self._channels[service]

    def close(self) -> None:
        """Close every channel; calls in progress end."""
        while self._channels:
            _, channel = self._channels.popitem()
            channel.close()
