"""Checks in seconds, before anything is loaded, whether every node can do its part, and names a node that cannot."""

import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from ..core.cli import ExitCode
from ..core.hardware import allow_open_files
from .rank_names import node_name

REPEATS = 5
POLL_SECONDS = 0.05


class BadNodeError(ValueError):
    """A node lacks something; the message names it. Without `everywhere` only one rank knows."""

    exit_code = ExitCode.BAD_NODE

    def __init__(self, message: str, everywhere: bool = True) -> None:
        super().__init__(message)
        self.everywhere = everywhere


@dataclass(frozen=True)
class NodeRequirements:
    """The requirements of a run on every node."""

    output: Path = field(default_factory=Path)  # folder on the disk of the checkpoints
    disk: float = 0.0  # GB free there
    memory: float = 0.0  # GB free on every GPU
    clock: float = 5.0  # seconds from a node's clock to the median of all, or to the only other node's
    bandwidth: float = 0.0  # GB/s of an all-reduce over all ranks, the "bus bandwidth" of NCCL's tests
    megabytes: int = 64  # size of that all-reduce
    patience: float = 120.0  # seconds that a node may take to appear, and for every answer


class Rendezvous:
    """A store of rank 0, with which ranks exchange texts before there is a process group."""

    def __init__(self, patience: float) -> None:
        """Raises BadNodeError where rank 0 does not answer, OSError on rank 0 where its port is taken."""
        self.rank, self.ranks, self.patience = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), patience
        self.nodes = os.environ.get("NODES", "").split()  # one name per node, in Slurm's order
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = timedelta(seconds=patience)
        try:
            self.store = dist.TCPStore(host, port, self.ranks, self.rank == 0, timeout, wait_for_workers=False)
        except RuntimeError as error:
            if self.rank == 0:
                raise OSError(f"port {port} is taken, set another MASTER_PORT ({error})") from error
            raise BadNodeError(
                f"{self.names([0])} does not answer at {host}:{port} within {patience:g} s; is the node up, and is "
                f"{host} its address?",
                everywhere=False,
            ) from error

    def exchange(self, what: str, own: str) -> list[str]:
        """The texts of all ranks. Raises BadNodeError with the ranks that do not answer."""
        keys = [f"{what}/{rank}" for rank in range(self.ranks)]
        end = time.monotonic() + self.patience
        self.store.set(keys[self.rank], own)
        while not self.store.check(keys):
            if time.monotonic() > end:
                silent = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
                if not silent:  # the last answer came between the two checks
                    break
                seconds = f"within {self.patience:g} s"
                raise BadNodeError(f"{self.names(silent)} did not report its {what} {seconds}; is the node up?")
            time.sleep(POLL_SECONDS)
        return [value.decode() for value in self.store.multi_get(keys)]

    def leave(self) -> None:
        """Rank 0 waits until all ranks have read the store, which ends with it."""
        self.store.add("read", 1)
        end = time.monotonic() + 10
        while self.rank == 0 and int(self.store.add("read", 0)) < self.ranks and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def names(self, ranks: list[int]) -> str:
        """The nodes of these ranks."""
        each = self.ranks // len(self.nodes) if self.nodes else 0
        return ", ".join(f"{self.nodes[r // each]} (rank {r})" if each else f"rank {r}" for r in ranks)


def preflight(needs: NodeRequirements) -> list[str]:
    """Checks all nodes and returns what was measured. Every rank calls this, in the environment that torchrun and
    Slurm's scripts set.

    Raises BadNodeError on every rank, with all nodes that are absent or lack something.
    """
    allow_open_files()
    rendezvous = Rendezvous(needs.patience)
    try:
        nodes = rendezvous.exchange("name", node_name())
        # All ranks have just read the last name, so they read their clocks at the same moment.
        clocks = [float(clock) for clock in rendezvous.exchange("clock", str(time.time()))]
        with _bounded(
            f"{nodes[rendezvous.rank]} (rank {rendezvous.rank}): looking at its GPU and disk", needs.patience
        ):
            gpus, fault = torch.cuda.device_count(), _own_fault(needs)
        faults, counts = rendezvous.exchange("state", fault), rendezvous.exchange("GPUs", str(gpus))
        rendezvous.leave()
    except RuntimeError as error:
        raise BadNodeError(f"{rendezvous.names([0])} was lost during the preflight", everywhere=False) from error
    messages = _late_clocks(nodes, clocks, needs.clock)
    messages += [f"{node}: {fault}" for node, fault in zip(nodes, faults, strict=True) if fault]
    messages += [] if messages else _without_gpus(nodes, [int(count) for count in counts])
    if messages:
        raise BadNodeError("; ".join(dict.fromkeys(messages)))
    lines = [f"{len(set(nodes))} nodes, {rendezvous.ranks} ranks"]
    return [*lines, _links(rendezvous, nodes, needs)] if rendezvous.ranks > 1 else lines


@contextmanager
def _bounded(what: str, seconds: float) -> Iterator[None]:
    """Ends the process with a message if the body takes longer: a call into a driver may never return."""

    def end() -> None:
        print(f"error: {what} takes longer than {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(ExitCode.BAD_NODE)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _own_fault(needs: NodeRequirements) -> str:
    """The requirement that this rank's node does not meet; "" if it meets all."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    allocated = os.environ.get("SLURM_GPUS_ON_NODE", "")  # set even if the driver is broken
    if needs.memory or torch.cuda.is_available() or (allocated.isdigit() and int(allocated) > 0):
        if torch.cuda.device_count() < each:
            return f"{torch.cuda.device_count()} GPUs for {each} ranks"
        try:
            free = torch.cuda.mem_get_info(local)[0] / 1e9
        except RuntimeError as error:
            return f"GPU {local} does not answer ({str(error).splitlines()[0]})"
        if free < needs.memory:
            return f"GPU {local} has {free:.1f} GB free, {needs.memory:g} are needed; another program may use it"
    try:
        folder = needs.output.absolute()
        while not folder.exists():
            folder = folder.parent
        room = shutil.disk_usage(folder).free / 1e9
        if not os.access(folder, os.W_OK):
            return f"{folder} is not writable"
    except OSError as error:
        return f"{needs.output}: {error.strerror}"
    if room < needs.disk:
        return f"{room:.1f} GB are free in {folder}, {needs.disk:g} are needed"
    return ""


def _without_gpus(nodes: list[str], counts: list[int]) -> list[str]:
    """The nodes without a GPU, if others have one: they would compute on their CPUs while the others wait."""
    least = min(1, max(counts))
    return [f"{n}: no GPU, others have {max(counts)}" for n, own in zip(nodes, counts, strict=True) if own < least]


def _late_clocks(nodes: list[str], clocks: list[float], limit: float) -> list[str]:
    """A message per node whose clock is wrong. If two nodes differ, either may be wrong."""
    each = dict(zip(nodes, clocks, strict=True))  # its last rank's
    if len(each) == 2 and (apart := max(each.values()) - min(each.values())) > limit:
        return [f"{' and '.join(sorted(each))}: their clocks are {apart:.1f} s apart, one of them is wrong"]
    middle = statistics.median(each.values())
    off = {node: clock - middle for node, clock in each.items() if len(each) > 2 and abs(clock - middle) > limit}
    return [f"{node}: its clock is {seconds:+.1f} s from the others'" for node, seconds in off.items()]


def _links(rendezvous: Rendezvous, nodes: list[str], needs: NodeRequirements) -> str:
    """Makes the process group that training needs, and measures. Raises BadNodeError."""
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    own = f"{nodes[rendezvous.rank]} (rank {rendezvous.rank}): an all-reduce with the others"
    with _bounded(own, needs.patience):
        try:
            store = dist.PrefixStore("all", rendezvous.store)
            dist.init_process_group(backend, store=store, rank=rendezvous.rank, world_size=rendezvous.ranks)
            dist.all_reduce(torch.zeros(1))  # gloo, which carries requests to stop
            line = _measure(nodes, needs, device)
            dist.barrier()  # rank 0 holds the store
        except RuntimeError as error:
            raise BadNodeError(f"{own} failed: {str(error).strip().splitlines()[0]}", everywhere=False) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return line


def _measure(nodes: list[str], needs: NodeRequirements, device: torch.device) -> str:
    """Measures an all-reduce of all ranks. Raises BadNodeError if it is slow, with the nodes whose links are slow."""
    data = torch.ones(needs.megabytes * 250_000, device=device)
    ranks, size = dist.get_world_size(), 4 * data.numel()
    taken = torch.tensor(_seconds(lambda: dist.all_reduce(data), device))
    dist.all_reduce(taken, dist.ReduceOp.MAX)  # all ranks judge the same number
    speed = 2 * (ranks - 1) / ranks * size / float(taken) / 1e9
    if speed < needs.bandwidth:
        slow = _slow_nodes(nodes, data, device)
        raise BadNodeError(
            f"an all-reduce of {needs.megabytes} MB over {ranks} ranks runs at {speed:.2f} GB/s, {needs.bandwidth:g} "
            f"are needed; {slow}"
        )
    return f"all-reduce of {needs.megabytes} MB: {speed:.2f} GB/s"


def _slow_nodes(nodes: list[str], data: torch.Tensor, device: torch.device) -> str:
    """Names the nodes whose two links in the ring of nodes both take twice as long as most links."""
    first = {node: nodes.index(node) for node in dict.fromkeys(nodes)}
    names, leaders, rank = list(first), list(first.values()), dist.get_rank()
    if len(names) < 3:
        return f"nodes: {', '.join(names)}"
    seconds = []
    for i, sender in enumerate(leaders):
        receiver, taken = leaders[(i + 1) % len(leaders)], torch.zeros(1)
        dist.barrier()
        if rank == sender:
            taken += _seconds(partial(dist.send, data, receiver), device)
        elif rank == receiver:
            taken += _seconds(partial(dist.recv, data, sender), device)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        seconds.append(float(taken))
    limit = 2 * sorted(seconds)[len(seconds) // 4]  # with three nodes a slow one has two of three links
    slow = [name for i, name in enumerate(names) if seconds[i] > limit and seconds[i - 1] > limit]
    links = zip(names, names[1:] + names[:1], seconds, strict=True)
    times = ", ".join(f"{a}-{b} {taken * 1e3:.0f} ms" for a, b, taken in links)
    return f"slow: {', '.join(slow) or 'no single node'} ({times})"


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """The median of a few calls."""
    times = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def report(lines: list[str]) -> None:
    if int(os.environ["RANK"]) == 0:
        print("preflight: " + "; ".join(lines), flush=True)
