"""Each filter leaves out the line that it is made for, with its reason, and a stage may be stopped at any moment."""

import json
import multiprocessing
import sys
import time

import numpy as np
import pytest

from audiox_trainer.trainer.core.cli import run
from audiox_trainer.trainer.manifest.manifest import iter_entries
from audiox_trainer.trainer.stages import measure
from audiox_trainer.trainer.stages.curate import filter_manifest
from audiox_trainer.trainer.stages.filter import FilterJudge
from audiox_trainer.trainer.stages.filter_config import LineFilters, read_filters
from audiox_trainer.trainer.stages.stage import StageTask, StageWorkers
from tests.helpers.killing import kill, makers
from tests.helpers.media_files import film, sine
from tests.helpers.preparation import manifest, sound, stage_results
from tests.helpers.small_config import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A manifest with one line for each reason."""
    folder = tmp_path_factory.mktemp("media")
    tone = sine(seconds=4.0, rate=8000)
    gap = tone.copy()
    gap[4000:] = 0
    sound(folder / "good.flac", wave=tone)
    sound(folder / "short.flac", 1.0)
    sound(folder / "silent.flac", 4.0, level=1e-6)
    sound(folder / "gap.flac", wave=gap)
    sound(folder / "clipped.wav", wave=np.clip(3 * tone / np.abs(tone).max(), -1, 1))
    (folder / "text.wav").write_text("no sound")
    film(folder / "moves.mp4", 2.5, sound=sine(seconds=2.5))
    names = ["good.flac", "short.flac", "silent.flac", "gap.flac", "clipped.wav", "text.wav", "none.wav"]
    return manifest(folder, *({"audio": name, "note": name} for name in names), {"video": "moves.mp4"})


def reasons(out):
    rows = [json.loads(line) for line in out.with_name(f"{out.name}.left_out.jsonl").read_text().splitlines()]
    return {row["audio"]: row["reason"] for row in rows}


def test_long_media_give_signs_of_life(media, monkeypatch):
    monkeypatch.setattr(measure, "SIGN_OF_LIFE", 0.0)
    entry = next(iter_entries(media))
    *signs, result = FilterJudge(LineFilters())(StageTask(entry))
    assert len(signs) == 4 and not any(signs) and result.changes == [{}] and result.seconds == pytest.approx(4.0)


def test_each_line_has_its_reason(media, tmp_path):
    filters = read_filters(ROOT / "configs/filters.json")
    out = tmp_path / "kept.jsonl"
    summary = filter_manifest(media, out, filters, StageWorkers(2))
    assert reasons(out) == {
        "short.flac": "short file",
        "silent.flac": "silent",
        "gap.flac": "mostly silent",
        "clipped.wav": "clipping",
        "text.wav": "undecodable",
        "none.wav": "missing",
    }
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept == [
        {"audio": str(media.parent / "good.flac"), "note": "good.flac"}, {"video": str(media.parent / "moves.mp4")}
    ]  # fmt: skip
    assert summary.kept_lines == 2 and summary.kept_seconds == pytest.approx(6.5, abs=0.1)
    page = (tmp_path / "kept.jsonl.html").read_text()
    assert "Silent share" in page and "Threshold: 0.8" in page and "mostly silent" in page
    with pytest.raises(ValueError, match=r"kept\.jsonl exists already"):
        filter_manifest(media, out, filters, StageWorkers(1))


def test_what_cannot_be(media, tmp_path):
    with pytest.raises(
        ValueError, match=r"no line is left: .* 6 short file.*; the first is line 1: short file \(4\.00 s"
    ):
        filter_manifest(media, tmp_path / "a", LineFilters(min_file_seconds=60), StageWorkers())
    assert not (tmp_path / "a").exists()
    message = r"a was begun with settings\.filters\.min_file_seconds 60, this command has 0\.0"
    with pytest.raises(ValueError, match=message):
        filter_manifest(media, tmp_path / "a", LineFilters(), StageWorkers())


def many(folder, count):
    for i in range(count):
        sound(folder / f"{i}.flac", 0.5 + i % 4)
    return manifest(folder, *({"audio": f"{i}.flac"} for i in range(count)))


def command(path, out):
    sys.exit(run(lambda: print(filter_manifest(path, out, LineFilters(min_file_seconds=1.0), StageWorkers(2)))))


def test_killed_and_started_again(tmp_path):
    """The driver once, and a maker: the bytes of an undisturbed run."""
    path, rng = many(tmp_path, 60), np.random.default_rng(0)
    filter_manifest(path, tmp_path / "expected.jsonl", LineFilters(min_file_seconds=1.0), StageWorkers(1))
    out, context = tmp_path / "out.jsonl", multiprocessing.get_context("forkserver")
    for last in (False, True):
        driver = context.Process(target=command, args=(path, out))
        driver.start()
        while driver.is_alive() and len(list(tmp_path.glob("out.jsonl.work/blocks/*"))) < 10 * (1 + last):
            time.sleep(0.01)
        if found := makers(driver.pid):
            kill(rng.choice(found))
        if not last:
            driver.kill()
        driver.join(600)
    assert driver.exitcode == 0
    assert stage_results(out) == stage_results(tmp_path / "expected.jsonl")
