"""AudioTime's STEAM: are sounds in order, of the right duration, as often and when a caption says?

examples:
  python launch/testset.py audiotime --list test500_*_captions.json --media AudioTime --out sets/audiotime
  python launch/generate.py --weights weights/turbo --prompts sets/audiotime/T2A.jsonl --out-dir sounds/turbo
  python launch/steam.py --list test500_*_captions.json --sounds sounds/turbo --detector detector.json --out steam.json

Events are heard by a network with a probability per frame and label (--detector), by the judge of the scenes (--judge),
or by another program that wrote a file of them into the folder of the sounds (--events).
"""

import argparse
import sys
from pathlib import Path

from audiox_trainer.trainer.core import cli


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--list", nargs="+", type=Path, required=True, help="captions of AudioTime, one file per kind")
    add("--sounds", nargs="+", type=Path, required=True, help="folders of anybody's sounds, named KIND_NAME.wav")
    who = parser.add_mutually_exclusive_group(required=True).add_argument
    who("--detector", type=Path, help="JSON file of a network in TorchScript or ONNX (docs/evaluation.md)")
    who("--judge", type=Path, help="folder of a judge of the scenes")
    who("--events", help="name of a file in each folder, with the events of its sounds")
    add("--out", type=Path, required=True, help="JSON file of the report, for launch/tables.py")
    add("--leave-out", action="store_true", help="leave captions out whose sound is missing or damaged")
    add("--seed", type=int, default=0, help="of the intervals (default: 0)")
    add("--device", help="cpu, cuda, cuda:1, for --detector (default: the GPU where there is one)")
    return parser.parse_args(argv)


def run(a: argparse.Namespace) -> None:
    from audiox_trainer.trainer.core.files import write_json
    from audiox_trainer.trainer.core.hardware import choose_device
    from audiox_trainer.trainer.pages.tables import as_text
    from audiox_trainer.trainer.paper import event_detectors, steam
    from audiox_trainer.trainer.paper.instruction_report import instruction_table
    from audiox_trainer.trainer.sound_evaluation.folders import find_sounds

    clips = steam.read_steam_lists(a.list)
    folders = [find_sounds(folder, steam.steam_prompts(clips)) for folder in a.sounds]
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError(f"--sounds: {', '.join(folder.name for folder in folders)}; folders need different names")
    if a.detector:
        config = event_detectors.read_detector(a.detector)
        detector = event_detectors.network_detector(config, choose_device(a.device))
    else:
        detector = event_detectors.judge_detector(a.judge) if a.judge else event_detectors.file_detector(a.events)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    report = steam.judge_steam(clips, folders, detector, a.seed, a.leave_out)
    write_json(a.out, report)
    note = f"{report['judged']} of {report['prompts']} captions. 95 % bootstrap intervals."
    print(as_text(instruction_table(report, "AudioTime", note)) + f"\n\n{a.out}")


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
