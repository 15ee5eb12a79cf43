"""Networks judge lines: the recipes that come along, with networks whose answers are known, leave out the files that
they are made for; scorers with random weights give each line its number."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.scorers.config import NetworkConfig, PairConfig, PicturesConfig, ReleasedConfig
from audiox_trainer.trainer.stages.curate import filter_manifest
from audiox_trainer.trainer.stages.filter import FilterJudge
from audiox_trainer.trainer.stages.filter_config import LineFilters, ScorerFilter, read_filters
from audiox_trainer.trainer.stages.scorer_filters import check_scorers
from audiox_trainer.trainer.stages.stage import StageTask, StageWorkers
from tests.helpers import exported
from tests.helpers.exported import export, export_of
from tests.helpers.media_files import shown_film, sine
from tests.helpers.preparation import manifest, sound
from tests.helpers.scorer_weights import released_avsync, save_clap, save_released, small_panns
from tests.helpers.small_config import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]
RECIPES = ("sound", "music", "video")


@pytest.fixture(scope="module")
def handmade(tmp_path_factory):
    """A scorer in a file for each released kind of the recipes, with the name of its metric."""
    folder, second, pictures = tmp_path_factory.mktemp("networks"), (2, 16000), torch.zeros(1, 10, 3, 16, 16)
    tags = export(exported.Tags(), folder / "tags.ts", *second)
    level = export(exported.Level(), folder / "level.ts", *second)
    offset = export(exported.Offset(), folder / "offset.ts", *second)
    bright = export_of(exported.MeanBrightness(), folder / "bright.ts", pictures)
    near, far = (
        export_of(module, folder / f"{name}.ts", torch.zeros(1, 1), torch.zeros(1, 1))
        for name, module in (("near", exported.Nearness()), ("far", exported.Distance()))
    )
    of_pair = {"video": bright, "rate": 16000, "seconds": 2.0, "frames": 5.0, "size": 16}
    return {
        "panns": NetworkConfig("network", "tags", tags, 16000, "probabilities"),
        "audiobox": NetworkConfig("network", "level", level, 16000, "scores", columns=("PQ",)),
        "clap": NetworkConfig("network", "offset", offset, 16000, "scores", columns=("CLAP",)),
        "imagebind": PairConfig("pair", "AV", sound=level, pair=near, **of_pair),
        "avsync": PairConfig("pair", "AVSync", sound=offset, pair=far, **of_pair),
    }


def tone(hertz=300.0, level=0.55, offset=0.0):
    return sine(hertz, 4.0, 8000, level) + np.float32(offset)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A manifest of sounds and films, each of which is good but for one thing."""
    folder, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
    low, high = tone(), tone(2000.0)
    both = np.concatenate([low[:16000], high[16000:]])
    sounds = {
        "low": low, "high": high, "both": both, "weak": 0.4 * both, "weak low": 0.6 * low, "loud high": 1.3 * high,
        "offset": both - 0.1, "offset low": low - 0.1,
    }  # fmt: skip
    for name, wave in sounds.items():
        sound(folder / f"{name}.flac", wave=wave)
    for name, most in (("grey", 256), ("dark", 40)):
        pictures = rng.integers(0, most, (20, 3, 8, 8), dtype=np.uint8).repeat(8, axis=2).repeat(8, axis=3)
        shown_film(folder / f"{name}.mp4", pictures, sine(seconds=4.0))
    lines = [{"audio": f"{name}.flac"} for name in sounds]
    films = [("low", "grey"), ("low", "dark"), ("high", "grey"), ("weak low", "grey"), ("offset low", "grey")]
    lines += [{"audio": f"{heard}.flac", "video": f"{seen}.mp4"} for heard, seen in films]
    return manifest(folder, *lines, {"audio": "both.flac", "title": "The news"})


def recipe(name, handmade):
    """A recipe that comes along, with networks whose answers are known."""
    filters = read_filters(ROOT / f"configs/filters_{name}.json")
    return replace(filters, scorers=tuple(replace(s, scorer=handmade[s.scorer.kind]) for s in filters.scorers))


EXPECTED = {  # by recipe: the reason of each line, "" for a kept one
    "sound": [
        "music", "speech", "", "quality", "music", "speech", "fits its text", "music",
        "music", "music", "speech", "music", "music", "word",
    ],
    "music": [
        "", "music", "music", "music", "quality", "speech", "music", "fits its text",
        "", "", "music", "quality", "fits its text", "word",
    ],
    "video": [
        "", "speech", "", "quality", "quality", "speech", "", "",
        "", "fits its pictures", "speech", "quality", "out of time", "word",
    ],
}  # fmt: skip


def judged(filters, entry):
    *_, result = FilterJudge(filters)(StageTask(entry))
    return result


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_out_what_it_is_for(name, handmade, media):
    results = [judged(recipe(name, handmade), entry) for entry in read_entries(media)]
    reasons = [result.left_out[0].reason if result.left_out else "" for result in results]
    assert reasons == EXPECTED[name]
    kept = [result.changes[0]["scores"] for result in results if result.changes]
    assert all(scores["quality"] == pytest.approx(5.6, abs=0.2) for scores in kept)


def test_two_workers_give_the_bytes_of_one(handmade, media, tmp_path):
    filters, texts = recipe("video", handmade), []
    for workers in (1, 2):
        out = tmp_path / f"{workers}/kept.jsonl"
        summary = filter_manifest(media, out, filters, StageWorkers(workers))
        left_out = (out.parent / "kept.jsonl.left_out.jsonl").read_text()
        texts.append(out.read_text() + left_out)
    assert texts[0] == texts[1]
    rows = [json.loads(line) for line in left_out.splitlines()]
    expected = {line: reason for line, reason in enumerate(EXPECTED["video"], start=1) if reason}
    assert {row["line"]: row["reason"] for row in rows} == expected
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert summary.kept_lines == len(kept) == EXPECTED["video"].count("")
    assert all("quality" in line["scores"] for line in kept)
    page = (out.parent / "kept.jsonl.html").read_text()
    for scorer in filters.scorers:
        assert scorer.name.capitalize() in page and f"Threshold: {scorer.limit:g}" in page


@pytest.mark.parametrize("name", RECIPES)
def test_missing_networks_are_refused_with_how_to_get_them(name, media, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scorer in read_filters(ROOT / f"configs/filters_{name}.json").scorers:
        hint = "hf download" if scorer.scorer.kind in ("audiobox", "clap") else f"--encoder {scorer.scorer.kind}"
        with pytest.raises(ValueError, match=f"scorer {scorer.scorer.kind}: .*weights/.*{hint}"):
            filter_manifest(media, tmp_path / "a.jsonl", LineFilters(scorers=(scorer,)), StageWorkers())
    assert list(tmp_path.iterdir()) == []


def test_released_networks_judge_a_line(tmp_path):
    """With random weights each number is some number: a limit below it keeps the line, one above it leaves it out."""
    pictures = np.random.default_rng(0).integers(0, 256, (30, 3, 64, 64), dtype=np.uint8)
    shown_film(tmp_path / "a.mp4", pictures, sine(seconds=6.0))
    path = manifest(tmp_path, {"video": "a.mp4", "captions": ["a bell", "a dog"]}, {"video": "a.mp4", "end": 2.0})
    whole, part = read_entries(path)
    panns = ReleasedConfig("panns", str(small_panns(tmp_path / "panns")))
    clap = ReleasedConfig("clap", str(save_clap(tmp_path / "clap")))
    avsync = ReleasedConfig("avsync", str(save_released(tmp_path / "sync", "avsync", released_avsync())))
    open_ = (
        ScorerFilter("class", panns, classes=(3, 5), above=0.0, min=0.0),
        ScorerFilter("text", clap, min=-2.0),
        ScorerFilter("time", avsync, max=9.0),
    )
    digests = check_scorers(LineFilters(scorers=open_), "cpu")
    assert len(set(digests.values())) == 3
    scores = judged(LineFilters(scorers=open_), whole).values
    assert scores["class"] == 1.0 and -1 <= scores["text"] <= 1 and 0 <= scores["time"] <= 2
    for scorer in open_:
        limit = scores[scorer.name]
        for min_, max_, kept in ((limit, limit, True), (limit + 0.01, None, False), (None, limit - 0.01, False)):
            result = judged(LineFilters(scorers=(replace(scorer, min=min_, max=max_),)), whole)
            assert bool(result.changes) == kept
            assert kept or result.left_out[0].reason == scorer.name
    # Two seconds without a caption: CLAP does not judge it, and Synchformer needs more.
    assert set(judged(LineFilters(scorers=open_[:2]), part).values) >= {"class"}
    assert "text" not in judged(LineFilters(scorers=open_[:2]), part).values
    assert judged(LineFilters(scorers=open_[2:]), part).left_out[0].reason == "too short"


def test_pictures_alone(tmp_path):
    """Of a film and of a still picture; a sound alone is not judged."""
    file = export(exported.Brightness(), tmp_path / "bright.ts", 2, 3, 8, 8)
    bright = ScorerFilter("bright", PicturesConfig("pictures", "bright", file, 8, frames=2.0), max=0.6)
    sound(tmp_path / "a.flac", 4.0)
    for name, level in (("dark", 100), ("light", 200)):
        shown_film(tmp_path / f"{name}.mp4", np.full((20, 3, 32, 32), level, np.uint8), sine(seconds=4.0))
    lines = [{"video": "dark.mp4"}, {"video": "light.mp4"}, {"audio": "a.flac"}]
    entries = read_entries(manifest(tmp_path, *lines))
    dark, light, none = (judged(LineFilters(scorers=(bright,)), entry) for entry in entries)
    assert dark.changes == [{"scores": {"bright": pytest.approx(100 / 255, abs=0.02)}}]
    assert light.left_out[0].reason == "bright" and "more than 0.6" in light.left_out[0].detail
    assert none.changes == [{}]


def test_what_a_network_does_not_give(handmade, media, tmp_path):
    level, tags = handmade["audiobox"], handmade["panns"]
    wrong = [
        (ScorerFilter("a", level, metric="CE", min=0.0), "a: metric 'CE'; its scorer gives PQ"),
        (ScorerFilter("a", tags, min=0.0), "a: metric ''; its scorer gives a line none; give classes"),
        (ScorerFilter("a", level, classes=(0,), min=0.0), "a: classes; its scorer gives no probabilities"),
        (ScorerFilter("a", tags, classes=(0, 527), min=0.0), r"a: classes \[0, 527\]; its scorer has 0 to 526"),
        (ScorerFilter("a", replace(level, columns=("PQ", "CE")), metric="PQ", min=0.0), r"level\.ts gives \(1, 1\)"),
        (ScorerFilter("a", replace(level, file="none.ts"), min=0.0), r"none\.ts: no such file; give the TorchScript"),
    ]
    for scorer, message in wrong:
        with pytest.raises(ValueError, match=message):
            filter_manifest(media, tmp_path / "a.jsonl", LineFilters(scorers=(scorer,)), StageWorkers())
        assert not list(tmp_path.iterdir())


class Root(torch.nn.Module):
    """(B, n) -> (B, 1): of the mean, which is no number below zero."""

    def forward(self, wave):
        return wave.mean(dim=1, keepdim=True).sqrt()


def test_a_network_that_gives_what_is_no_number(tmp_path):
    """The line is left out with its name, and the rest goes on."""
    file = export(Root(), tmp_path / "root.ts", 2, 8000)
    root = ScorerFilter("root", NetworkConfig("network", "root", file, 8000, "scores", columns=("root",)), min=0.0)
    for name, offset in (("good", 0.2), ("bad", -0.2)):
        sound(tmp_path / f"{name}.flac", wave=tone(offset=offset))
    good, bad = read_entries(manifest(tmp_path, {"audio": "good.flac"}, {"audio": "bad.flac"}))
    assert judged(LineFilters(scorers=(root,)), good).changes
    (row,) = judged(LineFilters(scorers=(root,)), bad).left_out
    assert row.reason == "scorer" and "root" in row.detail and "not finite" in row.detail
    (row,) = judged(LineFilters(scorers=(root,)), replace(bad, audio=str(tmp_path / "none.flac"))).left_out
    assert row.reason == "missing"


class Breaks(torch.nn.Module):
    """A network whose GPU has failed."""

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        if wave.shape[0] > 0:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return wave


def test_a_failed_gpu_leaves_no_line_out(tmp_path):
    """It stops the stage as a full one does."""
    torch.jit.script(Breaks()).save(tmp_path / "breaks.ts")
    network = NetworkConfig("network", "a", str(tmp_path / "breaks.ts"), 8000, "scores", columns=("a",))
    sound(tmp_path / "a.flac", 2.0)
    (entry,) = read_entries(manifest(tmp_path, {"audio": "a.flac"}))
    with pytest.raises(OSError, match=r"the GPU failed: .*uncorrectable ECC"):
        judged(LineFilters(scorers=(ScorerFilter("a", network, min=0.0),)), entry)


def test_another_network_is_another_filter(handmade, media, tmp_path):
    """In a stage that was begun: its path may change, the network may not."""
    quality = ScorerFilter("quality", handmade["audiobox"], min=99.0)
    with pytest.raises(ValueError, match="no line is left"):
        filter_manifest(media, tmp_path / "a", LineFilters(scorers=(quality,)), StageWorkers())
    moved = tmp_path / "moved.ts"
    moved.write_bytes(Path(handmade["audiobox"].file).read_bytes())
    same = replace(quality, scorer=replace(quality.scorer, file=str(moved)))
    with pytest.raises(ValueError, match="no line is left"):
        filter_manifest(media, tmp_path / "a", LineFilters(scorers=(same,)), StageWorkers())
    other = replace(quality, scorer=replace(handmade["clap"], columns=("PQ",)))
    with pytest.raises(ValueError, match=r"a was begun with settings\.filters\.scorers\.0\.scorer '\w+', this command"):
        filter_manifest(media, tmp_path / "a", LineFilters(scorers=(other,)), StageWorkers())
