"""Make sound from text, video and sound.

examples:
  python launch/generate.py --weights weights/tiny --text "a bell, then two kicks" --out bell.wav
  python launch/generate.py --weights weights/tiny --video clip.mp4 --out clip_with_sound.mp4
  python launch/generate.py --weights weights/tiny --video clip.mp4 --task V2M --count 3 --out music.wav
  python launch/generate.py --weights weights/tiny --audio in.wav --mask 2.0-4.5 --out mended.wav
  python launch/generate.py --weights weights/tiny --continue-from start.wav --seconds 30 --out longer.wav
  python launch/generate.py --weights weights/tiny --prompts prompts.jsonl --batch 16 --out-dir sounds

A line of --prompts is a JSON object with the options' names as keys ("text", "video", "continue_from", …); paths in it
start from the file's folder. Finished sounds are not made again. docs/generation.md says more: lengths, long sounds,
what goes together, what is kept of a given sound.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiox_trainer.trainer.core import cli

if TYPE_CHECKING:
    from audiox_trainer.trainer.generation.jobs import Job

OF_ONE = ("text", "video", "start", "audio", "mask", "continue_from", "prefix", "out")
OF_ALL = ("seconds", "task", "seed", "steps", "guidance")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, type=Path, help="folder made by launch/convert.py")
    add("--text", help="what to hear")
    add("--video", help="a video that the sound shall fit; its length is the sound's")
    add("--start", type=float, help="second of the video at which the sound begins (default: 0)")
    add("--audio", help="a sound of which the part --mask is made anew; it may be the video")
    add("--mask", metavar="START-END", help="seconds of --audio to make anew, as 2.0-4.5")
    add("--continue-from", metavar="FILE", help="a beginning to continue")
    add("--prefix", type=float, help="seconds of that file to keep (default: all of it)")
    add("--seconds", type=float, help="length of the sound (default: the video's; without one, a clip's)")
    add("--task", help="one of the eight (default: what the rest says); V2M without a text is music for the video")
    add("--steps", type=int, help="sampler steps (default: what the weights say)")
    add("--guidance", type=float, help="scale, 1 for none (default: what the weights say; 1 for a mask without text)")
    add("--seed", type=int, help="of the noise (default: 0); with --count 3 up to SEED + 2; a line adds its number")
    add("--count", type=int, default=1, help="how many sounds of each prompt: NAME-1.wav, NAME-2.wav (default: 1)")
    add("--out", help=".wav, .flac, .ogg; with --video also .mp4, .mov, .mkv, .webm: its pictures with the new sound")
    add("--prompts", type=Path, metavar="FILE", help="JSON lines, a sound each")
    add("--out-dir", type=Path, help="where the sounds of --prompts go, with manifest.jsonl")
    add("--batch", type=int, default=8, help="sounds at a time (default: 8)")
    add("--force", action="store_true", help="overwrite what exists")
    add("--device", help="cpu, cuda, cuda:1 (default: the GPU where there is one)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the network (default: fp32)")
    add("--kernels", default="", metavar="TABLE", help="of launch/bench.py kernels (default: measured on a GPU)")
    arguments = parser.parse_args(argv)
    try:
        arguments.jobs = jobs(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def jobs(a: argparse.Namespace) -> "list[Job]":
    """What is to be made. Raises ValueError for what does not fit together, before anything is loaded."""
    if a.count < 1 or a.batch < 1:
        raise ValueError(f"--count {a.count} and --batch {a.batch} must be at least 1")
    if a.prompts and (extra := [name for name in OF_ONE if getattr(a, name) is not None]):
        raise ValueError(f"--{extra[0].replace('_', '-')} belongs to one sound, and --prompts has many: write it there")
    if bool(a.prompts) != bool(a.out_dir):
        raise ValueError("--prompts and --out-dir belong together: a file of prompts, and a folder for their sounds")
    if not (a.prompts or a.out):
        raise ValueError("--out: the file to write is missing")
    from audiox_trainer.trainer.generation.jobs import jobs_of
    from audiox_trainer.trainer.generation.prompts import prompt_of, read_prompts

    if a.prompts:
        return jobs_of(read_prompts(a.prompts, _given(a, OF_ALL)), a.out_dir, a.count)
    found = jobs_of([(None, prompt_of(_given(a, OF_ONE + OF_ALL), Path()))], Path(), a.count)
    existing = [str(job.out) for job in found if job.out.exists()]
    if existing and not a.force:
        raise ValueError(f"{', '.join(existing)} exists already; choose another --out, or overwrite with --force")
    return found


def _given(a: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(a, name)) is not None}


def run(a: argparse.Namespace) -> None:
    import torch

    from audiox_trainer.kernels.ops import KernelsConfig
    from audiox_trainer.trainer.core.english import complaint_list
    from audiox_trainer.trainer.generation.batch_run import Manifest, produce
    from audiox_trainer.trainer.generation.generator import Generator
    from audiox_trainer.trainer.generation.jobs import make_folders
    from audiox_trainer.trainer.generation.long_form import sampling_of

    make_folders(a.jobs)
    begin = time.perf_counter()
    dtype, kernels = {"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype], KernelsConfig(benchmark_file=a.kernels)
    generator = Generator(a.weights, a.device, dtype, kernels)
    if generator.device.type != "cpu":
        print("kernels: " + "; ".join(generator.kernels.lines()))
    where = f"on {generator.device} in {a.dtype}; ready in {time.perf_counter() - begin:.1f} s"
    if a.prompts:
        manifest = Manifest(a.out_dir, a.weights, generator.sampling)
        left = [job for job in a.jobs if a.force or not manifest.finished(job)]
        manifest.tidy()
        print(f"{a.weights}: {len(a.jobs)} sounds, {len(a.jobs) - len(left)} finished already; {where}")
        made = produce(generator, left, a.batch, manifest)
        manifest.tidy()
        print(f"{a.out_dir}: {made.sounds} sounds, {made.heard:.1f} s in {made.took:.1f} s ({made.speed})")
        if made.failures:
            lines = [f"{job.where}{error}" for job, error in made.failures]
            raise ValueError(complaint_list(lines, f"{len(lines)} of {len(left)} sounds were not made"))
        return
    prompt, sampling = a.jobs[0].prompt, sampling_of(a.jobs[0].prompt, generator.sampling)
    how = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
    print(f"{a.weights}: {prompt.kind} of “{prompt.words}”; {how}, {where}")
    if prompt.mixed:
        print("a given sound and a video together are none of the eight tasks of training; one may be followed less")
    if int(generator.encode_text([prompt.words])[1]) == (limit := generator.model.config.text.max_tokens):
        print(f"the text fills the {limit} tokens that these weights read; what goes beyond is not heard")
    made = produce(generator, a.jobs, a.batch, tell=_tell)
    for _, error in made.failures:
        raise error


def _tell(job: "Job", sound: Any, took: float) -> None:
    clips = f" in {len(sound.starts)} clips" if len(sound.starts) > 1 else ""
    new = "; new from {:.3f} to {:.3f} s, the rest as given".format(*sound.new) if sound.given else ""
    speed = f"made in {took:.2f} s (RTF {took / sound.seconds:.3f})"
    print(f"{job.out}: {sound.seconds:.3f} s{clips}, seed {job.prompt.seed}, {speed}{new}")


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
