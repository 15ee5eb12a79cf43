"""Distil AudioX-Base into AudioX-Turbo: four steps, no guidance.

examples:
  deepspeed launch/distill.py --config configs/distill_tiny.json --teacher weights/tiny --output runs/tiny-turbo
  deepspeed launch/distill.py --config configs/distill_2p7b.json --teacher weights/2p7b
  torchrun --nproc-per-node 8 launch/distill.py --config configs/distill_2p7b.json --teacher weights/2p7b --resume
"""

import argparse
import os
import sys
from pathlib import Path

from audiox_turbo.trainer.distill_config import load_distill_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="the run's JSON file, see configs/distill_*.json")
    parser.add_argument("--teacher", required=True, type=Path, help="weights folder made by launch/convert.py")
    parser.add_argument("--output", type=Path, help="folder of the run (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder, or start it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    arguments = parser.parse_args()
    try:
        config = load_distill_config(arguments.config, arguments.set)
        output = arguments.output or Path("runs") / arguments.config.stem
        # A process killed while compiling leaves an empty library behind that would break other runs.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(output.absolute() / "compiled"))
        from audiox_turbo.trainer.distill_run import distill  # imports DeepSpeed, seconds that a typo need not cost

        distill(config, arguments.teacher, output, arguments.resume)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
