"""Music is taken from speech: stems become files that the new lines name, whatever happens on the way."""

import json
import multiprocessing
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.trainer.core.cli import run
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.media.clips import read_clips
from audiox_trainer.trainer.stages.measure import PICTURES, SOUND
from audiox_trainer.trainer.stages.separate import Separation, separate_manifest, wanted_sums
from audiox_trainer.trainer.stages.separators import Separator, load_separator
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.exported import HalfAndRest, export
from tests.helpers.killing import kill, makers
from tests.helpers.media_files import shown_film, sine
from tests.helpers.preparation import manifest, sound

CPU = torch.device("cpu")


def separator_of(network, seconds=1.0, overlap=0.25, **settings):
    return Separator("hand-made", "", 8000, 2, ("one", "other"), seconds, overlap, network, **settings)


def separated(separator, wave, sums):
    steps = separator.separate(wave, sums)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def parts(mix):
    return torch.stack((0.25 * mix, 0.75 * mix), dim=1)


@pytest.mark.parametrize("samples", [1, 7999, 8000, 8001, 14000, 14001, 50_000])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_fade_into_each_other(samples, overlap):
    wave = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    for levelled in (False, True):
        found = separated(separator_of(parts, 1.0, overlap, levelled=levelled), wave, [[0], [1], [0, 1]])
        assert found.shape == (3, 2, samples) and found.dtype == np.float32
        np.testing.assert_allclose(found, wave * np.array([0.25, 0.75, 1.0])[:, None, None], atol=1e-5)


def test_a_seam_is_a_mean_of_both_sides():
    """A network that gives another constant for each window."""
    count = iter(range(10))
    separator = separator_of(lambda mix: torch.full((1, 2, *mix.shape[1:]), float(next(count))), 1.0, 0.25)
    (found,) = separated(separator, np.zeros((2, 14000), np.float32), [[0]])
    assert (found[:, :6000] == 0).all() and (found[:, 8000:] == 1).all()
    assert np.all(np.diff(found[0, 6000:8000]) > 0)


def test_what_is_not_as_declared():
    for network in (lambda mix: mix, lambda mix: parts(mix)[:, :1], lambda mix: parts(mix) / 0):
        with pytest.raises(
            ValueError, match=r"hand-made: gives \(1, .* expected finite \(1, 2, 2, 8000\), of the stems"
        ):
            separated(separator_of(network), np.ones((2, 100), np.float32), [[0]])


def test_which_stems_are_wanted():
    demucs = ("drums", "bass", "other", "vocals")
    assert wanted_sums((), demucs) == {"drums+bass+other": [0, 1, 2]}
    assert wanted_sums((), ("speech", "music", "noise")) == {"music": [1]}
    assert wanted_sums(("vocals", "bass+drums"), demucs) == {"vocals": [3], "bass+drums": [1, 0]}
    with pytest.raises(
        ValueError, match="--stems bass\\+piano: no stem 'piano'; expected sums of drums, bass, other, vocals"
    ):
        wanted_sums(("bass+piano",), demucs)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The JSON of a network in a file: a quarter of the sound is music, the rest speech; of a quiet sound all is."""
    folder = tmp_path_factory.mktemp("model")
    export(HalfAndRest(), folder / "parts.ts", 1, 2, 8000)
    about = {"file": "parts.ts", "rate": 16000, "stems": ["music", "speech"], "seconds": 2.0, "overlap": 0.5}
    (folder / "parts.json").write_text(json.dumps(about))
    return str(folder / "parts.json")


def media(folder):
    for name, level in (("a", 0.8), ("b", 0.6), ("quiet", 0.05)):
        sound(folder / f"{name}.flac", 5.0, level)
    pictures = np.random.default_rng(0).integers(0, 256, (25, 3, 32, 32), dtype=np.uint8)
    shown_film(folder / "film.mp4", pictures, sine(300.0, seconds=5.0))
    music = {"domain": "music"}
    return manifest(
        folder,
        music | {"audio": "a.flac", "start": 1.0, "end": 3.5, "genre": "jazz", "kit": "x"},
        {"audio": "b.flac"},
        music | {"audio": "quiet.flac"},
        music | {"audio": "none.flac"},
        music | {"video": "film.mp4", "start": 1.0, "end": 4.0},
    )


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_manifest(tmp_path, model, forkserver):
    path = media(tmp_path)
    new = tmp_path / "new"
    separation = Separation(model, tmp_path, new / "stems")
    summary = separate_manifest(path, new / "out.jsonl", separation, StageWorkers(2))
    assert summary.left_out == {"missing": 1, "silent stem": 1} and summary.kept_lines == 3
    first, other, film = lines_of(new / "out.jsonl")
    source = {"audio": str(tmp_path / "a.flac"), "start": 1.0, "end": 3.5, "stem": "music", "model": "parts"}
    assert first == {
        "domain": "music", "audio": "stems/000000/000000001.music.flac", "genre": "jazz", "kit": "x",
        "separated": source,
    }  # fmt: skip
    assert other == {"audio": str(tmp_path / "b.flac")}, "of another domain"
    info = soundfile.info(new / first["audio"])
    assert (info.samplerate, info.channels, info.subtype) == (16000, 2, "PCM_16")
    assert info.duration == pytest.approx(2.5, abs=0.01)
    wave, _ = soundfile.read(new / first["audio"])
    assert np.abs(wave).max() == pytest.approx(0.2, rel=0.05), "a quarter of it"
    # The film's line keeps its place, and its new sound is as long as the film to there.
    assert film["video"] == str(tmp_path / "film.mp4") and (film["start"], film["end"]) == (1.0, 4.0)
    wave, rate = soundfile.read(new / film["audio"])
    assert not wave[: rate - 100].any() and wave[rate + 100 :].any() and len(wave) == pytest.approx(4 * rate, abs=50)
    entry = read_entries(new / "out.jsonl")[2]
    clips = list(read_clips(entry.audio, entry.video, SOUND, PICTURES, entry.start, entry.end))
    assert len(clips) == 3 and clips[0].peak > -30 and len(clips[0].images) == 5
    rows = lines_of(new / "out.jsonl.left_out.jsonl")
    assert [(row["line"], row["reason"]) for row in rows] == [(3, "silent stem"), (4, "missing")]
    assert rows[0]["detail"] == "nothing of music above -80 dB is left"
    page = (new / "out.jsonl.html").read_text()
    assert "Music peak" in page and "Threshold: -80" in page and "silent stem" in page


@pytest.mark.slow
def test_several_stems_and_workers(tmp_path, model, forkserver):
    """A line per stem; two workers write the bytes of one."""
    path, found = media(tmp_path), []
    for workers in (1, 2):
        out = tmp_path / f"{workers}/out.jsonl"
        separation = Separation(model, tmp_path, out.parent / "stems", ("speech", "music+speech"), ("audio", "music"))
        assert separate_manifest(path, out, separation, StageWorkers(workers)).kept_lines == 8
        files = contents(out.parent)
        del files["out.jsonl.html"]  # it says how long it took
        found.append(files)
    assert found[0] == found[1] and len(found[0]) == 8 + 2
    names = [line["audio"] for line in lines_of(tmp_path / "1/out.jsonl")]
    assert names[:3] == [f"stems/000000/00000000{n}.flac" for n in ("1.speech", "1.music+speech", "2.speech")]


def many(folder, count):
    for i in range(count):
        sound(folder / f"{i}.flac", 0.5 + i % 3, 0.3 + 0.01 * i)
    return manifest(folder, *({"audio": f"{i}.flac", "domain": "music"} for i in range(count)))


def command(path, out, model):
    separation = Separation(model, out.parent, out.parent / "stems")
    sys.exit(run(lambda: print(separate_manifest(path, out, separation, StageWorkers(2)))))


@pytest.mark.slow
def test_killed_and_started_again(tmp_path, model, forkserver):
    """The driver once, and a maker: the bytes of an undisturbed run, and no halves of files."""
    path, rng = many(tmp_path, 30), np.random.default_rng(0)
    out, undisturbed, context = (
        tmp_path / "one/out.jsonl",
        tmp_path / "two/out.jsonl",
        multiprocessing.get_context("forkserver"),
    )
    for last in (False, True):
        driver = context.Process(target=command, args=(path, out, model))
        driver.start()
        while driver.is_alive() and len(list(out.parent.glob("out.jsonl.work/blocks/*"))) < 5 * (1 + last):
            time.sleep(0.01)
        if found := makers(driver.pid):
            kill(rng.choice(found))
        if not last:
            driver.kill()
            (left := out.parent / "stems/000000/.x.flac.partial-0").parent.mkdir(parents=True, exist_ok=True)
            left.write_bytes(b"half")
        driver.join(600)
    assert driver.exitcode == 0
    separate_manifest(path, undisturbed, Separation(model, tmp_path, tmp_path / "two/stems"), StageWorkers(1))
    ours, theirs = (contents(each.parent) for each in (out, undisturbed))
    del ours["out.jsonl.html"], theirs["out.jsonl.html"]
    assert ours == theirs and len(ours) == 32


@pytest.mark.slow
def test_what_is_refused(tmp_path, model, forkserver):
    path = many(tmp_path, 2)
    out, stems = tmp_path / "out.jsonl", tmp_path / "stems"

    def refused(message, **changes):
        settings = {"model": model, "weights": tmp_path / "weights", "out_dir": stems} | changes
        with pytest.raises(ValueError, match=message):
            separate_manifest(path, out, Separation(**settings), StageWorkers())

    refused("none.json: no such configuration.*; give a JSON file that describes a separator", model="none.json")
    refused("--stems piano: no stem 'piano'; expected sums of music, speech", stems=("piano",))
    refused(
        r"--model htdemucs: .*(pip install 'audiox-trainer\[separate\]'|hf download adefossez/HTDemucs)",
        model="htdemucs",
    )
    wrong = {"file": "parts.ts", "rate": 16000, "stems": ["a"], "seconds": 1.0, "overlap": 0.75}
    for changes, message in (
        ({}, r"wrong\.json: overlap: 0\.75; at most half of seconds, 1"),
        ({"overlap": 0.0, "stems": ["a/b"]}, r"wrong\.json: stems\[0\]: 'a/b' is not allowed"),
        ({"overlap": 0.0, "stems": ["a", "a"]}, r"wrong\.json: stems: \['a', 'a'\]; each needs its own"),
        ({"overlap": 0.0}, r"parts\.ts: no such file; give the TorchScript"),
    ):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong | changes))
        refused(message, model=str(tmp_path / "wrong.json"))
    export(HalfAndRest(), tmp_path / "parts.ts", 1, 2, 8000)
    refused(r"parts: gives \(1, 2, 2, 16000\) for .* of the stems a", model=str(tmp_path / "wrong.json"))
    assert not stems.exists() and not list(tmp_path.glob("out.jsonl*"))
    stems.mkdir()
    (stems / "mine.flac").write_bytes(b"mine")
    refused(f"{stems} is not empty and is left as it is; remove it or choose another --out-dir")
    assert (stems / "mine.flac").read_bytes() == b"mine"


def test_demucs_from_local_files(tmp_path):
    """A small network of its class with random weights, as its package reads them."""
    htdemucs = pytest.importorskip("demucs.htdemucs")
    from safetensors.torch import save_file

    kwargs = {"sources": ["drums", "bass", "other", "vocals"], "channels": 16, "depth": 4, "t_layers": 1, "nfft": 1024,
              "segment": 2, "samplerate": 8000, "bottom_channels": 16, "t_heads": 2}  # fmt: skip
    torch.manual_seed(0)
    network = htdemucs.HTDemucs(**kwargs)
    metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps(kwargs)}
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "1a2b.safetensors", metadata)
    (tmp_path / "htdemucs.yaml").write_text("models: ['1a2b']\n")
    separator = load_separator("htdemucs", tmp_path, CPU)
    assert separator.stems == ("drums", "bass", "other", "vocals") and separator.seconds == 2.0
    wave = np.stack([sine(440.0, 5.0, 8000), sine(300.0, 5.0, 8000)])
    first, second = (separated(separator, wave, [[0, 1, 2], [3]]) for _ in range(2))
    assert first.shape == (2, 2, 40000) and np.array_equal(first, second) and np.abs(first).max() > 0
    save_file({"x": torch.zeros(1)}, tmp_path / "1a2b.safetensors", metadata | {"klass": "os.system"})
    with pytest.raises(ValueError, match=r"1a2b\.safetensors holds 'os\.system', not one of demucs\.htdemucs"):
        load_separator("htdemucs", tmp_path, CPU)
    (tmp_path / "htdemucs.yaml").unlink()
    with pytest.raises(ValueError, match=r"No such file.*`hf download adefossez/HTDemucs --local-dir"):
        load_separator("htdemucs", tmp_path, CPU)
