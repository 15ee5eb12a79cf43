"""The paper's ablations (Tables V, VI) and some more, at small scale. Variants of one group get the same budget of
operations and are run with several seeds, so that a difference can be compared with the spread.

    OUT/<group>-<variant>-<seed>/    a run          OUT/weights/<the same name>/    its weights
    OUT/base-<stage>-<seed>/         the run that each group with the base in it shares
    OUT/pairs-.../                   pairs of the variants that regress on endpoints
    OUT/results.json    the settings that all runs share, and the scores of the teacher and of each run
    OUT/table.md
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ...models import strict
from ...models.audiox import WEIGHTS
from ..core.config import PretrainConfig, load_pretrain_config
from ..core.config_reader import read_json
from ..core.distill_config import DistillConfig, load_distill_config, precision_overrides
from ..core.files import hash_file, write_json, write_text
from ..core.hardware import fastest_precision
from ..cost.operation_budget import divide_budget, rounds_within_budget
from ..cost.operations import training_flops
from .variants import BASE, Variant, list_variants

ACCURACIES = ("cat_acc", "cnt_acc", "ord_acc", "ts_acc")
METRICS = (*ACCURACIES, "fd", "kl", "is")
VALIDATION, TEST = 1, 2  # seeds of the prompts that the best variant is chosen on, and of those that are reported
TEACHER = "teacher"  # its name among the results


@dataclass(frozen=True)
class AblationSettings:
    """Paths, and the budgets."""

    out: Path
    student: Path  # base configurations
    pretraining: Path
    teacher: Path  # weights
    judge: Path
    samples: int  # the budget of a run: the operations of this many training samples of the teacher
    samples_on_top: int  # the same of a run on top of the base student
    seeds: Sequence[int]
    prompts: int
    common: Sequence[str] = ()  # overrides of every run


class Ablations:
    """The runs of some groups, the budget of each, and the results so far."""

    def __init__(self, settings: AblationSettings, only: Sequence[str]) -> None:
        """Raises ValueError for a group that does not exist."""
        self.settings = settings
        base = load_distill_config(settings.student, settings.common)
        variants = list_variants(base)
        names = list(dict.fromkeys(variant.group for variant in variants))
        for group in only:
            if group not in names:
                raise ValueError(f"no group {group!r}; the groups are {', '.join(names)}")
        self.variants = [v for v in variants if not only or v.group in only]
        self.results_file = settings.out / "results.json"
        self.results: dict[str, dict[str, Any]] = {}
        self.shared = {
            "distillation": strict.to_dict(base),
            "pretraining": strict.to_dict(load_pretrain_config(settings.pretraining, settings.common)),
            "teacher": hash_file(settings.teacher / WEIGHTS) if (settings.teacher / WEIGHTS).exists() else "",
            "samples": settings.samples,
            "samples_on_top": settings.samples_on_top,
            "prompts": settings.prompts,
        }
        if self.results_file.exists():
            before = read_json(self.results_file)
            if found := strict.changes("", before["shared"], self.shared):
                where, then, now = found[0]
                raise ValueError(
                    f"{self.results_file}: started with {where} {then!r}, now it is {now!r}, and their runs cannot "
                    f"share a table; use the former value, or give another --out"
                )
            self.results = before["runs"]

    def runs(self) -> list[tuple[Variant, int]]:
        """The distinct runs, each a variant and a seed: first those that others begin with.

        Raises ValueError for a configuration or a teacher that a run would refuse later.
        """
        needed = [BASE] if any(v.on_top for v in self.variants) else []
        distinct = {run_name(v, s): (v, s) for v in needed + self.variants for s in self.settings.seeds}
        for variant, _ in distinct.values():
            self.budget(variant)
        self._check_teacher()
        return sorted(distinct.values(), key=lambda run: run[0].on_top)

    @property
    def students(self) -> bool:
        """Whether there are any, which are compared with their teacher."""
        return any(variant.stage != "pretraining" for variant in self.variants)

    def is_done(self, variant: Variant, seed: int) -> bool:
        """Whether a run's weights are there, or its scores and nothing needs them."""
        name = run_name(variant, seed)
        if (self.settings.out / "weights" / name).exists():
            return True
        begun_with = name == run_name(BASE, seed) and any(v.on_top for v in self.variants)
        return len(self.results.get(name, ())) == 2 and not begun_with

    def has_adapters(self, variant: Variant) -> bool:
        """Whether its student is adapters of the teacher."""
        config = self.config(variant)
        return isinstance(config, DistillConfig) and config.student.lora is not None

    def overrides(self, variant: Variant, seed: int) -> list[str]:
        """Overrides of a run for the base configuration of its stage."""
        own = [f"training.precision={fastest_precision()}"]
        if variant.stage != "pretraining":
            own = precision_overrides(fastest_precision())
        if variant.on_top:
            own.append(f"init.weights={self.settings.out / 'weights' / run_name(BASE, seed)}")
        if pairs := self.pairs(variant):
            own.append(f"warm_start.pairs={pairs}")
        own += [*_phases(variant), *self.settings.common, *variant.overrides]
        return [*own, *self.budget(variant)[1], f"training.seed={seed}"]

    def pairs(self, variant: Variant) -> str:
        """The folder of the pairs that a variant regresses on, or nothing."""
        config = self.config(variant)
        return config.warm_start.pairs if isinstance(config, DistillConfig) else ""

    def add(self, name: str, prompts: int, report: dict[str, Any]) -> None:
        """Save the scores of a run, or of the teacher, on one set of prompts."""
        row = report["results"][0]
        self.results.setdefault(name, {})[f"{prompts}"] = {metric: row[metric] for metric in METRICS}
        write_json(self.results_file, {"shared": self.shared, "runs": self.results})

    def write_tables(self) -> Path:
        path = self.settings.out / "table.md"
        names = {v: [run_name(v, seed) for seed in self.settings.seeds] for v in self.variants}
        write_text(path, markdown_tables(names, self.results))
        return path

    def budget(self, variant: Variant) -> tuple[int, list[str]]:
        """The pairs and, as overrides, the updates that a variant's budget pays for."""
        settings = self.settings
        samples = settings.samples_on_top if variant.on_top else settings.samples
        reference = load_pretrain_config(settings.pretraining, settings.common)
        budget = samples * training_flops(reference.model, reference.model.text.max_tokens)
        config = self.config(variant)
        if isinstance(config, PretrainConfig):
            per_step = training_flops(config.model, config.model.text.max_tokens) * config.training.global_batch
            return 0, [f"training.steps={max(1, round(budget / per_step))}"]
        if variant.stage.startswith("warm start"):
            count, updates, steps = divide_budget(config, budget)
            return count, [f"warm_start.updates={updates}", f"training.steps={steps}"]
        rounds = rounds_within_budget(config, budget / config.training.global_batch, config.model.text.max_tokens)
        return 0, [f"training.steps={rounds * config.updates.counts[0]}"]

    def config(self, variant: Variant) -> PretrainConfig | DistillConfig:
        """A variant's configuration, but for its budget."""
        settings, own = self.settings, [*_phases(variant), *self.settings.common, *variant.overrides]
        if variant.stage == "pretraining":
            return load_pretrain_config(settings.pretraining, own)
        config = load_distill_config(settings.student, own)
        if "endpoint" not in config.targets:
            return config
        pairs = settings.out / _slug("pairs", variant.group, variant.name)
        return load_distill_config(settings.student, [*own, f"warm_start.pairs={pairs}"])

    def _check_teacher(self) -> None:
        """Raises ValueError for a teacher that the distillations would refuse one after the other."""
        if self.students:
            from ..distillation.distill import load_teacher  # imports DeepSpeed, which tables do not need

            load_teacher(load_distill_config(self.settings.student, self.settings.common), self.settings.teacher)


def run_name(variant: Variant, seed: object) -> str:
    """Of the run's folder; those that are the base of their stage share one."""
    if not variant.overrides:
        return _slug("base", variant.stage, seed)
    return _slug(variant.group, variant.name, seed)


def _slug(*parts: object) -> str:
    """Letters, digits and dashes."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in "-".join(map(str, parts)))


def _phases(variant: Variant) -> list[str]:
    """Overrides without which a budget would pay for other phases than those that the variant is about."""
    if variant.stage == "pretraining":
        return []
    if variant.stage.startswith("warm start"):  # one round ends it
        return ["updates.fake_warm_up=0", "updates.discriminator_warm_up=0"]
    return ["warm_start.updates=0"]


def _share(value: float, of: float) -> float:
    return value / of if of else math.nan


def variant_score(values: dict[str, float]) -> float:
    """The criterion for the best variant: the mean of the four accuracies."""
    return mean(values[metric] for metric in ACCURACIES)


def markdown_tables(runs: Mapping[Variant, Sequence[str]], results: dict[str, dict[str, Any]]) -> str:
    """Markdown, one table per group: the mean over a variant's runs on the reported prompts, and two figures of each
    run. Students are given as shares of their teacher at 50 steps. The variant that is best on the other
    prompts is bold."""
    parts = []
    for group in dict.fromkeys(variant.group for variant in runs):
        members = [v for v in runs if v.group == group]
        students = members[0].stage != "pretraining"

        def rows(variant: Variant, prompts: int) -> list[dict[str, float]]:
            return [results[name][f"{prompts}"] for name in runs[variant]]

        chosen = max(members, key=lambda v: mean(variant_score(row) for row in rows(v, VALIDATION)))
        lines = [f"| {group} | Cat | Cnt | Ord | TS | FD | mean of four, by seed | FD, by seed |", "|---" * 8 + "|"]
        for variant in members:
            of_all = rows(variant, TEST)
            if students:
                teacher = results[TEACHER][f"{TEST}"]
                of_all = [{metric: _share(row[metric], teacher[metric]) for metric in METRICS} for row in of_all]
            cells = [f"{mean(row[metric] for row in of_all):.2f}" for metric in (*ACCURACIES, "fd")]
            name = f"**{variant.name}**" if variant is chosen else variant.name
            scores = ", ".join(f"{variant_score(row):.3f}" for row in of_all)
            distances = ", ".join(f"{row['fd']:.2f}" for row in of_all)
            lines.append(f"| {name} | {' | '.join(cells)} | {scores} | {distances} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
