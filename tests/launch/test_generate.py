"""launch/generate.py: what is refused, what comes out, what is not made again."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.launch.generate import main
from audiox_trainer.trainer.generation import job_runner
from audiox_trainer.trainer.generation.job_runner import SoundManifest, run_jobs
from audiox_trainer.trainer.generation.output_files import SoundJob, assign_files
from audiox_trainer.trainer.generation.prompts import Prompt
from tests.helpers.films import contents


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def generate(monkeypatch) -> Callable[..., Done]:
    """The script with these arguments, in this process."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, arguments)])
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                code = main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return Done(code, out.getvalue(), err.getvalue())

    return call


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "there is no condition"),
        (["--audio", "README.md"], "audio and mask belong together"),
        (["--text", "a bell", "--count", "0"], "--count 0"),
        (["--text", "a bell", "--out", "bell.aac"], "only .wav"),
        (["--video", "none.mp4"], "video: none.mp4: no such file"),
        (["--prompts", "README.md"], "--out is for a single sound"),
        (["--text", "a bell", "--out-dir", "sounds"], "--prompts and --out-dir belong together"),
        (["--text", "a bell", "--task", "T2X"], "task: 'T2X' is not allowed; expected 'T2A' or 'V2A'"),
    ],
)
def test_generate_refuses_before_it_loads(root, tmp_path, arguments, complaint, generate, monkeypatch):
    monkeypatch.chdir(root)
    out = [] if "--out" in arguments else ["--out", tmp_path / "x.wav"]
    done = generate("--weights", tmp_path, *out, *arguments)
    assert done.code == 2 and complaint in done.err, done.err


def test_refusing_takes_no_torch(root, tmp_path):
    """It would take seconds to import."""
    code = "import sys; sys.modules['torch'] = None; from audiox_trainer.launch.generate import parse; parse()"
    command = [sys.executable, "-c", code, "--weights", "w", "--text", "a bell", "--out", "bell.aac"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 2 and "only .wav" in done.stderr, done.stderr


@pytest.mark.slow
def test_generate_makes_the_same_sound_again(generate, weights, tmp_path):
    common = ("--weights", weights, "--text", "a bell", "--steps", 2)
    first = generate(*common, "--out", tmp_path / "a.wav", "--seed", 4)
    assert first.code == 0, first.err
    assert "a.wav: 2.048 s" in first.out and "2 steps" in first.out and "ignored" not in first.out
    again = generate(*common, "--out", tmp_path / "b.wav", "--seed", 3, "--count", 2)
    assert again.code == 0, again.err
    waves = [soundfile.read(tmp_path / name)[0] for name in ("a.wav", "b-1.wav", "b-2.wav")]
    assert np.array_equal(waves[0], waves[2]) and not np.array_equal(waves[0], waves[1])
    assert len(waves[0]) == 16384
    long = generate(*common, "--text", "a bell and " * 20, "--out", tmp_path / "a.wav", "--force")
    assert long.code == 0 and "fills the 24 tokens that these weights read" in long.out, long.err
    refused = generate(*common, "--out", tmp_path / "a.wav")
    assert refused.code == 2 and "--force" in refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b-1.wav", "b-2.wav"]


def test_finished_sounds_are_not_made_again(generator, weights, tmp_path):
    def jobs(*texts: str) -> list[SoundJob]:
        return assign_files([(i + 1, Prompt(text=text, seed=i)) for i, text in enumerate(texts)], tmp_path, 1)

    def left(wanted: list[SoundJob]) -> list[str]:
        manifest = SoundManifest(tmp_path, generator.origin, generator.sampling)
        unfinished = [job for job in wanted if not manifest.is_finished(job)]
        manifest.compact()
        return [job.out.name for job in unfinished]

    wanted = jobs("a bell", "a kick", "a dog")
    assert left(wanted) == ["0001.wav", "0002.wav", "0003.wav"]
    made = run_jobs(generator, wanted, 2, SoundManifest(tmp_path, generator.origin, generator.sampling))
    assert (made.sounds, made.failures) == (3, []) and made.seconds == pytest.approx(3 * 2.048)
    entries = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(e["file"], e["text"], e["seed"], e["steps"], e["guidance"], e["seconds"]) for e in entries] == [
        ("0001.wav", "a bell", 0, 2, 2.0, 2.048),
        ("0002.wav", "a kick", 1, 2, 2.0, 2.048),
        ("0003.wav", "a dog", 2, 2, 2.0, 2.048),
    ]
    assert left(wanted) == []
    # Killed between its line and its file, or in the middle of a line.
    before = (tmp_path / "0002.wav").read_bytes()
    (tmp_path / "0002.wav").unlink()
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write('{"file": "0003.w')
    assert left(wanted) == ["0002.wav"]
    run_jobs(generator, wanted[1:2], 8, SoundManifest(tmp_path, generator.origin, generator.sampling))
    assert (tmp_path / "0002.wav").read_bytes() == before and left(wanted) == []
    # What is there and is something else is neither taken for the wanted sound nor overwritten.
    with pytest.raises(ValueError, match=r"line 2: .*0002.wav was made with text 'a kick', not 'a hiss'"):
        left(jobs("a bell", "a hiss"))
    (tmp_path / "0004.wav").write_text("mine")
    with pytest.raises(ValueError, match=r"line 4: .*0004.wav exists and is not in"):
        left(jobs("a bell", "a kick", "a dog", "a siren"))


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_made(generate, tmp_path):
    (tmp_path / "file").write_text("")
    done = generate("--weights", tmp_path / "none", "--text", "a bell", "--out", tmp_path / "file" / "x.wav")
    assert done.code == 1 and "file (a file, not a folder); give another" in done.err, done.err
    (tmp_path / "p.jsonl").write_text('{"text": "a bell"}')
    where = ("--prompts", tmp_path / "p.jsonl", "--out-dir", tmp_path / "file")
    done = generate("--weights", tmp_path / "none", *where)
    assert done.code == 1 and "out: no sound can be written to" in done.err, done.err


def test_a_full_gpu_says_what_to_do(generator, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generator, "generate_sounds", full)
    jobs = assign_files([(i, Prompt(text="a bell")) for i in range(3)], tmp_path, 1)
    with pytest.raises(ValueError, match=r"does not hold 2 sound\(s\) at a time; give a smaller --batch"):
        run_jobs(generator, jobs, 2)


def test_a_sound_that_cannot_be_written_does_not_stop_its_batch(generator, weights, tmp_path, monkeypatch):
    """For example, a video's packets are damaged: its line is named, and the others are written and listed."""
    truly, told = job_runner.write_media, []

    def write(out, *rest):
        if out.name == "0002.wav":
            raise ValueError(f"out: {out}, with the pictures of a.mp4: Invalid argument")
        truly(out, *rest)

    monkeypatch.setattr(job_runner, "write_media", write)
    jobs = assign_files([(i, Prompt(text="a bell", seed=i)) for i in (1, 2, 3)], tmp_path, 1)
    manifest = SoundManifest(tmp_path, generator.origin, generator.sampling)
    made = run_jobs(generator, jobs, 3, manifest, lambda job, *_: told.append(job.out.name))
    ((failed, error),) = made.failures
    assert failed.location == "line 2: " and "Invalid argument" in str(error)
    assert made.sounds == 2 and told == ["0001.wav", "0003.wav"]
    manifest.compact()
    assert [path.name for path in sorted(tmp_path.glob("*.wav"))] == told == list(manifest.entries)


@pytest.mark.slow
def test_a_file_of_prompts(generate, weights, media, tmp_path):
    lines = [
        {"text": "a bell"},
        {"video": "long.mp4", "task": "V2M", "out": "sub/with_music.mp4", "steps": 1},
        {"text": "a kick", "seed": 40, "out": "kick.flac"},
        {"audio": "short.mp4", "mask": "3-4"},
        {"continue_from": "short.wav", "prefix": 0.6, "text": "a bell"},
    ]
    folder = tmp_path / "media"
    shutil.copytree(media, folder)
    (folder / "p.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    out = tmp_path / "sounds"
    common = ("--weights", weights, "--prompts", folder / "p.jsonl", "--out-dir", out, "--seed", 10)
    done = generate(*common, "--batch", 2)
    # A mask beyond the end of the file: found when it is decoded, named by its line, and the others are made.
    assert done.code == 1 and "1 of 5 sounds failed" in done.err, done.err
    assert "line 4: mask 3-4" in done.err and "Traceback" not in done.err
    assert "5 sounds, 0 already finished" in done.out and "RTF" in done.out
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"0001.wav", "sub/with_music.mp4", "kick.flac", "0005.wav", "manifest.jsonl"}
    assert contents(out / "sub/with_music.mp4").packets == contents(media / "long.mp4").packets
    lines[3] = {"text": "a dog"}
    (folder / "p.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    done = generate(*common, "--batch", 5)
    assert done.code == 0 and "5 sounds, 4 already finished" in done.out, done.err
    single = generate("--weights", weights, "--text", "a kick", "--seed", 40, "--out", tmp_path / "kick.flac")
    assert single.code == 0 and "T2A/T2M of “a kick”" in single.out, single.err
    assert (tmp_path / "kick.flac").read_bytes() == (out / "kick.flac").read_bytes()


@pytest.mark.slow
def test_sound_for_a_video(generate, weights, media, tmp_path):
    out = tmp_path / "new folder" / "clip.mp4"
    common = ("--weights", weights, "--video", media / "long.mp4", "--seed", 3)
    done = generate(*common, "--out", out, "--start", 1.0)
    assert done.code == 0, done.err
    assert "V2A of “Generate general audio for the video.”; euler, 2 steps, guidance 2, on cpu in fp32" in done.out
    assert "4.000 s in 3 clips, seed 3" in done.out and "RTF" in done.out
    made = contents(out)
    assert made.packets == contents(media / "long.mp4").packets
    # The same sound as a wav, which begins with the video's second 1.
    assert generate(*common, "--out", tmp_path / "a.wav", "--start", 1.0).code == 0
    wave = soundfile.read(tmp_path / "a.wav")[0]
    assert len(wave) == 32_000
    heard = made.sound[0, 8000:40_000]
    assert np.corrcoef(heard, wave)[0, 1] > 0.95  # AAC of what is mostly noise
    assert np.abs(made.sound[0, :7000]).max() < 1e-3


@pytest.mark.slow
def test_a_given_sound_from_the_command_line(generate, weights, media, tmp_path):
    common = ("--weights", weights, "--seed", 3, "--text", "a bell")
    done = generate(*common, "--audio", media / "short.wav", "--mask", "0.4-0.8", "--out", tmp_path / "mended.wav")
    assert done.code == 0, done.err
    assert "inpainting of “a bell”" in done.out and "new from " in done.out
    given, mended = (soundfile.read(path)[0] for path in (media / "short.wav", tmp_path / "mended.wav"))
    assert len(mended) == len(given)
    np.testing.assert_allclose(mended[:1600], given[:1600], atol=1e-4)  # 0.2 s: before the hole and its seam
    assert not np.allclose(mended[3600:6000], given[3600:6000], atol=1e-2)
    done = generate(*common, "--continue-from", media / "short.wav", "--prefix", 0.6, "--seconds", 1.5,
                    "--out", tmp_path / "longer.wav")  # fmt: skip
    assert done.code == 0, done.err
    assert "completion of “a bell”" in done.out
    longer = soundfile.read(tmp_path / "longer.wav")[0]
    assert len(longer) == 12_000
    np.testing.assert_allclose(longer[:3200], given[:3200], atol=1e-4)
