"""Sounds for fixed prompts are judged while training: right, on any number of ranks, without an effect on the weights;
the best checkpoint by them is marked."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soxr
import torch

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint.convert_run import convert_run
from audiox_trainer.trainer.checkpoint.save import _commit
from audiox_trainer.trainer.core.integrity import write_manifest
from audiox_trainer.trainer.engine.process_group import World
from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.scorers.statistics import frechet_distance
from audiox_trainer.trainer.training.previews import PromptSampler
from audiox_trainer.trainer.training.scores import Score, Scores, check_scores
from tests.helpers.scorer_weights import probe_sound, save_clap
from tests.helpers.small_config import small_config
from tests.helpers.training_scores import TEXTS, Bands, write_scores

CPU = torch.device("cpu")


def scored_config(folder, **settings):
    return replace(small_config(), scores=replace(write_scores(folder), **settings))


def noise_latents(sampler: PromptSampler) -> torch.Tensor:
    """Latents that follow from the texts' seeds alone."""
    rows = [torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) for seed in sampler.seeds]
    return torch.stack(rows)


def lines(folder):
    """step -> {name: value} of the lines that have scores."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: {k: v for k, v in row.items() if k.startswith("scores/")} for row in rows}
    return {step: values for step, values in found.items() if values}


def test_the_figures_are_those_of_the_sounds(tmp_path):
    config = scored_config(tmp_path / "scores")
    scores = Scores(config, World(0, 1, 0, CPU), tmp_path / "run")
    scores.load(0)
    values, problem = scores.measure(noise_latents)
    assert problem == "" and set(values) == {"scores/power", "scores/peak", "scores/FD bands"}
    waves = scores.sampler.codec.decode(noise_latents(scores.sampler)).mean(dim=1).numpy()
    heard = torch.from_numpy(np.stack([soxr.resample(wave, 8000, 16000) for wave in waves]))
    assert values["scores/power"] == pytest.approx(float(heard.square().mean()), rel=1e-5)
    assert values["scores/peak"] == pytest.approx(float(heard.abs().amax(dim=1).mean()), rel=1e-5)
    truth = torch.from_numpy(np.stack([probe_sound(8000, 2.048, i) for i in range(len(TEXTS))]))
    expected = frechet_distance(Bands()(torch.from_numpy(waves)), Bands()(truth))
    assert values["scores/FD bands"] == pytest.approx(expected, rel=1e-2)  # the references are files of 16 bits


def test_ranks_share_the_sounds(tmp_path, monkeypatch):
    config = scored_config(tmp_path / "scores")
    (whole, _) = Scores(config, World(0, 1, 0, CPU), tmp_path).measure(noise_latents)
    kept: list = []  # what each rank sends: its rows, then its problem

    def gather_nothing(self, rows):
        kept.append(rows)
        return {}

    monkeypatch.setattr(Scores, "_gather", gather_nothing)
    for rank in range(2):
        assert len(Scores(config, World(rank, 2, 0, CPU), tmp_path).mine) == 3
    references = {i: row for rows in kept for i, row in rows.items()}
    monkeypatch.setattr(Scores, "_gather", lambda self, rows: references)
    ranks = [Scores(config, World(rank, 2, 0, CPU), tmp_path) for rank in range(2)]
    kept.clear()
    monkeypatch.setattr(Scores, "_gather", gather_nothing)
    for part in ranks:
        assert "5 of 5 sounds for the scorers have no scores" in part.measure(noise_latents)[1]
    together = {i: row for rows in kept[::2] for i, row in rows.items()}
    assert sorted(together) == list(range(len(TEXTS))) and kept[1::2] == [{0: ""}, {1: ""}]
    monkeypatch.setattr(Scores, "_gather", lambda self, rows: rows if "" in rows.values() else together)
    for part in ranks:
        assert part.measure(noise_latents) == (pytest.approx(whole, rel=1e-6), "")


def test_sounds_that_are_not_finite_give_no_scores(tmp_path):
    scores = Scores(scored_config(tmp_path / "scores"), World(0, 1, 0, CPU), tmp_path)
    values, problem = scores.measure(lambda sampler: noise_latents(sampler) * float("nan"))
    assert (
        values == {}
        and problem.endswith("have no scores: they are not finite")
        and scores.judge(4, values) == (None, "")
    )


def test_a_network_that_fails_on_a_sound_ends_no_training(tmp_path, monkeypatch):
    scores = Scores(scored_config(tmp_path / "scores"), World(0, 1, 0, CPU), tmp_path)

    def fail(waves):
        raise ValueError("bands.pt: division by zero")

    monkeypatch.setattr(scores.scorers[-1], "features", fail)
    assert scores.measure(noise_latents) == (
        {}, "5 of 5 sounds for the scorers have no scores: bands.pt: division by zero"
    )  # fmt: skip


def test_a_run_says_when_it_has_been_getting_worse(tmp_path):
    scores = Scores(scored_config(tmp_path / "scores"), World(0, 1, 0, CPU), tmp_path)
    said = {}
    for step, value in ((2, 0.5), (4, 0.3), (6, 0.4), (8, 0.31), (10, 0.35), (12, 0.6), (14, 0.2)):
        score, said[step] = scores.judge(step, {"scores/power": value})
        assert score == Score("power", value, "lower")
    assert [step for step, text in said.items() if text] == [8, 12]
    assert said[12].startswith("power is 0.6 and was 0.3 at step 4: no better for 4 scorings; convert.py --best")
    assert scores.judge(16, {"scores/power": float("nan")}) == (None, "")
    assert not Score("CLAP", 0.2, "higher").beats(Score("CLAP", 0.3, "higher"))


def test_scores_wait_for_a_step_that_can_be_saved(tmp_path):
    scores = Scores(scored_config(tmp_path / "scores"), World(0, 1, 0, CPU), tmp_path)
    rounds = [scores.is_due(done, done == 10, done % 5 == 0) for done in range(1, 11)]
    assert [done for done, due in enumerate(rounds, start=1) if due] == [5, 10]


def commit(run, step, **about):
    folder = load.step_folder(run, step)
    (partial := folder.with_name(f"{folder.name}.partial")).mkdir(parents=True)
    write_manifest(partial, {"step": step, "files": {}})
    _commit(folder, {"step": step, "files": {}, "healthy": False} | about, keep=1, keep_every=0)


def test_the_best_by_score_stays_and_goes_before_the_loss(tmp_path):
    for step, value in ((1, 0.1), (2, 0.4), (3, 0.3), (4, 0.2)):
        score = {"metric": "CLAP", "value": value, "better": "higher"}
        commit(tmp_path, step, **{load.SCORE: score, load.VALIDATION: value})
    assert [load.step_of(folder) for folder in load.list_checkpoints(tmp_path)] == [4, 2]
    assert load.step_of(load.best_checkpoint(tmp_path)) == 2
    commit(tmp_path, 5, **{load.SCORE: {"metric": "FD", "value": 3.0, "better": "lower"}})  # by another metric now
    assert load.step_of(load.best_checkpoint(tmp_path)) == 5
    scores = Scores(scored_config(tmp_path / "scores", best="FD bands"), World(0, 1, 0, CPU), tmp_path)
    scores.load(5)
    assert scores.best is None  # of a metric with another name
    commit(tmp_path, 6, **{load.SCORE: {"metric": "FD bands", "value": 2.0, "better": "lower"}})
    scores.load(6)
    assert scores.best == (6, Score("FD bands", 2.0, "lower"))
    # A resume passed over a damaged checkpoint of a later step, which counts neither for the best nor for what stays.
    folder = load.step_folder(tmp_path, 9)
    folder.mkdir(parents=True)
    write_manifest(
        folder, {"step": 9, "files": {}, load.SCORE: {"metric": "FD bands", "value": 1.0, "better": "lower"}}
    )
    commit(tmp_path, 7, **{load.SCORE: {"metric": "FD bands", "value": 2.5, "better": "lower"}})
    assert [load.step_of(folder) for folder in load.list_checkpoints(tmp_path)] == [9, 7, 6]
    scores.load(7)
    assert scores.best == (6, Score("FD bands", 2.0, "lower"))


@pytest.mark.parametrize(
    ("settings", "line", "message"),
    [
        ({"scorers": "nowhere.json"}, {}, "nowhere.json"),
        ({}, {"video": "film.mp4"}, r"line 6: while training, sounds follow from text alone"),
        ({"best": "CLAP"}, {}, r"scores\.best: 'CLAP'.*expected one of power, peak, FD bands"),
        ({}, {"reference": "gone.wav"}, r"scores\.prompts: line 6: .*gone.wav: no such file"),
        ({}, {"reference": None}, r"line 6 and 0 more name no `reference`"),
    ],
)
def test_what_is_refused(tmp_path, settings, line, message):
    config = scored_config(tmp_path, **settings)
    if line:
        entry = {"text": "a bell", "reference": "0.wav"} | line
        entry = {key: value for key, value in entry.items() if value is not None}
        with (tmp_path / "prompts.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
    with pytest.raises(ValueError, match=message):
        check_scores(config)
        Scores(config, World(0, 1, 0, CPU), tmp_path / "run")


def test_scorers_that_cannot_serve_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every: 2 needs scorers and prompts"):
        small_config(None, "scores.every=2")
    files = ("scores.scorers=a.json", "scores.prompts=b.jsonl", "scores.best=CLAP")
    with pytest.raises(ValueError, match=r"scores\.every: 3 must divide checkpoint\.every, 4"):
        small_config(None, "scores.every=3", *files)
    # A text scorer takes part; without references the distances are left out.
    settings = write_scores(tmp_path / "scores", references=False)
    save_clap(tmp_path / "scores/clap")
    config = replace(small_config(), scores=replace(settings, best="CLAP"))
    (tmp_path / "scores/scorers.json").write_text(json.dumps({"scorers": [{"kind": "clap", "weights": "clap"}]}))
    values, _ = Scores(config, World(0, 1, 0, CPU), tmp_path).measure(noise_latents)
    assert set(values) == {"scores/CLAP"} and -1 < values["scores/CLAP"] < 1
    bands = {"kind": "network", "name": "bands", "file": "bands.pt", "rate": 8000, "gives": "embedding"}
    (tmp_path / "scores/scorers.json").write_text(json.dumps({"scorers": [bands]}))
    with pytest.raises(ValueError, match="every metric needs references"):
        Scores(config, World(0, 1, 0, CPU), tmp_path)


@pytest.mark.slow
def test_one_rank_and_two_give_the_same_scores(one, two):
    first, second = lines(one.folders["scored on one"]), lines(two.folders["scored"])
    assert list(first) == list(second) == [2, 4, 6, 8, 10, 12]
    for step, values in first.items():
        assert set(values) == {"scores/power", "scores/peak", "scores/FD bands"}
        assert second[step] == pytest.approx(values, rel=2e-2)  # of weights that differ by rounding


@pytest.mark.slow
def test_training_is_the_same_with_scores(one):
    files = [load.read_manifest(one.checkpoint(name, 12))["files"] for name in ("scored on one", "not validated")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_the_best_is_converted_and_makes_the_sounds_that_were_judged(one, tmp_path):
    run = one.folders["scored on one"]
    found = {step: values["scores/power"] for step, values in lines(run).items()}
    for folder in load.list_checkpoints(run):
        manifest = load.read_manifest(folder)
        assert manifest[load.SCORE] == {"metric": "power", "value": found[manifest["step"]], "better": "lower"}
    best = load.best_checkpoint(run)
    assert load.step_of(best) == min((4, 8, 12), key=found.get)
    assert convert_run(run, tmp_path / "weights", best=True) == best
    # The same sounds from the converted weights, by the same noise.
    generator, config = Generator(tmp_path / "weights"), small_config()
    sampler = PromptSampler(config, TEXTS, range(len(TEXTS)))
    latents = sampler.sample(generator.model, generator.sampling, CPU, torch.float32)
    waves = sampler.codec.decode(latents).mean(dim=1).numpy()
    heard = np.stack([soxr.resample(wave, 8000, 16000) for wave in waves])
    assert np.square(heard).mean() == pytest.approx(found[load.step_of(best)], rel=1e-3)
