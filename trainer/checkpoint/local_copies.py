"""Copies of a run's state on the nodes themselves, made more often than checkpoints on the shared storage.

    LOCAL/audiox-<id of the run>/<node>/checkpoints/step_00001000/manifest.json
                                                                  model/rank_00000.safetensors

A node's folder, on its own disk or in its memory, has the files of its ranks and those of the node before it, in the
form of a checkpoint. So a run whose processes died, or that lost a node, goes on from the last copies if every file of
them is on some node. Where manifests differ, the one that most nodes have counts.
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...models import strict
from ..core.config_reader import read_json
from ..core.files import atomic_output, hash_json, make_folder, private_folder, write_json
from ..core.integrity import ManifestError, file_fault, read_manifest, write_manifest
from .load import TrainedModel, list_checkpoints, on_all_ranks, step_folder, step_of
from .rollback import COPIES
from .save import Entries, RankState, Saver, file_name, finish_file

KEPT = 2  # copies: one may be lost in the moment in which the next is written
BLOCK = 64 << 20  # bytes in a message between nodes
T = TypeVar("T")


class Nodes:
    """Which ranks share a node. All ranks make it, each with the name of its own."""

    def __init__(self, name: str) -> None:
        """Raises ValueError where nodes have different numbers of ranks."""
        self.rank, self.names = dist.get_rank(), [name] * dist.get_world_size()
        dist.all_gather_object(self.names, name)
        # Of the copies alone: a thread sends in it while training continues.
        self.group = dist.new_group(backend="gloo")
        counts = Counter(self.names)
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} on {name}" for name, count in counts.items())
            raise ValueError(
                f"checkpoint.local_every: nodes have different numbers of ranks ({found}); start as many on each, or "
                f"set it to 0"
            )

    def mates(self, rank: int) -> list[int]:
        """The ranks on the node of this one."""
        return [other for other, name in enumerate(self.names) if name == self.names[rank]]

    def shifted(self, by: int) -> int:
        """The rank at the same place on the node that comes `by` nodes later."""
        order = list(dict.fromkeys(self.names))
        node = order[(order.index(self.names[self.rank]) + by) % len(order)]
        return [rank for rank, name in enumerate(self.names) if name == node][self.mates(self.rank).index(self.rank)]


class _Offer(NamedTuple):
    """What a rank found of the copies of a step."""

    hash: str  # of the manifest
    files: list[str]  # intact ones
    manifest: dict[str, Any]  # of a node's first rank; otherwise empty


class LocalCopies(Saver):
    """Writes and finds a run's copies. All ranks make the same calls."""

    healthy = 0

    def __init__(self, folder: Path, run: Path, nodes: Nodes, roles: dict[str, TrainedModel]) -> None:
        """Raises ValueError if the folder cannot be used."""
        self.local, self.shared, self.nodes = folder, run, nodes
        super().__init__(run, roles, {}, keep=KEPT)
        self.leads = nodes.mates(nodes.rank)[0] == nodes.rank
        self.run = self._folder()

    def _folder(self) -> Path:
        """This node's folder, by the run's name, which is made where it is not there yet."""

        def name() -> str:
            file = self.shared / COPIES
            if dist.get_rank() == 0 and not file.exists():
                write_json(file, {"id": uuid.uuid4().hex})
            return str(read_json(file)["id"]) if dist.get_rank() == 0 else ""

        def make() -> None:
            if self.leads:
                make_folder(self.local)
                private_folder(self.local / run)

        run = f"audiox-{on_all_ranks(f'could not use {self.shared / COPIES}', name)[0]}"
        on_all_ranks(f"checkpoint.local_folder: could not use {self.local}", make)
        return self.local / run / self.nodes.names[self.nodes.rank]

    def remove(self) -> None:
        """Removes all copies, of which none counts any more. The run has ended."""
        if self.leads:
            shutil.rmtree(self.run, ignore_errors=True)
        if dist.get_rank() == 0:
            (self.shared / COPIES).unlink(missing_ok=True)

    def begin_anew(self) -> None:
        """Removes all copies, and goes on under another name. The run went back to an older checkpoint."""
        if self.pending:
            self.finish()
        self.remove()
        self.run = self._folder()

    def _write(self, unfinished: Path, states: Iterable[RankState]) -> Entries:
        """Writes this rank's files, and those of the rank at its place on the node before."""
        files, failure = {}, None
        try:
            files = super()._write(unfinished, states)
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = error
        failed = torch.tensor(failure is not None, dtype=torch.int32)
        dist.all_reduce(failed, dist.ReduceOp.MAX, self.nodes.group)
        if failure:
            raise failure
        to, source = self.nodes.shifted(1), self.nodes.shifted(-1)
        if failed or to == self.nodes.rank:
            return files
        for role in self.roles:
            incoming = unfinished / file_name(role, source)
            exchange(self.nodes.group, (unfinished / file_name(role, self.nodes.rank), to), (incoming, source))
            finish_file(incoming)
        return files

    def collect(self, after: int) -> Path | None:
        """The folder of the newest complete copies after this step, once the files of this rank are in it; None without
        any. Raises OSError on all ranks if files cannot be brought to the nodes that need them."""
        offers = on_all_ranks("could not read the copies on the nodes", lambda: self._offers(after))
        for step in sorted({step for offer in offers for step in offer}, reverse=True):
            found = [offer.get(step) for offer in offers]
            chosen = Counter(offer.hash for offer in found if offer).most_common(1)[0][0]
            having = [set(offer.files) if offer and offer.hash == chosen else set() for offer in found]
            manifests = [o.manifest for o in found if o and o.hash == chosen and o.manifest]
            if not manifests or manifests[0]["ranks"] != len(offers):
                continue
            if not set.union(*having) >= manifests[0]["files"].keys():
                continue
            folder = step_folder(self.run, step)
            on_all_ranks(f"could not complete {folder}", partial(self._fetch, folder, manifests[0], having))
            if all(on_all_ranks(f"could not read {folder}", partial(_suffices, folder, self.roles))):
                return folder
        return None

    def _offers(self, after: int) -> dict[int, _Offer]:
        """By step what is intact on this node. Its ranks share the reading; the first has the manifests."""
        mates, offers = self.nodes.mates(self.nodes.rank), {}
        for folder in list_checkpoints(self.run):
            try:
                manifest = read_manifest(folder)
            except ManifestError:
                continue
            present = sorted(name for name in manifest["files"] if (folder / name).exists())
            own = present[mates.index(self.nodes.rank) :: len(mates)]
            intact = [name for name in own if not file_fault(folder / name, manifest["files"][name])]
            if step_of(folder) > after:
                offers[step_of(folder)] = _Offer(hash_json(manifest), intact, manifest if self.leads else {})
        return offers

    def _fetch(self, folder: Path, manifest: dict[str, Any], having: list[set[str]]) -> None:
        """Brings every rank's files to its node, from one that has them."""
        failure: OSError | None = None
        for rank in range(len(having)):
            there = set.union(*(having[mate] for mate in self.nodes.mates(rank)))
            for name in sorted(_needed(manifest, rank) - there):
                holder = next(other for other, names in enumerate(having) if name in names)
                try:
                    if self.nodes.rank == holder:
                        exchange(self.nodes.group, outgoing=(folder / name, rank))
                    elif self.nodes.rank == rank:
                        make_folder((folder / name).parent)
                        with atomic_output(folder / name, replace=True) as partial_file:
                            exchange(self.nodes.group, incoming=(partial_file, holder))
                            if fault := file_fault(partial_file, manifest["files"][name]):
                                raise OSError(fault)
                except OSError as error:  # the others go on, and no rank waits for this one
                    failure = error
        if failure:
            raise failure
        if self.leads:
            write_manifest(folder, manifest)


def _needed(manifest: dict[str, Any], rank: int) -> set[str]:
    """The files that a rank loads: its own, and of what is not sharded the first one's."""
    roles = manifest["roles"].items()
    return {file_name(name, owner) for name, role in roles for owner in ((rank,) if role["sharded"] else (rank, 0))}


def _suffices(folder: Path, roles: dict[str, TrainedModel]) -> bool:
    """Whether this rank's own files hold all that it loads: not with another ZeRO stage or other buckets."""
    for name, role in roles.items():
        file = folder / file_name(name, dist.get_rank() if role.engine.sharded else 0)
        if not file.exists():
            return False
        with safe_open(file, "pt") as opened:
            starts, keys = strict.parse_json(opened.metadata()["starts"]), set(opened.keys())
            for fragment in role.engine.fragments():
                for key in (f"{kind}/{fragment.name}" for kind in role.state()):
                    if key not in keys or starts[fragment.name] != fragment.start:
                        return False
                    if opened.get_slice(key).get_shape() != [fragment.length]:
                        return False
    return True


def exchange(
    group: dist.ProcessGroup, outgoing: tuple[Path, int] | None = None, incoming: tuple[Path, int] | None = None
) -> None:
    """Sends a file to a rank and receives one from a rank, at the same time. Raises OSError where reading or writing
    fails, but not before all is sent and received: the other rank never waits for this one."""
    failures: list[OSError] = []

    def attempt(act: Callable[[], T]) -> T | None:
        try:
            return act()
        except OSError as error:
            failures.append(error)
            return None

    size, expected = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with ExitStack() as files:
        source = attempt(lambda: files.enter_context(outgoing[0].open("rb"))) if outgoing else None
        target = attempt(lambda: files.enter_context(incoming[0].open("wb"))) if incoming else None
        if outgoing and source:
            size[0] = outgoing[0].stat().st_size
        _swap(group, size, expected, outgoing, incoming)
        for at in range(0, max(int(size), int(expected)), BLOCK):
            block = torch.zeros(max(0, min(BLOCK, int(size) - at)), dtype=torch.uint8)
            arrived = torch.zeros(max(0, min(BLOCK, int(expected) - at)), dtype=torch.uint8)
            if source:
                attempt(partial(source.readinto, block.numpy().data))
            _swap(group, block, arrived, outgoing, incoming)
            if target:
                attempt(partial(target.write, arrived.numpy().data))
    if failures:
        raise failures[0]


def _swap(
    group: dist.ProcessGroup,
    block: Tensor,
    arrived: Tensor,
    outgoing: tuple[Path, int] | None,
    incoming: tuple[Path, int] | None,
) -> None:
    """Sends and receives a block; an empty one is not sent."""
    work = dist.isend(block, outgoing[1], group) if outgoing and len(block) else None
    if incoming and len(arrived):
        dist.recv(arrived, incoming[1], group)
    if work:
        work.wait()
