"""The page: whole, self-contained, well-formed."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.evaluation.report import read_tables, report_tables, results_table, write_html
from audiox_trainer.trainer.pages.charts import line_chart
from audiox_trainer.trainer.pages.embedded_media import (
    BANDS,
    HOP,
    Rendition,
    SoundComparison,
    spectrogram,
    spectrogram_uri,
    wav_uri,
)
from audiox_trainer.trainer.pages.render import environment
from audiox_trainer.trainer.pages.tables import as_markdown, as_text
from audiox_trainer.trainer.training.logs import read_losses

METRICS = ("cat_acc", "cnt_acc", "ord_acc", "ts_acc", "fd", "kl", "is")
RATIOS = {f"{name}_ratio{side}": 1.0 for name in METRICS[:4] for side in ("", "_low", "_high")}
VOID = {"meta", "img", "br"}


def row(model: str, **more) -> dict:
    values = {name: 0.5 for name in METRICS}
    bounds = {f"{name}_{side}": value for name in METRICS for side, value in (("low", 0.4), ("high", 0.6))}
    return {"model": model, "prompts": 8} | values | bounds | more


def report() -> dict:
    models = ("teacher", "<student>")
    task = {"metric": "F1 of onsets", "better": "higher", "clips": 10, "value": 0.7, "low": 0.6, "high": 0.8}
    task |= {"control": 0.4, "lead": 0.3, "lead_low": 0.2, "ceiling": 0.97}
    sampled = {
        "steps": 25,
        "nfe": 50,
        "guidance": 3.0,
        "guidance_interval": [0.0, 1.0],
        "chance": dict.fromkeys(METRICS[:4], 0.1),
    }
    latency = {"device": "cpu", "threads": 1, "steps": 25, "nfe": 50, "latency_s_mean": 0.4, "latency_s_std": 0.01}
    latency |= {"text_s_mean": 0.01, "conditioner_s_mean": 0.02, "transformer_s_mean": 0.36, "codec_s_mean": 0.01}
    latency |= {"rtf": 0.2}
    faster = {f"{part}{bound}": 12.5 for part in ("transformer", "end_to_end") for bound in ("", "_low", "_high")}
    exam = dict.fromkeys(("cat_acc", "cnt_acc", "ord_acc", "ts_acc", "music"), 0.95)
    return {
        "created": "2025-01-01T00:00:00+00:00",
        "host": {"cpu": "a processor", "python": "3.11", "torch": "2.11", "threads": "1"},
        "settings": {"prompts": 2, "tasks": 10, "seed": 0, "latency_steps": []},
        "judge": {"raw": exam, "codec": exam},
        "models": [
            {"model": m, "parameters": 3_000_000, "sampler": "euler", "steps": 25, "guidance": 3.0} for m in models
        ],
        "references": [row("true scenes"), row("true scenes through the codec")],
        "results": [row(model, **sampled) for model in models],
        "differences": [row(models[1], against=models[0]) | RATIOS],
        "tasks": [{"model": model, "task": name} | task for model in models for name in TASKS],
        "efficiency": [
            {"model": models[0]} | latency,
            {"model": models[1]} | latency | {"against": [{"model": models[0], "steps": 25, "nfe": 50} | faster]},
        ],
    }


def comparisons() -> list[SoundComparison]:
    waves = 0.5 * torch.rand(3, 1, 4096, generator=torch.Generator().manual_seed(0))
    renditions = [
        Rendition(name, wave, "a bell & a kick", right)
        for name, wave, right in zip(("true scene", "teacher", "<student>"), waves, (None, True, False), strict=True)
    ]
    return [SoundComparison(kind, f"text of <{kind}>", tuple(renditions), 8000) for kind in ("category", "order")]


class Page(HTMLParser):
    """Counts elements, and insists that every one is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.seen)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    folder.mkdir()
    lines = [{"step": s, "seconds": 1.0, "loss": 2 / s, "loss_by_noise/0.05": 1.0, "lr": 1e-3} for s in range(1, 60)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 60, "lo')
    return folder


@pytest.fixture(scope="module")
def page(run) -> Page:
    out = run.parent / "page" / "report.html"
    write_html(report(), [run, run.parent / "none"], comparisons(), out)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return Page(out.read_text())


def test_the_page_holds_all_tables_and_players(page):
    text = " ".join(page.words)
    assert page.count("table") == len(report_tables(report())) == 5
    assert page.count("tr") == 5 + (2 + 4) + 2 + 16 + 2 + 1
    assert page.count("audio") == page.count("img") == 6
    for heading in (
        "T2A-bench",
        "Differences",
        "Tasks",
        "Latency",
        "Speed",
        "Training: teacher",
        "Sounds",
        "The judge",
    ):
        assert heading in text
    for word in (
        *TASKS,
        "0.40 to 0.60",
        "text of <order>",
        "<student>",
        "torch 2.11",
        "a processor",
        "a bell & a kick",
    ):
        assert word in text
    assert "Training: none" not in text


def test_mixtures_have_a_table_of_their_own():
    mixed = report()
    row = next(row for row in mixed["tasks"] if row["task"] == "inpainting" and row["model"] == "<student>")
    row["better"] = "lower"
    row["mixtures"] = {"text": {"value": 0.3, "low": 0.2, "high": 0.4, "control": 0.7, "lead_low": 0.35}}
    (table,) = [table for table in report_tables(mixed) if table.title == "Mixtures"]
    (cells,) = table.rows
    assert [cell.text for cell in cells] == [
        "inpainting, <student>, with text",
        "F1 of onsets ↓",
        "0.30",
        "0.70",
        "+0.35",
    ]
    assert len(report_tables(mixed)) == len(report_tables(report())) + 1


def test_the_page_needs_nothing_else(page):
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    for tag, attributes in page.seen:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), tag


def test_the_players_hold_the_sounds(page):
    first = next(attributes["src"] for tag, attributes in page.seen if tag == "audio")
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(first.split(",")[1])))
    assert rate == 8000 and np.abs(wave - comparisons()[0].renditions[0].wave[0].numpy()).max() < 1e-4


def test_wav_clips_rather_than_wraps():
    uri = wav_uri(torch.tensor([[2.0, -2.0, 0.0]]), 8000)
    wave, _ = soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert wave == pytest.approx([1, -1, 0], abs=1e-4)


def test_a_tone_is_a_line_in_its_spectrogram():
    times = torch.arange(8192) / 8000
    low, high = (spectrogram(torch.sin(2 * torch.pi * f * times)[None], 8000) for f in (300.0, 3000.0))
    assert low.shape == (BANDS, 8192 // HOP + 1)
    assert (low[:, 10:-10].argmax(0) == low[:, 60].argmax()).all()
    assert low[:, 60].argmax() > high[:, 60].argmax()  # low bands at the bottom
    assert spectrogram(torch.zeros(1, 4096), 8000).max() == 0
    picture = Image.open(io.BytesIO(base64.b64decode(spectrogram_uri(torch.randn(1, 8192), 8000).split(",")[1])))
    assert picture.size == (129, BANDS) and picture.mode == "P"


def test_losses_of_a_run_that_still_writes(run):
    curves = read_losses(run)
    assert set(curves) == {"loss"} and len(curves["loss"]) == 59
    assert line_chart(curves, "steps").count("stroke: #2563a8") == 3  # single values, their average, the legend
    assert line_chart({"loss": [(1.0, 2.0)]}, "steps") == "" and read_losses(run.parent / "none") == {}


def test_interval_bar_stays_within_its_picture():
    bar = environment().get_template("macros.html").module.interval_bar
    for values in ((0.5, 0.4, 0.6, 0.1, 1.0), (0.0, 0.0, 0.0, 0.0, 0.0), (0.8, 0.7, 0.9, 1.2, 0.0)):
        places = re.findall(r"(left|width):([\d.]+)%", bar(*values))
        assert len(places) == 5 and all(0 <= float(place) <= 100 for _, place in places)


def test_text_tables_are_aligned():
    lines = as_text(results_table(report())).splitlines()
    assert lines[0] == "T2A-bench"
    column = lines[1].index("Cat-acc")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[1:-1])


def test_the_tables_of_a_model_card(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    tables = read_tables(tmp_path / "report.json")
    assert [table.title for table in tables] == [table.title for table in report_tables(report())][: len(tables)]
    assert 2 <= len(tables) < len(report_tables(report()))  # latencies are of another machine
    lines = as_markdown(tables[0]).splitlines()
    assert lines[0] == "**T2A-bench**" and "| &lt;student&gt; | 25 | 50 | 3 | 0.50 [0.40 to 0.60] |" in "\n".join(lines)
    assert {line.count("|") for line in lines if line.startswith("|")} == {len(tables[0].headings) + 1}
    for wrong in ("[]", "{}", "no JSON"):
        (tmp_path / "report.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"report\.json is no report of launch/evaluate\.py"):
            read_tables(tmp_path / "report.json")
