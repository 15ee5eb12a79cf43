"""A preparation in blocks, each a few lines of the manifest: what one holds does not depend on who makes it, or when.

    OUT/prepare.json                      what the preparation was begun with
    OUT/audio/000012/shard.00000.mds      shards of block 12; OUT/music likewise
    OUT/work/blocks/000012.json           block 12 is finished: its shards, and what was left out

The record of a block is written last. A block without one is made again, and its files are replaced by the same ones.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ...models import strict
from ...models.config import CodecConfig, ModelConfig, TextConfig, VideoConfig, without_weight_paths
from ..core.files import hash_file, hash_json
from ..data.record import Record
from ..data.shards import DamagedError, ShardGroup, ShardGroupWriter
from ..data.storage import Store
from ..manifest.annotation_captions import annotation_captions
from ..manifest.manifest import ANNOTATION_FIELDS, ManifestEntry, clip_annotation
from . import network_hashes as networks
from .counts import Counts
from .encode import ClipFeatures, ClipInfo, EncodedClips, Rejection
from .filters import FiltersConfig

FORMAT = 2
PLAN_FILE = "prepare.json"
BLOCKS_FOLDER = "work/blocks"
BLOCK_LINES = 64  # lines per block at most
MIN_BLOCKS = 256  # for the ranks to share: with few lines, blocks are smaller


@dataclass(frozen=True)
class PreparePlan:
    """`prepare.json`: all that decides what a preparation gives."""

    format: int
    manifest: str  # xxh3 of its bytes
    lines: int
    block: int  # lines of it a block
    seed: int
    codec: CodecConfig
    text: TextConfig
    video: VideoConfig
    filters: FiltersConfig
    networks: dict[str, str]  # of `networks.network_hashes`

    @property
    def blocks(self) -> int:
        return -(-self.lines // self.block)

    def lines_of(self, block: int) -> range:
        """Places in the manifest, from 0."""
        return range(block * self.block, min((block + 1) * self.block, self.lines))

    @property
    def settled(self) -> Any:
        """What decides the result, as JSON: all of it but where networks lie."""
        return without_weight_paths(self)

    @property
    def digest(self) -> str:
        return hash_json(self.settled)


@dataclass(frozen=True)
class BlockRecord:
    """The record of a finished block."""

    plan: str  # the digest of the plan it was made after
    parts: dict[str, ShardGroup]  # by domain; names of shards as they stand below its folder
    rejections: tuple[Rejection, ...]
    counts: dict[str, dict[str, int | float]]
    examples: tuple[dict[str, Any], ...]  # a clip of each domain, for the report
    seal: str = ""


def make_plan(manifest: Path, lines: int, model: ModelConfig, filters: FiltersConfig, seed: int) -> PreparePlan:
    """Raises ValueError where the weights of a network are missing."""
    return PreparePlan(
        FORMAT,
        hash_file(manifest),
        lines,
        min(BLOCK_LINES, -(-lines // MIN_BLOCKS)),
        seed,
        model.codec,
        model.text,
        model.video,
        filters,
        networks.network_hashes(model, filters),
    )


def start_preparation(store: Store, plan: PreparePlan) -> None:
    """Writes the plan, unless the same one is there. Raises what `is_started` does."""
    if not is_started(store, plan):
        store.write(PLAN_FILE, json_bytes(strict.to_dict(plan)))
        is_started(store, plan)  # another command may have begun at the same moment


def is_started(store: Store, plan: PreparePlan) -> bool:
    """Whether a folder was begun with this plan; False where nothing is there.

    Raises ValueError where it was begun with another one, or holds something else.
    """
    data = store.read(PLAN_FILE)
    if data is None and store.names(""):
        data = store.read(PLAN_FILE)  # another rank may have begun between the two looks
        if data is None:
            raise ValueError(f"{store} holds something else and is left as it is; remove it or choose another --out")
    if data is None:
        return False
    before, now = without_weight_paths(json.loads(data)), plan.settled
    if before != now:
        where, old, new = strict.difference("", before, now)
        raise ValueError(
            f"{store} was begun with {where} {old!r}, this command has {new!r}; go on with the former, or choose "
            f"another --out"
        )
    return True


def finished_blocks(store: Store) -> set[int]:
    """The numbers of the blocks that have a record."""
    return {int(Path(name).stem) for name in store.names(f"{BLOCKS_FOLDER}/")}


def block_is_finished(store: Store, number: int) -> bool:
    return store.has(record_name(number))


def read_block(store: Store, plan: PreparePlan, number: int) -> BlockRecord:
    """Raises DamagedError where it is not what was written after this plan."""
    data = store.read(record_name(number))
    again = "remove it and run the same command again, which makes the block anew"
    try:
        block: BlockRecord = strict.parse(BlockRecord, json.loads(data or b""))
    except ValueError as error:
        raise DamagedError(f"{store}/{record_name(number)}: not the record of a block ({error}); {again}") from error
    if block.seal != hash_json(strict.to_dict(block), "seal") or block.plan != plan.digest:
        raise DamagedError(f"{store}/{record_name(number)}: changed, or of another command; {again}")
    return block


def write_block(store: Store, plan: PreparePlan, number: int, files: Sequence["FileInProgress"]) -> None:
    """Makes the shards of a block from its files in the order of the manifest, and then its record.

    Raises OSError where there is no room, ShardError where what is read back is not what was written.
    """
    counts, examples = Counts(), dict[str, dict[str, Any]]()
    with store.scratch() as folder:
        writers: dict[str, ShardGroupWriter] = {}
        try:
            for file in files:
                for record in file.records(plan.seed):
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
            parts = {domain: _put_shards(store, folder, number, domain, writer) for domain, writer in writers.items()}
        finally:
            for writer in writers.values():
                writer.cancel()
    rejections = tuple(rejection for file in files for rejection in file.rejections)
    block = BlockRecord(plan.digest, parts, rejections, counts.to_json(), tuple(examples.values()))
    if not block_is_finished(
        store, number
    ):  # by a rank that began it at the same moment, and has put the same bytes there
        value = strict.to_dict(block)
        store.write(record_name(number), json_bytes(value | {"seal": hash_json(value, "seal")}))


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
    """What has come of one line of the manifest so far. Features wait on the disk, however long the file is."""

    def __init__(self, entry: ManifestEntry) -> None:
        self.entry = entry
        self.rejections: list[Rejection] = []
        self.ended = False
        self._clips: list[ClipInfo] = []
        self._seen = 0
        self._spool: IO[bytes] | None = None

    @property
    def clips(self) -> int:
        """Of it that are kept."""
        return len(self._clips)

    @property
    def seconds(self) -> float:
        """Of sound that is kept."""
        return sum(clip.seconds for clip in self._clips)

    def add(self, value: EncodedClips | Rejection, folder: Path) -> None:
        """Some more clips, in order; or the file is no good, and neither is what it gave before."""
        if isinstance(value, Rejection):
            self.close()
            self._clips, self.rejections = [], [value]
            return
        self._seen += value.seen
        self.rejections += value.rejections
        self._clips += value.clips
        if self._spool is None and value.clips:
            self._spool = tempfile.TemporaryFile(dir=folder)
        for clip in value.features:
            for array in vars(clip).values():
                np.save(self._spool, array, allow_pickle=False)  # type: ignore[arg-type]

    def records(self, seed: int) -> Iterator[Record]:
        """One for each clip. The wording of captions follows from `seed`, the line and the place in the file."""
        if self._spool is None:
            return
        self._spool.seek(0)
        for index, clip in enumerate(self._clips):
            arrays = {field.name: np.load(self._spool, allow_pickle=False) for field in fields(ClipFeatures)}
            yield _record(self.entry, index, clip, self._seen == 1, arrays, seed)

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def _record(
    entry: ManifestEntry, index: int, clip: ClipInfo, whole: bool, arrays: dict[str, NDArray[np.float32]], seed: int
) -> Record:
    notes = clip_annotation(entry, clip.start, clip.seconds, whole)
    texts = annotation_captions(entry.captions, notes, np.random.default_rng([seed, entry.line, index]))
    source = {"audio": entry.name, "start": entry.start + clip.start}
    scores = {"scores": clip.scores} if clip.scores else {}
    return Record(
        id=f"line-{entry.line:06d}-{index:04d}",
        domain=entry.domain,
        captions=texts,
        annotation={**notes, **scores, "source": source},
        seconds=clip.seconds,
        **arrays,
    )


def record_name(number: int) -> str:
    return f"{BLOCKS_FOLDER}/{number:06d}.json"


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
