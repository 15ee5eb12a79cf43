"""Turn a run's checkpoint into inference weights: model.safetensors and config.json.

examples:
  python launch/convert.py runs/tiny --out weights/tiny
  python launch/convert.py runs/2p7b --out weights/2p7b --dtype bf16
  python launch/convert.py runs/tiny --out weights/raw --raw --step 2000

They load without DeepSpeed: AudioX.from_pretrained("weights/tiny").
"""

import argparse
import sys
from pathlib import Path

from audiox_turbo.trainer.export import export


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--out", required=True, type=Path, help="folder of the weights; must not exist")
    parser.add_argument("--raw", action="store_true", help="the last step's weights instead of their moving average")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="a student starts from fp32 (default)"
    )
    parser.add_argument("--step", type=int, help="of this step's checkpoint (default: the newest)")
    arguments = parser.parse_args()
    kind = "weights" if arguments.raw else "ema"
    try:
        source = export(arguments.run, arguments.out, kind=kind, dtype=arguments.dtype, step=arguments.step)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {'raw' if arguments.raw else 'EMA'} weights of {source}, {arguments.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
