"""Real sound at 44.1 kHz is judged with the films that it is to fit, from the command line to report and page."""

import json

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.launch import evaluate
from audiox_trainer.trainer.scorers import scoring
from audiox_trainer.trainer.scorers.scorer import Metric, Scorer
from tests.helpers.beats import RATE, beat, film_of_beat
from tests.helpers.media_files import film
from tests.helpers.scorer_weights import (
    released_avsync,
    released_imagebind,
    save_clap,
    save_released,
    small_panns,
    small_vggish,
)

COUNT, SECONDS = 4, 5.2


class Level(torch.nn.Module):
    """The mean size of a sound, or of pictures."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().flatten(1).mean(dim=1, keepdim=True)


class Brighter(torch.nn.Module):
    """0.9 where the pictures are brighter than the sound is loud, or else 0.1."""

    def forward(self, sound: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        return 0.1 + 0.8 * (video[:, 0] > sound[:, 0]).float()


def sound(i, noise, kit=0):
    wave = beat(i, SECONDS, kit) + noise * np.random.default_rng(i).standard_normal(round(SECONDS * RATE))
    return np.stack([wave, 0.8 * wave]).astype(np.float32)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Films, whose sounds are the references, two systems, and scorers that hear and see."""
    folder = tmp_path_factory.mktemp("films")
    lines = []
    for name in ("near", "far"):
        (folder / name).mkdir()
    for i in range(COUNT):
        film_of_beat(folder / f"{i}.mp4", i, SECONDS)
        soundfile.write(folder / f"near/film{i}.wav", sound(i, 0.002).T, RATE)
        soundfile.write(folder / f"far/film{i}.wav", sound(i + 7, 0.1, kit=5).T, RATE)
        lines.append({"video": f"{i}.mp4", "text": "a beat", "out": f"film{i}.wav", "reference": f"{i}.mp4"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.jit.script(Level()).save(str(folder / "level.pt"))
    torch.jit.script(Brighter()).save(str(folder / "brighter.pt"))
    save_released(folder / "imagebind", "imagebind", released_imagebind())
    save_released(folder / "avsync", "avsync", released_avsync())
    small_panns(folder / "panns")
    small_vggish(folder / "vggish")
    save_clap(folder / "clap")
    files = {"sound": "level.pt", "video": "level.pt", "pair": "brighter.pt", "rate": 16000, "seconds": 5.0}
    pair = {"kind": "pair", "name": "AlignAcc", **files, "frames": 4, "size": 32, "round": True}
    scorers = [{"kind": kind, "weights": kind} for kind in ("imagebind", "avsync", "panns", "vggish", "clap")]
    scorers[2] |= {"parts": 2}
    (folder / "scorers.json").write_text(json.dumps({"scorers": [*scorers, pair]}))
    return folder


def judge(bench, out, *more, sounds=("near", "far"), prompts="prompts.jsonl", scorers="scorers.json"):
    words = ["--sounds", *(str(bench / name) for name in sounds), "--reference", str(bench / prompts)]
    words += ["--scorers", str(bench / scorers), "--out", str(out / "report.json"), "--resamples", "20"]
    evaluate.run_sounds(evaluate.parse([*words, "--cache", str(bench / "features"), *more]))
    return json.loads((out / "report.json").read_text())


def value(report, sounds, metric):
    return next(row["value"] for row in report["results"] if (row["sounds"], row["metric"]) == (sounds, metric))


@pytest.mark.slow
def test_sounds_are_judged_with_their_films(bench, tmp_path, capsys):
    report = judge(bench, tmp_path, "--html", str(tmp_path / "page.html"))
    assert {row["metric"] for row in report["results"]} == {"AV", "AVSync", "AlignAcc", "FD", "KL", "IS", "FAD", "CLAP"}
    assert report["judged"] == COUNT and report["left_out"] == []
    for name in ("near", "far", "reference"):
        assert -1 < value(report, name, "AV") < 1 and 0 <= value(report, name, "AVSync") <= 2
    assert value(report, "near", "AlignAcc") == 1  # pictures of black and white squares against a soft sound
    for metric in ("FD", "FAD"):
        assert 0 < value(report, "near", metric) < value(report, "far", metric)
    assert (tmp_path / "page.html").read_text().count("<audio") >= 3
    assert "AVSync" in capsys.readouterr().out
    again = judge(bench, tmp_path)
    assert {**again, "created": ""} == {**report, "created": ""}


@pytest.mark.slow
def test_what_is_wrong_with_a_video_is_refused_or_left_out_by_name(bench, tmp_path):
    film(bench / "short.mp4", 3.0, rate=10)
    (bench / "broken.mp4").write_bytes(b"no film")
    videos = {0: "gone.mp4", 1: "short.mp4", 2: "broken.mp4", 3: None}
    lines = [json.loads(line) for line in (bench / "prompts.jsonl").read_text().splitlines()]
    more = []
    for i, line in enumerate(lines):
        soundfile.write(bench / f"near/more{i}.wav", sound(i, 0.02).T, RATE)
        changed = line | {"video": videos[i], "out": f"more{i}.wav"}
        more.append({key: v for key, v in changed.items() if v is not None})
    (bench / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    with pytest.raises(ValueError, match="4 sounds cannot be judged; --leave-out") as refusal:
        judge(bench, tmp_path, sounds=("near",), prompts="more.jsonl")
    for words in ("video: more0: missing", "video: more1: too short", "video: more2: undecodable"):
        assert words in str(refusal.value)
    assert "video: more3: missing (the prompt names no video)" in str(refusal.value)
    report = judge(bench, tmp_path, "--leave-out", sounds=("near",), prompts="more.jsonl")
    assert report["judged"] == COUNT and {row["id"] for row in report["left_out"]} == {f"more{i}" for i in range(4)}
    # A scorer that only hears asks for no video.
    (bench / "hears.json").write_text(json.dumps({"scorers": [{"kind": "panns", "weights": "panns", "parts": 2}]}))
    assert judge(bench, tmp_path, sounds=("near",), prompts="more.jsonl", scorers="hears.json")["judged"] == 8
    for line in lines:
        del line["video"]
    (bench / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for i in range(4):
        (bench / f"near/more{i}.wav").unlink()
    with pytest.raises(ValueError, match="scorer imagebind compares sound with video, and no line of the prompts"):
        judge(bench, tmp_path, sounds=("near",), prompts="texts.jsonl")


class Looker(Scorer):
    """Keeps what it sees."""

    def __init__(self, form):
        metric = Metric("seen", "video", "higher", "of a test")
        super().__init__("looker", 8000, 0.1, [metric], "looker", {})
        self.pictures, self.seen = form, []

    def features(self, waves):
        return [{"embedding": torch.ones(1, 2)} for _ in waves]

    def picture_features(self, videos):
        self.seen += videos
        return [{"embedding": torch.ones(1, 2)} for _ in videos]


def test_a_video_is_seen_once_from_where_its_sound_begins(tmp_path, monkeypatch):
    from audiox_trainer.trainer.scorers.pictures import PictureFormat, VideoClip

    path = film(tmp_path / "film.mp4", 2.0, width=96, height=32)
    looker = Looker(PictureFormat(5.0, 32, crops=3))
    clips = [VideoClip(path), VideoClip(path, 1.0), VideoClip(path, 1.0, 0.4)]
    run = scoring.SoundScoring([], [looker], tmp_path / "cache", videos=clips)
    run.run()
    assert [tuple(video.shape) for video in looker.seen] == [(10, 3, 3, 32, 32), (5, 3, 3, 32, 32), (2, 3, 3, 32, 32)]
    levels = [round(float(picture.float().mean()) / 4) for picture in looker.seen[1]]
    assert levels == pytest.approx([25, 30, 35, 40, 45], abs=1)  # frame i has brightness 4·i
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    again = Looker(looker.pictures)
    more = scoring.SoundScoring([], [again], tmp_path / "cache", videos=[VideoClip(copy), VideoClip(copy, 1.2)])
    more.run()
    assert len(again.seen) == 1
    assert set(more.results()) == {VideoClip(copy), VideoClip(copy, 1.2)}
