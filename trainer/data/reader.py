"""Read shards: weighted streams, one order of samples for every number of ranks, exact resume."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader

from ...models import strict
from ...models.config import AnyModelConfig, without_weight_paths
from ...models.encoders.base import TextEncoder
from ..core.cli import ExitCode
from ..core.config import BaseConfig
from ..core.files import private_folder
from .batches import Batch, BatchAssembler
from .bucket_cache import cache_folder, fetch_stream
from .caption_weights import weigh_captions
from .record import Record, from_columns
from .shards import BucketError, DamagedError, ShardError, check_shards, read_features
from .storage import is_remote

if TYPE_CHECKING:
    from .streaming_library import World

SHARED_MEMORY = Path("/dev/shm")  # streaming's shared memory of all jobs on a machine
LOCK_PATIENCE = 60.0  # seconds to wait for another job of the same user
FIRST_NODES = 1  # of the order that streaming deals to numbers of nodes that do not fit `canonical_nodes`
PAIRS_FILE = "pairs.json"  # in the folder of launch/pairs.py, above its shards


class LoaderError(ShardError):
    """A loader process was killed; the shards are intact."""

    exit_code = ExitCode.HUNG  # a restart may succeed


@dataclass(frozen=True)
class StepSamples:
    """The records of one rank in one step, their streams and task weights, and their indices in the global batch."""

    step: int
    records: list[Record]
    tasks: list[dict[str, float]]
    indices: list[int]
    streams: tuple[str, ...]


class Reader:
    """The training samples of one rank, step by step.

    The order depends on the seed alone: step s takes the same samples at the same indices of the global batch for every
    number of ranks and loader processes, and after every resume.
    """

    def __init__(self, config: BaseConfig, encode_text: TextEncoder, rank: int, ranks: int) -> None:
        """Raises ShardError or ValueError if the shards are damaged, too few, or made with other encoders."""
        from .checked_dataset import CheckedDataset, Stream, World  # mosaicml-streaming: only where shards are read

        data, batch = config.data, config.training.global_batch
        self.config = config
        self.world = World.detect()
        self.steps_per_epoch = check_streams(config, hashes=data.verify_hashes and rank == 0) // batch
        streams = [
            Stream(
                remote=s.path if is_remote(s.path) else None,
                local=str(cache_folder(s.path, data.cache)),
                proportion=sum(s.tasks.values()),
            )
            for s in data.streams
        ]
        with _machine_lock(self.world):
            found = {file.name for file in SHARED_MEMORY.glob("[0-9]*_*")} if SHARED_MEMORY.is_dir() else set()
            if torch.distributed.is_initialized():
                # Streaming names its shared memory by what it finds on the machine. All ranks must look at the same
                # moment, or a job that starts or ends in between makes their names differ.
                torch.distributed.barrier()
            try:
                self.dataset = CheckedDataset(
                    streams=streams,
                    epoch_size=self.steps_per_epoch * batch,
                    batch_size=batch // ranks,
                    shuffle=True,
                    shuffle_seed=config.training.seed,
                    num_canonical_nodes=data.canonical_nodes,
                )
            except TypeError as error:  # an existing segment is smaller than needed
                complete = {name[:7] for name in found if name.endswith("_locals")}  # skipped by streaming
                _refuse_stale({name for name in found if name[:7] not in complete})
                raise ValueError(f"{SHARED_MEMORY}: {error}") from error
        prefix = f"{self.dataset._shm_prefix_int:06}_"
        _refuse_stale({name for name in found if name.startswith(prefix)})
        # Every epoch starts new processes. They fork from a server that has done the imports, which take seconds.
        processes = get_context("forkserver")
        processes.set_forkserver_preload([__name__])
        self.assemble = BatchAssembler(config.model, data, encode_text, config.training.seed)
        self.loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=batch // ranks,
            num_workers=data.workers,
            collate_fn=list,
            drop_last=True,
            # No timeout: with one, torch checks its processes only when it expires, otherwise every 5 s. The watchdog
            # finds a process that hangs.
            multiprocessing_context=processes if data.workers else None,
            persistent_workers=False,
            # Every iterator draws a number. With torch's own generator, random states would depend on the number of
            # resumes.
            generator=torch.Generator(),
        )

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield this rank's batches from step `start` on, forever. Raises as `samples`."""
        for s in self.samples(start):
            yield replace(self.assemble(s.records, s.tasks, s.step, s.indices), streams=s.streams)

    def samples(self, start: int) -> Iterator[StepSamples]:
        """Yield the samples of this rank's batches from step `start` on, forever.

        Raises ShardError if an epoch ends early; it names the damaged file.
        """
        step = start
        while True:
            epoch, within = divmod(step, self.steps_per_epoch)
            end = (epoch + 1) * self.steps_per_epoch
            for samples in self._epoch(epoch, within):
                if step < end:  # streaming pads canonical nodes to one length, which may add a batch
                    yield self._samples(samples, step)
                    step += 1
            if step < end:
                raise self._fault(epoch, step, "streaming gave no reason")

    def _epoch(self, epoch: int, within: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the samples of an epoch from its batch `within` on, by one iterator of the loader."""
        self.dataset.load_state_dict(self._position(epoch, within))
        seen = within
        try:
            for samples in self.loader:
                seen += 1
                yield samples
        except Exception as error:  # streaming and its decoders raise many kinds
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
            kind = type(error) if isinstance(error, ShardError) else ShardError
            if reason.startswith("DataLoader "):
                kind = LoaderError
            raise self._fault(epoch, epoch * self.steps_per_epoch + seen, reason, kind) from error

    def _fault(self, epoch: int, step: int, reason: str, kind: type[ShardError] = ShardError) -> ShardError:
        """The error for an epoch that ended before `step`: a file that is damaged now, or streaming's own reason."""
        try:
            if kind is not BucketError:  # the check would ask it for indexes
                check_streams(self.config, hashes=False)
        except ValueError as error:
            reason, kind = str(error), DamagedError
        except OSError as error:
            reason = f"{reason}; {error}"
        within = step - epoch * self.steps_per_epoch
        return kind(
            f"epoch {epoch} ended after {within} of {self.steps_per_epoch} batches: {reason} "
            f"(data.verify_hashes compares every byte at the start)"
        )

    def _position(self, epoch: int, within: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "sample_in_epoch": within * self.config.training.global_batch,
            "num_canonical_nodes": self.config.data.canonical_nodes,
            "shuffle_seed": self.config.training.seed,
            "initial_physical_nodes": FIRST_NODES,
        }

    def _samples(self, samples: list[dict[str, Any]], step: int) -> StepSamples:
        records: list[Record] = [from_columns(s, self.config.model.video_dim) for s in samples]
        streams = [self.config.data.streams[s["stream"]] for s in samples]
        records = [weigh_captions(r, s.captions) if s.captions else r for r, s in zip(records, streams, strict=True)]
        indices = global_indices(self.world, len(samples), self.config.data.canonical_nodes)
        return StepSamples(step, records, [s.tasks for s in streams], indices, tuple(s.path for s in streams))


def global_indices(world: "World", samples: int, canonical_nodes: int) -> list[int]:
    """The indices of a rank's samples in the global batch.

    mosaicml-streaming deals samples to nodes in turn, and within a node to its ranks in turn. Where neither number of
    nodes divides the other, it does so for one node, and cuts the batch into pieces, rank by rank.
    """
    nodes, ranks = world.num_nodes, world.ranks_per_node
    if canonical_nodes % nodes and nodes % canonical_nodes:
        begin, share = (world.node * ranks + world.rank_of_node) * samples, nodes * samples
        return [place % share * ranks + place // share for place in range(begin, begin + samples)]
    return [(i * ranks + world.rank_of_node) * nodes + world.node for i in range(samples)]


def _lock_file() -> Path:
    shared = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return private_folder(shared / f"audiox-trainer-{os.getuid()}") / "lock"


@contextlib.contextmanager
def _machine_lock(world: "World") -> Iterator[None]:
    """Let the jobs of a user on a machine name their shared memory one at a time: two at once would choose the same
    name. After LOCK_PATIENCE seconds a job goes ahead; one rank of the other job may never have arrived."""
    lock = FileLock(_lock_file())
    if world.is_local_leader:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=LOCK_PATIENCE)
    try:
        yield
    finally:
        lock.release()


def _refuse_stale(taken: set[str]) -> None:
    """Raises ValueError if shared memory with the names of a new dataset existed before it.

    Streaming would attach itself to it. An interrupted job leaves some names behind; nothing is removed, because that
    job may still be alive.
    """
    if taken:
        names = ", ".join(str(SHARED_MEMORY / name) for name in sorted(taken))
        remedy = " ".join(sorted({f"{SHARED_MEMORY}/{name[:7]}*" for name in taken}))
        raise ValueError(
            f"{names}: shared memory of another job, or left by one that was killed; if none runs here, remove {remedy}"
        )


def check_no_pairs(config: BaseConfig, section: str = "data") -> None:
    """Raises ValueError if a stream is part of a folder of pairs. It looks like any folder of shards, but its latents
    are a teacher's."""
    for index, stream in enumerate(config.data.streams):
        if not is_remote(stream.path) and (Path(stream.path).parent / PAIRS_FILE).is_file():
            raise ValueError(
                f"{section}.streams.{index}.path: {stream.path} holds a teacher's endpoints of launch/pairs.py; give "
                f"shards of launch/prepare.py here, and the pairs as warm_start.pairs"
            )


def check_streams(
    config: BaseConfig, hashes: bool, where: tuple[str, str] = ("data.streams", "training.global_batch")
) -> int:
    """Check that the streams are complete, large enough and made with the model's encoders; return their samples.

    With `hashes` every byte is read. `where` names streams and batch for the user. Raises ShardError or ValueError.
    """
    total = sum(_check_stream(s.path, config.data.cache, config.model, hashes) for s in config.data.streams)
    if total < config.training.global_batch:
        raise ValueError(
            f"{where[0]}: {total} samples are fewer than {where[1]} {config.training.global_batch}; add data or lower "
            f"the number"
        )
    return total


def _check_stream(path: str, cache: str, model: AnyModelConfig, hashes: bool) -> int:
    folder = Path(path)
    if is_remote(path):
        folder = fetch_stream(path, cache, hashes)
    else:
        check_shards(folder, hashes)
    features = read_features(folder)
    for name in ("codec", "video") if model.video else ("codec",):  # texts are stored as texts
        ours, theirs = (without_weight_paths(getattr(each, name)) for each in (model, features))
        if ours != theirs:
            key, theirs, ours = strict.difference(name, theirs, ours)
            raise ValueError(
                f"{folder}: its features were made with {key} {theirs!r}, the model needs {ours!r}; prepare the folder "
                f"again, or use the model it was made for"
            )
    return features.samples
