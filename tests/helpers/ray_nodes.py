"""Nodes of a Ray cluster on this machine, each as `ray start` makes it on a machine of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from audiox_trainer.trainer.core.hardware import free_port

HOST = "127.0.0.2"  # Ray takes 127.0.0.1 for the address of the machine
TOKEN = "0123456789abcdef" * 4
Node = subprocess.Popen[bytes]


class Nodes:
    """The first one is the head."""

    def __init__(self, root: Path) -> None:
        self.port, self.root = free_port(), root
        self.nodes: list[Node] = []
        self.first: tuple[str, ...] = ()  # options of the head

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def start(self, *options: str, cores: int = 1) -> Node:
        self.first = self.first if self.nodes else options
        where = (
            [f"--address={self.address}"]
            if self.nodes
            else ["--head", f"--port={self.port}", "--include-dashboard=false"]
        )
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={HOST}", f"--num-cpus={cores}", f"--object-store-memory={200 << 20}"]
        environment = os.environ | {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        node = subprocess.Popen([*command, *where, *options], env=environment, stdout=subprocess.DEVNULL)
        self.nodes.append(node)
        return node

    def wait(self) -> None:
        """Until the first node answers. On a busy machine Ray gives up after half a minute, and is started again."""
        end = time.monotonic() + 180
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return
            if self.nodes[0].poll() is not None:
                self.nodes.clear()
                self.start(*self.first)
            time.sleep(0.2)
        raise TimeoutError(self.address)

    def kill(self, node: Node) -> None:
        """At once, with all that it has started, as a power cut does."""
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        node.wait()

    def actors(self, _driver: int = 0) -> list[int]:
        """The processes of actors that make blocks or decode."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(node.pid).children(recursive=True)
                found += [p.pid for p in children if "_Maker" in " ".join(p.cmdline())]
        return found


@contextlib.contextmanager
def ray_nodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """None yet; those that were started end with the context."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    made = Nodes(root)
    try:
        yield made
    finally:
        for node in made.nodes:
            if node.poll() is None:
                made.kill(node)
