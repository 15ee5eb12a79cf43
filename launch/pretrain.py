"""Pretrain AudioX-Base from shards.

examples:
  deepspeed launch/pretrain.py --config configs/tiny.json --output runs/tiny
  torchrun --nproc-per-node 8 launch/pretrain.py --config configs/2p7b.json
  python launch/pretrain.py --config configs/tiny.json --set optimizer.lr=2e-4 --set training.steps=500
"""

import argparse
import os
import sys
from pathlib import Path

from audiox_turbo.trainer.config import load_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="the run's JSON file, see configs/")
    parser.add_argument("--output", type=Path, help="folder of the run (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder, or start it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.set)
        output = arguments.output or Path("runs") / arguments.config.stem
        # A process killed while compiling leaves an empty library behind that would break other runs.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(output.absolute() / "compiled"))
        from audiox_turbo.trainer.pretrain import pretrain  # imports DeepSpeed, seconds that a typo need not cost

        pretrain(config, output, arguments.resume)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
