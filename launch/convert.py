"""Convert a run's checkpoint to inference weights: model.safetensors and config.json. Also converts, once, the files
that the authors of AudioX-Turbo released (docs/released.md), and a released pickle of a frozen encoder
(docs/encoders.md) or of a network that judges (docs/evaluation.md). --push uploads weights or adapters to the hub.

examples:
  python launch/convert.py runs/tiny --out weights/tiny
  python launch/convert.py runs/2p7b --out weights/2p7b-bf16 --dtype bf16
  python launch/convert.py runs/tiny --out weights/raw --raw --step 2000
  python launch/convert.py runs/finetune_lora --out adapters/mine
  python launch/convert.py runs/finetune_lora --out weights/mine --merge
  python launch/convert.py synchformer_state_dict.pth --encoder synchformer --out weights/synchformer
  python launch/convert.py Cnn14_mAP=0.431.pth --encoder panns --out weights/panns
  python launch/convert.py --released audiox_turbo.ckpt --vae vae.ckpt --out weights/released-turbo
  python launch/convert.py --released pretrained_ckpt.ckpt --base --vae vae.ckpt --out weights/released-base
  python launch/convert.py runs/tiny --out weights/mine --push me/my-audiox
  python launch/convert.py weights/mine --push me/my-audiox --evaluation report.json --sounds sounds

They load without DeepSpeed: AudioX.from_pretrained("weights/tiny"). Adapters are for --adapter of launch/generate.py.
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli

ENCODERS = ("t5", "clip", "synchformer")  # of the released network
ENCODER_KINDS = ("synchformer", "clip")
JUDGES = ("panns", "passt", "vggish", "imagebind", "avsync", "alignacc", "cavp")  # networks that judge


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="folder of the run, or the released file of an encoder's weights")
    add("--out", type=Path, help="folder of the weights; must not exist")
    add("--raw", action="store_true", help="the last step's weights instead of their moving average")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="a student starts from fp32 (default)")
    add("--merge", action="store_true", help="of a run that trained adapters: the weights with them, not them alone")
    add("--step", type=int, help="the step of the checkpoint (default: the newest)")
    add("--best", action="store_true", help="the checkpoint with the best score, or else the lowest loss held out")
    add(
        "--encoder", choices=ENCODER_KINDS + JUDGES, help="the file is the release of this network, a pickle of tensors"
    )
    add("--released", type=Path, metavar="FILE", help="checkpoint of the network that the authors released")
    add("--base", action="store_true", help="it is the base model, to be sampled in many guided steps, not the student")
    add("--vae", type=Path, metavar="FILE", help="the released autoencoder (default: that in the checkpoint)")
    add("--t5", metavar="WEIGHTS", help="T5 of the released network: a folder, or a name on the hub")
    add("--clip", metavar="WEIGHTS", help="its CLIP (default: that in the checkpoint)")
    add("--synchformer", metavar="WEIGHTS", help="its Synchformer, made by --encoder (default: weights/synchformer)")
    add_hub(parser)
    arguments = parser.parse_args(argv)
    if not arguments.out and not (arguments.push and arguments.run):
        parser.error("--out is missing; only a folder that is there already is pushed without it")
    of_push = arguments.card or arguments.evaluation or arguments.sounds or arguments.private
    if (of_push and not arguments.push) or (arguments.push and arguments.encoder):
        parser.error("--private, --card, --evaluation and --sounds are for --push, which is for weights and adapters")
    if bool(arguments.run) == bool(arguments.released):
        parser.error("give the folder of a run, or an encoder's file, or --released: one of them")
    of_runs = arguments.raw or arguments.merge or arguments.best or arguments.step is not None
    if arguments.best and arguments.step is not None:
        parser.error("--best and --step each choose a checkpoint; give one of them")
    if (arguments.encoder or arguments.released or not arguments.out) and of_runs:
        parser.error("--raw, --merge, --best and --step are for runs, which --out makes weights of")
    if (arguments.encoder or not arguments.out) and arguments.dtype != "fp32":
        parser.error("--dtype is for weights that are made now, not for encoders or a folder that is there already")
    if not arguments.released and (
        arguments.base or arguments.vae or any(getattr(arguments, name) for name in ENCODERS)
    ):
        parser.error("--base, --vae, --t5, --clip and --synchformer are for --released")
    return arguments


def add_hub(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("for the hub").add_argument
    add("--push", metavar="OWNER/NAME", help="upload the folder --out; without --out that given in place of a run")
    add("--private", action="store_true", help="a repository that has to be created is private")
    add("--card", type=Path, metavar="FILE", help="Markdown in place of the generated model card")
    add("--evaluation", type=Path, metavar="FILE", help="--out of launch/evaluate.py: its tables go into the card")
    add("--sounds", type=Path, metavar="FOLDER", help="--out-dir of launch/generate.py: the card plays its sounds")


def run_push(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.checkpoint.hub import upload
    from audiox_trainer.trainer.pages.tables import Table

    tables: list[Table] = []
    if a.evaluation:
        from audiox_trainer.trainer.evaluation.report import read_tables  # takes seconds to import

        tables = read_tables(a.evaluation)
    print(upload(a.out or a.run, a.push, a.private, a.card, tables, a.sounds))


def run_released(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.checkpoint.convert_released import convert_released

    encoders = {name: getattr(a, name) for name in ENCODERS if getattr(a, name)}
    print("\n".join(convert_released(a.released, a.vae, a.out, a.base, a.dtype, encoders)))


def run_encoder(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.checkpoint.convert_encoders import convert_clip, convert_scorer, convert_synchformer

    convert = {"synchformer": convert_synchformer, "clip": convert_clip}.get(a.encoder)
    count = convert(a.run, a.out) if convert else convert_scorer(a.run, a.out, a.encoder)
    print(f"{a.run} is a pickle; only its tensors were read")
    print(f"{a.out}: {count / 1e6:.1f} M parameters of {a.encoder}, from {a.run}")


def run_conversion(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.checkpoint.convert_run import convert_run

    source = convert_run(a.run, a.out, "weights" if a.raw else "ema", a.dtype, a.step, a.merge, a.best)
    print(f"{a.out}: {'raw' if a.raw else 'EMA'} weights of {source}, {a.dtype}")


def main() -> int:
    arguments = parse()
    convert = run_released if arguments.released else run_encoder if arguments.encoder else run_conversion

    def run() -> None:
        if arguments.out:
            convert(arguments)
        if arguments.push:
            run_push(arguments)

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
