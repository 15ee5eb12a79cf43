"""The paper's ablations (Tables V, VI) and some more, at small scale. Every variant gets the same budget of operations
and is run with several seeds, so that a difference can be compared with the spread.

    OUT/<group>-<variant>-<seed>/    a run          OUT/weights/<the same name>/    its weights
    OUT/results.json    the settings that all runs share, and the scores of each
    OUT/table.md
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from ...models import strict
from ...models.audiox import WEIGHTS
from ..core.config import PretrainConfig, load_pretrain_config
from ..core.config_reader import read_json
from ..core.distill_config import load_distill_config, precision_overrides
from ..core.files import hash_file, write_json, write_text
from ..core.hardware import fastest_precision
from ..cost.operation_budget import rounds_within_budget
from ..cost.operations import training_flops
from ..data.pairs import check_pairs

METRICS = ("cat_acc", "cnt_acc", "ord_acc", "ts_acc", "fd", "kl", "is")
VALIDATION, TEST = 1, 2  # seeds of the prompts that the best variant is chosen on, and of those that are reported
UNIFORM, EARLY, LATE = [0.25] * 4, [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]


@dataclass(frozen=True)
class Variant:
    """One way to train, as overrides of the base configuration of its kind."""

    group: str
    name: str
    overrides: tuple[str, ...] = ()
    teacher: bool = False  # a pretraining, rather than a distillation
    run: str = ""  # the run that this variant shares: "base", where the base has another name in this group


def list_variants(depth: int, lr: float, updates: int) -> list[Variant]:
    """All variants, for a teacher of `depth` blocks, a student's learning rate and the updates of its warm start."""
    student = [Variant("base", "base", run="base")]
    student += [
        Variant("discriminator depth", f"{blocks} of {depth} blocks", (f"distillation.discriminator_blocks={blocks}",))
        for blocks in sorted({max(1, round(depth * share)) for share in (1 / 4, 1 / 2, 3 / 4, 1)})
    ]
    student += [
        Variant("steps drawn", name, (f"distillation.step_probabilities={shares}",))
        for name, shares in (("uniform", UNIFORM), ("early", EARLY), ("late", LATE))
    ]
    student += [
        Variant("adversarial loss", f"{value:g}" if value else "off", (f"distillation.adversarial_weight={value}",))
        for value in (0, 0.01, 0.1, 1, 3, 10)
    ]
    student += [
        Variant("updates", f"{preset}, fake {rate}", (f"updates.preset={preset}", f"fake.optimizer.lr={lr * factor}"))
        for preset in ("paper", "even", "dmd2")
        for rate, factor in (("as student", 1), ("raised", 10))
    ]
    student += [Variant("sampler", "euler", ("sampling.sampler=euler",))]
    student += [Variant("sampler", "renoise", ("sampling.sampler=renoise", "warm_start.pairs="))]
    student += [Variant("Eq. 10", loss, (f"distillation.loss={loss}",)) for loss in ("eq10", "eq10_sg_teacher")]
    student += [
        Variant("warm start", "without", ("warm_start.updates=0", "warm_start.pairs=")),
        Variant("warm start", "from noised endpoints", ("warm_start.rollout=false",)),
        *(Variant("warm start", f"{n} updates", (f"warm_start.updates={n}",)) for n in (updates // 2, 2 * updates)),
    ]
    fusion = (("whole", ()), ("none", ("enabled",)), ("no gates", ("gates",)), ("no queries", ("attention",)))
    teachers = [
        Variant("MAF", name, tuple(f"model.fusion.{part}=false" for part in parts), teacher=True)
        for name, parts in fusion
    ]
    return student + teachers


@dataclass(frozen=True)
class AblationSettings:
    """Paths, and the budget of each run."""

    out: Path
    student: Path  # base configurations
    pretraining: Path
    teacher: Path  # weights
    pairs: Path
    judge: Path
    samples: int  # the budget: the operations of this many training samples of the teacher
    seeds: Sequence[int]
    prompts: int
    common: Sequence[str] = ()  # overrides of every run


class Ablations:
    """The runs of some groups, the budget of each, and the results so far."""

    def __init__(self, settings: AblationSettings, only: Sequence[str]) -> None:
        """Raises ValueError for a group that does not exist."""
        self.settings = settings
        base = load_distill_config(settings.student, settings.common)
        variants = [
            v
            if v.teacher or load_distill_config(settings.student, [*settings.common, *v.overrides]) != base
            else replace(v, run="base")
            for v in list_variants(base.model.depth, base.student.optimizer.lr, base.warm_start.updates)
        ]
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
        """The distinct runs, each a variant and a seed.

        Raises ValueError for a configuration, a teacher or pairs that a run would refuse later.
        """
        once = {folder_name(v, seed): (v, seed) for v in self.variants for seed in self.settings.seeds}
        for variant, _ in once.values():
            self.steps(variant)
        self._check_teacher()
        return list(once.values())

    def is_judged(self, name: str) -> bool:
        return len(self.results.get(name, ())) == 2

    def overrides(self, variant: Variant, seed: int) -> list[str]:
        """Overrides of a run for the base configuration of its kind."""
        own = [f"training.seed={seed}", f"training.steps={self.steps(variant)}"]
        if variant.teacher:
            own.append(f"training.precision={fastest_precision()}")
        else:
            own += [f"warm_start.pairs={self.settings.pairs}", *precision_overrides(fastest_precision())]
        return [*own, *self.settings.common, *variant.overrides]

    def add(self, name: str, prompts: int, report: dict[str, Any]) -> None:
        """Save the scores of a run on one set of prompts."""
        row = report["results"][0]
        self.results.setdefault(name, {})[f"{prompts}"] = {metric: row[metric] for metric in METRICS}
        write_json(self.results_file, {"shared": self.shared, "runs": self.results})

    def write_tables(self) -> Path:
        path = self.settings.out / "table.md"
        write_text(path, markdown_tables(self.variants, self.settings.seeds, self.results))
        return path

    def _check_teacher(self) -> None:
        """Raises ValueError for a teacher or pairs that the distillations would refuse one after the other."""
        if all(variant.teacher for variant in self.variants):
            return
        from ..distillation.distill import load_teacher  # imports DeepSpeed, which tables do not need

        overrides = [
            f"warm_start.pairs={self.settings.pairs}",
            *precision_overrides(fastest_precision()),
            *self.settings.common,
        ]
        base = load_distill_config(self.settings.student, overrides)
        check_pairs(base, load_teacher(base, self.settings.teacher)[1])

    def steps(self, variant: Variant) -> int:
        """Training steps within the budget."""
        overrides = [*self.settings.common, *variant.overrides]
        reference = load_pretrain_config(self.settings.pretraining, self.settings.common)
        budget = self.settings.samples * training_flops(reference.model, reference.model.text.max_tokens)
        if variant.teacher:
            config: PretrainConfig = load_pretrain_config(self.settings.pretraining, overrides)
            per_step = training_flops(config.model, config.model.text.max_tokens) * config.training.global_batch
            return max(1, round(budget / per_step))
        distillation = load_distill_config(
            self.settings.student, [f"warm_start.pairs={self.settings.pairs}", *overrides]
        )
        share = budget / distillation.training.global_batch
        rounds = rounds_within_budget(distillation, share, distillation.model.text.max_tokens)
        return rounds * distillation.updates.counts[0]


def folder_name(variant: Variant, seed: int) -> str:
    """Letters, digits and dashes."""
    text = f"{variant.run or f'{variant.group}-{variant.name}'}-{seed}"
    return "".join(c if c.isalnum() else "-" for c in text)


def variant_score(values: dict[str, float]) -> float:
    """The criterion for the best variant: the mean of the four accuracies."""
    return mean(values[metric] for metric in METRICS[:4])


def markdown_tables(variants: Sequence[Variant], seeds: Sequence[int], results: dict[str, dict[str, Any]]) -> str:
    """Markdown, one table per group: the mean over the seeds on the reported prompts, and the score of each seed. The
    variant that is best on the other prompts is bold."""
    base = [variant for variant in variants if variant.group == "base"]
    parts = []
    for group in dict.fromkeys(variant.group for variant in variants if variant.group != "base"):
        members = [v for v in variants if v.group == group]
        members = members if members[0].teacher or any(v.run for v in members) else base + members
        chosen = max(members, key=lambda v: mean(variant_score(r) for r in _rows(v, seeds, results, VALIDATION)))
        lines = [f"| {group} | Cat | Cnt | Ord | TS | FD | KL | IS | mean of four, by seed |", "|---" * 9 + "|"]
        for variant in members:
            rows = _rows(variant, seeds, results, TEST)
            cells = [f"{mean(row[metric] for row in rows):.2f}" for metric in METRICS]
            name = f"**{variant.name}**" if variant is chosen else variant.name
            spread = ", ".join(f"{variant_score(row):.2f}" for row in rows)
            lines.append(f"| {name} | {' | '.join(cells)} | {spread} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _rows(
    variant: Variant, seeds: Sequence[int], results: dict[str, dict[str, Any]], prompts: int
) -> list[dict[str, float]]:
    return [results[folder_name(variant, seed)][f"{prompts}"] for seed in seeds]
