"""Measure ours and the alternatives in one run, taking turns; print a table and write JSON.

examples:
  python launch/bench.py kernels --config configs/2p7b.json --batch 30 --out kernels.json
  deepspeed --num_gpus 2 launch/bench.py train --config configs/tiny.json --rounds 20 --out bench.json
  python launch/bench.py distill --config configs/distill_tiny.json --set updates.preset=paper
  python launch/bench.py data --config configs/2p7b.json --set training.global_batch=60
  deepspeed --num_gpus 2 launch/bench.py data --config configs/tiny.json --samples 0 --train 10
  deepspeed --num_gpus 2 launch/bench.py save --config configs/small_cpu.json
  python launch/bench.py decode --config configs/2p7b.json
  python launch/bench.py prepare --config configs/tiny.json --rounds 5
  python launch/bench.py encode --config configs/2p7b.json --random-weights
"""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.core.files import write_json
from audiox_trainer.trainer.core.hardware import describe

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.add_local_rank(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="each operation of a block by every implementation that runs here")
    kernels.add_argument("--batch", type=cli.positive, help="samples (default: the configuration's micro-batch)")
    kernels.add_argument("--dtype", choices=DTYPES, default="bf16", help="(default: bf16)")
    kernels.add_argument("--inner", type=cli.positive, default=10, help="calls per turn (default: 10)")
    train = commands.add_parser("train", help="training steps through DeepSpeed against a plain PyTorch loop")
    train.add_argument("--inner", type=cli.positive, default=5, help="steps per turn (default: 5)")
    train.add_argument("--only", choices=("deepspeed", "plain"), default="", help="measure one of them (default: all)")
    train.add_argument("--batches", nargs="+", type=int, default=[], help="also measure steps of so many samples")
    distill = commands.add_parser(
        "distill", help="a round of distillation against its passes and optimizer steps, timed alone"
    )
    distill.add_argument("--no-parts", action="store_true", help="only the round, which needs half the memory")
    sample = commands.add_parser("sample", help="making latents: a student's 4 steps and a teacher's guided ones")
    sample.add_argument("--dtype", choices=DTYPES, default="bf16", help="(default: bf16)")
    sample.add_argument("--steps", nargs="+", type=int, default=[50], help="of the guided teacher (default: 50)")
    data = commands.add_parser("data", help="reading warm shards of the model's schema")
    data.add_argument(
        "--samples", type=int, default=1024, help="how many to make; 0: read the configured shards (default: 1024)"
    )
    data.add_argument(
        "--train", type=int, default=0, help="also train on what is read, so many steps per turn (default: 0)"
    )
    save = commands.add_parser("save", help="a checkpoint that training waits for, and an asynchronous one")
    for kind in (data, save):
        kind.add_argument("--folder", type=Path, help="where temporary files go (default: the system's folder)")
    encode = commands.add_parser("encode", help="features of clips by the frozen encoders, part by part")
    encode.add_argument(
        "--random-weights", action="store_true", help="networks of the configured sizes; no weights are read"
    )
    encode.add_argument("--media", type=Path, help="also measure how fast this video with sound is decoded and cut")
    decode = commands.add_parser("decode", help="a film to clips, against the ffmpeg program with the same filters")
    decode.add_argument("--film", type=Path, help="a film with sound (default: a busy one, made for this)")
    prepare = commands.add_parser("prepare", help="a manifest prepared by two ranks, against one")
    for kind in (decode, prepare):
        kind.add_argument("--seconds", type=float, default=30, help="length of the film that is made (default: 30)")
    for kind, clips in ((sample, 1), (encode, 4)):
        kind.add_argument("--batch", type=cli.positive, default=clips, help=f"clips per batch (default: {clips})")
    for kind in (kernels, train, distill, sample, data, save, encode, decode, prepare):
        cli.add_config(kind)
        kind.add_argument("--rounds", type=cli.positive, default=10, help="turns to measure (default: 10)")
        kind.add_argument("--out", type=Path, help="write the result as JSON")
    return parser.parse_args(argv)


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
    "train": lambda m, c, a: m.measure(c, a.rounds, a.inner, a.only, a.batches),
    "distill": lambda m, c, a: m.measure(c, a.rounds, not a.no_parts),
    "sample": lambda m, c, a: m.measure(c.model, samplings(a), a.batch, dtype(a), a.rounds, c.kernels),
    "data": lambda m, c, a: m.measure(c, a.samples, a.rounds, a.folder, a.train),
    "save": lambda m, c, a: m.measure(c, a.rounds, a.folder),
    "encode": lambda m, c, a: m.measure(c, a.random_weights, a.batch, a.rounds, a.media),
    "decode": lambda m, c, a: m.measure(c.model, a.rounds, a.seconds, a.film),
    "prepare": lambda m, c, a: m.measure(a.config, a.set, a.rounds, a.seconds),
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    command = arguments.command
    load = load_distill_config if command == "distill" else load_pretrain_config
    config = load(arguments.config, arguments.set)
    module = "launch.bench_prepare" if command == "prepare" else f"trainer.benchmarks.{command}"
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
