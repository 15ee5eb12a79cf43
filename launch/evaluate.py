"""Judge weights on unseen scenes: T2A-bench, the eight tasks, latency.

examples:
  python launch/evaluate.py --weights weights/tiny --out report.json
  python launch/evaluate.py --weights weights/tiny --prompts 25 --run runs/tiny --html report.html --out report.json
  python launch/evaluate.py --weights weights/teacher weights/student --first 50 --also 4:euler:1 --out both.json

The judge is a small network that annotates sounds; if the folder --judge has none, one is trained there first, in
minutes. Several weights are judged on the same prompts, each with its own sampling unless options override it. The same
command resumes an interrupted evaluation after the last weights that were judged.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.core import cli

SAMPLERS = ("euler", "renoise")


def _sampling(text: str) -> tuple[int, float | None, str]:
    """Steps, guidance (None: that of the weights) and sampler ("": that of the weights) of --first and --also."""
    steps, _, rest = text.partition(":")
    kind, _, guidance = rest.partition(":")
    try:
        if kind not in ("", *SAMPLERS):
            raise ValueError
        return int(steps), float(guidance) if guidance else None, kind
    except ValueError:
        allowed = f"N, N:SAMPLER or N:SAMPLER:GUIDANCE with a sampler of {', '.join(SAMPLERS)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}") from None


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--weights", required=True, nargs="+", type=Path, help="folders made by launch/convert.py")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the report")
    parser.add_argument("--html", type=Path, help="also write a page with tables, sounds and spectrograms")
    parser.add_argument("--run", nargs="+", default=[], type=Path, help="runs whose loss curves the page shows")
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each of the four types (default: 100)")
    parser.add_argument(
        "--tasks", type=int, default=100, help="clips of each of the eight tasks; 0: none (default: 100)"
    )
    parser.add_argument("--steps", type=int, help="sampler steps (default: those of the weights)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 for none (default: that of the weights)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="(default: that of the weights)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the transformer (default: fp32)")
    parser.add_argument("--judge", type=Path, default=Path("weights/judge"), help="(default: weights/judge)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, clips and noise (default: 0)")
    sampling: dict[str, Any] = {"type": _sampling, "metavar": "N[:SAMPLER[:GUIDANCE]]"}
    parser.add_argument("--first", **sampling, help="sampling of the first weights: 50")
    parser.add_argument(
        "--also", nargs="+", default=[], **sampling, help="also judge the first weights so: 4, or 4:euler:1"
    )
    parser.add_argument(
        "--latency-steps", nargs="+", type=int, default=[], metavar="N", help="also time the first weights at N steps"
    )
    parser.add_argument("--no-latency", action="store_true", help="measure no latencies")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from audiox_trainer.models.audiox import WEIGHTS
    from audiox_trainer.models.sampler import override_sampling
    from audiox_trainer.trainer.core.files import hash_file, write_json
    from audiox_trainer.trainer.evaluation.evaluate import EvaluatedModel, EvaluationSettings, evaluate
    from audiox_trainer.trainer.evaluation.report import as_text, report_tables, write_html
    from audiox_trainer.trainer.evaluation.result_cache import ResultCache
    from audiox_trainer.trainer.generation.generator import Generator

    latency = None if arguments.no_latency else tuple(arguments.latency_steps)
    settings = EvaluationSettings(arguments.prompts, arguments.tasks, arguments.seed, latency)
    for path in (arguments.out, arguments.html or arguments.out):
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the evaluation
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    models: list[EvaluatedModel] = []
    for folder in arguments.weights:
        generator = Generator(folder, dtype=dtypes[arguments.dtype])
        sampling = override_sampling(generator.sampling, arguments.steps, arguments.guidance, arguments.sampler)
        if arguments.first and not models:
            sampling = override_sampling(sampling, *arguments.first)
        name, digest = folder.resolve().name, hash_file(folder / WEIGHTS)
        models.append(EvaluatedModel(name, name, generator, sampling, digest))
    first = models[0]
    for steps, guidance, kind in arguments.also:
        words = [f"{steps} {kind} steps" if kind else f"{steps} steps"]
        words += [] if guidance is None else [f"guidance {guidance:g}"]
        sampling = override_sampling(first.sampling, steps, guidance, kind)
        models.append(replace(first, name=f"{first.name} at {', '.join(words)}", sampling=sampling, tasks=False))
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
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
