"""Generate sound from text, video and sound.

examples:
  python launch/generate.py --weights weights/tiny --text "a bell, then two kicks" --out bell.wav
  python launch/generate.py --weights weights/tiny --video clip.mp4 --out clip_with_sound.mp4
  python launch/generate.py --weights weights/tiny --video clip.mp4 --task V2M --count 3 --out music.wav
  python launch/generate.py --weights weights/tiny --audio in.wav --mask 2.0-4.5 --out mended.wav
  python launch/generate.py --weights weights/tiny --continue-from start.wav --seconds 30 --out longer.wav
  python launch/generate.py --weights weights/tiny --vary in.wav --level 0.6 --text "a bell" --count 4 --out other.wav
  python launch/generate.py --weights weights/tiny --text "slow drums" --loop --loudness -23 --out loop.flac
  python launch/generate.py --weights weights/tiny --prompts prompts.jsonl --batch 16 --out-dir sounds
  torchrun --nproc-per-node 8 launch/generate.py --weights weights/tiny --prompts prompts.jsonl --out-dir sounds

A line of --prompts is a JSON object with the options' names as keys ("text", "video", "continue_from", …), or the row
of a .csv whose first line has these names; relative paths start from the file's folder. Finished sounds are skipped.
Ranks of torchrun or srun share the lines (launch/slurm/generate.sbatch).
docs/generation.md has more: lengths, long sounds, which conditions combine, what stays of a given sound.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from audiox_trainer.trainer.core import cli

if TYPE_CHECKING:
    from audiox_trainer.trainer.generation.long_form import LongSound
    from audiox_trainer.trainer.generation.output_files import SoundJob


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    cli.add_weights(parser)
    cli.add_adapters(parser)
    add("--text", help="description of the sound")
    add("--video", help="a video that the sound fits; the sound is as long as the video")
    add("--start", type=float, help="second of the video at which the sound begins (default: 0)")
    add("--audio", help="a sound in which the hole --mask is filled; may be the video")
    add("--mask", metavar="START-END", help="seconds of --audio to fill, as 2.0-4.5")
    add("--continue-from", metavar="FILE", help="a beginning to continue")
    add("--prefix", type=float, help="seconds of that file to keep (default: all of it)")
    add("--follow", action="store_const", const=True, help="begin a clip where that file ends; needs completion pairs")
    add("--vary", metavar="FILE", help="a sound of which a variation is made")
    add("--level", type=float, help="of the noise that is added to it, 0 to 1: how far it may go (default: 0.6)")
    add("--seconds", type=float, help="length of the sound (default: the video's; without one, a clip's)")
    add("--task", help="one of the eight (default: by the conditions); V2M without text is music for the video")
    add("--steps", type=int, help="sampler steps (default: those of the weights)")
    add("--guidance", type=float, help="scale, 1 for none (default: that of the weights; 1 for a mask without text)")
    add("--guidance-interval", metavar="LOWEST-HIGHEST", help="noise levels with guidance, as 0.9-1 (default: all)")
    add("--negative", metavar="TEXT", help="what the sound should not be; guidance leads away from it")
    add("--rescale", type=float, help="share of the guided velocity that is brought back to the size without guidance")
    add("--loop", action="store_const", const=True, help="its end continues in its beginning; at most a clip long")
    add("--loudness", type=float, metavar="LUFS", help="of the finished sound, as -23 (default: as it is generated)")
    add("--seed", type=int, help="of the noise (default: 0); lines of --prompts and sounds of --count follow it")
    add("--count", type=int, default=1, help="sounds per prompt: NAME-1.wav, NAME-2.wav (default: 1)")
    add("--out", help=".wav, .flac, .ogg, .mp3; with --video also .mp4, .mov, .mkv, .webm: its pictures with new sound")
    add("--prompts", type=Path, metavar="FILE", help="JSON lines or a .csv, one sound per line")
    add("--out-dir", type=Path, help="folder for the sounds of --prompts, with manifest.jsonl")
    add("--batch", type=int, default=8, help="sounds at a time (default: 8)")
    add("--force", action="store_true", help="overwrite existing files")
    add("--device", help="cpu, cuda, cuda:1, mps (default: an NVIDIA or AMD GPU where there is one)")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the network (default: fp32)")
    add("--kernels", default="", metavar="TABLE", help="made by launch/bench.py kernels (default: measured on a GPU)")
    arguments = parser.parse_args(argv)
    from audiox_trainer.trainer.generation.job_list import list_jobs

    try:
        arguments.jobs = list_jobs(vars(arguments))
    except ValueError as error:
        parser.error(str(error))
    return arguments


def run(a: argparse.Namespace) -> None:
    import torch

    from audiox_trainer.kernels.ops import KernelsConfig
    from audiox_trainer.models.sampler import sampling_words
    from audiox_trainer.trainer.core.english import complaint_list
    from audiox_trainer.trainer.generation.generator import Generator
    from audiox_trainer.trainer.generation.job_runner import SoundManifest, run_jobs
    from audiox_trainer.trainer.generation.long_form import sampling_for
    from audiox_trainer.trainer.generation.output_files import create_folders
    from audiox_trainer.trainer.generation.shared_jobs import make_on_ranks
    from audiox_trainer.trainer.workers.launch_rank import LaunchRank

    place = LaunchRank.from_environment()
    if place.ranks > 1 and (a.force or not a.prompts):
        raise ValueError(
            f"rank {place.rank} of {place.ranks}: several ranks make the sounds of --prompts, without --force; to make "
            f"them again, empty --out-dir"
        )
    create_folders(a.jobs)
    begin = time.perf_counter()
    dtype, kernels = {"fp32": torch.float32, "bf16": torch.bfloat16}[a.dtype], KernelsConfig(benchmark_file=a.kernels)
    device = place.device(a.device) if place.ranks > 1 else a.device
    generator = Generator(a.weights, device, dtype, kernels, a.adapter)
    if generator.license:
        print(f"{a.weights}: licence {generator.license}")
    if generator.device.type != "cpu":
        print("kernels: " + "; ".join(generator.kernels.lines()))
    where = f"on {generator.device} in {a.dtype}; ready in {time.perf_counter() - begin:.1f} s"
    if place.ranks > 1:
        print(f"{a.weights}: {len(a.jobs)} sounds, rank {place.rank} of {place.ranks} {where}")
        print(f"{a.out_dir}: {make_on_ranks(generator, a.jobs, a.batch, a.out_dir, place.rank, place.ranks)}")
        return
    if a.prompts:
        manifest = SoundManifest(a.out_dir, generator.origin, generator.sampling, generator.adapters)
        unfinished = list(a.jobs) if a.force else manifest.unfinished(a.jobs)
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
    how = sampling_words(sampling)
    print(f"{a.weights}: {prompt.task_label} of “{prompt.full_text}”; {how}, {where}")
    if int(generator.encode_text([prompt.full_text])[1]) == (limit := generator.model.config.text.max_tokens):
        print(f"the text fills the {limit} tokens that these weights read; any further words are ignored")
    done = run_jobs(generator, a.jobs, a.batch, on_sound=_print_sound)
    for _, error in done.failures:
        raise error


def _print_sound(job: "SoundJob", sound: "LongSound", elapsed: float) -> None:
    from audiox_trainer.trainer.generation.loops import seam

    clips = f" in {len(sound.starts)} clips" if len(sound.starts) > 1 else ""
    new = "; new from {:.3f} to {:.3f} s, the rest as given".format(*sound.new_span) if sound.input else ""
    if job.prompt.loop:
        new = "; its joint jumps by {:.4f}, its samples by {:.4f} at most".format(*seam(sound.wave))
    speed = f"generated in {elapsed:.2f} s (RTF {elapsed / sound.seconds:.3f})"
    print(f"{job.out}: {sound.seconds:.3f} s{clips}, seed {job.prompt.seed}, {speed}{new}")


def main() -> int:
    arguments = parse()
    return cli.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
