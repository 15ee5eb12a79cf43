"""Make one block of a manifest: its decoders decode and cut, this process runs the networks and writes the shards.

A maker is a process or a Ray actor; its decoders are processes of its own, or with Ray and a GPU actors on any node. A
damaged file costs at most its decoder. Which makers there are, and which are lost, changes no byte of the result.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.addresses import ADDRESS
from ..data.storage import Store, open_store
from ..manifest.manifest import ManifestEntry
from ..manifest.manifest_index import BlockTask, read_block_entries
from ..media.source import Reason
from ..workers.effort import Effort, Timed, on_device, spent
from ..workers.pool import Pool
from ..workers.unanswered import UnansweredRow
from .clip_batches import ClipBatches
from .decode import DecodedClips, EncoderSettings, EntryTask, Rejection
from .decoders import ActorDecoders, LineEnd, LineEvent, LineRestart, ProcessDecoders, decode_lines
from .encode import LineClip, encode_clips
from .manifest_blocks import BlockRecord, FileInProgress, PreparePlan, write_shards

PER_DEVICE = 2  # makers, so that one uses the device while the other waits for the last files of a block
AHEAD = 2  # files per decoder that are decoded before an earlier one has ended


@dataclass(frozen=True)
class BlockJob:
    """What is the same for all blocks of a preparation."""

    plan: PreparePlan
    out: str
    manifest: Path
    encoders: EncoderSettings  # with the device of the maker
    decode: Callable[[EntryTask], Iterator[DecodedClips | Rejection]]
    decoders: int  # of this maker
    actors: bool = False  # the decoders are actors of Ray
    limit: float = 1800.0  # seconds without a clip after which a file is given up
    unreachable: int = 10  # addresses in a row without an answer after which the work stops; 0: never
    allow_private: bool = False  # http addresses may lead to this machine or its network


@dataclass(frozen=True)
class MadeBlock:
    """A block whose shards are written."""

    record: BlockRecord
    lines: int
    clips: int
    maker: str  # host and process
    effort: Effort  # of the maker and its decoders
    answers: tuple[str, ...] = ()  # of its addresses, in order: empty, or why one gave none


class BlockMaker:
    """Makes the blocks of a job; its decoders and networks stay from block to block."""

    def __init__(self, job: BlockJob) -> None:
        self._job = job
        self._tools: tuple[Store, Pool[EntryTask]] | None = None

    def __call__(self, task: BlockTask) -> Iterator[MadeBlock]:
        """Raises as `make_block`."""
        job = self._job
        if self._tools is None:
            torch.set_num_threads(1)  # there is a maker per core, and sums must not depend on their number
            kind: Any = ActorDecoders if job.actors else ProcessDecoders
            decoders = kind(Timed(job.decode), job.decoders, job.limit).__enter__()  # ends with this process
            self._tools = open_store(job.out), decoders
        yield make_block(job, task, *self._tools)


def make_block(job: BlockJob, task: BlockTask, store: Store, decoders: Pool[EntryTask]) -> MadeBlock:
    """Decode, encode and write the lines of a block.

    Raises:
        ValueError: the manifest has changed, or a network does not match its configuration.
        OSError: the disk is full, the storage of media fails, or memory runs out.
        ConnectionError: too many addresses in a row gave no answer.
    """
    begin = spent()
    entries = read_block_entries(job.manifest, task, job.allow_private)
    tasks = [EntryTask(job.encoders, entry) for entry in entries]
    with store.scratch() as spool:
        block = _Block(job, entries, spool)
        try:
            for event in decode_lines(tasks, decoders, block.has_room):
                block.take(event)
            files = list(block.files.values())
            record = write_shards(store, job.plan, task.number, files)
        finally:
            for file in block.files.values():
                file.close()
    maker = f"{socket.gethostname()}-{os.getpid()}"
    clips, effort = sum(file.clips for file in files), sum(block.decoding.values(), spent() - begin)
    return MadeBlock(record, len(files), clips, maker, effort, tuple(block.answers()))


class _Block:
    """A block that is being made."""

    def __init__(self, job: BlockJob, entries: Sequence[ManifestEntry], spool: Path) -> None:
        self._job, self._spool = job, spool
        self.files = {entry.line: FileInProgress(entry) for entry in entries}
        self.decoding = dict[int, Effort]()  # by line
        self._ended: set[int] = set()
        self._batches = ClipBatches([entry.line for entry in entries])

    def has_room(self) -> bool:
        """Whether another file may be decoded: clips that wait for an earlier file take memory."""
        return self._batches.waiting < AHEAD * self._job.decoders

    def take(self, event: LineEvent) -> None:
        """Take the next clips of a file, or its end. Raises ConnectionError as `make_block`."""
        entry, line = event.entry, event.entry.line
        if isinstance(event, LineRestart):
            self.files[line].close()
            self.files[line] = FileInProgress(entry)
            self._batches.discard(line)
        elif isinstance(event, LineEnd):
            if event.fault:
                self._reject(Rejection(line, entry.name, *event.fault))
            self._ended.add(line)
            self._encode(self._batches.end(line))
            self._check_answers()
        else:
            value, self.decoding[line] = event.value
            if isinstance(value, Rejection):
                self._reject(value)
            else:
                self.files[line].add_decoded(value)
                self._encode(self._batches.add(entry, value.clips))

    def _reject(self, rejection: Rejection) -> None:
        self.files[rejection.line].reject(rejection)
        self._batches.discard(rejection.line)

    def _encode(self, batches: Iterator[list[LineClip]]) -> None:
        for batch in batches:
            with on_device(self._job.encoders.device):
                clips = encode_clips(self._job.encoders, batch)
            for (entry, _), clip in zip(batch, clips, strict=True):
                self.files[entry.line].add_encoded(clip, self._spool)

    def answers(self) -> Iterator[str]:
        """Of the addresses of files that have ended: empty, or why one gave none."""
        for line, file in self.files.items():
            places = (file.entry.audio, file.entry.video)
            if line in self._ended and any(ADDRESS.match(place) for place in places if place):
                yield next((r.detail for r in file.rejections if r.reason == Reason.UNREACHABLE.value), "")

    def _check_answers(self) -> None:
        row = UnansweredRow(self._job.unreachable)
        for answer in self.answers():
            row.add(answer)
