"""Ablations: budgets are equal, every configuration is allowed, prompts that choose are not those that are reported."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from audiox_trainer.models import strict
from audiox_trainer.models.sampler import sampling_timesteps
from audiox_trainer.trainer.ablations.ablations import (
    METRICS,
    TEACHER,
    TEST,
    VALIDATION,
    Ablations,
    AblationSettings,
    markdown_tables,
    run_name,
)
from audiox_trainer.trainer.ablations.variants import Variant
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.distill_config import DistillConfig, load_distill_config
from audiox_trainer.trainer.cost.operation_budget import rounds_within_budget
from audiox_trainer.trainer.cost.operations import distillation_flops, pass_flops, training_flops
from audiox_trainer.trainer.cost.passes import ode_passes, step_probabilities
from tests.helpers.distillation_scenarios import teacher
from tests.helpers.random_weights import untrained_judge
from tests.helpers.small_config import ROOT, small_config, small_distill_config

LEVELS, TINY = ROOT / "configs/distill_tiny_levels.json", ROOT / "configs/tiny.json"


def settings(folder, *common: str) -> AblationSettings:
    paths = (folder, LEVELS, TINY, folder / "teacher", folder / "judge")
    return AblationSettings(*paths, 30000, 15000, (0, 1), 10, common)


def operations(config: DistillConfig) -> float:
    """Of a whole run."""
    cycle = config.cycle
    return sum(
        config.training.global_batch * chance * distillation_flops(config, cycle.phase(update), k, 24)
        for update in range(cycle.total_updates(config.training.steps))
        for k, chance in enumerate(step_probabilities(config, cycle.phase(update)))
    )


def test_every_variant_is_a_configuration_and_within_its_budget(tmp_path):
    ablations = Ablations(settings(tmp_path), [])
    a_sample = training_flops(load_distill_config(LEVELS).model, 24)
    for variant in ablations.variants:
        pairs, _ = ablations.budget(variant)
        overrides = ablations.overrides(variant, 0)
        if variant.stage == "pretraining":
            assert 900 < load_pretrain_config(TINY, overrides).training.steps <= 30000 / 32 * 1.2
            continue
        config = load_distill_config(LEVELS, overrides)
        assert (pairs > 0) == bool(config.warm_start.pairs) == variant.name.startswith("endpoints of pairs")
        solved = pairs * sum(pass_flops(config.model, one, 24) for one in ode_passes(config)) if pairs else 0
        budget = (15000 if variant.on_top else 30000) * a_sample
        assert solved + operations(config) <= budget * 1.02 < (solved + operations(config)) * 1.08, variant
        assert (config.warm_start.updates > 0) == variant.stage.startswith("warm start")
        assert config.init.weights == (str(tmp_path / "weights/base-warm-start-0") if variant.on_top else "")


def test_the_groups_are_those_of_the_paper_and_ours(tmp_path):
    found = {v.group for v in Ablations(settings(tmp_path), []).variants}
    assert found > {"discriminator", "steps drawn", "losses", "MAF"}  # the paper's
    assert found > {"recipe", "targets", "guidance", "on top", "anchor", "cadence", "noise levels", "Eq. 10"}
    with pytest.raises(ValueError, match="no group 'depth'; the groups are recipe"):
        Ablations(settings(tmp_path), ["depth"])


def test_the_papers_recipe_is_that_of_the_large_configuration(tmp_path):
    """But for the rate, the decay of the moving average and the size."""
    ablations = Ablations(settings(tmp_path), ["recipe"])
    (variant,) = [v for v in ablations.variants if v.name == "the paper's"]
    small = load_distill_config(LEVELS, ablations.overrides(variant, 0))
    large = load_distill_config(ROOT / "configs/distill_2p7b_paper.json")
    assert small.sampling.timesteps == tuple(sampling_timesteps(large.sampling)[:-1]) == (1, 0.75, 0.5, 0.25)
    assert (small.sampling.sampler, small.cycle) == (large.sampling.sampler, large.cycle)
    depths = small.distillation.discriminator_blocks, large.distillation.discriminator_blocks
    assert depths == (1, 6) and (small.model.depth, large.model.depth) == (3, 24)
    assert replace(small.distillation, discriminator_blocks=6) == large.distillation
    for role in ("student", "fake", "discriminator"):
        ours, theirs = getattr(small, role), getattr(large, role)
        assert replace(ours.optimizer, lr=1e-5) == theirs.optimizer and ours.schedule == theirs.schedule
        assert ours.optimizer.lr == 1e-4


def test_what_is_called_the_base_is_what_the_base_says(tmp_path):
    config = load_distill_config(LEVELS)
    own = config.distillation
    base = {(v.group, v.name) for v in Ablations(settings(tmp_path), []).variants if not v.overrides}
    assert config.sampling.timesteps == (1, 0.95, 0.8, 0.45)
    assert config.targets == ("velocity", "velocity", "ode", "ode")
    assert ("targets", "estimates at 1, 0.95, ODEs at 0.8, 0.45") in base
    assert own.guidance_interval == (0.7, 1) and ("guidance", "from 0.7 on") in base
    assert own.regression_weight == 1 and ("anchor", "with") in base
    assert (config.cycle.fake_warm_up, config.cycle.discriminator_warm_up) == (20, 20)
    assert own.noise_levels.shift == 5 and ("noise levels", "shifted by 5") in base
    assert own.adversarial_gradient_ratio and ("losses", "both, λ_adv by gradient") in base
    assert own.step_probabilities == config.warm_start.step_probabilities
    assert {("cadence", "1:2:1, IDA"), ("discriminator", "1 of 3 blocks"), ("Eq. 10", "dmd")} < base


def test_variants_that_train_the_same_are_one_run_and_all_others_have_their_own(tmp_path):
    variants = Ablations(settings(tmp_path), []).variants
    names = [run_name(v, 1) for v in variants]
    configs = [json.dumps(strict.to_dict(Ablations(settings(tmp_path), []).config(v))) for v in variants]
    stages = [v.stage for v in variants]
    assert len(set(names)) == len(set(zip(stages, configs, strict=True)))
    assert {"base-warm-start-1", "base-rounds-on-top-1", "base-pretraining-1"} < set(names)
    cadences = [v.name for v in variants if v.group == "cadence"]
    assert cadences[:-1] == [f"{c}{w}" for c in ("5:1:1", "1:5:1", "1:1:1", "1:2:1") for w in ("", ", IDA")]


def test_what_others_begin_with_is_made_first(tmp_path, monkeypatch):
    monkeypatch.setattr(Ablations, "_check_teacher", lambda self: None)
    ablations = Ablations(settings(tmp_path), ["anchor"])
    runs = ablations.runs()
    names = [run_name(*run) for run in runs]
    assert names[:2] == ["base-warm-start-0", "base-warm-start-1"] and len(set(names)) == len(names) == 6
    assert all(variant.on_top for variant, _ in runs[2:])
    ablations.results = {name: {f"{VALIDATION}": {}, f"{TEST}": {}} for name in names}
    assert not ablations.is_done(*runs[0]) and ablations.is_done(*runs[2])  # its weights are gone, and needed
    (tmp_path / "weights" / names[0]).mkdir(parents=True)
    assert ablations.is_done(*runs[0])


def test_a_budget_that_pays_no_round_still_makes_one():
    assert rounds_within_budget(small_distill_config(), 0, 8) == 1


def test_the_choice_is_made_on_other_prompts_and_shares_are_those_of_the_teacher():
    variants = [Variant("anchor", name, "rounds on top", ("x",)) for name in ("base", "early", "late")]

    def values(of_all: float) -> dict:
        return dict.fromkeys(METRICS, of_all)

    results = {TEACHER: {f"{VALIDATION}": values(0.1), f"{TEST}": values(0.8)}}
    names = {variant: [f"{variant.name}-{seed}" for seed in (0, 1)] for variant in variants}
    for variant, chosen_by, reported in zip(variants, (0.5, 0.7, 0.6), (0.1, 0.2, 0.9), strict=True):
        for name, seed in zip(names[variant], (0, 1), strict=True):
            results[name] = {f"{VALIDATION}": values(chosen_by), f"{TEST}": values(reported + 0.1 * seed)}
    text = markdown_tables(names, results)
    assert "| **early** | 0.31 | 0.31 | 0.31 | 0.31 | 0.31 | 0.250, 0.375 | 0.25, 0.38 |" in text
    assert "| late | 1.19 |" in text and "| base | 0.19 |" in text
    teachers = {replace(variant, stage="pretraining"): runs for variant, runs in names.items()}
    assert "| **early** | 0.25 |" in markdown_tables(teachers, results)


def test_a_teacher_that_no_run_could_begin_with_is_refused_before_the_first(tmp_path):
    with pytest.raises(ValueError, match="teacher"):
        Ablations(settings(tmp_path), ["targets"]).runs()
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_runs_are_made_once_and_of_one_kind(tmp_path, scenes):
    """One group, then another seed of it: what is there is not made again, and what differs is refused."""
    depth = "model.backbone.depth=3"
    config = small_distill_config(scenes, "training.steps=5", depth)
    (tmp_path / "student.json").write_text(json.dumps(strict.to_dict(config)))
    (tmp_path / "pretraining.json").write_text(json.dumps(strict.to_dict(small_config(scenes, depth))))
    teacher(config).save_pretrained(tmp_path / "teacher")
    untrained_judge(tmp_path / "judge", config.model.codec)
    out = tmp_path / "ablations"
    common = ("--config", tmp_path / "student.json", "--pretraining", tmp_path / "pretraining.json", "--out", out)
    common += ("--teacher", tmp_path / "teacher", "--judge", tmp_path / "judge", "--prompts", 1)

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "launch/ablate.py", *map(str, (*common, *arguments))]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)

    groups = ("--only", "targets", "student of adapters", "anchor", "--samples-on-top", 50)
    done = run("--samples", 100, "--seeds", 0, *groups)
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert (
        table in done.stdout
        and table.count("**") == 6
        and "| endpoints of pairs, Euler's method |" in table.replace("**", "")
    )
    first = json.loads((out / "results.json").read_text())["runs"]
    assert {TEACHER, "base-warm-start-0", "base-rounds-on-top-0", "anchor-without-0"} < set(first)
    assert all(set(of) == {f"{VALIDATION}", f"{TEST}"} and set(of["1"]) == set(METRICS) for of in first.values())
    begun = {name: (out / name / "output.txt").stat().st_mtime_ns for name in first if name != TEACHER}
    done = run("--samples", 100, "--seeds", 0, 1, "--only", "anchor", "--samples-on-top", 50)
    assert done.returncode == 0, done.stderr
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert set(runs) == {*first, "base-warm-start-1", "base-rounds-on-top-1", "anchor-without-1"}
    assert {name: runs[name] for name in first} == first
    assert {name: (out / name / "output.txt").stat().st_mtime_ns for name in begun} == begun
    done = run("--samples", 200, *groups)
    assert done.returncode == 1 and "started with samples 100, now it is 200" in done.stderr
