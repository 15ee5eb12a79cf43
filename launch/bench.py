"""Measure ours and the alternatives in one run, taking turns; print a table and write JSON.

examples:
  python launch/bench.py kernels --config configs/2p7b.json --batch 30 --out kernels.json
  python launch/bench.py tiles --config configs/2p7b.json --batch 30 --write
  deepspeed --num_gpus 2 launch/bench.py train --config configs/tiny.json --rounds 20 --out bench.json
  python launch/bench.py distill --config configs/distill_tiny.json --set updates.preset=paper
  python launch/bench.py data --config configs/2p7b.json --set training.global_batch=60
  deepspeed --num_gpus 2 launch/bench.py save --config configs/small_cpu.json
  deepspeed --num_gpus 2 launch/bench.py checks --config configs/small_cpu.json
  python launch/bench.py decode --config configs/2p7b.json
  python launch/bench.py prepare --config configs/tiny.json --rounds 5
  python launch/bench.py encode --config configs/2p7b.json --random-weights
  python launch/bench.py throughput --config configs/2p7b.json --random-weights --media recordings
  python launch/bench.py scorers --random-weights panns vggish --clips 200 --rounds 2
  python launch/bench.py page --weights weights/tiny-turbo
  python launch/bench.py latency --weights weights/2p7b weights/turbo --out latency.json
  python launch/bench.py latency --config configs/single_gpu.json --steps 4 50
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from audiox_trainer.launch.bench_options import DTYPES, build_parser
from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.core.files import write_json
from audiox_trainer.trainer.core.hardware import describe


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    return build_parser(__doc__).parse_args(argv)


def dtype(a: argparse.Namespace) -> torch.dtype:
    found: torch.dtype = getattr(torch, DTYPES[a.dtype])
    return found


def samplings(a: argparse.Namespace) -> list[Any]:
    """Those of a student, and of a guided teacher at each of the numbers of steps."""
    from audiox_trainer.models.audiox import SamplingConfig

    return [SamplingConfig("renoise", steps=4, guidance=1.0), *(SamplingConfig(steps=n, guidance=3.0) for n in a.steps)]


# By command: a call of the module of its name, with the configuration and the arguments.
MEASURE: dict[str, Callable[[Any, Any, argparse.Namespace], dict[str, Any]]] = {
    "kernels": lambda m, c, a: m.measure(c.model, a.batch or c.training.micro_batch, dtype(a), a.rounds, a.inner),
    "tiles": lambda m, c, a: m.measure(
        c.model, a.batch or c.training.micro_batch, dtype(a), a.rounds, a.inner, a.write
    ),
    "train": lambda m, c, a: m.measure(c, a.rounds, a.inner, a.only, a.batches, a.profile),
    "distill": lambda m, c, a: m.measure(c, a.rounds, not a.no_parts, a.text_lengths),
    "sample": lambda m, c, a: m.measure(c.model, samplings(a), a.batch, dtype(a), a.rounds, c.kernels),
    "data": lambda m, c, a: m.measure(c, a.samples, a.rounds, a.folder, a.train),
    "save": lambda m, c, a: m.measure(c, a.rounds, a.folder),
    "checks": lambda m, c, a: m.measure(c, a.rounds, a.inner),
    "encode": lambda m, c, a: m.measure(c, a.random_weights, a.batch, a.rounds, a.media),
    "decode": lambda m, c, a: m.measure(c.model, a.rounds, a.seconds, a.film),
    "prepare": lambda m, c, a: m.measure(a.config, a.set, a.rounds, a.seconds),
    "throughput": lambda m, c, a: m.measure(c, a.random_weights, a.batch, a.rounds, a.seconds, a.media),
    "scorers": lambda m, c, a: m.measure(a.scorers, a.random_weights, a.clips, a.seconds, a.rounds),
    "page": lambda m, c, a: m.measure(a.weights, a.text, a.rounds, a.visitors),
    "latency": lambda m, c, a: m.measure(c, c and a.config.stem, a.weights, a.steps, a.guidance, dtype(a)),
}
ELSEWHERE = {name: f"launch.bench_{name}" for name in ("prepare", "page", "tiles", "throughput", "scorers")} | {
    "latency": "trainer.paper.latency"
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    command = arguments.command
    load = load_distill_config if command == "distill" else load_pretrain_config
    config = load(arguments.config, arguments.set) if getattr(arguments, "config", None) else None
    if command == "latency" and arguments.set and not arguments.config:
        raise ValueError("--set: goes with --config; weights have a configuration of their own")
    module = ELSEWHERE.get(command, f"trainer.benchmarks.{command}")
    benchmark = importlib.import_module(f"audiox_trainer.{module}")  # some import DeepSpeed
    from audiox_trainer.trainer.benchmarks.summary import heading

    result = {"host": describe()} | MEASURE[command](benchmark, config, arguments)
    print(*heading(result), *benchmark.summary_lines(result), sep="\n")
    return result


def main() -> int:
    arguments = parse()

    def run() -> None:
        others = int(os.environ.get("RANK", "0")) > 0
        with contextlib.redirect_stdout(None if others else sys.stdout):
            result = measure(arguments)
        if arguments.out and not others:
            write_json(arguments.out, result)

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
