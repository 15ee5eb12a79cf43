"""The command line of launch/bench.py."""

import argparse
from pathlib import Path

from audiox_trainer.trainer.core import cli

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def build_parser(description: str | None) -> argparse.ArgumentParser:
    parser = cli.parser(description)
    cli.add_local_rank(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    measured = [*_operations(commands), *_training(commands), *_media(commands)]
    sample = commands.add_parser("sample", help="making latents: a student's 4 steps and a teacher's guided ones")
    sample.add_argument("--steps", nargs="+", type=int, default=[50], help="of the guided teacher (default: 50)")
    sample.add_argument("--batch", type=cli.positive, default=1, help="clips per batch (default: 1)")
    _add_dtype(sample)
    for kind in (*measured, sample):
        cli.add_config(kind)
    for kind in (*measured, sample, _page(commands), _scorers(commands)):
        kind.add_argument("--rounds", type=cli.positive, default=10, help="turns to measure (default: 10)")
    _latency(commands)
    for kind in commands.choices.values():
        kind.add_argument("--out", type=Path, help="write the result as JSON")
    return parser


def _operations(commands: argparse._SubParsersAction) -> list[argparse.ArgumentParser]:
    kernels = commands.add_parser("kernels", help="each operation of a block by every implementation that runs here")
    tiles = commands.add_parser("tiles", help="the attention's kernels with other tiles, on a GPU")
    tiles.add_argument("--write", action="store_true", help="write the fastest into kernels/tiles.json, for this GPU")
    for kind in (kernels, tiles):
        kind.add_argument("--batch", type=cli.positive, help="samples (default: the configuration's micro-batch)")
        kind.add_argument("--inner", type=cli.positive, default=10, help="calls per turn (default: 10)")
        _add_dtype(kind)
    return [kernels, tiles]


def _training(commands: argparse._SubParsersAction) -> list[argparse.ArgumentParser]:
    train = commands.add_parser("train", help="training steps through DeepSpeed against a plain PyTorch loop")
    train.add_argument("--only", choices=("deepspeed", "plain"), default="", help="measure one of them (default: all)")
    train.add_argument("--batches", nargs="+", type=int, default=[], help="also measure steps of so many samples")
    train.add_argument("--profile", action="store_true", help="also say where a step spends its time")
    distill = commands.add_parser(
        "distill", help="a round of distillation against its passes and optimizer steps, timed alone"
    )
    distill.add_argument("--no-parts", action="store_true", help="only the round, which needs half the memory")
    distill.add_argument("--text-lengths", nargs="+", type=int, default=[], help="of updates in turns (default: full)")
    data = commands.add_parser("data", help="reading warm shards of the model's schema")
    data.add_argument(
        "--samples", type=int, default=1024, help="how many to make; 0: read the configured shards (default: 1024)"
    )
    data.add_argument("--train", type=int, default=0, help="also train on it, so many steps per turn (default: 0)")
    save = commands.add_parser("save", help="a checkpoint that training waits for, and an asynchronous one")
    for kind in (data, save):
        kind.add_argument("--folder", type=Path, help="where temporary files go (default: the system's folder)")
    checks = commands.add_parser("checks", help="what comparing the ranks while they train costs")
    for kind in (train, checks):
        kind.add_argument("--inner", type=cli.positive, default=5, help="steps per turn (default: 5)")
    return [train, distill, data, save, checks]


def _media(commands: argparse._SubParsersAction) -> list[argparse.ArgumentParser]:
    encode = commands.add_parser("encode", help="features of clips by the frozen encoders, part by part")
    throughput = commands.add_parser("throughput", help="hours of media per core hour and GPU hour, stage by stage")
    for kind in (encode, throughput):
        kind.add_argument("--random-weights", action="store_true", help="of the configured sizes; none are read")
        kind.add_argument("--batch", type=cli.positive, default=4, help="clips per batch (default: 4)")
    throughput.add_argument("--media", type=Path, help="folder of sounds and films (default: one of each is made)")
    encode.add_argument("--media", type=Path, help="also measure how fast this video with sound is decoded and cut")
    decode = commands.add_parser("decode", help="a film to clips, against the ffmpeg program with the same filters")
    decode.add_argument("--film", type=Path, help="a film with sound (default: a busy one, made for this)")
    prepare = commands.add_parser("prepare", help="a manifest prepared by two workers, against one")
    for kind in (decode, prepare, throughput):
        _add_seconds(kind, 30)
    return [encode, throughput, decode, prepare]


def _scorers(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    scorers = commands.add_parser("scorers", help="sounds scored in one pass, against the networks alone")
    judges = scorers.add_mutually_exclusive_group(required=True).add_argument
    judges("--scorers", type=Path, help="JSON file of scorers (docs/evaluation.md)")
    random = "networks of the released sizes; none are read"
    judges("--random-weights", nargs="+", choices=("panns", "passt", "vggish"), default=[], help=random)
    scorers.add_argument("--clips", type=cli.positive, default=200, help="sounds that are made (default: 200)")
    _add_seconds(scorers, 10)
    return scorers


def _page(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    page = commands.add_parser("page", help="how long launch/app.py takes to answer one visitor, and many at once")
    cli.add_weights(page)
    page.add_argument("--text", default="a bell, then two kicks", help="(default: %(default)s)")
    page.add_argument("--visitors", type=cli.positive, default=10, help="who come at once (default: 10)")
    return page


def _latency(commands: argparse._SubParsersAction) -> None:
    latency = commands.add_parser("latency", help="one sound by the paper's protocol: end to end, by part, NFE, RTF")
    of = latency.add_mutually_exclusive_group(required=True).add_argument
    of("--weights", nargs="+", default=[], help=f"each a folder made by launch/convert.py, or {cli.HUB}")
    of("--config", type=Path, help="random weights of this configuration, as teacher and student")
    cli.add_overrides(latency)
    steps = "sampler steps (default: those of the weights; of random ones 4 50 100 200)"
    latency.add_argument("--steps", nargs="+", type=cli.positive, default=[], help=steps)
    latency.add_argument("--guidance", type=float, help="1 for none (default: that of the weights; of random ones 3)")
    _add_dtype(latency)


def _add_dtype(to: argparse.ArgumentParser) -> None:
    to.add_argument("--dtype", choices=DTYPES, default="bf16", help="(default: bf16)")


def _add_seconds(to: argparse.ArgumentParser, length: float) -> None:
    to.add_argument("--seconds", type=float, default=length, help="length of what is made (default: %(default)g)")
