"""Whether every node can do its part, found out in seconds and before a load: names the node that cannot."""

import os
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from .command import ExitCode

REPEATS = 5


class BadNodeError(ValueError):
    """A node does not do what it should; the message names it."""

    exit_code = ExitCode.BAD_NODE


@dataclass(frozen=True)
class Wanted:
    """What every node must have."""

    output: Path = field(default_factory=Path)  # on the disk that checkpoints go to
    disk: float = 0.0  # GB free there
    memory: float = 0.0  # GB free on every GPU
    clock: float = 5.0  # seconds between a node's clock and the median of all
    bandwidth: float = 0.0  # GB/s of an all-reduce over all ranks, as NCCL's tests count it ("bus bandwidth")
    megabytes: int = 64  # of that all-reduce
    patience: float = 120.0  # seconds for a node to appear


def preflight(wanted: Wanted) -> list[str]:
    """What was measured. Every rank calls this, in the environment that torchrun and Slurm's scripts set.

    Raises BadNodeError on every rank, naming all nodes that are absent or lack something.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    short = timedelta(seconds=wanted.patience)
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), ranks, rank == 0, short, False)
    nodes = _appeared(store, rank, ranks, wanted.patience)
    clocks = _told(store, "clock", rank, ranks, str(time.time()))
    faults = _told(store, "fault", rank, ranks, _own_fault(wanted))
    found = _late_clocks(nodes, [float(clock) for clock in clocks], wanted.clock)
    found += [f"{node}: {fault}" for node, fault in zip(nodes, faults, strict=True) if fault]
    _refuse(found)
    lines = [f"{len(set(nodes))} nodes, {ranks} ranks"]
    if ranks > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else None
        backend = "gloo" if device is None else "nccl"
        dist.init_process_group(backend, store=dist.PrefixStore("all", store), rank=rank, world_size=ranks)
        try:
            lines.append(_measure(nodes, wanted, device or torch.device("cpu")))
        finally:
            dist.barrier()  # rank 0 holds the store
            dist.destroy_process_group()
    return lines


def _appeared(store: dist.TCPStore, rank: int, ranks: int, patience: float) -> list[str]:
    """Each rank's node. Raises BadNodeError for ranks that do not come."""
    store.set(f"node/{rank}", os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    end = time.monotonic() + patience
    missing = list(range(ranks))
    while missing and time.monotonic() < end:
        missing = [other for other in missing if not store.check([f"node/{other}"])]
        time.sleep(0.05 if missing else 0)
    if missing:
        expected = os.environ.get("NODES", "").split()  # one name a node, in Slurm's order
        each = ranks // len(expected) if expected else 0
        names = sorted({f"{expected[m // each]}: rank {m}" if each else f"rank {m}" for m in missing})
        raise BadNodeError(f"did not appear within {patience:g} s: {', '.join(names)}; is the node up and reachable?")
    return [store.get(f"node/{other}").decode() for other in range(ranks)]


def _told(store: dist.TCPStore, name: str, rank: int, ranks: int, value: str) -> list[str]:
    """What every rank says, at about the same time."""
    store.add(f"{name}/ready", 1)
    while int(store.add(f"{name}/ready", 0)) < ranks:
        time.sleep(0.01)
    if name == "clock":
        value = str(time.time())
    store.set(f"{name}/{rank}", value)
    return [store.get(f"{name}/{other}").decode() for other in range(ranks)]


def _own_fault(wanted: Wanted) -> str:
    """What this rank's node lacks, or ""."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if wanted.memory or torch.cuda.is_available():
        if torch.cuda.device_count() < each:
            return f"{torch.cuda.device_count()} GPUs for {each} ranks"
        try:
            free = torch.cuda.mem_get_info(local)[0] / 1e9
        except RuntimeError as error:
            return f"GPU {local} does not answer ({str(error).splitlines()[0]})"
        if free < wanted.memory:
            return f"GPU {local} has {free:.1f} GB free, {wanted.memory:g} are wanted; another program may use it"
    try:
        folder = wanted.output.absolute()
        while not folder.exists():
            folder = folder.parent
        room = shutil.disk_usage(folder).free / 1e9
        if not os.access(folder, os.W_OK):
            return f"{folder} is not writable"
    except OSError as error:
        return f"{wanted.output}: {error.strerror}"
    if room < wanted.disk:
        return f"{room:.1f} GB are free in {folder}, {wanted.disk:g} are wanted"
    return ""


def _late_clocks(nodes: list[str], clocks: list[float], limit: float) -> list[str]:
    middle = statistics.median(clocks)
    off = {node: clock - middle for node, clock in zip(nodes, clocks, strict=True) if abs(clock - middle) > limit}
    return [f"{node}: its clock is {seconds:+.1f} s from the others'" for node, seconds in off.items()]


def _measure(nodes: list[str], wanted: Wanted, device: torch.device) -> str:
    """All ranks' all-reduce. Raises BadNodeError where it is slow, with the nodes whose links are."""
    data = torch.ones(wanted.megabytes * 250_000, device=device)
    ranks, size = dist.get_world_size(), 4 * data.numel()
    speed = 2 * (ranks - 1) / ranks * size / _seconds(lambda: dist.all_reduce(data), device) / 1e9
    if speed < wanted.bandwidth:
        slow = _slow_nodes(nodes, data, device)
        raise BadNodeError(
            f"an all-reduce of {wanted.megabytes} MB over {ranks} ranks runs at {speed:.2f} GB/s, {wanted.bandwidth:g} "
            f"are wanted; {slow}"
        )
    return f"all-reduce of {wanted.megabytes} MB: {speed:.2f} GB/s"


def _slow_nodes(nodes: list[str], data: torch.Tensor, device: torch.device) -> str:
    """Names the nodes both of whose links in the ring of nodes are slower than half the median."""
    first = {node: nodes.index(node) for node in dict.fromkeys(nodes)}
    names, leaders, rank = list(first), list(first.values()), dist.get_rank()
    if len(names) < 3:
        return f"nodes: {', '.join(names)}"
    seconds = []
    for i, sender in enumerate(leaders):
        receiver = leaders[(i + 1) % len(leaders)]
        taken = torch.zeros(1, device=device)
        dist.barrier()
        if rank == sender:
            taken += _seconds(partial(dist.send, data, receiver), device)
        elif rank == receiver:
            taken += _seconds(partial(dist.recv, data, sender), device)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        seconds.append(float(taken))
    limit = 2 * statistics.median(seconds)
    slow = [name for i, name in enumerate(names) if seconds[i] > limit and seconds[i - 1] > limit]
    links = zip(names, names[1:] + names[:1], seconds, strict=True)
    times = ", ".join(f"{a}-{b} {taken * 1e3:.0f} ms" for a, b, taken in links)
    return f"slow: {', '.join(slow) or 'no single node'} ({times})"


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """The median of a few."""
    times = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _refuse(found: list[str]) -> None:
    if found:
        raise BadNodeError("; ".join(dict.fromkeys(found)))


def report(lines: list[str]) -> None:
    if int(os.environ["RANK"]) == 0:
        print("preflight: " + "; ".join(lines), file=sys.stdout, flush=True)
