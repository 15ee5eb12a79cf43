"""The sounds that the options of a command line ask for. Imports nothing slow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .output_files import SoundJob, assign_files
from .prompts import parse_prompt, read_prompts

PER_SOUND = ("text", "video", "start", "audio", "mask", "continue_from", "prefix", "follow", "vary", "level", "out")
SHARED = (
    "seconds", "task", "seed", "steps", "guidance", "guidance_interval", "rescale", "negative", "loop", "loudness",
)  # fmt: skip
MAX_COUNT = 10_000  # files per prompt


def list_jobs(options: Mapping[str, Any]) -> list[SoundJob]:
    """The sounds to generate. Raises ValueError for contradictory options, before anything is loaded."""
    count, batch, prompts, out_dir = (options[name] for name in ("count", "batch", "prompts", "out_dir"))
    if not (1 <= count <= MAX_COUNT and batch >= 1):
        raise ValueError(f"--count {count} and --batch {batch} must be at least 1, and --count at most {MAX_COUNT}")
    if prompts and (extra := [name for name in PER_SOUND if options[name] is not None]):
        raise ValueError(f"--{extra[0].replace('_', '-')} is for a single sound; write it into the lines of --prompts")
    if bool(prompts) != bool(out_dir):
        raise ValueError("--prompts and --out-dir belong together: a file of prompts, and a folder for their sounds")
    if not (prompts or options["out"]):
        raise ValueError("--out: name the file to write")
    if prompts:
        return assign_files(read_prompts(prompts, _given(options, SHARED)), out_dir, count)
    jobs = assign_files([(None, parse_prompt(_given(options, PER_SOUND + SHARED), Path()))], Path(), count)
    existing = [str(job.out) for job in jobs if job.out.exists()]
    if existing and not options["force"]:
        raise ValueError(f"{', '.join(existing)} already exists; choose another --out, or overwrite with --force")
    return jobs


def _given(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := options[name]) is not None}
