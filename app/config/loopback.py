"""Loopback: the addresses that nobody else reaches, and how to go beyond them knowingly."""

from __future__ import annotations

import functools
import ipaddress

INSECURE = "or set insecure if the network itself is trusted"
"""The last remedy that a message names for connections beyond loopback without protection."""


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Return whether a host name or address can only mean this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
