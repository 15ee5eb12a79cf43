"""Measure ours and the alternatives in one run, interleaved, and print a table and JSON.

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
from pathlib import Path
from typing import Any

import torch

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from audiox_trainer.trainer.core.files import write_json

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.add_local_rank(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    kernels = commands.add_parser("kernels", help="each operation of a block by every implementation that runs here")
    kernels.add_argument("--batch", type=cli.positive, help="samples (default: the configuration's micro-batch)")
    kernels.add_argument("--dtype", choices=DTYPES, default="bf16", help="(default: bf16)")
    kernels.add_argument("--inner", type=cli.positive, default=10, help="calls in a turn (default: 10)")
    train = commands.add_parser("train", help="training steps through DeepSpeed against a plain PyTorch loop")
    train.add_argument("--inner", type=cli.positive, default=5, help="steps in a turn (default: 5)")
    train.add_argument("--only", choices=("deepspeed", "plain"), default="", help="one of them (default: all)")
    train.add_argument("--batches", nargs="+", type=int, default=[], help="also steps of so many samples")
    distill = commands.add_parser("distill", help="a round of distillation against its parts timed alone")
    distill.add_argument("--no-parts", action="store_true", help="a round alone, which takes half the memory")
    infer = commands.add_parser("infer", help="making latents: a student's 4 steps and a teacher's guided ones")
    infer.add_argument("--dtype", choices=DTYPES, default="bf16", help="(default: bf16)")
    infer.add_argument("--steps", nargs="+", type=int, default=[50], help="of the guided teacher (default: 50)")
    data = commands.add_parser("data", help="reading warm shards of the model's schema")
    data.add_argument("--samples", type=int, default=1024, help="that are made for it; 0: its own (default: 1024)")
    data.add_argument("--train", type=int, default=0, help="steps a turn of a training that it feeds (default: none)")
    save = commands.add_parser("save", help="a checkpoint that training waits for, and one written beside it")
    for kind in (data, save):
        kind.add_argument("--folder", type=Path, help="where files are put for the time being (default: the system's)")
    encode = commands.add_parser("encode", help="features of clips by the frozen encoders, part by part")
    encode.add_argument("--random-weights", action="store_true", help="networks of the configured sizes; reads none")
    encode.add_argument("--media", type=Path, help="a video with sound: how fast it is decoded and cut")
    decode = commands.add_parser("decode", help="a film to clips, beside the ffmpeg program with the same filters")
    decode.add_argument("--film", type=Path, help="with sound (default: a busy one that is made for it)")
    prepare = commands.add_parser("prepare", help="a manifest by two ranks, beside one")
    for kind in (decode, prepare):
        kind.add_argument("--seconds", type=float, default=30, help="of the film that is made (default: 30)")
    for kind, clips in ((infer, 1), (encode, 4)):
        kind.add_argument("--batch", type=cli.positive, default=clips, help=f"clips together (default: {clips})")
    for kind in (kernels, train, distill, infer, data, save, encode, decode, prepare):
        cli.add_config(kind)
        kind.add_argument("--rounds", type=cli.positive, default=10, help="turns that are measured (default: 10)")
        kind.add_argument("--out", type=Path, help="write the result as JSON")
    return parser.parse_args(argv)


def run_kernels(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_pretrain_config(arguments.config, arguments.set)
    from audiox_trainer.trainer.benchmarks import kernels as bench_kernels

    batch, dtype = arguments.batch or config.training.micro_batch, getattr(torch, DTYPES[arguments.dtype])
    result = bench_kernels.kernels(config.model, batch, dtype, arguments.rounds, arguments.inner)
    print(*bench_kernels.table(result), sep="\n")
    return result


def run_train(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_pretrain_config(arguments.config, arguments.set)
    from audiox_trainer.trainer.benchmarks import train as bench  # imports DeepSpeed

    result = bench.train(config, arguments.rounds, arguments.inner, arguments.only, arguments.batches)
    print(*bench.table(result), sep="\n")
    return result


def run_distill(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_distill_config(arguments.config, arguments.set)
    from audiox_trainer.trainer.benchmarks import distill as bench_distill

    result = bench_distill.distill(config, arguments.rounds, not arguments.no_parts)
    print(*bench_distill.table(result), sep="\n")
    return result


def run_infer(arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_pretrain_config(arguments.config, arguments.set)
    from audiox_trainer.models.audiox import SamplingConfig
    from audiox_trainer.trainer.benchmarks import sample as bench_infer

    guided = [SamplingConfig(steps=steps, guidance=3.0) for steps in arguments.steps]
    samplings = [SamplingConfig("renoise", steps=4, guidance=1.0), *guided]
    dtype = getattr(torch, DTYPES[arguments.dtype])
    result = bench_infer.infer(config.model, samplings, arguments.batch, dtype, arguments.rounds, config.kernels)
    print(*bench_infer.table(result), sep="\n")
    return result


def run_other(a: argparse.Namespace) -> dict[str, Any]:
    config = load_pretrain_config(a.config, a.set)
    where = "launch.bench_" if a.command == "prepare" else "trainer.benchmarks."
    bench = importlib.import_module(f"audiox_trainer.{where}{a.command}")  # some import DeepSpeed
    if a.command == "data":
        result = bench.data(config, a.samples, a.rounds, a.folder, a.train)
    elif a.command == "save":
        result = bench.save(config, a.rounds, a.folder)
    elif a.command == "encode":
        result = bench.encode(config, a.random_weights, a.batch, a.rounds, a.media)
    elif a.command == "decode":
        result = bench.decode(config.model, a.rounds, a.seconds, a.film)
    else:
        result = bench.prepare(a.config, a.set, a.rounds, a.seconds)
    print(*bench.table(result), sep="\n")
    return dict(result)


RUN: dict[str, Any] = dict(kernels=run_kernels, train=run_train, distill=run_distill, infer=run_infer)
RUN |= dict.fromkeys(("data", "save", "encode", "decode", "prepare"), run_other)


def main() -> int:
    arguments = parse()

    def run() -> None:
        others = int(os.environ.get("RANK", "0")) > 0
        with contextlib.redirect_stdout(None if others else sys.stdout):
            result = RUN[arguments.command](arguments)
        if arguments.out and not others:
            write_json(arguments.out, result)

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
