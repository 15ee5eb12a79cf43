"""Check every node before a long run: GPUs and their free memory, disk, clocks, the speed of an all-reduce.

Ends with code 76 and a message that names a node which lacks something. launch/slurm/ runs it before every job.

examples:
  torchrun --nproc-per-node 8 launch/preflight.py --output runs/2p7b --of launch/pretrain.py --config configs/2p7b.json
  srun launch/slurm/rank.sh python launch/preflight.py --output runs/2p7b --memory 75 --disk 500 --bandwidth 200
"""

import argparse
import os
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of the checkpoints")
    parser.add_argument("--disk", type=float, help="GB that must be free there (default: what --of needs)")
    parser.add_argument("--memory", type=float, help="GB that must be free on every GPU (default: what --of needs)")
    parser.add_argument("--clock", type=float, default=5.0, help="seconds that clocks may differ (default 5)")
    parser.add_argument(
        "--bandwidth", type=float, help="least GB/s of an all-reduce (default: a quarter of the plan's)"
    )
    parser.add_argument("--megabytes", type=int, default=64, help="size of that all-reduce (default 64)")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds that a node may take to appear, and to answer (default 120)",
    )
    parser.add_argument(
        "--of",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="COMMAND",
        help="a command of launch/, as the last option; if it trains, the nodes must have what its configuration needs",
    )
    cli.add_local_rank(parser)
    arguments = parser.parse_args(argv)
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        parser.error(f"{', '.join(missing)}: not set; start it with a launcher, as the examples do")
    return arguments


def main() -> int:
    arguments = parse()

    def run() -> None:
        from audiox_trainer.trainer.resilience.preflight import NodeRequirements, preflight, report

        names = ("output", "disk", "memory", "clock", "bandwidth", "megabytes", "patience")
        given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
        needs = NodeRequirements(**given)
        if arguments.of and Path(arguments.of[0]).stem in ("pretrain", "distill"):
            from audiox_trainer.trainer.core.distill_config import load_training_config
            from audiox_trainer.trainer.training.node_requirements import from_config

            of = cli.parser(None)
            cli.add_config(of)
            training, _ = of.parse_known_args(arguments.of)
            needs = from_config(needs, load_training_config(training.config, training.set), given)
        report(preflight(needs))

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
