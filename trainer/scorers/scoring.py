"""Score sounds, and the videos they are to fit, on any number of ranks, which may be killed and restarted at any time.

    FOLDER/features/…              what scorers made of contents (`feature_cache.py`)
    FOLDER/blocks/<digest>.json    for each file of a block: the hash of its content, or what is wrong with it

The files are cut into blocks, of which each rank has its share, and finished ones stay. Files are read by threads while
networks run.
"""

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from ..core.files import hash_file
from ..data.storage import FolderStore
from ..media.source import MediaError, Reason
from ..resilience.stop_signal import StoppedError, StopSignal
from ..workers.progress import Progress
from .feature_cache import FeatureCache
from .pictures import PictureFormat, VideoClip, read_pictures
from .scorer import Features, Scorer
from .sound_file import ReadSound, SoundFacts, read_sound

BLOCK = 32  # sounds
VIDEO_BLOCK = 4  # videos: ten seconds at 25 pictures of 224 pixels are 38 MB
AHEAD = 2  # blocks that are read, the one that is scored included
FACTS = "facts-1"  # the digest under which the facts of sounds are cached, of this version of their measures
READERS = 4  # threads; decoding, resampling and hashing release the interpreter


Item = Path | VideoClip  # a sound or the pictures of a video


@dataclass(frozen=True)
class ScoredSound:
    """A sound or video with its features by scorer, or with what is wrong with it."""

    path: Path
    facts: SoundFacts | None = None  # of a sound
    features: dict[str, Features] | None = None  # by the scorer's name
    problem: tuple[str, str] | None = None  # reason and detail


@dataclass(frozen=True)
class _Read:
    """What a thread found: the hash of the content, and the sound or the pictures where something needs them."""

    content: str = ""
    sound: ReadSound | None = None
    pictures: dict[PictureFormat, Tensor] | None = None
    problem: tuple[str, str] | None = None


class SoundScoring:
    """The blocks of some files, the scorers, and the caches in a folder. Videos are for scorers that see."""

    def __init__(
        self,
        paths: Sequence[Path],
        scorers: Sequence[Scorer],
        folder: Path,
        pad_to: float = 0.0,
        videos: Sequence[VideoClip] = (),
    ) -> None:
        self.blocks: list[list[Item]] = [*_blocks(videos, VIDEO_BLOCK), *_blocks(paths, BLOCK)]  # the longest first
        self.scorers, self.pad_to = scorers, pad_to
        self.store = FolderStore(folder)
        self.caches = {scorer.name: FeatureCache(self.store, f"{scorer.digest}-{pad_to:g}") for scorer in scorers}
        self.facts = FeatureCache(self.store, f"{FACTS}-{pad_to:g}")
        self._names = [self._record_name(block) for block in self.blocks]
        self._seeing = {scorer.name: scorer.pictures for scorer in scorers if scorer.pictures}
        self._rates = {scorer.rate for scorer in scorers}
        self._shortest = max(scorer.shortest for scorer in scorers)

    def run(self, rank: int = 0, ranks: int = 1) -> None:
        """Score every N-th block of N ranks, as far as it is not scored yet. Rank 0 then scores what the others have
        not finished, from the last one back, so that afterwards everything is, also if one of them has died.

        Raises StoppedError where the process was asked to stop. The same command continues.
        """
        mine = list(range(rank, len(self.blocks), ranks))
        left = deque(mine if rank else [*mine, *(n for n in reversed(range(len(self.blocks))) if n % ranks)])
        reading: deque[tuple[int, list[Future[_Read]]]] = deque()
        pool = ThreadPoolExecutor(READERS)
        total = sum(len(self.blocks[number]) for number in left)
        try:
            with (
                Progress(total, sum(len(self.blocks[n]) for n in self._done() & set(left))) as progress,
                StopSignal() as stop,
            ):
                while left or reading:
                    while left and len(reading) < AHEAD:
                        number = left.popleft()
                        if number not in self._done():
                            reading.append((number, [pool.submit(self._read, item) for item in self.blocks[number]]))
                    if stop.requested:
                        raise StoppedError(f"asked to stop; finished work stays in {self.store}, and the same command "
                                           f"continues from there")  # fmt: skip
                    if reading:
                        number, reads = reading.popleft()
                        self._score(number, [future.result() for future in reads])
                        progress.add(len(reads), len(reads))
        finally:
            pool.shutdown(cancel_futures=True)

    def results(self) -> dict[Item, ScoredSound]:
        """Every sound and video, after `run`."""
        for cache in (*self.caches.values(), self.facts):
            cache.refresh()
        content: dict[Item, str] = {}
        found: dict[Item, ScoredSound] = {}
        for block, name in zip(self.blocks, self._names, strict=True):
            for item, row in zip(block, json.loads(self.store.read(name) or b"[]"), strict=True):
                if row["problem"]:
                    found[item] = ScoredSound(_path(item), problem=(row["problem"][0], row["problem"][1]))
                else:
                    content[item] = row["content"]
        heard = {key for item, key in content.items() if isinstance(item, Path)}
        seen = set(content.values()) - heard
        facts = self.facts.load(heard)
        features = {
            name: cache.load(heard | seen if name in self._seeing else heard) for name, cache in self.caches.items()
        }
        for item, key in content.items():
            of_item = {name: rows[key] for name, rows in features.items() if key in rows}
            measured = SoundFacts.from_tensor(facts[key]["facts"]) if isinstance(item, Path) else None
            found[item] = ScoredSound(_path(item), measured, of_item)
        return found

    def _done(self) -> set[int]:
        there = self.store.names("blocks/")
        return {i for i, name in enumerate(self._names) if name in there}

    def _read(self, item: Item) -> _Read:
        """In a thread."""
        path = _path(item)
        try:
            if not path.is_file():
                raise MediaError(Reason.MISSING, f"{path}: no such file")
            content = hash_file(path)
            if isinstance(item, VideoClip):
                content = f"{content}-{item.start:g}-{item.seconds or 0:g}"
                missing = {form for name, form in self._seeing.items() if content not in self.caches[name]}
                return _Read(content, pictures=read_pictures(item, missing) if missing else None)
            if all(content in cache for cache in (*self.caches.values(), self.facts)):
                return _Read(content)
            return _Read(content, read_sound(path, self._rates, self._shortest, self.pad_to))
        except MediaError as error:
            return _Read(problem=(error.reason.value, str(error)))

    def _score(self, number: int, reads: Sequence[_Read]) -> None:
        sounds = {read.content: read.sound for read in reads if read.sound}
        videos = {read.content: read.pictures for read in reads if read.pictures}
        self.facts.add({c: {"facts": s.facts.to_tensor()} for c, s in sounds.items() if c not in self.facts})
        for scorer in self.scorers:
            cache = self.caches[scorer.name]
            if missing := [content for content in sounds if content not in cache]:
                heard = scorer.features([sounds[content].waves[scorer.rate] for content in missing])
                self._keep(scorer, missing, heard)
            if scorer.pictures and (missing := [content for content in videos if content not in cache]):
                seen = scorer.picture_features([videos[content][scorer.pictures] for content in missing])
                self._keep(scorer, missing, seen)
        record = [{"content": read.content, "problem": read.problem} for read in reads]
        self.store.write(self._names[number], json.dumps(record).encode())

    def _keep(self, scorer: Scorer, contents: Sequence[str], rows: Sequence[Features]) -> None:
        for content, row in zip(contents, rows, strict=True):
            check_features(scorer, row, content)
        self.caches[scorer.name].add(dict(zip(contents, rows, strict=True)))

    def _record_name(self, block: Sequence[Item]) -> str:
        """Follows from all that decides the block's features."""
        key = [sorted(scorer.digest for scorer in self.scorers), self.pad_to, [_identity(item) for item in block]]
        return f"blocks/{xxhash.xxh3_128(json.dumps(key)).hexdigest()}.json"


def check_features(scorer: Scorer, row: Features, content: str) -> None:
    """Raises ValueError where a network gave what is no number."""
    for name, values in row.items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"scorer {scorer.name}: its {name} of the sound with hash {content} is not finite")


def _blocks(items: Sequence[Item], size: int) -> list[list[Item]]:
    items = list(dict.fromkeys(items))
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def _path(item: Item) -> Path:
    return item.path if isinstance(item, VideoClip) else item


def _identity(item: Item) -> list[Any]:
    """Changes when the file does."""
    path, span = (item.path, [item.start, item.seconds]) if isinstance(item, VideoClip) else (item, [])
    try:
        status = path.stat()
    except OSError:
        return [str(path.absolute()), *span]
    return [str(path.absolute()), status.st_size, status.st_mtime_ns, *span]
