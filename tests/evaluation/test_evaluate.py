"""T2A-bench with a generator that makes the true scenes, the judge that is kept, and the command line."""

import argparse
import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from audiox_trainer.models.audiox import AudioX, SamplingConfig
from audiox_trainer.models.config import CodecConfig, ModelConfig
from audiox_trainer.models.encoders.build import build_codec
from audiox_trainer.models.judge import Judge
from audiox_trainer.models.sampler import nfe, override_sampling
from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.evaluation import pretrained_judge
from audiox_trainer.trainer.evaluation.annotation import Annotation
from audiox_trainer.trainer.evaluation.evaluate import EvaluationSettings, _cache_key
from audiox_trainer.trainer.evaluation.held_out import check_embedded
from audiox_trainer.trainer.evaluation.judge_training import JUDGE
from audiox_trainer.trainer.evaluation.result_cache import ResultCache
from audiox_trainer.trainer.evaluation.sampling_override import sampling_override
from audiox_trainer.trainer.evaluation.t2a_benchmark import T2ABench, T2AResult, accuracy_differences, redraw_scene
from audiox_trainer.trainer.evaluation.t2a_prompts import draw_prompts
from audiox_trainer.trainer.generation.batching import sample_latents
from audiox_trainer.trainer.generation.clip_request import ClipRequest
from audiox_trainer.trainer.scenes.scene import SoundEvent
from audiox_trainer.trainer.scorers.statistics import metric_interval
from tests.helpers.random_weights import untrained_judge
from tests.helpers.warm_python import python

SAMPLING = SamplingConfig("euler", 25, 3.0)


@pytest.fixture(scope="module")
def config(small) -> ModelConfig:
    return small.model


@pytest.fixture(scope="module")
def bench() -> T2ABench:
    codec = build_codec(CodecConfig("logmel", 8000, 1, 2048, 8, 16))
    torch.manual_seed(0)
    return T2ABench(Judge(JUDGE).eval(), codec, per_type=3, seed=0)


@dataclass
class Echo:
    """Makes the true scenes through the codec, in the order in which they are asked for."""

    bench: T2ABench

    def latents(self, request: ClipRequest, seed: int, sampling: SamplingConfig | None = None) -> Tensor:
        first = [prompt.text for prompt in self.bench.prompts].index(request.texts[0])
        return self.bench.codec.encode(self.bench.raw)[0][first : first + len(request.texts)]

    def waves(self, latents: Tensor) -> Tensor:
        return self.bench.codec.decode(latents)


def test_the_truth_scores_as_its_reference(bench):
    with tqdm(total=12) as bar:
        outcome = bench.run(Echo(bench), "truth", SAMPLING, bar)
        assert bar.n == 12
    _, coded = bench.references()
    for name in ("cat_acc", "cnt_acc", "ord_acc", "ts_acc"):
        assert outcome.row[name] == coded[name]
        assert outcome.row[f"{name}_low"] <= outcome.row[name] <= outcome.row[f"{name}_high"]
    assert outcome.row["fd"] == pytest.approx(0, abs=1e-3) and outcome.row["kl"] == pytest.approx(0, abs=1e-6)
    assert outcome.row["is"] >= 1 and coded["fd"] > 0
    assert (outcome.row["steps"], outcome.row["nfe"], outcome.row["guidance"], outcome.row["prompts"]) == (
        25,
        50,
        3,
        12,
    )
    assert set(outcome.row["chance"]) == {"cat_acc", "cnt_acc", "ord_acc", "ts_acc"}
    assert outcome.waves.shape == (12, 1, 16384)
    same = accuracy_differences(outcome, outcome, seed=0)
    assert same["cat_acc"] == same["cat_acc_low"] == same["cat_acc_high"] == 0
    assert same["cat_acc_ratio"] == same["cat_acc_ratio_low"] == same["cat_acc_ratio_high"] == 1
    json.dumps(outcome.row, allow_nan=False)


def test_how_often_an_extra_sound_is_heard(bench):
    """In the true scenes as often as in a model's sounds that are the same; of ordinary prompts nobody asks."""
    judge = Judge(replace(JUDGE, categories=(*JUDGE.categories, "laser"))).eval()
    extra = T2ABench(judge, bench.codec, per_type=3, seed=0, extra="laser")
    assert all("laser" in prompt.order and "laser" in prompt.text for prompt in extra.prompts)
    assert not any("laser" in prompt.text for prompt in bench.prompts)
    present = Annotation((SoundEvent("laser", 0, 1),), "", 0)
    row = extra._heard([present, present, present, Annotation((), "", 0)])
    assert row["heard"] == 0.75 and 0 <= row["heard_low"] < 0.75 < row["heard_high"] <= 1
    assert bench._heard([present]) == {}
    with tqdm() as bar:
        outcome = extra.run(Echo(extra), "truth", SAMPLING, bar)
    assert outcome.row["heard"] == extra.references()[1]["heard"]


def test_a_prompt_drawn_again_is_still_followed():
    rng = np.random.default_rng(0)
    for prompt in draw_prompts(5, seed=0):
        scene = redraw_scene(prompt, rng)
        assert [e.category for e in scene.events] == [e.category for e in prompt.scene.events]
        assert scene.seed != prompt.scene.seed
        assert (scene.events == prompt.scene.events) == (prompt.kind == "timestamp")


def test_differences_are_the_second_minus_the_first(bench):
    def outcome(name: str, right: bool) -> T2AResult:
        scores = type(bench_scores)(*(np.full(len(v), right) for v in vars(bench_scores).values()))
        return T2AResult({"model": name}, scores, torch.zeros(0))

    with tqdm() as bar:
        bench_scores = bench.run(Echo(bench), "truth", SAMPLING, bar).scores
    row = accuracy_differences(outcome("teacher", False), outcome("student", True), seed=0)
    assert (row["model"], row["against"], row["cat_acc"], row["ts_acc_low"]) == ("student", "teacher", 1, 1)


def test_what_is_judged_is_kept(bench, tmp_path):
    """Once for each key, and what is read back is what was judged."""
    judged = []

    def judge():
        judged.append("again")
        with tqdm() as bar:
            return bench.run(Echo(bench), "truth", SAMPLING, bar), [{"task": "V2A", "score": float("nan")}]

    first, tasks = ResultCache(tmp_path / "parts").get({"digest": "a"}, judge)
    kept, same = ResultCache(tmp_path / "parts").get({"digest": "a"}, judge)
    assert len(judged) == 1 and kept.row == first.row and json.dumps(same) == json.dumps(tasks)
    assert torch.equal(kept.waves, first.waves)
    for name, values in vars(first.scores).items():
        assert np.array_equal(getattr(kept.scores, name), values) and values.dtype == getattr(kept.scores, name).dtype
    ResultCache(tmp_path / "parts").get({"digest": "b"}, judge)
    assert len(judged) == 2
    ResultCache(tmp_path / "parts").clear()
    assert not list(tmp_path.iterdir())


def test_whether_latencies_are_measured_decides_nothing_that_is_kept():
    model = SimpleNamespace(to_row=dict, digest="a", generator=SimpleNamespace(dtype=torch.float32))
    timed, untimed, others = (
        _cache_key(model, settings, {})
        for settings in (
            EvaluationSettings(latency_steps=(4,)),
            EvaluationSettings(latency_steps=None),
            EvaluationSettings(prompts=7),
        )
    )
    assert timed == untimed != others


def test_spread_holds_the_value_of_a_mean():
    values = torch.rand(200, generator=torch.Generator().manual_seed(0))
    value, low, high = metric_interval(lambda index: float(values[index].mean()), 200, seed=0)
    assert value == pytest.approx(float(values.mean()))
    assert high - low == pytest.approx(2 * 1.96 * float(values.std()) / 200**0.5, rel=0.2)
    assert low < value < high


def test_making_in_batches_changes_nothing():
    class Seeds:
        def latents(self, request, seed, sampling=None):
            assert request.video.shape[0] == len(request.texts) and request.given_mask is None
            return torch.arange(seed, seed + len(request.texts))[:, None, None]

    n = 120
    with tqdm(total=n) as bar:
        made = sample_latents(Seeds(), ClipRequest(["x"] * n, video=torch.zeros(n, 2, 2)), 7, SAMPLING, bar)
        assert bar.n == n
    assert made.flatten().tolist() == list(range(7, 7 + n))


def test_a_sampling_on_the_command_line():
    assert sampling_override("4").of(SAMPLING) == override_sampling(SAMPLING, 4, None)
    given = sampling_override("50::4:0.9-1")
    assert given.of(SAMPLING) == replace(SAMPLING, steps=50, guidance=4.0, guidance_interval=(0.9, 1.0))
    assert given.words == "50 steps, guidance 4, guided from 0.9 to 1"
    for wrong in ("four", "4:heun", "4:euler:x", "4:euler:1:0.5", "4:euler:1:0.9-0.1", "4:euler:1:0-1:2"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not N"):
            sampling_override(wrong)


def test_sampling_is_changed_or_refused():
    assert override_sampling(SAMPLING, None, None) == SAMPLING
    shifted = replace(SAMPLING, shift=4.0)
    assert override_sampling(shifted, 4, 1.0) == SamplingConfig("euler", 4, 1.0, 4.0)
    assert nfe(SAMPLING) == 50 and nfe(override_sampling(SAMPLING, 4, 1.0)) == 4
    for steps, guidance in ((0, None), (None, -1.0), (None, float("nan"))):
        with pytest.raises(ValueError, match=r"at least 1|0 or more"):
            override_sampling(SAMPLING, steps, guidance)


# The judge that is kept, and the command line.


def test_a_judge_is_trained_once_and_kept(tmp_path, config, monkeypatch):
    trained = []

    def train(seed, through_codec, steps, extra):
        trained.append(seed)
        assert extra == ""
        return Judge(JUDGE).eval()

    monkeypatch.setattr(pretrained_judge, "train_judge", train)
    monkeypatch.setattr(pretrained_judge, "PROMPTS_PER_TYPE", 1)
    monkeypatch.setattr(pretrained_judge, "MUSIC_CLIPS", 2)
    folder = tmp_path / "weights" / "judge"
    judge, scores = pretrained_judge.load_or_train_judge(folder, config.codec, seed=3)
    again, kept = pretrained_judge.load_or_train_judge(folder, config.codec, seed=3)
    assert trained == [3] and scores == kept
    assert set(scores["raw"]) == set(scores["codec"]) == {"cat_acc", "cnt_acc", "ord_acc", "ts_acc", "music"}
    assert all(torch.equal(a, b) for a, b in zip(judge.parameters(), again.parameters(), strict=True))
    other = CodecConfig("logmel", 8000, 1, 512, 32, 64)
    with pytest.raises(ValueError, match="another --judge folder"):
        pretrained_judge.load_or_train_judge(folder, other)
    with pytest.raises(ValueError, match=r"this judge knows bell, kick, .*, not 'laser'; give another --judge folder"):
        pretrained_judge.load_or_train_judge(folder, config.codec, extra="laser")


def test_other_clips_than_scenes_are_refused(config):
    codec = CodecConfig("oobleck", 44100, 2, 2048, 216, 64)
    wrong = ModelConfig(**{**vars(config), "codec": codec})
    check_embedded(config, "here")
    with pytest.raises(ValueError, match=r"mine: .*442368 samples at 44100 Hz .*16384 samples at 8000 Hz"):
        check_embedded(wrong, "mine")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small) -> Path:
    """Random weights that fit, weights that make other clips, and an untrained judge."""
    folder = tmp_path_factory.mktemp("evaluation")
    model = AudioX(small.model, SamplingConfig("renoise", 2, 1.0))
    model.save_pretrained(folder / "student")
    model.save_pretrained(folder / "other")
    data = json.loads((folder / "other" / "config.json").read_text())
    data["model"]["codec"]["sample_rate"] = 16000
    (folder / "other" / "config.json").write_text(json.dumps(data))
    untrained_judge(folder / "judge", small.model.codec)
    return folder


def evaluate(root: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [*python(), str(root / "launch" / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=root)


@pytest.mark.slow
def test_evaluate_writes_report_and_page(root, folders, tmp_path):
    out, page = tmp_path / "report.json", tmp_path / "report.html"
    where = ("--weights", folders / "student", "--judge", folders / "judge", "--out", out, "--html", page)
    more = ("--also", "1", "1:euler:1", "--latency-steps", 1, 3)
    done = evaluate(root, *where, "--prompts", 1, "--tasks", 2, "--guidance", 2, *more)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert [row["task"] for row in report["tasks"]] == list(TASKS)
    made = [(row["model"], row["steps"], row["nfe"], row["prompts"]) for row in report["results"]]
    assert made == [
        ("student", 2, 4, 4),
        ("student at 1 steps", 1, 2, 4),
        ("student at 1 euler steps, guidance 1", 1, 1, 4),
    ]
    assert [row["against"] for row in report["differences"]] == ["student", "student"]
    assert [(row["model"], row["steps"], row["nfe"]) for row in report["efficiency"]] == [
        ("student", steps, 2 * steps) for steps in (1, 2, 3)
    ]
    for latency in report["efficiency"]:
        parts = [latency[f"{part}_s_mean"] for part in ("text", "conditioner", "transformer", "codec")]
        assert min(parts) > 0 and sum(parts) == pytest.approx(latency["latency_s_mean"])
        assert latency["rtf"] == pytest.approx(latency["latency_s_mean"] / 2.048)
    assert "Cat-acc" in done.stdout and "inpainting" in done.stdout and "RTF" in done.stdout
    for row in report["tasks"]:
        sign = 1 if row["better"] == "higher" else -1
        assert row["lead"] == pytest.approx(sign * (row["value"] - row["control"])) and row["lead"] >= row["lead_low"]
    assert page.read_text().count("<audio") == 16  # one prompt a type: the true scene and the model's in three ways
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.slow
def test_evaluate_a_new_sound(root, folders, small, tmp_path):
    """Next to the ordinary prompts, before and after."""
    untrained_judge(tmp_path / "judge", small.model.codec, "laser")
    out, page = tmp_path / "report.json", tmp_path / "report.html"
    where = ("--weights", folders / "student", "--judge", tmp_path / "judge", "--out", out, "--html", page)
    done = evaluate(root, *where, "--prompts", 1, "--tasks", 0, "--no-latency", "--also", 1, "--extra", "laser")
    assert done.returncode == 0, done.stderr
    extra = json.loads(out.read_text())["extra"]
    assert extra["category"] == "laser" and len(extra["references"]) == 2 and len(extra["differences"]) == 1
    assert [(row["model"], row["prompts"]) for row in extra["results"]] == [("student", 4), ("student at 1 steps", 4)]
    assert all(0 <= row["heard_low"] <= row["heard"] <= row["heard_high"] <= 1 for row in extra["results"])
    assert "A new sound" in done.stdout and "heard" in done.stdout
    assert page.read_text().count("<audio") == 24 and "With a laser" in page.read_text()


@pytest.mark.slow
def test_evaluate_refuses(root, folders, tmp_path):
    common = ("--judge", folders / "judge", "--out", tmp_path / "report.json")
    done = evaluate(root, *common, "--weights", folders / "other")
    assert done.returncode == 1 and "16384 samples at 8000 Hz" in done.stderr and "Traceback" not in done.stderr
    done = evaluate(root, *common, "--weights", folders / "student", "--also", "4:ruler")
    assert done.returncode == 2 and "'4:ruler' is not N[:SAMPLER[:GUIDANCE" in done.stderr
    done = evaluate(root, *common, "--weights", folders / "student", "--prompts", 0)
    assert done.returncode == 1 and "prompts 0 must be at least 1" in done.stderr
    assert not list(tmp_path.iterdir())
