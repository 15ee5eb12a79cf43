"""Convert a run's checkpoint to inference weights: model.safetensors and config.json. Also converts a frozen encoder's
released pickle, once; see docs/encoders.md.

examples:
  python launch/convert.py runs/tiny --out weights/tiny
  python launch/convert.py runs/2p7b --out weights/2p7b-bf16 --dtype bf16
  python launch/convert.py runs/tiny --out weights/raw --raw --step 2000
  python launch/convert.py synchformer_state_dict.pth --encoder synchformer --out weights/synchformer

They load without DeepSpeed: AudioX.from_pretrained("weights/tiny").
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.checkpoint.convert_run import convert_run
from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, or the released file of an encoder's weights")
    parser.add_argument("--out", required=True, type=Path, help="folder of the weights; must not exist")
    parser.add_argument("--raw", action="store_true", help="the last step's weights instead of their moving average")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="a student starts from fp32 (default)"
    )
    parser.add_argument("--step", type=int, help="the step of the checkpoint (default: the newest)")
    parser.add_argument(
        "--encoder", choices=("synchformer", "clip"), help="the file is this encoder's release, a pickle of tensors"
    )
    arguments = parser.parse_args(argv)
    if arguments.encoder and (arguments.raw or arguments.step is not None or arguments.dtype != "fp32"):
        parser.error("--raw, --step and --dtype are for runs: an encoder's weights stay as they were released")
    return arguments


def main() -> int:
    arguments = parse()

    def run() -> None:
        if arguments.encoder:
            from audiox_trainer.trainer.checkpoint.convert_encoders import convert_clip, convert_synchformer

            convert = {"synchformer": convert_synchformer, "clip": convert_clip}[arguments.encoder]
            count = convert(arguments.run, arguments.out)
            print(f"{arguments.run} is a pickle; only its tensors were read")
            print(f"{arguments.out}: {count / 1e6:.1f} M parameters of {arguments.encoder}, from {arguments.run}")
            return
        kind = "weights" if arguments.raw else "ema"
        source = convert_run(arguments.run, arguments.out, kind=kind, dtype=arguments.dtype, step=arguments.step)
        print(f"{arguments.out}: {'raw' if arguments.raw else 'EMA'} weights of {source}, {arguments.dtype}")

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
