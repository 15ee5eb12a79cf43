"""Addresses of remote files: how one is recognised, and which are read."""

import re
from collections.abc import Collection

ADDRESS = re.compile(r"([a-zA-Z][\w+.-]*)(?:://|::.*://)")
# fsspec opens many more. Some of them read whatever a file lists, or fill in its templates (reference, zip, filecache).
PROTOCOLS = ("https", "http", "s3", "s3a", "gs", "hf")
BUCKETS = ("s3", "gs", "oci", "alipan")  # for shards: whose objects mosaicml-streaming can list
LOCAL_PROTOCOLS = ("file", "local")


def address_problem(address: str, allowed: Collection[str] = PROTOCOLS) -> str:
    """The reason why an address is not read; empty if it may be."""
    protocol = address.partition("://")[0]
    if "::" in address:
        return "'::' chains one address to another, which is not read; give a single address, with %3A%3A for '::'"
    if protocol not in allowed:
        return f"{protocol}:// is not read; expected a path, or an address with {', '.join(f'{p}://' for p in allowed)}"
    return ""
