"""What the paper ablates (Tables V, VI), and what it does not report, in small: every variant gets the same budget of
operations and is run for each seed, so that a difference can be held against the spread.

    OUT/<group>-<variant>-<seed>/    a run          OUT/weights/<the same name>/    its weights
    OUT/results.json    what all runs have in common, and what each scored
    OUT/table.md
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from ..models import strict
from ..models.audiox import WEIGHTS
from .config import RunConfig, load_config, read_json
from .data.pairs import check_pairs
from .distill_config import in_precision, load_distill_config
from .distill_flops import rounds_within
from .files import hash_file, write_json, write_text
from .flops import training_flops
from .hardware import quick_precision

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
        Variant("discriminator depth", f"{blocks} of {depth} blocks", (f"distillation.blocks={blocks}",))
        for blocks in sorted({max(1, round(depth * share)) for share in (1 / 4, 1 / 2, 3 / 4, 1)})
    ]
    student += [
        Variant("steps drawn", name, (f"distillation.probabilities={shares}",))
        for name, shares in (("uniform", UNIFORM), ("early", EARLY), ("late", LATE))
    ]
    student += [
        Variant("adversarial loss", f"{value:g}" if value else "off", (f"distillation.adversarial={value}",))
        for value in (0, 0.01, 0.1, 1, 3, 10)
    ]
    student += [
        Variant("updates", f"{preset}, fake {rate}", (f"updates.preset={preset}", f"fake.optimizer.lr={lr * factor}"))
        for preset in ("paper", "even", "dmd2")
        for rate, factor in (("as student", 1), ("raised", 10))
    ]
    student += [Variant("sampler", kind, (f"sampling.kind={kind}",)) for kind in ("euler", "renoise")]
    student += [Variant("Eq. 10", loss, (f"distillation.loss={loss}",)) for loss in ("eq10", "eq10_sg_teacher")]
    student += [
        Variant("warm start", "without", ("warm_start.updates=0", "warm_start.pairs=")),
        Variant("warm start", "from noised endpoints", ("warm_start.rollout=false",)),
        *(Variant("warm start", f"{n} updates", (f"warm_start.updates={n}",)) for n in (updates // 2, 2 * updates)),
    ]
    fusion = (("whole", ()), ("none", ("enabled",)), ("no gates", ("gates",)), ("no queries", ("attend",)))
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
    """Runs what is missing, and writes the tables."""

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
            "pretraining": strict.to_dict(load_config(plan.pretraining, plan.common)),
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

    def run(self, parallel: int) -> None:
        """Train and convert what is not there yet, `parallel` runs at a time, and judge each as it comes."""
        once = {folder_name(v, seed): (v, seed) for v in self.variants for seed in self.plan.seeds}
        jobs = list(once.values())
        for variant, _ in jobs:
            self._steps(variant)  # every configuration is refused now or never
        self._check_given()
        with ThreadPoolExecutor(parallel) as pool, tqdm(total=len(jobs), unit=" runs", desc="ablations") as bar:
            for name in pool.map(lambda job: self._train(*job), jobs):
                self._judge(name)
                bar.update()
        write_text(self.plan.out / "table.md", tables(self.variants, self.plan.seeds, self.results))

    def _check_given(self) -> None:
        """Raises ValueError for a teacher or pairs that the distillations would refuse one after the other."""
        if all(variant.teacher for variant in self.variants):
            return
        from .distill_run import load_teacher  # imports DeepSpeed, which tables need not wait for

        overrides = [f"warm_start.pairs={self.plan.pairs}", *in_precision(quick_precision()), *self.plan.common]
        base = load_distill_config(self.plan.student, overrides)
        check_pairs(base, load_teacher(base, self.plan.teacher)[1])

    def _steps(self, variant: Variant) -> int:
        """Training steps that the budget pays."""
        overrides = [*self.plan.common, *variant.overrides]
        reference = load_config(self.plan.pretraining, self.plan.common)
        budget = self.plan.samples * training_flops(reference.model, reference.model.text.max_tokens)
        if variant.teacher:
            config: RunConfig = load_config(self.plan.pretraining, overrides)
            each = training_flops(config.model, config.model.text.max_tokens) * config.training.global_batch
            return max(1, round(budget / each))
        distillation = load_distill_config(self.plan.student, [f"warm_start.pairs={self.plan.pairs}", *overrides])
        share = budget / distillation.training.global_batch
        rounds = rounds_within(distillation, share, distillation.model.text.max_tokens)
        return rounds * distillation.updates.counts[0]

    def _train(self, variant: Variant, seed: int) -> str:
        """The name of the run and of its weights; what has been judged is not trained again."""
        name, plan = folder_name(variant, seed), self.plan
        run, weights = plan.out / name, plan.out / "weights" / name
        if weights.exists() or len(self.results.get(name, ())) == 2:
            return name
        overrides = [f"training.seed={seed}", f"training.steps={self._steps(variant)}"]
        if variant.teacher:
            command = ["launch/pretrain.py", "--config", str(plan.pretraining)]
            overrides.append(f"training.precision={quick_precision()}")
        else:
            command = ["launch/distill.py", "--config", str(plan.student), "--teacher", str(plan.teacher)]
            overrides += [f"warm_start.pairs={plan.pairs}", *in_precision(quick_precision())]
        overrides += plan.common
        sets = [word for override in (*overrides, *variant.overrides) for word in ("--set", override)]
        run.mkdir(parents=True, exist_ok=True)
        with (run / "output.txt").open("a") as log:
            for line in (
                [*command, "--output", str(run), "--resume", *sets],
                ["launch/convert.py", str(run), "--out", str(weights)],
            ):
                done = subprocess.run([sys.executable, *line], stdout=log, stderr=subprocess.STDOUT)
                if done.returncode:
                    raise ValueError(f"{name} failed with exit code {done.returncode}: see {run / 'output.txt'}")
        return name

    def _judge(self, name: str) -> None:
        """On both sets of prompts; what was judged before is kept."""
        for prompts in (VALIDATION, TEST):
            if f"{prompts}" not in self.results.setdefault(name, {}):
                self.results[name][f"{prompts}"] = self._evaluated(name, prompts)
                write_json(self.found, {"settled": self.settled, "runs": self.results})

    def _evaluated(self, name: str, prompts: int) -> dict[str, float]:
        report = self.plan.out / name / f"report-{prompts}.json"
        command = [sys.executable, "launch/evaluate.py", "--weights", str(self.plan.out / "weights" / name)]
        command += ["--judge", str(self.plan.judge), "--prompts", str(self.plan.prompts), "--tasks", "0"]
        command += ["--dtype", quick_precision(), "--no-latency", "--seed", str(prompts), "--out", str(report)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{name} could not be judged: {done.stderr.splitlines()[-1] if done.stderr else ''}")
        row = json.loads(report.read_text())["results"][0]
        return {metric: row[metric] for metric in METRICS}


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
