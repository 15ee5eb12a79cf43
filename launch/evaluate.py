"""Judge weights on unseen scenes: T2A-bench, the eight tasks, latency.

examples:
  python launch/evaluate.py --weights weights/tiny --out report.json
  python launch/evaluate.py --weights weights/tiny --prompts 25 --run runs/tiny --html report.html --out report.json
  python launch/evaluate.py --weights weights/teacher weights/student --first 50 --also 4:euler:1 --out both.json

The judge is a small network that listens; where there is none in --judge it is trained first, once, in minutes.
Several weights are judged on the same prompts, each sampled as its own configuration says unless you say otherwise.
An evaluation that was stopped goes on after the last weights that it had judged, by the same command.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.core import cli

SAMPLERS = ("euler", "renoise")


def _way(text: str) -> tuple[int, float | None, str]:
    """Steps, guidance (None: the weights' own) and sampler ("": the weights' own) of an argument of --also."""
    steps, _, rest = text.partition(":")
    kind, _, guidance = rest.partition(":")
    try:
        if kind not in ("", *SAMPLERS):
            raise ValueError
        return int(steps), float(guidance) if guidance else None, kind
    except ValueError:
        wanted = f"N, N:SAMPLER or N:SAMPLER:GUIDANCE with a sampler of {', '.join(SAMPLERS)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None


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
    parser.add_argument("--steps", type=int, help="sampler steps (default: what the weights say)")
    parser.add_argument("--guidance", type=float, help="guidance scale, 1 for none (default: what the weights say)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="(default: what the weights say)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the transformer (default: fp32)")
    parser.add_argument("--judge", type=Path, default=Path("weights/judge"), help="(default: weights/judge)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, clips and noise (default: 0)")
    way: dict[str, Any] = {"type": _way, "metavar": "N[:SAMPLER[:GUIDANCE]]"}
    parser.add_argument("--first", **way, help="sample the first weights in this way, the others as they say: 50")
    parser.add_argument(
        "--also", nargs="+", default=[], **way, help="judge the first weights in this way too: 4, or 4:euler:1"
    )
    parser.add_argument(
        "--latency-steps", nargs="+", type=int, default=[], metavar="N", help="time the first weights at N steps too"
    )
    parser.add_argument("--no-latency", action="store_true", help="leave the latencies out")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from audiox_trainer.models.sampler import changed
    from audiox_trainer.trainer.core.files import hash_file, write_json
    from audiox_trainer.trainer.evaluation.evaluate import Candidate, Plan, evaluate
    from audiox_trainer.trainer.evaluation.report import write_html
    from audiox_trainer.trainer.evaluation.result_cache import Parts
    from audiox_trainer.trainer.evaluation.tables import as_text, tables
    from audiox_trainer.trainer.generation.generator import Generator

    latency = None if arguments.no_latency else tuple(arguments.latency_steps)
    plan = Plan(arguments.prompts, arguments.tasks, arguments.seed, latency)
    for path in (arguments.out, arguments.html or arguments.out):
        path.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the evaluation
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    candidates: list[Candidate] = []
    for folder in arguments.weights:
        generator = Generator(folder, dtype=dtypes[arguments.dtype])
        sampling = changed(generator.sampling, arguments.steps, arguments.guidance, arguments.sampler)
        if arguments.first and not candidates:
            sampling = changed(sampling, *arguments.first)
        name, digest = folder.resolve().name, hash_file(folder / "model.safetensors")
        candidates.append(Candidate(name, name, generator, sampling, digest))
    first = candidates[0]
    for steps, guidance, kind in arguments.also:
        way = changed(first.sampling, steps, guidance, kind)
        words = [f"{steps} {kind} steps" if kind else f"{steps} steps"]
        words += [] if guidance is None else [f"guidance {guidance:g}"]
        name = f"{first.name} at {', '.join(words)}"
        candidates.append(Candidate(name, first.weights, first.generator, way, first.digest, tasks=False))
    parts = Parts(arguments.out.parent / "parts")
    evaluation = evaluate(candidates, arguments.judge, plan, parts)
    write_json(arguments.out, evaluation.report)
    parts.clear()
    print("\n\n".join(as_text(table) for table in tables(evaluation.report)))
    print(f"\n{arguments.out}")
    if arguments.html:
        write_html(evaluation.report, arguments.run, evaluation.sounds, arguments.html)
        print(arguments.html)


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
