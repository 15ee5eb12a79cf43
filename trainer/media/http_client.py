"""The HTTP client of media behind addresses, which connects to public addresses only.

Who writes a manifest shall not reach through it what only this machine or its network reaches: a cloud's service of
credentials, a database without a password. What is checked is the address of each connection, when it is made: so no
name, no redirect and no answer of a name server that changes leads elsewhere.
"""

import socket
from typing import Any

import aiohttp

from ..core.addresses import PrivateAddressError, is_public


def _public_socket(place: tuple[Any, ...]) -> socket.socket:
    """A socket for an item of `getaddrinfo`."""
    family, kind, protocol, _, (address, *_) = place
    if not is_public(address):
        raise PrivateAddressError(address)
    return socket.socket(family, kind, protocol)


async def public_client(**options: Any) -> aiohttp.ClientSession:
    """As fsspec makes a session, with which nothing but public addresses can be reached."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=_public_socket), **options)
