"""Judge folders of sounds by the field's networks, or weights on unseen scenes: T2A-bench, the eight tasks, latency.

examples:
  python launch/evaluate.py --sounds sounds/turbo sounds/baseline --reference audiocaps.jsonl --scorers scorers.json \
      --out report.json --html report.html
  python launch/evaluate.py --weights weights/tiny --out report.json
  python launch/evaluate.py --weights weights/tiny --prompts 25 --run runs/tiny --html report.html --out report.json
  python launch/evaluate.py --weights weights/teacher weights/student --first 50 --also 4:euler:1 --out both.json

The judge of --weights is a small network that annotates sounds; if the folder --judge has none, one is trained there,
in minutes. Each set of weights has its own sampling unless options override it. The same command resumes.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.evaluation.sampling_override import SAMPLERS, interval, sampling_override
from audiox_trainer.trainer.scenes.scene import EXTRA_CATEGORIES


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--weights", nargs="+", help=f"each a folder made by launch/convert.py, or {cli.HUB}")
    what.add_argument("--sounds", nargs="+", type=Path, help="folders of anybody's sounds for prompts of --reference")
    add = parser.add_argument
    add("--out", required=True, type=Path, help="JSON file of the report")
    add("--html", type=Path, help="also write a page with tables, sounds and spectrograms")
    add("--seed", type=int, default=0, help="of prompts, clips, noise and resamples (default: 0)")
    add_weights(parser)
    add_sounds(parser)
    arguments = parser.parse_args(argv)
    if arguments.sounds and not (arguments.reference and arguments.scorers):
        parser.error("--sounds needs --reference, the prompts with their true sounds, and --scorers")
    if arguments.weights and (arguments.reference or arguments.scorers):
        parser.error("--reference and --scorers are for --sounds; generate sounds with the weights first")
    return arguments


def add_weights(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("for --weights").add_argument
    add("--run", nargs="+", default=[], type=Path, help="runs whose loss curves the page shows")
    add("--prompts", type=int, default=100, help="prompts of each of the four types (default: 100)")
    add("--tasks", type=int, default=100, help="clips of each of the eight tasks; 0: none (default: 100)")
    add("--mixtures", action="store_true", help="also judge inpainting and completion with other conditions")
    add("--steps", type=int, help="sampler steps (default: those of the weights)")
    add("--guidance", type=float, help="guidance scale, 1 for none (default: that of the weights)")
    levels = "noise levels with guidance, as 0.9-1 (default: those of the weights)"
    add("--guidance-interval", type=interval, metavar="LOWEST-HIGHEST", help=levels)
    add("--sampler", choices=SAMPLERS, help="(default: that of the weights)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the transformer (default: fp32)")
    extra = "also judge prompts with this sound, which ordinary scenes do not have; the judge has to know it"
    add("--extra", choices=EXTRA_CATEGORIES, default="", help=extra)
    add("--judge", type=Path, default=Path("weights/judge"), help="(default: weights/judge)")
    sampling: dict[str, Any] = {"type": sampling_override, "metavar": "N[:SAMPLER[:GUIDANCE[:LEVELS]]]"}
    add("--first", **sampling, help="sampling of the first weights: 50")
    add("--also", nargs="+", default=[], **sampling, help="also judge the first weights so: 4, 4:euler:1, 50::4:0.9-1")
    more = "also time the first weights at N steps"
    add("--latency-steps", nargs="+", type=int, default=[], metavar="N", help=more)
    add("--no-latency", action="store_true", help="measure no latencies")


def add_sounds(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("for --sounds").add_argument
    add("--reference", type=Path, help="prompts of launch/generate.py; `reference` names each true sound")
    add("--scorers", type=Path, help="JSON file with the networks that judge (docs/evaluation.md)")
    add("--leave-out", action="store_true", help="leave prompts out whose sound is missing, silent, … in any folder")
    add("--any-length", action="store_true", help="allow sounds of another length than their references")
    add("--at-infinity", action="store_true", help="also extrapolate Fréchet distances to infinitely many clips")
    add("--resamples", type=cli.positive, default=200, help="of metrics that are no means (default: 200)")
    add("--show", nargs="+", default=[], metavar="ID", help="prompts that the page plays (default: first eight)")
    add("--cache", type=Path, help="folder of features (default: --out with .features)")
    add("--device", help="cpu, cuda, cuda:1 (default: the GPU where there is one)")


def run_sounds(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.pages.tables import as_text
    from audiox_trainer.trainer.sound_evaluation.evaluate_sounds import SoundEvaluation, evaluate_sounds
    from audiox_trainer.trainer.sound_evaluation.report import sound_tables
    from audiox_trainer.trainer.sound_evaluation.results import JudgeSettings

    settings = JudgeSettings(a.seed, a.resamples, a.leave_out, a.any_length, a.at_infinity)
    paths = (a.sounds, a.reference, a.scorers, a.out, a.html, a.cache)
    evaluation = SoundEvaluation(*paths, a.device, tuple(a.show), settings)
    if report := evaluate_sounds(evaluation):
        print("\n\n".join(as_text(table) for table in sound_tables(report)))
        print("\n" + "\n".join(str(path) for path in (a.out, a.html) if path))


def run(arguments: argparse.Namespace) -> None:
    import torch

    from audiox_trainer.models.audiox import WEIGHTS
    from audiox_trainer.models.sampler import override_sampling
    from audiox_trainer.trainer.core.files import hash_file, write_json
    from audiox_trainer.trainer.evaluation.evaluate import EvaluatedModel, EvaluationSettings, evaluate
    from audiox_trainer.trainer.evaluation.report import report_tables, write_html
    from audiox_trainer.trainer.evaluation.result_cache import ResultCache
    from audiox_trainer.trainer.generation.generator import Generator
    from audiox_trainer.trainer.pages.tables import as_text

    for path in (arguments.out, arguments.html or arguments.out):
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the evaluation
    latency = None if arguments.no_latency else tuple(arguments.latency_steps)
    settings = EvaluationSettings(
        arguments.prompts, arguments.tasks, arguments.seed, latency, arguments.extra, arguments.mixtures
    )
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    models: list[EvaluatedModel] = []
    for location in arguments.weights:
        generator = Generator(location, dtype=dtypes[arguments.dtype])
        how = arguments.steps, arguments.guidance, arguments.sampler
        sampling = override_sampling(generator.sampling, *how, interval=arguments.guidance_interval)
        if arguments.first and not models:
            sampling = arguments.first.of(sampling)
        name, digest = Path(location).resolve().name, hash_file(generator.folder / WEIGHTS)
        models.append(EvaluatedModel(name, name, generator, sampling, digest))
    first = models[0]
    for also in arguments.also:
        sampling = also.of(first.sampling)
        models.append(replace(first, name=f"{first.name} at {also.words}", sampling=sampling, tasks=False))
    cache = ResultCache(arguments.out.parent / "evaluation_cache")
    result = evaluate(models, arguments.judge, settings, cache)
    write_json(arguments.out, result.report)
    cache.clear()
    print("\n\n".join(as_text(table) for table in report_tables(result.report)))
    print(f"\n{arguments.out}")
    if arguments.html:
        write_html(result.report, arguments.run, result.comparisons, arguments.html)
        print(arguments.html)


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run_sounds(arguments) if arguments.sounds else run(arguments))


if __name__ == "__main__":
    sys.exit(main())
