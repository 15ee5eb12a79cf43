"""Convert a run's checkpoint to inference weights: model.safetensors and config.json. Also converts, once, the files
that the authors of AudioX-Turbo released (docs/released.md), and a frozen encoder's released pickle (docs/encoders.md).

examples:
  python launch/convert.py runs/tiny --out weights/tiny
  python launch/convert.py runs/2p7b --out weights/2p7b-bf16 --dtype bf16
  python launch/convert.py runs/tiny --out weights/raw --raw --step 2000
  python launch/convert.py synchformer_state_dict.pth --encoder synchformer --out weights/synchformer
  python launch/convert.py --released audiox_turbo.ckpt --vae vae.ckpt --out weights/released-turbo
  python launch/convert.py --released pretrained_ckpt.ckpt --base --vae vae.ckpt --out weights/released-base

They load without DeepSpeed: AudioX.from_pretrained("weights/tiny").
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli

ENCODERS = ("t5", "clip", "synchformer")  # of the released network


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="folder of the run, or the released file of an encoder's weights")
    add("--out", required=True, type=Path, help="folder of the weights; must not exist")
    add("--raw", action="store_true", help="the last step's weights instead of their moving average")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="a student starts from fp32 (default)")
    add("--step", type=int, help="the step of the checkpoint (default: the newest)")
    add("--encoder", choices=("synchformer", "clip"), help="the file is this encoder's release, a pickle of tensors")
    add("--released", type=Path, metavar="FILE", help="checkpoint of the network that the authors released")
    add("--base", action="store_true", help="it is the base model, to be sampled in many guided steps, not the student")
    add("--vae", type=Path, metavar="FILE", help="the released autoencoder (default: that in the checkpoint)")
    add("--t5", metavar="WEIGHTS", help="T5 of the released network: a folder, or a name on the hub")
    add("--clip", metavar="WEIGHTS", help="its CLIP (default: that in the checkpoint)")
    add("--synchformer", metavar="WEIGHTS", help="its Synchformer, made by --encoder (default: weights/synchformer)")
    arguments = parser.parse_args(argv)
    if bool(arguments.run) == bool(arguments.released):
        parser.error("give the folder of a run, or an encoder's file, or --released: one of them")
    if (arguments.encoder or arguments.released) and (arguments.raw or arguments.step is not None):
        parser.error("--raw and --step are for runs")
    if arguments.encoder and arguments.dtype != "fp32":
        parser.error("--dtype is not for encoders, whose weights stay as they were released")
    if not arguments.released and (
        arguments.base or arguments.vae or any(getattr(arguments, name) for name in ENCODERS)
    ):
        parser.error("--base, --vae, --t5, --clip and --synchformer are for --released")
    return arguments


def run_released(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.checkpoint.convert_released import convert_released

    encoders = {name: getattr(a, name) for name in ENCODERS if getattr(a, name)}
    print("\n".join(convert_released(a.released, a.vae, a.out, a.base, a.dtype, encoders)))


def run_encoder(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.checkpoint.convert_encoders import convert_clip, convert_synchformer

    count = {"synchformer": convert_synchformer, "clip": convert_clip}[a.encoder](a.run, a.out)
    print(f"{a.run} is a pickle; only its tensors were read")
    print(f"{a.out}: {count / 1e6:.1f} M parameters of {a.encoder}, from {a.run}")


def run_conversion(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.checkpoint.convert_run import convert_run

    source = convert_run(a.run, a.out, kind="weights" if a.raw else "ema", dtype=a.dtype, step=a.step)
    print(f"{a.out}: {'raw' if a.raw else 'EMA'} weights of {source}, {a.dtype}")


def main() -> int:
    arguments = parse()
    convert = run_released if arguments.released else run_encoder if arguments.encoder else run_conversion
    return cli.run(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
