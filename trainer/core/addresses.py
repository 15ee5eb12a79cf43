"""Addresses of remote files: how one is recognised, and which are read."""

import errno
import ipaddress
import re
from collections.abc import Collection

ADDRESS = re.compile(r"([a-zA-Z][\w+.-]*)(?:://|::.*://)")
# fsspec opens many more. Some of them read whatever a file lists, or fill in its templates (reference, zip, filecache).
PROTOCOLS = ("https", "http", "s3", "s3a", "gs", "hf")
BUCKETS = ("s3", "gs", "oci", "alipan")  # for shards: whose objects mosaicml-streaming can list
LOCAL_PROTOCOLS = ("file", "local")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address within an IPv6 address


def address_problem(address: str, allowed: Collection[str] = PROTOCOLS) -> str:
    """The reason why an address is not read; empty if it may be."""
    protocol = address.partition("://")[0]
    if "::" in address:
        return "'::' chains one address to another, which is not read; give a single address, with %3A%3A for '::'"
    if protocol not in allowed:
        return f"{protocol}:// is not read; expected a path, or an address with {', '.join(f'{p}://' for p in allowed)}"
    return ""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: neither of this machine, nor of a private network, nor of a
    cloud's own services (169.254.169.254)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return ip.is_global and not ip.is_multicast


class PrivateAddressError(OSError):
    """A connection would have led to an address that is not public."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, "the address is not public")  # the same text for all addresses of a name: see
        self.address = address  # aiohappyeyeballs, which otherwise raises another error


def private_address(error: BaseException | None) -> str:
    """The address that was refused, if that caused the error; or ""."""
    while error is not None and not isinstance(error, PrivateAddressError):
        error = error.__cause__ or error.__context__
    return error.address if error else ""
