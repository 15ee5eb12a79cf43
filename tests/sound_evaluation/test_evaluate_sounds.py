"""Folders of anybody's sounds are judged by scorers with random weights, from the command line to report and page."""

import json

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import TensorProto, helper

from audiox_trainer.launch import evaluate
from tests.helpers.scorer_weights import probe_sound, save_clap, small_panns, small_vggish

COUNT, RATE, SECONDS = 12, 22050, 1.0


class Loudness(torch.nn.Module):
    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return torch.stack([waves.abs().amax(dim=1), waves.square().mean(dim=1)], dim=1)


def write_onnx(path):
    """(B, n) -> (B, 2): mean and largest value."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["x"], ["max"], axes=[1], keepdims=1),
        helper.make_node("Concat", ["mean", "max"], ["y"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def sound(i, noise=0.0, level=1.0):
    rng = np.random.default_rng(1000 + i)
    times = np.arange(round(SECONDS * RATE)) / RATE
    tone = np.sin(2 * np.pi * rng.uniform(100, 4000) * times) * np.exp(-rng.uniform(1, 8) * times)
    wave = 0.3 * np.stack([tone, tone]) + 0.02 * rng.standard_normal((2, times.size))
    return (level * (wave + noise * np.random.default_rng(i).standard_normal(wave.shape))).T.astype(np.float32)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """References, a near and a far system, and scorers."""
    folder = tmp_path_factory.mktemp("bench")
    for name in ("true", "near", "far"):
        (folder / name).mkdir()
    lines = []
    for i in range(COUNT):
        soundfile.write(folder / f"true/{i}.flac", sound(i), RATE)
        soundfile.write(folder / f"near/bell{i}.wav", sound(i, noise=0.01), RATE)
        soundfile.write(folder / f"far/{i}.ogg", sound(i + 100, noise=0.2), RATE)
        lines.append({"text": f"bell number {i}", "out": f"bell{i}.wav", "reference": f"true/{i}.flac"})
    entries = [{"file": f"{i}.ogg", "id": f"bell{i}", "text": f"bell number {i}"} for i in range(COUNT)]
    (folder / "far/manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.jit.script(Loudness()).save(str(folder / "loud.pt"))
    write_onnx(folder / "means.onnx")
    small_panns(folder / "panns")
    small_vggish(folder / "vggish")
    save_clap(folder / "clap")
    scorers = [
        {"kind": "panns", "weights": "panns", "parts": 2},
        {"kind": "vggish", "weights": "vggish"},
        {"kind": "clap", "weights": "clap"},
        {
            "kind": "network",
            "name": "loudness",
            "file": "loud.pt",
            "rate": 16000,
            "seconds": 0.5,
            "gives": "scores",
            "columns": ["peak", "power"],
        },
        {"kind": "network", "name": "means", "file": "means.onnx", "rate": 8000, "gives": "embedding"},
    ]
    (folder / "scorers.json").write_text(json.dumps({"scorers": scorers, "pad_to": 1.2}))
    return folder


def judge(bench, out, *more, sounds=("near", "far"), prompts="prompts.jsonl"):
    folders = [str(bench / name) for name in sounds]
    words = ["--sounds", *folders, "--reference", str(bench / prompts), "--scorers", str(bench / "scorers.json")]
    words += ["--out", str(out / "report.json"), "--resamples", "20", "--cache", str(bench / "features"), *more]
    evaluate.run_sounds(evaluate.parse(words))
    return json.loads((out / "report.json").read_text())


def value(report, sounds, metric):
    return next(row["value"] for row in report["results"] if (row["sounds"], row["metric"]) == (sounds, metric))


def test_two_systems_are_judged_and_compared(bench, tmp_path, capsys):
    report = judge(bench, tmp_path, "--html", str(tmp_path / "page.html"), "--show", "bell3")
    metrics = {row["metric"] for row in report["results"]}
    assert metrics == {"FD", "KL", "IS", "FAD", "CLAP", "peak", "power", "FD means"}
    assert (report["judged"], report["prompts"], report["left_out"]) == (COUNT, COUNT, [])
    for metric in ("FD", "KL", "FAD", "FD means"):
        assert 0 < value(report, "near", metric) < value(report, "far", metric)
    for row in report["results"]:
        if row["sounds"] != "reference" or "low" in row:
            assert row["low"] <= row["value"] <= row["high"]
    by_metric = {row["metric"]: row for row in report["differences"]}
    assert len(by_metric) == 8 and by_metric["power"]["significant"]
    assert by_metric["power"]["value"] == pytest.approx(value(report, "far", "power") - value(report, "near", "power"))
    assert set(report["remarks"]["near"]) == {"padded"} and set(report["remarks"]["far"]) >= {"padded"}
    assert {s["hash"] for s in report["scorers"]} and report["scorers"][0]["rate"] == 16000
    page = (tmp_path / "page.html").read_text()
    assert page.count("<audio") == 3 and "bell number 3" in page and "FAD" in page
    printed = capsys.readouterr().out
    assert "Differences" in printed and "12 of 12 prompts" in printed
    # The true sounds as a system are at no distance from themselves.
    assert value(report, "reference", "power") > 0
    again = judge(bench, tmp_path)
    assert {**again, "created": ""} == {**report, "created": ""}


def test_a_system_of_true_sounds_is_perfect(bench, tmp_path):
    entries = [{"file": f"{i}.flac", "id": f"bell{i}"} for i in range(COUNT)]
    (bench / "true/manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    report = judge(bench, tmp_path, sounds=("true",))
    for metric in ("FD", "FAD", "FD means"):
        assert value(report, "true", metric) == pytest.approx(0, abs=1e-5)
    assert value(report, "true", "KL") == pytest.approx(0, abs=2e-3)  # the epsilon of the field's tools


def test_bad_sounds_are_refused_or_left_out_by_name(bench, tmp_path):
    bad = bench / "bad"
    bad.mkdir()
    for i in range(COUNT):
        soundfile.write(bad / f"bell{i}.wav", sound(i, noise=0.01), RATE)
    (bad / "bell0.wav").unlink()
    soundfile.write(bad / "bell1.wav", np.zeros((RATE, 2)), RATE)
    (bad / "bell2.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="3 sounds cannot be judged; --leave-out") as refusal:
        judge(bench, tmp_path, sounds=("near", "bad"))
    assert not (tmp_path / "report.json").exists()
    for words in ("bell0: missing", "bell1: silent", "bell2: zero length"):
        assert words in str(refusal.value)
    report = judge(bench, tmp_path, "--leave-out", sounds=("near", "bad"))
    assert report["judged"] == COUNT - 3 and {row["id"] for row in report["left_out"]} == {"bell0", "bell1", "bell2"}
    # The figures are those of the other nine prompts alone, in the good folder too.
    keep = bench / "keep.jsonl"
    keep.write_text("".join((bench / "prompts.jsonl").read_text().splitlines(keepends=True)[3:]))
    (bench / "good").mkdir()
    for i in range(3, COUNT):
        soundfile.write(bench / f"good/bell{i}.wav", sound(i, noise=0.01), RATE)
    alone = judge(bench, tmp_path, sounds=("good",), prompts="keep.jsonl")
    for metric in ("FD", "KL", "FAD", "peak"):
        assert value(alone, "good", metric) == value(report, "near", metric) == value(report, "bad", metric)


def test_a_wrong_sample_rate_shows_in_the_lengths(bench, tmp_path):
    wrong = bench / "wrong"
    wrong.mkdir()
    for i in range(COUNT):
        soundfile.write(wrong / f"bell{i}.wav", sound(i), 24000)
    with pytest.raises(ValueError, match=r"wrong: its sounds last 0\.919 times as long.*--any-length"):
        judge(bench, tmp_path, sounds=("wrong",))
    assert judge(bench, tmp_path, "--any-length", sounds=("wrong",))["judged"] == COUNT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "other.wav"}, "1 of 12 sounds belong to no prompt"),
        ({"out": "bell0.wav"}, "lines 1 and 2 have the same id, 'bell0'"),
        ({"reference": None}, "line 2 and 0 more name no `reference`"),
        ({"text": "a drum"}, "sounds of other prompts"),
        ({"reference": "true/none.flac"}, "reference: bell1: missing"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(bench, tmp_path, change, message):
    lines = [json.loads(line) for line in (bench / "prompts.jsonl").read_text().splitlines()]
    lines[1] = {key: v for key, v in (lines[1] | change).items() if v is not None}
    (bench / "changed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        judge(bench, tmp_path, sounds=("far",), prompts="changed.jsonl")


def test_folders_need_names_and_sounds(bench, tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder"):
        judge(bench, tmp_path, sounds=("nowhere",))
    with pytest.raises(ValueError, match="folders need different names"):
        judge(bench, tmp_path, sounds=("near", "near"))
    (bench / "double").mkdir(exist_ok=True)
    for ending in ("wav", "flac"):
        soundfile.write(bench / f"double/bell0.{ending}", probe_sound(RATE, 1), RATE)
    with pytest.raises(ValueError, match=r"bell0.flac and bell0.wav are both sounds of 'bell0'"):
        judge(bench, tmp_path, sounds=("double",))
    with pytest.raises(SystemExit):
        evaluate.parse(["--sounds", "a", "--out", "x.json"])
