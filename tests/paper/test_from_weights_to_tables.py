"""The way of docs/cluster.md from weights to tables, command by command, with small random weights and few sounds."""

import importlib
import json
import shlex
import sys

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.models.audiox import SamplingConfig
from tests.helpers.documents import blocks
from tests.helpers.hearing_server import HearingServer, serving
from tests.helpers.random_weights import random_weights
from tests.helpers.scorer_weights import small_panns, small_vggish
from tests.helpers.small_config import ROOT

pytestmark = pytest.mark.slow

DOCUMENT = ROOT / "docs/cluster.md"
SMALLER = {
    "t2a_bench prompts": ["--per-count", "1"],
    "evaluate": ["--resamples", "20"],
    "bench latency": ["--dtype", "fp32"],
}
STEPS = 3  # of the base instead of 50
EVENTS = {
    "ordering": {"Bell": [[0.1, 0.5]], "Kick": [[0.8, 1.0]]},
    "duration": {"Bell": [0.4]},
    "frequency": {"Kick": [0.2, 0.6]},
    "timestamp": {"Bell": [[0.3, 0.9]]},
}


class Halves(torch.nn.Module):
    """(1, n) -> (1, n / 80, 2): the first label above, the second below half of the largest level."""

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        level = waves.unfold(1, 80, 80).abs().amax(dim=2)
        loud = (level > level.max() / 2).float()
        return torch.stack([loud, 1 - loud], dim=2)


def shown_commands():
    """Script and arguments of each command of the section, in order."""
    (block,) = [block for block in blocks(DOCUMENT, "bash") if "launch/tables.py" in block]
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
            yield words[at].removeprefix("launch/").removesuffix(".py"), words[at + 1 :]


def user_files(folder):
    """All that the commands read: weights, lists with their media, scorers, a detector, and the rows of the tables."""
    random_weights(folder / "weights/2p7b", SamplingConfig(steps=2, guidance=2.0))
    random_weights(folder / "weights/turbo", SamplingConfig("renoise", steps=2, guidance=1.0))
    rng = np.random.default_rng(0)
    rows = ["audiocap_id,youtube_id,start_time,caption"]
    (folder / "audiocaps").mkdir()
    for i in range(1, 5):
        rows.append(f"{i},video_{i:05d},{10 * i},a bell and {i} kicks")
        wave = 0.3 * rng.standard_normal(16384) * np.exp(-np.arange(16384) / rng.uniform(500, 5000))
        soundfile.write(folder / f"audiocaps/video_{i:05d}_{10 * i}.wav", wave, 8000)
    (folder / "test.csv").write_text("\n".join([*rows, "9,video_00009,0,a clip that is gone"]) + "\n")
    for kind, events in EVENTS.items():
        captions = {f"syn_{i}": {"event": events, "caption": f"{kind} of a bell {i}"} for i in range(1, 3)}
        (folder / f"{kind}.json").write_text(json.dumps(captions))
        for i in range(1, 3):
            place = folder / f"AudioTime/test500_{kind}/audio/syn_{i}.wav"
            place.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(place, 0.3 * rng.standard_normal(16384), 8000)
    torch.jit.script(Halves()).save(str(folder / "halves.pt"))
    (folder / "labels.txt").write_text("Bell\nKick\n")
    detector = {"file": "halves.pt", "rate": 8000, "frame_seconds": 0.01, "labels": "labels.txt"}
    (folder / "detector.json").write_text(json.dumps(detector))
    small_panns(folder / "panns")
    small_vggish(folder / "vggish")
    scorers = [{"kind": "panns", "weights": "panns", "parts": 2}, {"kind": "vggish", "weights": "vggish"}]
    (folder / "scorers.json").write_text(json.dumps({"scorers": scorers}))
    (tables,) = [block for block in blocks(DOCUMENT, "json") if '"rows"' in block]
    (folder / "tables.json").write_text(tables.replace('"steps": 50', f'"steps": {STEPS}'))


def test_the_documented_way_leads_to_tables(tmp_path, judge, monkeypatch, capsys):
    user_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = list(shown_commands())
    names = [name for name, _ in found]
    assert set(names) == {"testset", "t2a_bench", "generate", "evaluate", "steam", "bench", "tables"}
    with serving(HearingServer(judge)) as url:
        for name, arguments in found:
            kind = f"{name} {arguments[0]}" if name in ("t2a_bench", "bench") else name
            words = [word.replace("http://127.0.0.1:8000/v1", url) for word in arguments] + SMALLER.get(kind, [])
            words = [str(STEPS) if word == "50" else word for word in words]
            monkeypatch.setattr(sys, "argv", [name, *words])
            code = importlib.import_module(f"audiox_trainer.launch.{name}").main()
            assert code == 0, f"{name} {words}: {capsys.readouterr().err}"
    (missing,) = (tmp_path / "sets/audiocaps/missing.jsonl").read_text().splitlines()
    assert json.loads(missing)["id"] == "9"
    tables = {t["table"]: t["rows"] for t in json.loads((tmp_path / "tables/tables.json").read_text())["tables"]}
    own = {name: [row for row in rows if not row["published"]] for name, rows in tables.items()}
    assert {name: len(rows) for name, rows in own.items()} == {"I": 2, "II": 2, "III": 1}
    assert set(own["I"][0]["figures"]) == {"FD", "KL", "IS", "FAD"}
    base, turbo = own["II"]
    assert (base["nfe"], turbo["nfe"]) == (2 * STEPS, 4) and base["figures"]["KL"] == own["I"][0]["figures"]["KL"]
    assert turbo["figures"]["Latency (s)"]["std"] >= 0 and base["figures"]["RTF"]["value"] > 0
    assert len(own["III"][0]["figures"]) == 8
    assert (tmp_path / "tables/tables.html").read_text().count("<audio") == 2
    assert "AudioX-Turbo (paper)" in (tmp_path / "tables/tables.md").read_text()
