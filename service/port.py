"""A port that several processes listen on."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from service.errors import StartupError


def reserve(host: str, port: int) -> socket.socket:
    """A socket that has the port, and never listens: until a worker does, clients are refused.

    Raises:
        StartupError: someone listens there already, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return _bind(family, (host, port))
    except OSError as error:
        raise StartupError(f"{host}, port {port}: {error.strerror}") from error


def listener(reserved: socket.socket) -> socket.socket:
    """A socket for a worker to listen on.

    On Linux it is the worker's own, and the kernel deals new connections out by a hash of their
    addresses. Workers that wait at one socket, as they do elsewhere, are woken together, and who
    comes first takes all the connections that are there.
    """
    if sys.platform != "linux":
        return reserved.dup()
    return _bind(reserved.family, reserved.getsockname(), socket.SO_REUSEPORT)


def _bind(family: socket.AddressFamily, address: Any, *options: int) -> socket.socket:
    bound = socket.socket(family)
    try:
        if os.name == "posix":
            options = (*options, socket.SO_REUSEADDR)
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
