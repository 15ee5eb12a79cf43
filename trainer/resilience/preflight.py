"""Whether every node can do its part, found out in seconds and before a load: names the node that cannot."""

import os
import shutil
import socket
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

REPEATS = 5
POLL = 0.05  # seconds


class BadNodeError(ValueError):
    """A node does not do what it should; the message names it. Without `everywhere` one rank alone knows."""

    exit_code = ExitCode.BAD_NODE

    def __init__(self, message: str, everywhere: bool = True) -> None:
        super().__init__(message)
        self.everywhere = everywhere


@dataclass(frozen=True)
class Wanted:
    """What every node must have."""

    output: Path = field(default_factory=Path)  # on the disk that checkpoints go to
    disk: float = 0.0  # GB free there
    memory: float = 0.0  # GB free on every GPU
    clock: float = 5.0  # seconds between a node's clock and the median of all, or that of the only other node
    bandwidth: float = 0.0  # GB/s of an all-reduce over all ranks, as NCCL's tests count it ("bus bandwidth")
    megabytes: int = 64  # of that all-reduce
    patience: float = 120.0  # seconds for a node to appear, and for it to answer each time


class Board:
    """Where ranks tell one another something: rank 0 holds it, and nothing else of torch.distributed is up yet."""

    def __init__(self, patience: float) -> None:
        """Raises BadNodeError where rank 0 does not answer, OSError on rank 0 where its port is taken."""
        self.rank, self.ranks, self.patience = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), patience
        self.nodes = os.environ.get("NODES", "").split()  # one name a node, in Slurm's order
        where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        short = timedelta(seconds=patience)
        try:
            self.store = dist.TCPStore(where, port, self.ranks, self.rank == 0, short, wait_for_workers=False)
        except RuntimeError as error:
            if self.rank == 0:
                raise OSError(f"no port {port} for the ranks to meet at, set another MASTER_PORT ({error})") from error
            raise BadNodeError(
                f"{self.names([0])} does not answer at {where}:{port} within {patience:g} s; is the node up, and is "
                f"{where} its address?",
                everywhere=False,
            ) from error

    def told(self, what: str, own: str) -> list[str]:
        """What every rank says. Raises BadNodeError naming those that say nothing."""
        keys = [f"{what}/{rank}" for rank in range(self.ranks)]
        end = time.monotonic() + self.patience
        self.store.set(keys[self.rank], own)
        while not self.store.check(keys):
            if time.monotonic() > end:
                silent = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
                if not silent:  # the last one spoke between the two looks
                    break
                seconds = f"within {self.patience:g} s"
                raise BadNodeError(f"{self.names(silent)} did not tell its {what} {seconds}; is the node up?")
            time.sleep(POLL)
        return [value.decode() for value in self.store.multi_get(keys)]

    def leave(self) -> None:
        """Rank 0 takes the board away when all have read it."""
        self.store.add("read", 1)
        end = time.monotonic() + 10
        while self.rank == 0 and int(self.store.add("read", 0)) < self.ranks and time.monotonic() < end:
            time.sleep(POLL)

    def names(self, ranks: list[int]) -> str:
        """Of these ranks' nodes."""
        each = self.ranks // len(self.nodes) if self.nodes else 0
        return ", ".join(f"{self.nodes[r // each]} (rank {r})" if each else f"rank {r}" for r in ranks)


def preflight(wanted: Wanted) -> list[str]:
    """What was measured. Every rank calls this, in the environment that torchrun and Slurm's scripts set.

    Raises BadNodeError on every rank, naming all nodes that are absent or lack something.
    """
    board = Board(wanted.patience)
    try:
        nodes = board.told("name", os.environ.get("SLURMD_NODENAME") or socket.gethostname())
        # All have just read the last name, so they read their clocks within a moment.
        clocks = [float(clock) for clock in board.told("clock", str(time.time()))]
        with _bounded(f"{nodes[board.rank]} (rank {board.rank}): looking at its GPU and disk", wanted.patience):
            gpus, fault = torch.cuda.device_count(), _own_fault(wanted)
        faults, counts = board.told("state", fault), board.told("GPUs", str(gpus))
        board.leave()
    except RuntimeError as error:
        raise BadNodeError(f"{board.names([0])} was lost in the middle of this", everywhere=False) from error
    found = _late_clocks(nodes, clocks, wanted.clock)
    found += [f"{node}: {fault}" for node, fault in zip(nodes, faults, strict=True) if fault]
    found += [] if found else _without_gpus(nodes, [int(count) for count in counts])
    if found:
        raise BadNodeError("; ".join(dict.fromkeys(found)))
    lines = [f"{len(set(nodes))} nodes, {board.ranks} ranks"]
    return [*lines, _links(board, nodes, wanted)] if board.ranks > 1 else lines


@contextmanager
def _bounded(what: str, seconds: float) -> Iterator[None]:
    """Ends the process, with a sentence, where this takes longer: a call into a driver may never return."""

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


def _own_fault(wanted: Wanted) -> str:
    """What this rank's node lacks, or ""."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    each = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    given = os.environ.get("SLURM_GPUS_ON_NODE", "")  # also where their driver is lost
    if wanted.memory or torch.cuda.is_available() or (given.isdigit() and int(given) > 0):
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


def _without_gpus(nodes: list[str], counts: list[int]) -> list[str]:
    """The nodes that have none, where others have some: they would compute on their CPUs, and wait for each other."""
    least = min(1, max(counts))
    return [f"{n}: no GPU, others have {max(counts)}" for n, own in zip(nodes, counts, strict=True) if own < least]


def _late_clocks(nodes: list[str], clocks: list[float], limit: float) -> list[str]:
    """Of each node; of two that differ it is not known which is right."""
    each = dict(zip(nodes, clocks, strict=True))  # its last rank's
    if len(each) == 2 and (apart := max(each.values()) - min(each.values())) > limit:
        return [f"{' and '.join(sorted(each))}: their clocks are {apart:.1f} s apart, one of them is wrong"]
    middle = statistics.median(each.values())
    off = {node: clock - middle for node, clock in each.items() if len(each) > 2 and abs(clock - middle) > limit}
    return [f"{node}: its clock is {seconds:+.1f} s from the others'" for node, seconds in off.items()]


def _links(board: Board, nodes: list[str], wanted: Wanted) -> str:
    """Joins all ranks as the training will, and measures. Raises BadNodeError."""
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", int(os.environ["LOCAL_RANK"])), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    own = f"{nodes[board.rank]} (rank {board.rank}): an all-reduce with the others"
    with _bounded(own, wanted.patience):
        try:
            store = dist.PrefixStore("all", board.store)
            dist.init_process_group(backend, store=store, rank=board.rank, world_size=board.ranks)
            dist.all_reduce(torch.zeros(1))  # gloo, which will carry requests to stop
            line = _measure(nodes, wanted, device)
            dist.barrier()  # rank 0 holds the store
        except RuntimeError as error:
            raise BadNodeError(f"{own} failed: {str(error).strip().splitlines()[0]}", everywhere=False) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    return line


def _measure(nodes: list[str], wanted: Wanted, device: torch.device) -> str:
    """All ranks' all-reduce. Raises BadNodeError where it is slow, with the nodes whose links are."""
    data = torch.ones(wanted.megabytes * 250_000, device=device)
    ranks, size = dist.get_world_size(), 4 * data.numel()
    taken = torch.tensor(_seconds(lambda: dist.all_reduce(data), device))
    dist.all_reduce(taken, dist.ReduceOp.MAX)  # all judge the same figure
    speed = 2 * (ranks - 1) / ranks * size / float(taken) / 1e9
    if speed < wanted.bandwidth:
        slow = _slow_nodes(nodes, data, device)
        raise BadNodeError(
            f"an all-reduce of {wanted.megabytes} MB over {ranks} ranks runs at {speed:.2f} GB/s, {wanted.bandwidth:g} "
            f"are wanted; {slow}"
        )
    return f"all-reduce of {wanted.megabytes} MB: {speed:.2f} GB/s"


def _slow_nodes(nodes: list[str], data: torch.Tensor, device: torch.device) -> str:
    """Names the nodes both of whose links in the ring of nodes take twice as long as most links do."""
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


def report(lines: list[str]) -> None:
    if int(os.environ["RANK"]) == 0:
        print("preflight: " + "; ".join(lines), flush=True)
