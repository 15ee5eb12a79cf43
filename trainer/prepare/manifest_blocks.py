"""A preparation in manifest blocks, each of a few lines. Its content does not depend on who makes it, or when.

    OUT/prepare.json                      the plan: everything that decides the result
    OUT/audio/000012/shard.00000.mds      shards of block 12; the same in OUT/music
    OUT/work/blocks/000012.json           the record of finished block 12: its shards, and what was left out

The record of a block is written last. A block without one is made again and gives the same files.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...models import strict
from ...models.config import AnyModelConfig, CodecConfig, TextConfig, VideoConfig, without_weight_paths
from ..core.files import hash_json, json_text
from ..data.caption_weights import CAPTION_ORIGINS
from ..data.record import Record
from ..data.shards import DamagedError, ShardGroup, ShardGroupWriter
from ..data.storage import Store
from ..manifest.annotation_captions import annotation_captions
from ..manifest.completion_pairs import CompletionPairs
from ..manifest.manifest import ANNOTATION_FIELDS, ManifestEntry, clip_annotation, clip_captions
from ..manifest.manifest_index import ManifestIndex
from .counts import Counts
from .decode import DecodedClips, Rejection
from .encode import ClipFeatures, EncodedClip
from .filters import FiltersConfig
from .network_hashes import network_hashes

FORMAT = 5
PLAN_FILE = "prepare.json"
BLOCKS_FOLDER = "work/blocks"
BLOCK_LINES = 64  # lines per block at most
MIN_BLOCKS = 256  # for the makers to share: with few lines, blocks are smaller


@dataclass(frozen=True)
class PreparePlan:
    """`prepare.json`: everything that decides the result of a preparation."""

    format: int
    manifest: str  # xxh3 of its bytes
    lines: int
    block_lines: int  # lines per block
    seed: int
    codec: CodecConfig
    text: TextConfig
    video: VideoConfig | None
    filters: FiltersConfig
    networks: dict[str, str]  # hashes of the weights, by what uses them

    @property
    def block_count(self) -> int:
        return -(-self.lines // self.block_lines)

    def lines_in(self, block: int) -> int:
        """The number of the block's lines."""
        return min(self.block_lines, self.lines - block * self.block_lines)

    @property
    def settings(self) -> Any:
        """The plan as JSON, without the paths of networks."""
        return without_weight_paths(self)

    @property
    def hash(self) -> str:
        return hash_json(self.settings)


@dataclass(frozen=True)
class BlockRecord:
    """The record of a finished block."""

    plan: str  # hash of the plan that it follows
    shards: dict[str, ShardGroup]  # by domain; the names of shards are relative to its folder
    rejections: tuple[Rejection, ...]
    counts: dict[str, dict[str, int | float]]
    examples: tuple[dict[str, Any], ...]  # one clip per domain, for the report
    checksum: str = ""


def make_plan(index: ManifestIndex, model: AnyModelConfig, filters: FiltersConfig, seed: int) -> PreparePlan:
    """Raises ValueError if the weights of a network are missing."""
    return PreparePlan(
        FORMAT,
        index.hash,
        index.lines,
        index.block_lines,
        seed,
        model.codec,
        model.text,
        model.video,
        filters,
        network_hashes(model),
    )


def start_preparation(store: Store, plan: PreparePlan) -> None:
    """Write the plan, unless the same one is there. Raises as `is_started`."""
    if not is_started(store, plan):
        store.write(PLAN_FILE, json_bytes(strict.to_dict(plan)))
        is_started(store, plan)  # another command may have started at the same moment


def is_started(store: Store, plan: PreparePlan) -> bool:
    """Whether a folder was started with this plan; False if it is empty.

    Raises ValueError if it was started with another plan or holds something else.
    """
    data = store.read(PLAN_FILE)
    if data is None and store.names(""):
        data = store.read(PLAN_FILE)  # another command may have started in between
        if data is None:
            raise ValueError(f"{store} holds something else and is left as it is; remove it or choose another --out")
    if data is None:
        return False
    before, now = without_weight_paths(strict.parse_json(data)), plan.settings
    if before != now:
        where, old, new = strict.difference("", before, now)
        raise ValueError(
            f"{store} was started with {where} {old!r}, this command has {new!r}; keep the former, or choose "
            f"another --out"
        )
    return True


def finished_blocks(store: Store) -> set[int]:
    """The numbers of the blocks that have a record."""
    return {int(Path(name).stem) for name in store.names(f"{BLOCKS_FOLDER}/")}


def read_block(store: Store, plan: PreparePlan, number: int) -> BlockRecord:
    """Raises DamagedError if the record is damaged or follows another plan."""
    data = store.read(record_name(number))
    again = "remove it and run the same command again, which makes the block again"
    try:
        block: BlockRecord = strict.parse(BlockRecord, strict.parse_json(data or b""))
    except ValueError as error:
        raise DamagedError(f"{store}/{record_name(number)}: not the record of a block ({error}); {again}") from error
    if block.checksum != hash_json(strict.to_dict(block), "checksum") or block.plan != plan.hash:
        raise DamagedError(f"{store}/{record_name(number)}: changed, or of another command; {again}")
    return block


def write_shards(store: Store, plan: PreparePlan, number: int, files: Sequence["FileInProgress"]) -> BlockRecord:
    """Write the shards of a block, from its files in the order of the manifest. They count once `write_record` has run.

    Raises OSError if the disk is full, ShardError if the shards read back differ from what was written.
    """
    counts, examples, pairs = Counts(), dict[str, dict[str, Any]](), CompletionPairs(plan.codec)
    with store.scratch() as folder:
        writers: dict[str, ShardGroupWriter] = {}
        try:
            for file in files:
                for record in file.records(plan.seed):
                    record = pairs.add_preceding(file.entry, record)
                    if record.domain not in writers:
                        writers[record.domain] = ShardGroupWriter(
                            folder / record.domain, plan.codec, plan.text, plan.video
                        )
                    example = examples.get(record.domain)
                    if example is None or (len(record.image) and not example["video"]):
                        examples[record.domain] = _example(file.entry, record)
                    writers[record.domain].write(record)
                    counts.record(record)
                counts.file(file.seconds, file.rejections)
            shards = {domain: _put_shards(store, folder, number, domain, writer) for domain, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.cancel()
    rejections = tuple(
        rejection for file in files for rejection in sorted(file.rejections, key=lambda r: r.start or 0.0)
    )
    return BlockRecord(plan.hash, shards, rejections, counts.to_json(), tuple(examples.values()))


def write_record(store: Store, number: int, block: BlockRecord) -> None:
    """From now on the block is finished. Raises OSError."""
    value = strict.to_dict(block)
    store.write(record_name(number), json_bytes(value | {"checksum": hash_json(value, "checksum")}))


def _put_shards(store: Store, folder: Path, number: int, domain: str, writer: ShardGroupWriter) -> ShardGroup:
    part, shards = writer.finish(), []
    for shard in part.shards:
        raw = shard["raw_data"]
        name = f"{number:06d}/{raw['basename']}"
        store.put(folder / domain / raw["basename"], f"{domain}/{name}")
        shards.append({**shard, "raw_data": {**raw, "basename": name}})
    return replace(part, shards=tuple(shards))


def _example(entry: ManifestEntry, record: Record) -> dict[str, Any]:
    kept = {key: value for key, value in record.annotation.items() if key in ANNOTATION_FIELDS and key != "SED"}
    start = record.annotation["source"]["start"] - entry.start
    return {
        "id": record.id,
        "line": entry.line,
        "start": start,
        "seconds": record.seconds,
        "domain": record.domain,
        "video": len(record.image) > 0,
        "captions": record.captions[:3],
        **kept,
    }


class FileInProgress:
    """The clips of one manifest line so far. Their features are kept on the disk, because a file may be very long."""

    def __init__(self, entry: ManifestEntry) -> None:
        self.entry = entry
        self.rejections: list[Rejection] = []
        self._clips: list[EncodedClip] = []  # without their features
        self._total = 0
        self._spool: IO[bytes] | None = None

    @property
    def clips(self) -> int:
        """The number of clips that are kept."""
        return len(self._clips)

    @property
    def seconds(self) -> float:
        """Seconds of sound that are kept."""
        return sum(clip.seconds for clip in self._clips)

    def add_decoded(self, piece: DecodedClips) -> None:
        """Count the next clips, and note which of them are left out."""
        self._total += piece.total
        self.rejections += piece.rejections

    def add_encoded(self, clip: EncodedClip | Rejection, folder: Path) -> None:
        """Add the next clip, with its features in a nameless file in `folder`."""
        if isinstance(clip, Rejection):
            self.rejections.append(clip)
            return
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=folder)
        for array in vars(clip.features).values():
            np.save(self._spool, array, allow_pickle=False)
        self._clips.append(replace(clip, features=None))

    def reject(self, rejection: Rejection) -> None:
        """Leave the whole file out, with its earlier clips."""
        self.close()
        self._clips, self.rejections = [], [rejection]

    def records(self, seed: int) -> Iterator[Record]:
        """Yield one record per clip. The wording of captions depends on `seed`, the line and the clip's index."""
        if self._spool is None:
            return
        self._spool.seek(0)
        for index, clip in enumerate(self._clips):
            arrays = {field.name: np.load(self._spool, allow_pickle=False) for field in fields(ClipFeatures)}
            yield _record(self.entry, index, clip, self._total == 1, arrays, seed)

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def _record(
    entry: ManifestEntry, index: int, clip: EncodedClip, whole: bool, arrays: dict[str, Any], seed: int
) -> Record:
    notes = clip_annotation(entry, clip.start, clip.seconds, whole)
    rng = np.random.default_rng([seed, entry.line, index])
    captions = annotation_captions(clip_captions(entry, whole), notes, rng, entry.origins)
    origins = [origin._asdict() for origin in captions.values()]
    source = {"audio": entry.name, "start": entry.start + clip.start}
    return Record(
        id=f"line-{entry.line:06d}-{index:04d}",
        domain=entry.domain,
        captions=list(captions),
        annotation={**notes, "source": source, CAPTION_ORIGINS: origins},
        seconds=clip.seconds,
        **arrays,
    )


def record_name(number: int) -> str:
    return f"{BLOCKS_FOLDER}/{number:06d}.json"


def json_bytes(value: Any) -> bytes:
    return json_text(value).encode()
