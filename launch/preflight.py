"""Check every node before a long run: GPUs and their free memory, disk, clocks, an all-reduce against its limit.

Ends with code 76 and a sentence that names the node which lacks something; launch/slurm/ runs it before every job.

examples:
  torchrun --nproc-per-node 8 launch/preflight.py --output runs/2p7b --memory 75 --disk 500 --bandwidth 200
  srun launch/slurm/rank.sh python launch/preflight.py --output runs/2p7b
"""

import os
import sys
from pathlib import Path

from audiox_turbo.trainer import command


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("."), help="folder that checkpoints will go to")
    parser.add_argument("--disk", type=float, default=0.0, help="GB that must be free there (default: any)")
    parser.add_argument("--memory", type=float, default=0.0, help="GB that must be free on every GPU (default: any)")
    parser.add_argument("--clock", type=float, default=5.0, help="seconds that clocks may differ by (default 5)")
    parser.add_argument("--bandwidth", type=float, default=0.0, help="GB/s an all-reduce must reach (default: any)")
    parser.add_argument("--megabytes", type=int, default=64, help="size of that all-reduce (default 64)")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        help="seconds that a node may take to appear, and to answer (default 120)",
    )
    command.add_launched(parser)
    arguments = parser.parse_args()
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        parser.error(f"{', '.join(missing)}: not set; start it with a launcher, as the examples do")

    def run() -> None:
        from audiox_turbo.trainer.preflight import Wanted, preflight, report

        names = ("output", "disk", "memory", "clock", "bandwidth", "megabytes", "patience")
        report(preflight(Wanted(**{name: getattr(arguments, name) for name in names})))

    return command.exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
