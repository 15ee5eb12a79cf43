"""The lists that sets were published as, read into clips with the names that their files usually have.

| set | file | a line |
|---|---|---|
| audiocaps | train.csv, val.csv, test.csv [1] | audiocap_id,youtube_id,start_time,caption |
| vggsound | vggsound.csv, without a head [2] | youtube_id,second,label,split |
| musiccaps | musiccaps-public.csv [3] | ytid,start_s,end_s,…,caption,… |
| v2m | V2M.txt, V2M-20k.txt, V2M-bench.txt [4] | an id |
| avvp | AVVP_test_pd.csv and others, by tabs [5] | filename, event_labels |
| audiotime | train5000_ordering/ordering_captions.json and seven more [6] | {"syn_1": {"event": {…}, "caption": …}} |
| clotho | clotho_captions_evaluation.csv and others [7] | file_name,caption_1, …,caption_5 |
| wavcaps | as_final.json, bbc_final.json, fsd_final.json, sb_final.json [8] | {"data": [{"id": …, "caption": …, …}]} |
| audioset | audioset_train_strong.tsv, next to mid_to_display_name.tsv [9] | segment_id, start_time_seconds, …, label |
| greatesthits | train.txt, test.txt [10] | a name, as 2015-02-16-16-49-06 |
| mucaps | MUCapsCaptions.json [11] | {"FILE.mp3": caption, …} |

The formats were read in these files or, where "code" stands, in public code that reads them:
[1] github.com/cdjkim/audiocaps (dataset/val.csv, dataset2.0/test.csv)
[2] github.com/hche11/VGGSound (README, a copy of data/vggsound.csv)
[3] huggingface.co/datasets/google/MusicCaps (a copy in github.com/simonw/musiccaps-datasette)
[4] huggingface.co/datasets/Zeyue7/V2M (its page)
[5] github.com/YapengTian/AVVP-ECCV20 (data/AVVP_test_pd.csv)
[6] github.com/zeyuxie29/AudioTime (README, STEAMtool/data; names of files: code)
[7] zenodo.org/record/4783391 (code, and a copy with further columns)
[8] huggingface.co/datasets/cvssp/WavCaps, github.com/XinhaoMei/WavCaps (retrieval/data_handling/pretrain_dataset.py)
[9] research.google.com/audioset/download_strong.html
[10] web.eecs.umich.edu/~ahowens/vis/vis-data-256.zip (code)
[11] github.com/shansongliu/M2UGen (Datasets/MUCaps/03_caption_music.py, which writes it)
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...models import strict
from ..core.english import join

YOUTUBE_ID = 11  # characters
CLIP = 10  # seconds of most sets
LONGEST = 1e6  # seconds: more is a mistake
STEAM_KINDS = ("ordering", "duration", "frequency", "timestamp")
WAVCAPS_SOURCES = {"as_final": "AudioSet", "bbc_final": "BBC", "fsd_final": "FreeSound", "sb_final": "SoundBible"}
NUMBERED = ("FreeSound", "SoundBible")  # sources whose numbers may be the same
AUDIOSET_NAMES = "mid_to_display_name.tsv"
Row = dict[str, str]


@dataclass(frozen=True)
class ListedClip:
    """A line of a list. `names` are those that its file may have, without ending; `within` a word of its path, where
    files in several folders may have the same name. `annotation` has keys of a manifest."""

    id: str
    names: tuple[str, ...]
    texts: tuple[str, ...] = ()
    labels: bool = False  # what the texts are
    within: str = ""
    annotation: dict[str, Any] = field(default_factory=dict)


def read_list(name: str, paths: Sequence[Path], split: str = "test") -> list[ListedClip]:
    """The clips of a set in the order of its files.

    Raises ValueError where a file is missing, of another format or without a clip of `split`, or two clips have the
    same id.
    """
    clips: list[ListedClip] = []
    for path in paths:
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}; give the published list") from None
        try:
            clips += READERS[name](text, path, split)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, csv.Error) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: no list of {name} as it was published: {reason}") from None
    if not clips:
        raise ValueError(f"{join([str(path) for path in paths])}: no clip of {name} in the split {split!r}")
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise ValueError(f"{clip.id!r} is there twice in the list of {name}; give each file once")
        seen.add(clip.id)
    return clips


def _rows(text: str, separator: str, *columns: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise KeyError(missing[0])
    for row in reader:
        if None in row or any(row[name] is None for name in columns):
            raise ValueError(f"line {reader.line_num} has another number of cells than the first")
        yield row


def _youtube_names(video: str, start: float, end: float) -> tuple[str, ...]:
    """As the usual programs for downloading call a piece of a video."""
    a, b = round(start), round(end)
    return (
        *(f"{before}{video}" + after for before in ("", "Y")
          for after in (f"_{a}", f"_{a:06d}", f"_{a}_{b}", f"_{1000 * a}_{1000 * b}", "")),
        f"[{video}]-[{a}-{b}]",
    )  # fmt: skip


def _audiocaps(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    for row in _rows(text, ",", "audiocap_id", "youtube_id", "start_time", "caption"):
        start = float(row["start_time"])
        names = _youtube_names(row["youtube_id"], start, start + CLIP)
        yield ListedClip(row["audiocap_id"], (*names, row["audiocap_id"]), (row["caption"],))


def _vggsound(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    for number, row in enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1):
        if not row:
            continue
        if len(row) != 4 or row[3] not in ("train", "test"):
            raise ValueError(f"line {number} is not youtube_id,second,label,train or test: {row}")
        video, start, label, of = row
        if of == split:
            names = _youtube_names(video, float(start), float(start) + CLIP)
            yield ListedClip(f"{video}_{int(start):06d}", names, (label,), True, annotation={"category": {label: None}})


def _musiccaps(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    for row in _rows(text, ",", "ytid", "start_s", "end_s", "caption"):
        names = _youtube_names(row["ytid"], float(row["start_s"]), float(row["end_s"]))
        yield ListedClip(row["ytid"], names, (row["caption"],))


def _v2m(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    for line in dict.fromkeys(text.split()):
        name = PurePosixPath(line).name
        yield ListedClip(PurePosixPath(name).stem if name.endswith(".mp4") else name, (name.removesuffix(".mp4"),))


def _avvp(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    for row in _rows(text, "\t", "filename", "event_labels"):
        name, labels = row["filename"], row["event_labels"].split(",")
        said = tuple(label.strip().replace("_", " ") for label in labels)
        names = (name, f"Y{name}", *_avvp_names(name))
        yield ListedClip(name, names, (", ".join(said),), True, annotation={"category": dict.fromkeys(said)})


def _avvp_names(name: str) -> tuple[str, ...]:
    video, rest = name[:YOUTUBE_ID], name[YOUTUBE_ID:].strip("_").split("_")
    if len(rest) != 2 or not all(part.isdecimal() for part in rest):
        raise ValueError(f"{name!r} is not YOUTUBEID_START_END")
    return _youtube_names(video, float(rest[0]), float(rest[1]))


def _audiotime(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    kind = steam_kind(path)
    for name, clip in strict.parse_json(text).items():
        events = clip["event"]
        annotation: dict[str, Any] = {"category": {event: len(found) for event, found in events.items()}}
        if kind in ("ordering", "timestamp"):
            spans = [(*span(*pair), event) for event, found in events.items() for pair in found]
            annotation["SED"] = [{"start": a, "end": b, "event": event} for a, b, event in sorted(spans)]
        yield ListedClip(
            f"{kind}_{name}", (f"{kind}_{name}", name), (steam_caption(clip),), within=kind, annotation=annotation
        )


def steam_caption(clip: Mapping[str, Any]) -> str:
    """The caption of AudioTime's clip. Some lists have a second text after it, the answer to a check of it.

    Raises ValueError where it is no text.
    """
    caption = clip["caption"]
    first = caption[0] if isinstance(caption, list) and caption else caption
    if not isinstance(first, str):
        raise ValueError(f"{strict.shown(repr(caption))} is no caption")
    return first


def steam_kind(path: Path) -> str:
    """Which of the four kinds a list of AudioTime is of, by its name. Raises ValueError where the name does not say."""
    kinds = [kind for kind in STEAM_KINDS if kind in path.name]
    if len(kinds) != 1:
        raise ValueError(f"its name says none of {join(STEAM_KINDS)}; name it as it was published")
    return kinds[0]


def span(start: object, end: object) -> tuple[float, float]:
    """Seconds of an event. Raises ValueError where they are no finite numbers from 0 on, or in the wrong order."""
    a, b = seconds(start), seconds(end)
    if b < a:
        raise ValueError(f"an event from {a:g} to {b:g} s does not start before it ends")
    return a, b


def seconds(value: object) -> float:
    """Raises ValueError where it is no finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST:
        raise ValueError(f"{strict.shown(repr(value))} is no number of seconds")
    return float(value)


def _clotho(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    columns = [f"caption_{i}" for i in range(1, 6)]
    for row in _rows(text, ",", "file_name", *columns):
        name = row["file_name"].removesuffix(".wav")
        yield ListedClip(name, (name,), tuple(row[column] for column in columns))


def _wavcaps(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    """Numbers of FreeSound and SoundBible can be the same, so the source belongs to the id and to the folder."""
    data = strict.parse_json(text)
    source = next((source for part, source in WAVCAPS_SOURCES.items() if part in path.name), "")
    for clip in data if isinstance(data, list) else data["data"]:  # the first release was a list
        name = str(clip["id"]).removesuffix(".wav")
        within = source if source in NUMBERED else ""
        yield ListedClip(f"{within}_{name}" if within else name, (name,), (clip["caption"],), within=within)


def _audioset(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    names = _display_names(path.with_name(AUDIOSET_NAMES))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(text, "\t", "segment_id", "start_time_seconds", "end_time_seconds", "label"):
        start, end = span(float(row["start_time_seconds"]), float(row["end_time_seconds"]))
        found.setdefault(row["segment_id"], []).append({"start": start, "end": end, "event": names[row["label"]]})
    for segment, events in found.items():
        video, _, milliseconds = segment.rpartition("_")
        begin = seconds(float(milliseconds) / 1000)
        labels = dict.fromkeys(event["event"] for event in events)
        annotation = {"category": labels, "SED": sorted(events, key=lambda event: (event["start"], event["end"]))}
        files = (segment, *_youtube_names(video, begin, begin + CLIP))
        yield ListedClip(segment, files, (", ".join(labels),), True, annotation=annotation)


def _display_names(path: Path) -> dict[str, str]:
    """Names of AudioSet's labels by their machine ids."""
    try:
        return dict(line.split("\t", 1) for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; it is published with the list, and has the labels' names"
        ) from None


def _greatesthits(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    for name in text.split():
        yield ListedClip(name, (f"{name}_denoised", f"{name}_mic", name))


def _mucaps(text: str, path: Path, split: str) -> Iterator[ListedClip]:
    for file, caption in strict.parse_json(text).items():
        name = PurePosixPath(file).stem
        yield ListedClip(name, (name,), (caption,))


READERS: dict[str, Callable[[str, Path, str], Iterator[ListedClip]]] = {
    "audiocaps": _audiocaps,
    "vggsound": _vggsound,
    "musiccaps": _musiccaps,
    "v2m": _v2m,
    "avvp": _avvp,
    "audiotime": _audiotime,
    "clotho": _clotho,
    "wavcaps": _wavcaps,
    "audioset": _audioset,
    "greatesthits": _greatesthits,
    "mucaps": _mucaps,
}
