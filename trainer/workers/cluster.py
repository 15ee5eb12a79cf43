"""A cluster of Ray: one that runs, one of this machine alone, or one that the ranks of a launcher make.

Without the dashboard and usage statistics. Nodes talk over the interface that leads to the first one; Ray 2.60 listens
on all of them, so that its token is what keeps others out.
"""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..core.cli import ExitCode

LOCAL = "local"
HERE = "127.0.0.1"
START = 120.0  # seconds for the head to come up
LOOK = 1.0  # seconds between two looks at the head
SILENT = 3  # looks in a row without an answer after which the head has ended
ATTEMPTS = 3  # to start Ray on this machine
GRACE = 20.0  # seconds for a node to end
TOKEN = "RAY_AUTH_TOKEN"
PR_SET_PDEATHSIG = 1  # of Linux


class ClusterError(OSError):
    """Ray does not start, or does not answer."""

    exit_code = ExitCode.HUNG  # a restart may succeed


@dataclass(frozen=True)
class Rank:
    """A task of a launcher: each node of a cluster has one."""

    number: int
    count: int
    head: str = HERE  # host of the first
    port: int = 0

    @property
    def address(self) -> str:
        return f"{self.head}:{self.port}"


def rank_from_environment() -> Rank | None:
    """By the variables of launch/slurm/rank.sh and torchrun; None without a launcher, or with one rank.

    Raises ValueError if a variable is missing or no number.
    """
    number, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not number and not count:
        return None
    head, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"RANK={number!r}, WORLD_SIZE={count!r}: must be numbers, RANK below WORLD_SIZE")
    if int(count) == 1:
        return None
    if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"LOCAL_WORLD_SIZE={os.environ['LOCAL_WORLD_SIZE']}: start one task per node, it uses all of its GPUs and "
            f"cores (--ntasks-per-node=1, --nproc-per-node 1)"
        )
    if not (head and port.isdecimal()):
        raise ValueError(f"MASTER_ADDR={head!r}, MASTER_PORT={port!r}: where {count} nodes meet; a launcher sets both")
    if not os.environ.get(TOKEN):
        raise ValueError(
            f"{TOKEN} is not set: {count} nodes need a secret in common, as `openssl rand -hex 32` gives one"
        )
    # torchrun's agent itself listens at its port.
    own = int(port) + 1 if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else int(port)
    return Rank(int(number), int(count), head, own)


def import_ray(token: str = "") -> Any:
    """Ray, which admits nobody without the token, if there is one: a new `token`, for a cluster of this machine alone,
    or that of the environment.

    Raises ValueError without Ray.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if token:
        # Ray takes 127.0.0.1 for the address of the machine, unless it may not make clusters at all.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token or os.environ.get(TOKEN):
        os.environ |= {TOKEN: token or os.environ[TOKEN], "RAY_AUTH_MODE": "token"}
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"a cluster needs Ray ({error}); pip install 'audiox-trainer[cluster]'") from error
    return ray


@contextmanager
def connected(address: str, cores: int) -> Iterator[None]:
    """Be a driver of the cluster at an address: HOST:PORT, "auto" for that of this machine, or "local" for a new one
    with `cores`, which nobody else can reach.

    Raises:
        ValueError: Ray is not installed.
        OSError: there is no cluster.
    """
    ray = import_ray(secrets.token_hex(32) if address == LOCAL else "")
    quiet: dict[str, Any] = {"logging_level": "warning", "log_to_driver": True}
    try:
        if address == LOCAL:
            local: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False, "_node_ip_address": HERE}
            _attempt(lambda: ray.init("local", **local, **quiet), ray.shutdown)
        else:
            ray.init(address, **quiet)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error}); start one, or give another --address"
        ) from error
    try:
        rank = rank_from_environment()
        if rank is not None and address == rank.address:
            _wait_for_nodes(ray, rank)
        yield
    finally:
        ray.shutdown()


def _attempt(start: Callable[[], object], clean: Callable[[], object]) -> None:
    """Start Ray; on a busy machine it gives up after half a minute, with an Exception of no class of its own."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            start()
            return
        except Exception as error:
            clean()
            if attempt == ATTEMPTS:
                raise ClusterError(f"Ray does not start in {ATTEMPTS} attempts: {error}") from error


def _wait_for_nodes(ray: Any, rank: Rank) -> None:
    """Wait until every rank's node has joined, or for START seconds: the others may still come later."""
    end = time.monotonic() + START
    while (here := sum(node["Alive"] for node in ray.nodes())) < rank.count:
        if time.monotonic() > end:
            print(f"{here} of {rank.count} nodes have joined within {START:g} s; they begin", file=sys.stderr)
            return
        time.sleep(LOOK)


@contextmanager
def launched(address: str, cores: int) -> Iterator[str | None]:
    """The address of the cluster to work with: as given, or that of the one that the nodes of a launcher make. None on
    all nodes but the first, when their work is done.

    Raises ValueError as `rank_from_environment`, OSError if the first node does not come up.
    """
    rank = None if address else rank_from_environment()
    if rank is None:
        yield address
    elif rank.number == 0:
        with head_of(rank, cores) as made:
            yield made
    else:
        be_node_of(rank, cores)
        yield None


@contextmanager
def head_of(rank: Rank, cores: int) -> Iterator[str]:
    """The first rank's part of a cluster: it starts the head and yields its address; the cluster ends with it.

    Raises OSError if the head does not come up.
    """
    import_ray()
    nodes = list[subprocess.Popen[bytes]]()

    def start() -> None:
        nodes.append(_start_node(["--head", f"--port={rank.port}", "--include-dashboard=false"], rank, cores))
        _until(lambda: _answers(rank), lambda: nodes[0].poll() is not None, f"Ray's head at {rank.address}")

    _attempt(start, lambda: _end(nodes.pop()) if nodes else None)
    try:
        yield rank.address
    finally:
        _end(nodes.pop())


def be_node_of(rank: Rank, cores: int) -> None:
    """Another rank's part: its cores and GPUs belong to the cluster until the first rank's head ends.

    Raises OSError if the head does not come up.
    """
    import_ray()
    _until(lambda: _answers(rank), lambda: False, f"Ray's head at {rank.address}")
    join = [f"--address={rank.address}"]
    node, silent = _start_node(join, rank, cores), 0
    try:
        while silent < SILENT:
            time.sleep(LOOK)
            silent = 0 if _answers(rank) else silent + 1
            if not silent and node.poll() is not None:
                print(f"this node's Ray has ended with code {node.returncode}, and starts again", file=sys.stderr)
                node = _start_node(join, rank, cores)
    finally:
        _end(node)


def _start_node(options: list[str], rank: Rank, cores: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    # Any free ports for its workers: the head's own port may lie where Ray would number them from.
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--node-ip-address={_own_address(rank)}", f"--num-cpus={cores}", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _own_address(rank: Rank) -> str:
    """The address of this machine on the interface that leads to the head."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((rank.head, rank.port))  # sends nothing
        return str(probe.getsockname()[0])


def _answers(rank: Rank) -> bool:
    try:
        socket.create_connection((rank.head, rank.port), timeout=5.0).close()
    except OSError:
        return False
    return True


def _until(there: Callable[[], bool], failed: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START
    while failed() or not there():
        if failed() or time.monotonic() > end:
            raise ClusterError(f"{what} does not come up; its log is in /tmp/ray/session_latest/logs")
        time.sleep(0.2)


def _end(node: "subprocess.Popen[bytes]") -> None:
    node.terminate()
    try:
        node.wait(GRACE)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
