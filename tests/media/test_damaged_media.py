"""Many files, a tenth of them damaged in ten ways: every good one is kept, every bad one named, and memory stays
flat."""

import contextlib
import json
import multiprocessing.forkserver
import os
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest

from audiox_trainer.trainer.data.shards import check_shards
from tests.helpers.media_files import mixed
from tests.helpers.preparation import manifest, records, sound, start_driver

pytestmark = pytest.mark.slow


def film(path, seconds=1.0, audio=True):
    """A small video, with sound or without."""
    rate = 8000
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=8)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        tone = container.add_stream("aac", rate=rate) if audio else None
        for i in range(round(8 * seconds)):
            picture = np.full((32, 32, 3), 20 * i % 255, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(pictures.encode(None))
        if tone:
            wave = np.sin(np.arange(round(rate * seconds)) / 3).astype(np.float32)[None] * 0.5
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux(tone.encode(frame))
            container.mux(tone.encode(None))


def corrupted(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = os.urandom(200)
    path.write_bytes(data)


CUT = (("flac", None, "flac"), ("mp4", "libx264", "aac"), ("mkv", "libx264", "aac"), ("mp3", None, "libmp3lame"))


def damage(kind, folder, name, turn=0):
    """A file of a kind of damage, in one container or another by `turn` -> its line, the reason that is expected."""
    path = folder / f"{name}.flac"
    line = {"audio": path.name}
    if kind == "missing":
        return line, "missing"
    if kind == "zero bytes":
        path.touch()
        return line, "zero length"
    if kind == "wrong extension":
        path = path.with_suffix(".wav")
        path.write_text("these are words, and no sound\n" * 50)
        return {"audio": path.name}, "undecodable"
    if kind == "no audio":
        film(folder / f"{name}.mp4", audio=False)
        return {"video": f"{name}.mp4"}, "no audio track"
    if kind == "no video":
        sound(path, 1.0)
        return {"audio": path.name, "video": path.name}, "no video track"
    if kind == "0 s":
        sound(path, 0.0)
        return line, "zero length"
    if kind == "silent":
        sound(path, 1.0, level=0.0)
        return line, "silent"
    rng = np.random.default_rng(0)
    sound(path, wave=0.3 * rng.standard_normal(16000).clip(-3, 3))  # noise: a byte of flac is a byte of sound
    if kind == "truncated":
        ending, pictures, coding = CUT[turn % len(CUT)]
        if ending != "flac":
            options = {"movflags": "faststart"} if ending == "mp4" else {}
            path = mixed(folder / f"{name}.{ending}", pictures, coding, seconds=2.0, **options)
            line = {"video" if pictures else "audio": path.name}
        os.truncate(path, path.stat().st_size // 2)
        return line, "truncated"
    if kind == "corrupt stream":
        corrupted(path)
        return line, "undecodable"
    assert kind == "unreadable"
    path.chmod(0)
    return line, "unreadable"


KINDS = (
    "truncated",
    "zero bytes",
    "wrong extension",
    "no audio",
    "no video",
    "0 s",
    "silent",
    "corrupt stream",
    "unreadable",
    "missing",
)


def memory():
    """Bytes of all processes that were forked for this test, what they share counted once."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that has just ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == server:
                lines = stat.with_name("smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.long)])
def test_a_tenth_is_damaged(folder, forkserver, count):
    """Decoded by another user than root, to whom no file is closed."""
    lines, expected = [], {}
    for i in range(count):
        if i % 10 == 7:
            line, reason = damage(KINDS[i // 10 % 10], folder, f"bad{i}", turn=i // 100)
            expected[i + 1] = reason
        elif i % 10 == 3:
            film(folder / f"good{i}.mp4")
            line = {"video": f"good{i}.mp4"}
        else:
            sound(folder / f"good{i}.flac", 0.5 + i % 3, level=0.4)
            line = {"audio": f"good{i}.flac"}
        lines.append(line)
    out, used = folder / "out", []
    driver = start_driver(out, manifest(folder, *lines), workers=2, nobody=True)
    while driver.is_alive():
        if list(out.glob("work/blocks/*.json")):  # processes have started
            used.append(memory())
        driver.join(0.1)
    assert driver.exitcode == 0
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {r["line"]: r["reason"] for r in rejected} == expected and len(rejected) == count // 10
    assert all(lines[r["line"] - 1].get("audio", lines[r["line"] - 1].get("video")) == r["audio"] for r in rejected)
    kept = {int(record.id.split("-")[1]) for record in records(out / "audio")}
    assert kept == set(range(1, count + 1)) - expected.keys()
    check_shards(out / "audio", hashes=True)
    first, second = max(used[: len(used) // 2]), max(used[len(used) // 2 :])
    assert second < 1.1 * first + 20e6, f"{first / 1e6:.0f} MB in the first half, {second / 1e6:.0f} MB in the second"


@pytest.fixture
def folder():
    """One that another user may read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
