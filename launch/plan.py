"""Plan a run: memory per GPU, time, GPU-hours, and the best layout.

examples:
  python launch/plan.py --config configs/2p7b.json --gpus 64 --gpu h800
  python launch/plan.py --config configs/distill_2p7b.json --gpus 16 --gpu h100 --mfu 0.35 --json plan.json
  python launch/plan.py --config configs/single_gpu.json --gpus 8 --gpu 4090 --network 1.25
  python launch/plan.py --config configs/2p7b.json --gpus 8 64 512 --gpu a100-80 --samples-per-gpu 30
  python launch/plan.py --config configs/2p7b.json --gpus 64 1024 --gpu h100 --goodput
  python launch/plan.py --config configs/audio_500h.json --gpus 8 --gpu h100 --hours 500
  python launch/plan.py --config configs/2p7b.json --gpus 16 --gpu h100 --generate 44793
  python launch/plan.py --config configs/single_gpu.json --measure

Times are computed from data sheets and an assumed utilisation (--mfu); nothing was measured.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.config import BaseConfig
from audiox_trainer.trainer.core.distill_config import load_training_config
from audiox_trainer.trainer.core.files import write_json
from audiox_trainer.trainer.core.gpu_specs import GPUS, Gpu
from audiox_trainer.trainer.core.hardware import describe


def gpu_named(name: str) -> Gpu:
    if name.lower() not in GPUS:
        raise ValueError(f"--gpu {name}: not known; the table has {', '.join(GPUS)}")
    return GPUS[name.lower()]


def plan(config: BaseConfig, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from audiox_trainer.trainer.cost import data_size, generation_plan, goodput, plan_report, scaling_report  # slow
    from audiox_trainer.trainer.cost.planned_time import Cluster
    from audiox_trainer.trainer.cost.workload import workload

    if not 0 <= arguments.hours < 1e9 or (arguments.hours and (arguments.goodput or len(arguments.gpus) > 1)):
        raise ValueError(f"--hours {arguments.hours:g}: a number of hours, for a plan of one number of --gpus")
    if arguments.samples_per_gpu and len(arguments.gpus) == 1:
        raise ValueError(
            f"--samples-per-gpu {arguments.samples_per_gpu}: needs a table of several --gpus; for one give "
            f"--set training.global_batch={arguments.samples_per_gpu * arguments.gpus[0]}"
        )
    speeds = 1e9 * arguments.network, arguments.mfu, 1e9 * arguments.storage
    clusters = [Cluster(gpu_named(arguments.gpu), n, arguments.per_node, *speeds) for n in arguments.gpus]
    work, about = workload(config, tokens=arguments.text_tokens), {"config": str(arguments.config)}
    if arguments.generate:
        if len(clusters) > 1 or arguments.goodput or arguments.hours:
            raise ValueError("--generate: a plan of its own, for one number of --gpus, without --goodput and --hours")
        found = about | generation_plan.generation_figures(
            config, work, clusters[0], arguments.generate, arguments.other_seconds
        )
        return found, generation_plan.format_generation(found)
    if arguments.goodput:
        found = about | goodput.goodput_figures(config, work, clusters, arguments.restart)
        return found, goodput.format_goodput(found)
    if len(clusters) > 1:
        found = about | scaling_report.scaling_figures(work, clusters, arguments.samples_per_gpu)
        return found, scaling_report.format_scaling(found)
    found = about | plan_report.plan_figures(work, clusters[0])
    if not arguments.hours:
        return found, plan_report.format_plan(found)
    found["data"] = data_size.data_figures(config, work, arguments.hours)
    return found, "\n".join([plan_report.format_plan(found), *data_size.format_data(found["data"])])


def measure(config: BaseConfig) -> tuple[dict[str, Any], str]:
    from audiox_trainer.trainer.benchmarks.memory import format_memory, measure_memory  # imports DeepSpeed

    found = {"host": describe()} | measure_memory(config)
    return found, format_memory(found)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "JSON file of a pretraining or a distillation, or the name of one in configs/")
    parser.add_argument(
        "--gpus", type=int, nargs="+", default=[8], help="number of GPUs (default 8); several give a table"
    )
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(GPUS)} (default h100)")
    parser.add_argument("--per-node", type=int, default=8, help="GPUs per node (default 8)")
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed share of the peak FLOP/s (default 0.4)")
    parser.add_argument("--network", type=float, default=0.0, help="GB/s out of a node (default: usual for this GPU)")
    parser.add_argument(
        "--storage", type=float, default=2.0, help="GB/s at which a node writes checkpoints (default 2)"
    )
    parser.add_argument("--samples-per-gpu", type=int, default=0, help="with several --gpus: samples in an update")
    parser.add_argument("--text-tokens", type=int, default=0, help="text tokens per sample (default: the maximum)")
    parser.add_argument("--hours", type=float, default=0.0, help="of sound to train on: adds clips, epochs and disk")
    parser.add_argument("--goodput", action="store_true", help="the share of the time that counts when nodes fail")
    parser.add_argument(
        "--restart", type=float, default=300.0, help="with --goodput: seconds to start and compile (default 300)"
    )
    parser.add_argument("--generate", type=int, default=0, metavar="CLIPS", help="plan making so many sounds instead")
    parser.add_argument(
        "--other-seconds", type=float, default=0.0, help="with --generate: per clip, of encoders, codec and files"
    )
    parser.add_argument("--measure", action="store_true", help="take steps on this machine and compare their memory")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()

    def run() -> None:
        config = load_training_config(arguments.config, arguments.set)
        found, text = measure(config) if arguments.measure else plan(config, arguments)
        print(text)
        if arguments.json:
            write_json(arguments.json, found)

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
