"""STEAM: the four measures by hand, on scenes whose events are known, and through networks and files that hear."""

import json

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.launch import steam as command
from audiox_trainer.trainer.evaluation.judge_training import render_scenes
from audiox_trainer.trainer.evaluation.t2a_prompts import draw_prompts
from audiox_trainer.trainer.media.source import MediaError
from audiox_trainer.trainer.paper import event_detectors
from audiox_trainer.trainer.paper.event_detectors import DetectorConfig, active_spans, file_detector
from audiox_trainer.trainer.paper.steam_metrics import (
    AskedEvents,
    as_counts,
    duration_errors,
    frequency_errors,
    ordering_error,
    segment_counts,
    segment_f1,
)
from audiox_trainer.trainer.paper.tables import build_tables
from audiox_trainer.trainer.paper.tables_file import read_tables_file
from audiox_trainer.trainer.scenes.scene import SAMPLE_RATE
from audiox_trainer.trainer.scorers.embedded_judge import save_judge
from audiox_trainer.trainer.sets.published_lists import STEAM_KINDS
from tests.helpers.run_script import run_failing

A_THEN_B = AskedEvents("ordering", {}, {"b": [(5.0, 6.0)], "a": [(1.0, 2.0), (3.0, 4.0)]})


@pytest.mark.parametrize(
    ("heard", "error"),
    [
        ({"a": [(0.0, 1.0)], "b": [(2.0, 3.0)]}, 0),
        ({"a": [(0.0, 1.0)]}, 1),  # one is not heard
        ({"a": [(0.0, 1.0)], "b": []}, 1),
        ({"a": [(2.0, 3.0)], "b": [(0.0, 1.0)]}, 1),  # the other way round
        ({"a": [(0.0, 2.4)], "b": [(2.0, 3.0)]}, 0),  # 0.4 s at the same time, of 1 s
        ({"a": [(0.0, 2.6)], "b": [(2.0, 3.0)]}, 1),  # too much
        ({"a": [(0.0, 1.0), (4.0, 5.0)], "b": [(2.0, 3.0)]}, 1),  # its whole lasts beyond the other
        ({"a": [(2.0, 3.0)], "b": [(2.0, 3.0)]}, 1),
    ],
)
def test_ordering(heard, error):
    assert ordering_error(A_THEN_B, heard) == error


def test_duration_and_frequency():
    asked = AskedEvents("duration", {"a": 2.0, "b": 3.0}, {})
    assert duration_errors(asked, {"a": [(1.0, 2.0), (3.0, 4.5)]}) == [1.5, 3.0]  # from first start to last end
    assert duration_errors(asked, {"a": [(0.0, 2.0)], "b": [(0.0, 2.5)]}) == [0.0, 0.5]
    asked = AskedEvents("frequency", {"a": 2.0, "b": 1.0}, {})
    assert frequency_errors(asked, {"a": [(0, 1)] * 5}) == [3, 1]


def test_segments():
    asked = AskedEvents("timestamp", {}, {"a": [(0.5, 2.2)], "b": [(4.0, 5.0)]})
    assert segment_counts(asked, {"a": [(1.5, 3.5)], "c": [(0, 9)]}) == (2, 4, 3)  # a in 0, 1, 2; heard in 1, 2, 3
    assert segment_counts(asked, asked.spans) == (4, 4, 4)
    counts = as_counts([(2, 4, 3), (4, 4, 4)])
    assert segment_f1(counts) == pytest.approx(2 * 6 / 15)
    assert segment_f1(counts, torch.tensor([0, 0])) == pytest.approx(2 * 2 / 7)
    assert segment_f1(as_counts([(0, 0, 0)])) == 0


def test_probabilities_become_events():
    config = DetectorConfig("net", 8000, frame_seconds=0.1, labels="labels", gap=0.15, shortest=0.25)
    frames = np.array([0, 0.9, 0.9, 0.4, 0.6, 0.6, 0, 0, 0, 0.9, 0.9, 0, 0, 0.9])
    found = active_spans(frames, config)
    assert found == [pytest.approx((0.1, 0.6))]  # one pause is too short, two events are
    assert active_spans(np.zeros(5), config) == [] and active_spans(np.ones(5), config) == [pytest.approx((0, 0.5))]


def test_events_of_a_file_in_any_case_and_silence(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"id": "1", "events": [{"event": "Dog bark ", "start": 0, "end": 1}]}')
    detect = file_detector("events.jsonl")
    assert detect(tmp_path / "1.wav", "1", ["dog Bark", "bell"]) == {"dog Bark": [(0.0, 1.0)], "bell": []}
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    assert event_detectors._wave(tmp_path / "silent.wav", 8000) is None
    (tmp_path / "damaged.wav").write_text("no sound")
    with pytest.raises(MediaError):
        event_detectors._wave(tmp_path / "damaged.wav", 8000)


def scene_lists(folder, count=20):
    """Captions in AudioTime's format that true scenes follow, and the sounds of these scenes, and of exchanged ones."""
    prompts = draw_prompts(count, seed=5)
    by_kind = {kind: [p for p in prompts if p.kind == kind] for kind in ("order", "count", "timestamp")}
    chosen = {
        "ordering": [p for p in by_kind["order"] if len(p.events) == 2],
        "duration": by_kind["timestamp"],
        "frequency": by_kind["count"],
        "timestamp": by_kind["timestamp"],
    }
    for name in ("true", "exchanged"):
        (folder / name).mkdir()
    for kind, found in chosen.items():
        captions = {}
        waves = (render_scenes([p.scene for p in found]) * 32767).round().short().numpy()
        for i, prompt in enumerate(found):
            events = {}
            for event in prompt.scene.events:
                span = [event.onset, event.offset]
                events.setdefault(event.category, []).append(span)
            if kind == "duration":
                events = {event: [spans[0][1] - spans[0][0]] for event, spans in events.items()}
            elif kind == "frequency":
                events = {event: [start for start, _ in spans] for event, spans in events.items()}
            captions[f"syn_{i}"] = {"event": events, "caption": prompt.text}
            soundfile.write(folder / f"true/{kind}_syn_{i}.wav", waves[i, 0], SAMPLE_RATE)
            soundfile.write(folder / f"exchanged/{kind}_syn_{i}.wav", waves[(i + 1) % len(found), 0], SAMPLE_RATE)
        (folder / f"test500_{kind}_captions.json").write_text(json.dumps(captions))
    for name, step in (("true", 0), ("exchanged", 1)):  # what sounds, as another program would find it
        rows = []
        for kind, found in chosen.items():
            for i in range(len(found)):
                scene = found[(i + step) % len(found)].scene
                events = [{"event": e.category, "start": e.onset, "end": e.offset} for e in scene.events]
                rows.append({"id": f"{kind}_syn_{i}", "events": events})
        (folder / name / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return scene_lists(tmp_path_factory.mktemp("steam"))


def run(folder, out, *more, sounds=("true", "exchanged")):
    words = ["--list", *(str(folder / f"test500_{kind}_captions.json") for kind in STEAM_KINDS)]
    words += ["--sounds", *(str(folder / name) for name in sounds), "--out", str(out / "steam.json")]
    command.run(command.parse([*words, *more]))
    return json.loads((out / "steam.json").read_text())


def by_name(report):
    return {(row["sounds"], row["metric"]): row for row in report["results"]}


@pytest.mark.slow
def test_scenes_heard_without_a_mistake_follow_their_captions(scenes, tmp_path, capsys):
    report = run(scenes, tmp_path, "--events", "events.jsonl")
    found = by_name(report)
    values = {metric: row["value"] for (name, metric), row in found.items() if name == "true"}
    assert values == {"Ordering": 0, "Duration": pytest.approx(0), "Frequency": 0, "Timestamp": 1}
    for metric in ("Ordering", "Duration", "Frequency"):
        assert found["exchanged", metric]["value"] > 0.1
        assert (
            found["exchanged", metric]["low"]
            <= found["exchanged", metric]["value"]
            <= found["exchanged", metric]["high"]
        )
    assert found["exchanged", "Timestamp"]["value"] < 0.5
    assert all(row["significant"] for row in report["differences"]) and len(report["differences"]) == 4
    assert "Ordering ↓" in capsys.readouterr().out
    row = {"table": "III", "method": "true", "sounds": "true", "reports": ["steam.json"]}
    (tmp_path / "tables.json").write_text(json.dumps({"rows": [row]}))
    (table,) = build_tables(read_tables_file(tmp_path / "tables.json"), tmp_path)
    assert set(table.rows[0].figures) == {"Ordering", "Duration", "Frequency", "Timestamp"}


@pytest.mark.slow
def test_the_judge_of_the_scenes_hears_which_follow_their_captions(judge, tmp_path):
    save_judge(judge, tmp_path / "judge")
    found = by_name(run(scene_lists(tmp_path, count=6), tmp_path, "--judge", str(tmp_path / "judge")))
    for metric, sign in (("Ordering", 1), ("Duration", 1), ("Frequency", 1), ("Timestamp", -1)):
        assert sign * found["true", metric]["value"] < sign * found["exchanged", metric]["value"]


class Loud(torch.nn.Module):
    """(1, n) -> (1, n / 80, 2): whether a frame is loud, and its opposite."""

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        level = waves.unfold(1, 80, 80).abs().amax(dim=2)
        return torch.stack([(level > 0.1).float(), (level <= 0.1).float()], dim=2)


@pytest.mark.slow
def test_a_network_of_anybody_hears_real_sound(tmp_path):
    wave = np.zeros(80_000, np.float32)
    for start in (1.0, 4.0):
        wave[round(8000 * start) : round(8000 * (start + 1.5))] = 0.5 * np.sin(np.arange(12_000) * 0.7)
    (tmp_path / "ours").mkdir()
    for kind in STEAM_KINDS:
        soundfile.write(tmp_path / f"ours/{kind}_syn_1.wav", wave, 8000)
    events = {
        "ordering": {"Beep": [[1.0, 5.5]], "Pause": [[6.0, 10.0]]},
        "duration": {"beep": [4.0]},
        "frequency": {"Beep": [1.0, 4.0, 7.0]},
        "timestamp": {"Beep": [[1.0, 2.5], [4.0, 5.5]]},
    }
    for kind, asked in events.items():
        caption = {"syn_1": {"event": asked, "caption": "beeps"}}
        (tmp_path / f"test500_{kind}_captions.json").write_text(json.dumps(caption))
    torch.jit.script(Loud()).save(str(tmp_path / "loud.pt"))
    (tmp_path / "labels.txt").write_text("Beep\nPause\n")
    detector = {"file": "loud.pt", "rate": 8000, "frame_seconds": 0.01, "labels": "labels.txt"}
    (tmp_path / "detector.json").write_text(json.dumps(detector))
    found = by_name(run(tmp_path, tmp_path, "--detector", str(tmp_path / "detector.json"), sounds=["ours"]))
    values = {metric: found["ours", metric]["value"] for metric in ("Ordering", "Duration", "Frequency", "Timestamp")}
    assert values["Duration"] == pytest.approx(0.5, abs=0.03)  # from 1.0 to 5.5 s, and 4 s are asked for
    assert values["Frequency"] == 1 and values["Timestamp"] == 1
    assert values["Ordering"] == 1  # pauses are heard before the first beep too
    other = {"syn_1": {"event": {"Dog": [[0.0, 1.0]]}, "caption": "a dog"}}
    (tmp_path / "test500_timestamp_captions.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="no label is called 'Dog', which timestamp_syn_1 asks for"):
        run(tmp_path, tmp_path, "--detector", str(tmp_path / "detector.json"), sounds=["ours"])
    (tmp_path / "labels.txt").write_text("Beep\nPause\nDog\n")
    with pytest.raises(ValueError, match=r"loud\.pt gives \(1, 1000, 2\), not \(1, frames, 3\) probabilities"):
        run(tmp_path, tmp_path, "--detector", str(tmp_path / "detector.json"), sounds=["ours"])


def test_wrong_files_are_refused_by_name(tmp_path):
    def refused(reason, caption=None, kind="ordering", events='{"id": "ordering_x", "events": []}'):
        (tmp_path / "ours").mkdir(exist_ok=True)
        (tmp_path / "ours/events.jsonl").write_text(events + "\n")
        good = {"x": {"event": {"a": [[0, 1]], "b": [[2, 3]]}, "caption": "a then b"}}
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(good if caption is None else caption))
        words = ["--list", str(path), "--sounds", str(tmp_path / "ours"), "--out", str(tmp_path / "out.json")]
        with pytest.raises(ValueError, match=reason):
            command.run(command.parse([*words, "--events", "events.jsonl"]))

    refused("1 sound cannot be judged; --leave-out.*\n +ours: ordering_x: missing")
    soundfile.write(tmp_path / "ours/ordering_x.wav", np.ones(800) / 2, 8000)
    refused("its name says none of ordering, duration", kind="list")
    refused("1 event to order; expected two", {"x": {"event": {"a": [[0, 1]]}, "caption": ""}})
    refused("no list of AudioTime as it was published: 'caption'", {"x": {"event": {"a": [[0, 1]], "b": [[0, 1]]}}})
    refused("no list of AudioTime", [])
    refused("have no caption", {})
    refused("'a' has 2 values", {"x": {"event": {"a": [1, 2]}, "caption": ""}}, kind="duration")
    refused(r"events\.jsonl: no line has the id 'ordering_x'", events='{"id": "y", "events": []}')
    refused(r"events\.jsonl:1: no id with events", events='{"events": []}')
    backwards = '{"id": "ordering_x", "events": [{"event": "a", "start": 2, "end": 1}]}'
    refused("does not start before it ends", events=backwards)
    (tmp_path / "ours/strange.wav").write_bytes((tmp_path / "ours/ordering_x.wav").read_bytes())
    refused("belong to no prompt: strange")
    said = run_failing("launch/steam.py", "--list", tmp_path / "ordering_none.json", "--sounds", tmp_path, "--events",
                       "e", "--out", tmp_path / "out.json")  # fmt: skip
    assert said.count("\n") == 1 and "no such file or directory; give the lists of AudioTime" in said
