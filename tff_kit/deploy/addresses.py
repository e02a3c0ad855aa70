"""Addresses HOST:PORT, and free ports."""

import contextlib
import ipaddress
import socket

from tff_kit.errors import UserError


class AddressError(UserError, ValueError):
    """An address that can't be used. The message says why."""


def parse_address(address: str) -> tuple[str, int]:
    """Returns host and port; raises `AddressError` for anything else than HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise AddressError(f"Expected an address HOST:PORT, found {address!r}.")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine, as far as its name or address says."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def free_port() -> int:
    """Returns a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as any_server:
        return any_server.getsockname()[1]
