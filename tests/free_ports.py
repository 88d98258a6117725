"""Ports for servers that tests stop and start again on the same one."""

import random
import socket

__all__ = ["free_port"]

# Below the ports that systems give to outgoing connections: one of those is soon somebody else's while its server is
# away, and a client that tries to reach a server there can even be connected to itself.
_PORTS = range(20000, 32000)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
