"""The ranks' shared store of status reports: reachable where the ranks are, each value signed with a secret of the run.

torch's store serves whoever reaches its port, and binds every interface unless it is handed a bound socket. So rank 0
binds the loopback interface if all ranks share its network, and otherwise the address of MASTER_ADDR. A value without a
valid signature counts as missing. The secret is new in each process group and travels inside it, never on a command
line, in the environment or in a file.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch.distributed as dist

from .rank_names import node_name

LOOPBACK = "127.0.0.1"


class Place(NamedTuple):
    """Where a rank is."""

    node: str  # its name
    network: str  # the same for processes that reach each other by the loopback interface
    processes: str  # the same for processes that see each other under the same numbers
    pid: int

    @classmethod
    def here(cls) -> Self:
        machine, namespace = Path("/proc/sys/kernel/random/boot_id").read_text(), Path("/proc/self/ns")
        net, pid = (machine + os.readlink(namespace / name) for name in ("net", "pid"))
        return cls(node_name(), net, pid, os.getpid())


class SignedStore:
    """JSON values by key. A value is valid only under its own key."""

    def __init__(self, store: dist.TCPStore, secret: bytes) -> None:
        self.store, self.secret = store, secret

    @classmethod
    def connect(cls, rank: int, ranks: int, timeout: timedelta) -> tuple[Self, list["Place"]]:
        """Returns the store, which rank 0 holds, and where each rank is. All ranks call this."""
        places: list[Any] = [None] * ranks
        dist.all_gather_object(places, Place.here())
        address: list[Any] = [None]
        if rank == 0:
            listening, host = _listen(len({place.network for place in places}) == 1)
            port = listening.getsockname()[1]
            store = dist.TCPStore(
                host, port, None, True, timeout, wait_for_workers=False, master_listen_fd=listening.detach()
            )
            address = [(host, port, secrets.token_hex(32))]
        dist.broadcast_object_list(address)
        host, port, secret = address[0]
        if rank != 0:
            store = dist.TCPStore(host, port, None, False, timeout, wait_for_workers=False)
        return cls(store, bytes.fromhex(secret)), places

    @property
    def port(self) -> int:
        return self.store.port

    def set(self, key: str, value: Any) -> None:
        self.store.set(key, self._signed(key, value))

    def set_first(self, key: str, value: Any) -> Any:
        """Sets a value unless there is a valid one, and returns the one that is there then."""
        signed = self._signed(key, value)
        first = self._verified(key, self.store.compare_set(key, "", signed))
        if first is None:  # forged
            self.store.set(key, signed)
        return value if first is None else first

    def get(self, key: str) -> Any:
        """None if there is no valid value."""
        return self._verified(key, self.store.get(key)) if self.store.check([key]) else None

    def has_all(self, keys: Iterable[str]) -> bool:
        return all(self.get(key) is not None for key in keys)

    def _signed(self, key: str, value: Any) -> str:
        text = json.dumps(value)
        return self._signature(key, text.encode()) + text

    def _verified(self, key: str, signed: bytes) -> Any:
        signature, text = signed[:64], signed[64:]
        if not hmac.compare_digest(self._signature(key, text).encode(), signature):
            return None
        return json.loads(text)

    def _signature(self, key: str, text: bytes) -> str:
        return hmac.new(self.secret, key.encode() + b"\0" + text, hashlib.sha256).hexdigest()


def _listen(one_network: bool) -> tuple[socket.socket, str]:
    """A bound socket, and the host under which the other ranks reach it.

    Every interface only if MASTER_ADDR names none of this machine that other nodes reach: a translated address, or
    127.0.1.1, as Debian's /etc/hosts calls the machine itself.
    """
    if one_network:
        return socket.create_server((LOOPBACK, 0)), LOOPBACK
    master = os.environ["MASTER_ADDR"]
    for family, _, _, _, address in sorted(socket.getaddrinfo(master, 0, type=socket.SOCK_STREAM)):
        host = str(address[0])
        if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            try:
                return socket.create_server((host, 0), family=family), host
            except OSError:  # not an address of this machine
                continue
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True), master
    return socket.create_server(("", 0)), master
