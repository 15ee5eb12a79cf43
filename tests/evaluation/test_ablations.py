"""Ablations: budgets are equal, every configuration is allowed, prompts that choose are not those that are reported."""

import json
import subprocess
import sys

import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.distill_config import load_distill_config, precision_overrides
from audiox_trainer.trainer.core.hardware import fastest_precision
from audiox_trainer.trainer.cost.operation_budget import rounds_within_budget
from audiox_trainer.trainer.cost.operations import distillation_flops, training_flops
from audiox_trainer.trainer.cost.passes import step_probabilities
from audiox_trainer.trainer.evaluation.ablations import (
    METRICS,
    TEST,
    VALIDATION,
    Ablations,
    AblationSettings,
    Variant,
    folder_name,
    markdown_tables,
)
from tests.helpers.distillation_scenarios import teacher
from tests.helpers.random_weights import untrained_judge
from tests.helpers.small_config import ROOT, small_config, small_distill_config

TINY = ROOT / "configs/distill_tiny.json"


def settings(folder, *common: str) -> AblationSettings:
    paths = (folder, TINY, ROOT / "configs/tiny.json", folder / "teacher", folder / "pairs", folder / "judge")
    return AblationSettings(*paths, 30000, (0, 1), 10, common)


def test_every_variant_is_a_configuration_and_within_its_budget(tmp_path):
    ablations = Ablations(settings(tmp_path), [])
    budget = 30000 * training_flops(load_distill_config(TINY).model, 24)
    for variant in ablations.variants:
        steps = ablations.steps(variant)
        if variant.teacher:
            assert 900 < steps <= 30000 / 32 * 1.2
            continue
        config = load_distill_config(
            TINY, [f"warm_start.pairs={tmp_path}", f"training.steps={steps}", *variant.overrides]
        )
        cycle = config.cycle
        spent = sum(
            config.training.global_batch * share * distillation_flops(config, cycle.phase(update), k, 24)
            for update in range(cycle.total_updates(steps))
            for k, share in enumerate(step_probabilities(config, cycle.phase(update)))
        )
        assert spent <= budget < spent * 1.05, variant


def test_the_groups_are_those_of_the_paper_and_ours(tmp_path):
    found = {v.group for v in Ablations(settings(tmp_path), []).variants}
    paper = {"discriminator depth", "steps drawn", "adversarial loss", "MAF"}
    assert found == paper | {"base", "updates", "sampler", "Eq. 10", "warm start"}
    with pytest.raises(ValueError, match="no group 'depth'; the groups are base"):
        Ablations(settings(tmp_path), ["depth"])
    variants = Ablations(settings(tmp_path), []).variants
    names = [folder_name(v, seed) for v in variants for seed in (0, 1) if v.group == "base" or not v.run]
    assert len(set(names)) == len(names)


def test_the_base_is_run_once_and_stands_in_each_group_under_its_name(tmp_path):
    variants = Ablations(settings(tmp_path), []).variants
    same = {(v.group, v.name) for v in variants if folder_name(v, 0) == "base-0"}
    assert same >= {
        ("base", "base"),
        ("discriminator depth", "1 of 3 blocks"),
        ("adversarial loss", "1"),
        ("steps drawn", "early"),
    }
    results = {folder_name(v, 0): {f"{p}": dict.fromkeys(METRICS, 0.5) for p in (VALIDATION, TEST)} for v in variants}
    text = markdown_tables(variants, (0,), results)
    assert text.count("| **base** |") == 3 == len({v.group for v in variants} - {"base", "MAF"} - {g for g, _ in same})


def test_a_budget_that_pays_no_round_still_makes_one():
    assert rounds_within_budget(small_distill_config(), 0, 8) == 1


def test_the_choice_is_made_on_other_prompts_than_are_reported():
    variants = [Variant("base", "base"), Variant("steps drawn", "early"), Variant("steps drawn", "late")]

    def values(of_all: float) -> dict:
        return dict.fromkeys(METRICS, of_all)

    results = {}
    for variant, chosen_by, reported in zip(variants, (0.5, 0.7, 0.6), (0.1, 0.2, 0.9), strict=True):
        for seed in (0, 1):
            both = {f"{VALIDATION}": values(chosen_by), f"{TEST}": values(reported)}
            results[folder_name(variant, seed)] = both
    text = markdown_tables(variants, (0, 1), results)
    assert "| **early** | 0.20 |" in text and "| late | 0.90 |" in text and "| base | 0.10 |" in text


def test_a_teacher_that_no_run_could_begin_with_is_refused_before_the_first(tmp_path):
    with pytest.raises(ValueError, match="teacher"):
        Ablations(settings(tmp_path), ["base"]).runs()
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_runs_are_made_once_and_of_one_kind(tmp_path, scenes):
    """One variant, then another seed of it: what is there is not made again, and what differs is refused."""
    config = small_distill_config(scenes, "training.steps=5")
    (tmp_path / "student.json").write_text(json.dumps(strict.to_dict(config)))
    (tmp_path / "pretraining.json").write_text(json.dumps(strict.to_dict(small_config(scenes))))
    teacher(config).save_pretrained(tmp_path / "teacher")
    untrained_judge(tmp_path / "judge", config.model.codec)

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, f"launch/{script}.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    common = ("--config", tmp_path / "student.json", "--teacher", tmp_path / "teacher")
    words = [word for override in precision_overrides(fastest_precision()) for word in ("--set", override)]
    done = run("pairs", *common, "--out", tmp_path / "pairs", "--count", 16, *words)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "ablations"
    common += ("--pretraining", tmp_path / "pretraining.json", "--pairs", tmp_path / "pairs", "--out", out)
    common += ("--judge", tmp_path / "judge", "--prompts", 1, "--only", "sampler")
    done = run("ablate", *common, "--samples", 100, "--seeds", 0)
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert table in done.stdout and table.count("**") == 2 and "| euler |" in table.replace("**", "")
    first = json.loads((out / "results.json").read_text())["runs"]
    assert set(first) == {"base-0", "sampler-euler-0"}
    assert all(set(of) == {f"{VALIDATION}", f"{TEST}"} and set(of["1"]) == set(METRICS) for of in first.values())
    begun = {name: (out / name / "output.txt").stat().st_mtime_ns for name in first}
    done = run("ablate", *common, "--samples", 100, "--seeds", 0, 1)
    assert done.returncode == 0, done.stderr
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert len(runs) == 4 and {name: runs[name] for name in first} == first
    assert {name: (out / name / "output.txt").stat().st_mtime_ns for name in first} == begun
    done = run("ablate", *common, "--samples", 200)
    assert done.returncode == 1 and "started with samples 100, now it is 200" in done.stderr
