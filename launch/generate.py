"""Generate sound from text, video and sound.

examples:
  python launch/generate.py --weights weights/tiny --text "a bell, then two kicks" --out bell.wav
  python launch/generate.py --weights weights/tiny --video clip.mp4 --out clip_with_sound.mp4
  python launch/generate.py --weights weights/tiny --video clip.mp4 --task V2M --count 3 --out music.wav
  python launch/generate.py --weights weights/tiny --audio in.wav --mask 2.0-4.5 --out mended.wav
  python launch/generate.py --weights weights/tiny --continue-from start.wav --seconds 30 --out longer.wav
  python launch/generate.py --weights weights/tiny --prompts prompts.jsonl --batch 16 --out-dir sounds

A line of --prompts is a JSON object with the options' names as keys ("text", "video", "continue_from", …); relative
paths start from the file's folder. Finished sounds are skipped. docs/generation.md has more: lengths, long sounds,
which conditions combine, what stays of a given sound.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiox_trainer.trainer.core import cli

if TYPE_CHECKING:
    from audiox_trainer.trainer.generation.long_form import LongSound
    from audiox_trainer.trainer.generation.output_files import SoundJob

PER_SOUND = ("text", "video", "start", "audio", "mask", "continue_from", "prefix", "out")
MAX_COUNT = 10_000  # files per prompt
SHARED = ("seconds", "task", "seed", "steps", "guidance", "rescale")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, type=Path, help="folder made by launch/convert.py")
    add("--text", help="description of the sound")
    add("--video", help="a video that the sound fits; the sound is as long as the video")
    add("--start", type=float, help="second of the video at which the sound begins (default: 0)")
    add("--audio", help="a sound in which the hole --mask is filled; may be the video")
    add("--mask", metavar="START-END", help="seconds of --audio to fill, as 2.0-4.5")
    add("--continue-from", metavar="FILE", help="a beginning to continue")
    add("--prefix", type=float, help="seconds of that file to keep (default: all of it)")
    add("--seconds", type=float, help="length of the sound (default: the video's; without one, a clip's)")
    add("--task", help="one of the eight (default: by the conditions); V2M without text is music for the video")
    add("--steps", type=int, help="sampler steps (default: those of the weights)")
    add("--guidance", type=float, help="scale, 1 for none (default: that of the weights; 1 for a mask without text)")
    add("--rescale", type=float, help="share of the guided velocity that is brought back to the size without guidance")
    add("--seed", type=int, help="of the noise (default: 0); lines of --prompts and sounds of --count follow it")
    add("--count", type=int, default=1, help="sounds per prompt: NAME-1.wav, NAME-2.wav (default: 1)")
    add("--out", help=".wav, .flac, .ogg; with --video also .mp4, .mov, .mkv, .webm: its pictures with the new sound")
    add("--prompts", type=Path, metavar="FILE", help="JSON lines, one sound per line")
    add("--out-dir", type=Path, help="folder for the sounds of --prompts, with manifest.jsonl")
    add("--batch", type=int, default=8, help="sounds at a time (default: 8)")
    add("--force", action="store_true", help="overwrite existing files")
    add("--device", help="cpu, cuda, cuda:1 (default: the GPU where there is one)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the network (default: fp32)")
    add("--kernels", default="", metavar="TABLE", help="made by launch/bench.py kernels (default: measured on a GPU)")
    arguments = parser.parse_args(argv)
    try:
        arguments.jobs = list_jobs(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def list_jobs(a: argparse.Namespace) -> "list[SoundJob]":
    """The sounds to generate. Raises ValueError for contradictory options, before anything is loaded."""
    if not (1 <= a.count <= MAX_COUNT and a.batch >= 1):
        raise ValueError(f"--count {a.count} and --batch {a.batch} must be at least 1, and --count at most {MAX_COUNT}")
    if a.prompts and (extra := [name for name in PER_SOUND if getattr(a, name) is not None]):
        raise ValueError(f"--{extra[0].replace('_', '-')} is for a single sound; write it into the lines of --prompts")
    if bool(a.prompts) != bool(a.out_dir):
        raise ValueError("--prompts and --out-dir belong together: a file of prompts, and a folder for their sounds")
    if not (a.prompts or a.out):
        raise ValueError("--out: name the file to write")
    from audiox_trainer.trainer.generation.output_files import assign_files
    from audiox_trainer.trainer.generation.prompts import parse_prompt, read_prompts

    if a.prompts:
        return assign_files(read_prompts(a.prompts, _given(a, SHARED)), a.out_dir, a.count)
    jobs = assign_files([(None, parse_prompt(_given(a, PER_SOUND + SHARED), Path()))], Path(), a.count)
    existing = [str(job.out) for job in jobs if job.out.exists()]
    if existing and not a.force:
        raise ValueError(f"{', '.join(existing)} already exists; choose another --out, or overwrite with --force")
    return jobs


def _given(a: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(a, name)) is not None}


def run(a: argparse.Namespace) -> None:
    import torch

    from audiox_trainer.kernels.ops import KernelsConfig
    from audiox_trainer.trainer.core.english import complaint_list
    from audiox_trainer.trainer.generation.generator import Generator
    from audiox_trainer.trainer.generation.job_runner import SoundManifest, run_jobs
    from audiox_trainer.trainer.generation.long_form import sampling_for
    from audiox_trainer.trainer.generation.output_files import create_folders

    create_folders(a.jobs)
    begin = time.perf_counter()
    dtype, kernels = {"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype], KernelsConfig(benchmark_file=a.kernels)
    generator = Generator(a.weights, a.device, dtype, kernels)
    if generator.license:
        print(f"{a.weights}: licence {generator.license}")
    if generator.device.type != "cpu":
        print("kernels: " + "; ".join(generator.kernels.lines()))
    where = f"on {generator.device} in {a.dtype}; ready in {time.perf_counter() - begin:.1f} s"
    if a.prompts:
        manifest = SoundManifest(a.out_dir, a.weights, generator.sampling)
        unfinished = [job for job in a.jobs if a.force or not manifest.is_finished(job)]
        manifest.compact()
        print(f"{a.weights}: {len(a.jobs)} sounds, {len(a.jobs) - len(unfinished)} already finished; {where}")
        done = run_jobs(generator, unfinished, a.batch, manifest)
        manifest.compact()
        print(f"{a.out_dir}: {done.sounds} sounds, {done.seconds:.1f} s in {done.elapsed:.1f} s ({done.speed})")
        if done.failures:
            lines = [f"{job.location}{error}" for job, error in done.failures]
            raise ValueError(complaint_list(lines, f"{len(lines)} of {len(unfinished)} sounds failed"))
        return
    prompt, sampling = a.jobs[0].prompt, sampling_for(a.jobs[0].prompt, generator.sampling)
    how = f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
    print(f"{a.weights}: {prompt.task_label} of “{prompt.full_text}”; {how}, {where}")
    if prompt.mixes_tasks:
        print("no task of training had both a given sound and a video; the model may follow one of them less")
    if int(generator.encode_text([prompt.full_text])[1]) == (limit := generator.model.config.text.max_tokens):
        print(f"the text fills the {limit} tokens that these weights read; any further words are ignored")
    done = run_jobs(generator, a.jobs, a.batch, on_sound=_print_sound)
    for _, error in done.failures:
        raise error


def _print_sound(job: "SoundJob", sound: "LongSound", elapsed: float) -> None:
    clips = f" in {len(sound.starts)} clips" if len(sound.starts) > 1 else ""
    new = "; new from {:.3f} to {:.3f} s, the rest as given".format(*sound.new_span) if sound.input else ""
    speed = f"generated in {elapsed:.2f} s (RTF {elapsed / sound.seconds:.3f})"
    print(f"{job.out}: {sound.seconds:.3f} s{clips}, seed {job.prompt.seed}, {speed}{new}")


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
