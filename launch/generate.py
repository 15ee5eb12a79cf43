"""Make sound from text, video and sound.

examples:
  python launch/generate.py --weights weights/tiny --text "a bell, then two kicks" --out bell.wav
  python launch/generate.py --weights weights/tiny --video clip.mp4 --text "a dog barks" --count 3 --out dog.wav
  python launch/generate.py --weights weights/tiny --audio in.wav --mask 0.5-1.0 --out mended.wav
  python launch/generate.py --weights weights/tiny --continue-from start.wav --prefix 0.8 --out longer.wav

The same weights, request and seed make the same sound. With --count 3 the sounds have the seeds SEED to SEED + 2. A
hole is widened to whole latent frames, a beginning cut to them. Without --text, video, mask and continuation take the
words that stood for the task in training; for music to a video say --text "Generate music for the video."
"""

import argparse
import os
import sys
import time
from pathlib import Path

from audiox_turbo.trainer import command


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("--weights", required=True, type=Path, help="folder made by launch/convert.py")
    parser.add_argument("--text", help="what to hear")
    parser.add_argument("--video", type=Path, help="a video that the sound shall fit")
    parser.add_argument("--audio", type=Path, help="a sound of which the part --mask is made anew")
    parser.add_argument("--mask", type=_span, metavar="START-END", help="seconds of --audio to make anew, as 0.5-1.0")
    parser.add_argument("--continue-from", type=Path, metavar="FILE", help="a beginning to continue")
    parser.add_argument("--prefix", type=float, help="seconds of that file to keep (default: all of it)")
    parser.add_argument("--steps", type=int, help="sampler steps (default: what the weights say)")
    parser.add_argument(
        "--guidance", type=float, help="guidance scale, 1 for none (default: what the weights say; 1 for a mask alone)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="how many sounds (default: 1)")
    parser.add_argument("--out", required=True, type=Path, help="wav file; with --count 2: NAME-1.wav, NAME-2.wav")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")
    arguments = parser.parse_args()
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    """Refuses what does not fit together before anything is loaded."""
    if not (a.text or a.video or a.audio or a.continue_from):
        parser.error("nothing to make a sound from: give --text, --video, --audio with --mask, or --continue-from")
    if a.audio and a.continue_from:
        parser.error("--audio fills a hole and --continue-from goes on: give one of them")
    if bool(a.audio) != bool(a.mask):
        parser.error("--audio and --mask belong together: the mask says which seconds are made anew")
    if a.prefix is not None and not a.continue_from:
        parser.error("--prefix says how much of --continue-from is kept; give that file")
    if a.count < 1 or a.seed < 0:
        parser.error(f"--count {a.count} must be at least 1, --seed {a.seed} at least 0")
    if a.out.suffix.lower() != ".wav":
        parser.error(f"--out {a.out}: only .wav files are written")
    existing = [str(path) for path in outputs(a.out, a.count) if path.exists()]
    if existing and not a.force:
        parser.error(f"{', '.join(existing)} exists already; choose another --out, or overwrite with --force")


def _span(text: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    try:
        return float(start), float(end)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not START-END in seconds, as 0.5-1.0") from None


def outputs(out: Path, count: int) -> list[Path]:
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(count)]


def run(a: argparse.Namespace) -> None:
    import soundfile

    from audiox_turbo.trainer.data.captions import TASK_TEXT
    from audiox_turbo.trainer.generator import Generator, Request
    from audiox_turbo.trainer.given import read_video, sound_to_continue, sound_with_hole
    from audiox_turbo.trainer.making import changed

    begin = time.perf_counter()
    generator = Generator(a.weights)
    # What the rest of a sound suggests needs no emphasis: with guidance a fill lies further from the truth.
    guidance = 1.0 if a.guidance is None and a.audio and not a.text else a.guidance
    config, sampling = generator.model.config, changed(generator.sampling, a.steps, guidance)
    task = "inpainting" if a.audio else "completion" if a.continue_from else "V2A"
    text = a.text or TASK_TEXT[task]
    given = sound_with_hole(a.audio, config, *a.mask) if a.audio else None
    given = sound_to_continue(a.continue_from, config, a.prefix) if a.continue_from else given
    video = read_video(a.video, config) if a.video else None
    request = Request(
        [text],
        video=None if video is None else video[None],
        audio=None if given is None else given.latents[None],
        given=None if given is None else given.frames[None],
    )
    how = f"{sampling.kind}, {sampling.steps} steps, guidance {sampling.guidance:g}, on {generator.device.type}"
    print(f"{a.weights}: {how}; ready in {time.perf_counter() - begin:.1f} s")
    if given is not None:
        print("made anew: {:.3f} to {:.3f} s, the rest as given".format(*given.made(config.codec)))
    a.out.parent.mkdir(parents=True, exist_ok=True)
    # One by one: in a batch the last bits would depend on the others.
    for i, path in enumerate(outputs(a.out, a.count)):
        begin = time.perf_counter()
        wave = generator.waves(generator.latents(request, a.seed + i, sampling))[0]
        seconds = time.perf_counter() - begin
        temporary = path.with_name(f".{path.name}.partial")
        soundfile.write(temporary, wave.T.cpu().numpy(), config.codec.sample_rate, format="WAV", subtype="PCM_16")
        os.replace(temporary, path)
        length = wave.shape[-1] / config.codec.sample_rate
        print(f"{path}: {length:.3f} s of “{text}”, seed {a.seed + i}, made in {seconds:.2f} s")


def main() -> int:
    arguments = parse()
    return command.exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
