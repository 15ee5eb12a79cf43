"""What the paper ablates (Tables V, VI), and what it does not report, in small: every variant gets the same budget of
operations and is run for each seed, so that a difference can be held against the spread.

    OUT/<group>-<variant>-<seed>/    a run          OUT/weights/<the same name>/    its weights
    OUT/results.json    what all runs have in common, and what each scored
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
from ..cost.distill_operations import rounds_within
from ..cost.operations import training_flops
from ..data.pairs import check_pairs

METRICS = ("cat_acc", "cnt_acc", "ord_acc", "ts_acc", "fd", "kl", "is")
VALIDATION, TEST = 1, 2  # seeds of the prompts that choose, and of those that are reported
UNIFORM, EARLY, LATE = [0.25] * 4, [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]


@dataclass(frozen=True)
class Variant:
    """One way to train, as overrides of the base configuration of its kind."""

    group: str
    name: str
    overrides: tuple[str, ...] = ()
    teacher: bool = False  # a pretraining, rather than a distillation
    run: str = ""  # whose run it is, where that is another's: the base under the name that it has in this group


def groups(depth: int, lr: float, updates: int) -> list[Variant]:
    """All variants, for a teacher of `depth` blocks, a student's learning rate and updates of its warm start."""
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
    student += [Variant("sampler", kind, (f"sampling.sampler={kind}",)) for kind in ("euler", "renoise")]
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
class Plan:
    """Where everything is, and how much each run may cost."""

    out: Path
    student: Path  # base configurations
    pretraining: Path
    teacher: Path  # weights
    pairs: Path
    judge: Path
    samples: int  # the budget: operations of as many training samples of the teacher
    seeds: Sequence[int]
    prompts: int
    common: Sequence[str] = ()  # overrides of every run


class Ablations:
    """The runs of some groups, what each may cost, and what has been judged so far."""

    def __init__(self, plan: Plan, only: Sequence[str]) -> None:
        """Raises ValueError for a group that does not exist."""
        self.plan = plan
        base = load_distill_config(plan.student, plan.common)
        every = [
            v
            if v.teacher or load_distill_config(plan.student, [*plan.common, *v.overrides]) != base
            else replace(v, run="base")
            for v in groups(base.model.backbone.depth, base.student.optimizer.lr, base.warm_start.updates)
        ]
        names = list(dict.fromkeys(variant.group for variant in every))
        for group in only:
            if group not in names:
                raise ValueError(f"no group {group!r}; there are {', '.join(names)}")
        self.variants = [v for v in every if not only or v.group in only]
        self.found = plan.out / "results.json"
        self.results: dict[str, dict[str, Any]] = {}
        self.settled = {
            "distillation": strict.to_dict(base),
            "pretraining": strict.to_dict(load_pretrain_config(plan.pretraining, plan.common)),
            "teacher": hash_file(plan.teacher / WEIGHTS) if (plan.teacher / WEIGHTS).exists() else "",
            "samples": plan.samples,
            "prompts": plan.prompts,
        }
        if self.found.exists():
            before = read_json(self.found)
            if before["settled"] != self.settled:
                where, then, now = strict.difference("", before["settled"], self.settled)
                raise ValueError(
                    f"{self.found}: begun with {where} {then!r}, now it is {now!r}, and runs of the two cannot stand "
                    f"in one table; go on with the former, or give another --out"
                )
            self.results = before["runs"]

    def jobs(self) -> list[tuple[Variant, int]]:
        """Each run once: a variant and a seed.

        Raises ValueError for a configuration, a teacher or pairs that a run would refuse later.
        """
        once = {folder_name(v, seed): (v, seed) for v in self.variants for seed in self.plan.seeds}
        for variant, _ in once.values():
            self.steps(variant)
        self._check_given()
        return list(once.values())

    def is_judged(self, name: str) -> bool:
        return len(self.results.get(name, ())) == 2

    def overrides(self, variant: Variant, seed: int) -> list[str]:
        """What a run sets in the base configuration of its kind."""
        own = [f"training.seed={seed}", f"training.steps={self.steps(variant)}"]
        if variant.teacher:
            own.append(f"training.precision={fastest_precision()}")
        else:
            own += [f"warm_start.pairs={self.plan.pairs}", *precision_overrides(fastest_precision())]
        return [*own, *self.plan.common, *variant.overrides]

    def add(self, name: str, prompts: int, report: dict[str, Any]) -> None:
        """Keeps what an evaluation says of a run on one set of prompts, on disk at once."""
        row = report["results"][0]
        self.results.setdefault(name, {})[f"{prompts}"] = {metric: row[metric] for metric in METRICS}
        write_json(self.found, {"settled": self.settled, "runs": self.results})

    def write_tables(self) -> Path:
        path = self.plan.out / "table.md"
        write_text(path, tables(self.variants, self.plan.seeds, self.results))
        return path

    def _check_given(self) -> None:
        """Raises ValueError for a teacher or pairs that the distillations would refuse one after the other."""
        if all(variant.teacher for variant in self.variants):
            return
        from ..training.distill import load_teacher  # imports DeepSpeed, which tables need not wait for

        overrides = [
            f"warm_start.pairs={self.plan.pairs}",
            *precision_overrides(fastest_precision()),
            *self.plan.common,
        ]
        base = load_distill_config(self.plan.student, overrides)
        check_pairs(base, load_teacher(base, self.plan.teacher)[1])

    def steps(self, variant: Variant) -> int:
        """Training steps that the budget pays."""
        overrides = [*self.plan.common, *variant.overrides]
        reference = load_pretrain_config(self.plan.pretraining, self.plan.common)
        budget = self.plan.samples * training_flops(reference.model, reference.model.text.max_tokens)
        if variant.teacher:
            config: PretrainConfig = load_pretrain_config(self.plan.pretraining, overrides)
            each = training_flops(config.model, config.model.text.max_tokens) * config.training.global_batch
            return max(1, round(budget / each))
        distillation = load_distill_config(self.plan.student, [f"warm_start.pairs={self.plan.pairs}", *overrides])
        share = budget / distillation.training.global_batch
        rounds = rounds_within(distillation, share, distillation.model.text.max_tokens)
        return rounds * distillation.updates.counts[0]


def folder_name(variant: Variant, seed: int) -> str:
    """Letters, digits and dashes."""
    text = f"{variant.run or f'{variant.group}-{variant.name}'}-{seed}"
    return "".join(c if c.isalnum() else "-" for c in text)


def score(values: dict[str, float]) -> float:
    """What variants are chosen by: the mean of the four accuracies."""
    return mean(values[metric] for metric in METRICS[:4])


def tables(variants: Sequence[Variant], seeds: Sequence[int], results: dict[str, dict[str, Any]]) -> str:
    """Markdown, a table a group: the mean of the seeds on the reported prompts, and their values of the score. The
    variant that is best on the other prompts is bold."""
    base = [variant for variant in variants if variant.group == "base"]
    parts = []
    for group in dict.fromkeys(variant.group for variant in variants if variant.group != "base"):
        members = [v for v in variants if v.group == group]
        members = members if members[0].teacher or any(v.run for v in members) else base + members
        chosen = max(members, key=lambda v: mean(score(r) for r in _values(v, seeds, results, VALIDATION)))
        lines = [f"| {group} | Cat | Cnt | Ord | TS | FD | KL | IS | mean of four, by seed |", "|---" * 9 + "|"]
        for variant in members:
            rows = _values(variant, seeds, results, TEST)
            cells = [f"{mean(row[metric] for row in rows):.2f}" for metric in METRICS]
            name = f"**{variant.name}**" if variant is chosen else variant.name
            spread = ", ".join(f"{score(row):.2f}" for row in rows)
            lines.append(f"| {name} | {' | '.join(cells)} | {spread} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _values(
    variant: Variant, seeds: Sequence[int], results: dict[str, dict[str, Any]], prompts: int
) -> list[dict[str, float]]:
    return [results[folder_name(variant, seed)][f"{prompts}"] for seed in seeds]
