"""Connections to public addresses alone, for URLs that strangers have written.

A URL in somebody's table, or one that it redirects to, may name this machine, a neighbour or the
metadata service of a cloud. What counts is the address of the socket, after names are resolved and
redirects are followed: whatever the spelling, no other one is connected to.
"""

import contextvars
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from pipeline.errors import InfinegError

# Not among those that Python takes for private: local NAT64 (RFC 8215), site-local (RFC 3879).
_PRIVATE = (ipaddress.IPv6Network("64:ff9b:1::/48"), ipaddress.IPv6Network("fec0::/10"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Public by its number, but of the machine below an Azure machine.
_AZURE_HOST = ipaddress.IPv4Address("168.63.129.16")

# In a request that goes through a proxy of the environment, the socket is that of the proxy.
_is_proxied = contextvars.ContextVar("is_proxied", default=False)


class PrivateAddress(InfinegError):
    """An address of this machine, a private network or a cloud's metadata service."""


def is_public(address: str) -> bool:
    """Whether an IP address, of version 4 or 6, is one of the internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    carried = _carried(ip) if isinstance(ip, ipaddress.IPv6Address) else None
    if carried is not None:
        return is_public(str(carried))
    is_private = ip.is_multicast or ip == _AZURE_HOST or any(ip in each for each in _PRIVATE)
    return ip.is_global and not is_private


def public_only(fs: Any) -> Any:
    """A file system of fsspec for http and https that connects to public addresses alone."""
    return type(fs)(**{**fs.storage_options, "get_client": _get_client})


async def _get_client(**options: Any) -> Any:
    import aiohttp

    # One address after the other: the first that is refused ends the request.
    connector = aiohttp.TCPConnector(socket_factory=_open_socket, happy_eyeballs_delay=None)
    options = {**options, "connector": connector, "middlewares": (_check_proxied,)}
    options.pop("loop", None)  # that of the connector
    return aiohttp.ClientSession(**options)


def _open_socket(info: Any) -> socket.socket:
    """A socket for one result of getaddrinfo; raises PrivateAddress."""
    family, kind, protocol, _, address = info
    if not _is_proxied.get():
        _refuse_private(address[0], address[0])
    return socket.socket(family=family, type=kind, proto=protocol)


async def _check_proxied(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
    """For each request, of redirects too: behind a proxy, the host is checked by its name."""
    import asyncio

    _is_proxied.set(request.proxy is not None)
    if request.proxy is not None:
        host = request.url.host
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
        except OSError:  # a name that only the proxy knows
            found = []
        for _, _, _, _, address in found:
            _refuse_private(str(address[0]), host)
    return await handler(request)


def _refuse_private(address: str, name: str) -> None:
    if not is_public(address):
        raise PrivateAddress(
            f"{name} is an address of this machine or of a private network; if it is meant, set "
            "`params.allow_private: true` of the source"
        )


def _carried(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The address of version 4 that one of version 6 leads to."""
    if ip in _NAT64 or (int(ip) > 1 and int(ip) < 2**32):
        return ipaddress.IPv4Address(int(ip) % 2**32)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
