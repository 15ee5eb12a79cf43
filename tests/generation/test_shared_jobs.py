"""Sounds are shared by ranks, made once, and made again only where they are gone, whatever is killed in between."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from audiox_trainer.trainer.generation import job_runner, shared_jobs
from audiox_trainer.trainer.generation.expected_length import expected_seconds
from audiox_trainer.trainer.generation.job_runner import SoundManifest, job_batches, run_jobs
from audiox_trainer.trainer.generation.output_files import assign_files
from audiox_trainer.trainer.generation.prompts import Prompt
from audiox_trainer.trainer.generation.shared_jobs import make_on_ranks
from audiox_trainer.trainer.resilience.stop_signal import StoppedError
from tests.helpers.media_files import film
from tests.helpers.small_config import ROOT
from tests.helpers.warm_python import python

TEXTS = ["a bell", "a kick", "a dog", "a siren", "a hiss"]


def jobs_in(folder, texts=TEXTS, **options):
    prompts = [Prompt(text=text, seed=i, **options) for i, text in enumerate(texts)]
    return assign_files(list(enumerate(prompts, start=1)), folder, 1)


def share(generator, folder, rank=0, ranks=1, texts=TEXTS):
    return make_on_ranks(generator, jobs_in(folder, texts), 2, folder, rank, ranks)


def lines(folder):
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return sorted(entry["file"] for entry in entries)


@pytest.fixture
def written(monkeypatch):
    """The sounds that were written, by name."""
    names, truly = [], job_runner.write_media

    def write(out, *rest):
        names.append(out.name)
        truly(out, *rest)

    monkeypatch.setattr(job_runner, "write_media", write)
    return names


def test_what_is_made_is_not_made_again(generator, tmp_path, written):
    assert [len(block) for block in job_batches(generator, jobs_in(tmp_path), 2)] == [2, 2, 1]
    manifest = SoundManifest(tmp_path, generator.origin, generator.sampling, rank=0)
    run_jobs(generator, jobs_in(tmp_path)[:2], 2, manifest)  # and the process is killed
    (tmp_path / "0002.wav").unlink()  # in the middle of it
    said = share(generator, tmp_path)
    assert written == ["0001.wav", "0002.wav", "0002.wav", "0003.wav", "0004.wav", "0005.wav"]
    assert "rank 0 made 4 sounds, " in said and "all 5 are there" in said
    assert lines(tmp_path) == [f"000{i}.wav" for i in range(1, 6)] and not list(tmp_path.glob("work/made/*"))
    assert "rank 1 made 0 sounds" in share(generator, tmp_path, rank=1, ranks=3) and len(written) == 6
    # The same sounds as of one process.
    run_jobs(generator, jobs_in(tmp_path / "alone"), 2, None)
    for path in tmp_path.glob("*.wav"):
        assert np.array_equal(soundfile.read(path)[0], soundfile.read(tmp_path / "alone" / path.name)[0])
    # Other settings are other sounds, which are not taken for these.
    with pytest.raises(ValueError, match=r"line 2: .*0002.wav was made with text 'a kick', not 'a drum'"):
        share(generator, tmp_path, texts=["a bell", "a drum"])


def test_each_rank_has_a_share_and_the_last_one_writes_the_manifest(generator, tmp_path, written):
    first = share(generator, tmp_path, rank=1, ranks=2)
    assert written == ["0003.wav", "0004.wav"] and "are there" not in first
    assert not (tmp_path / "manifest.jsonl").exists() and list(tmp_path.glob("work/made/00001.jsonl"))
    assert "all 5 are there" in share(generator, tmp_path, rank=0, ranks=2)
    assert sorted(written) == lines(tmp_path) == [f"000{i}.wav" for i in range(1, 6)]
    assert not list(tmp_path.glob("work/made/*"))


def test_two_ranks_that_end_at_once_may_both_write_the_manifest(generator, tmp_path, monkeypatch):
    for rank in range(2):
        manifest = SoundManifest(tmp_path, generator.origin, generator.sampling, rank=rank)
        run_jobs(generator, jobs_in(tmp_path)[rank::2], 2, manifest)
    one, other = (SoundManifest(tmp_path, generator.origin, generator.sampling, rank=rank) for rank in range(2))
    files = SoundManifest._of_ranks

    def while_the_other_writes(self):
        found = files(self)
        if self is one:
            other.compact()  # between its look at the folder and its reading
        return found

    monkeypatch.setattr(SoundManifest, "_of_ranks", while_the_other_writes)
    one.compact()
    assert lines(tmp_path) == [f"000{i}.wav" for i in range(1, 6)]


def test_the_latest_line_counts_also_after_one_that_a_kill_has_cut_off(generator, tmp_path):
    old = SoundManifest(tmp_path, generator.origin, generator.sampling, rank=5)
    old.add(jobs_in(tmp_path, ["another text"])[0], 1.0)  # killed before the file, and other texts since
    with (tmp_path / "work/made/00000.jsonl").open("w") as file:
        file.write('{"file": "0003')
    assert "rank 0 made 3 sounds" in share(generator, tmp_path, 0, 2)
    assert "all 5 are there" in share(generator, tmp_path, 1, 2) and len(lines(tmp_path)) == 5
    entries = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert {entry["file"]: entry["text"] for entry in entries}["0001.wav"] == TEXTS[0]
    assert not any("written" in entry for entry in entries)


def test_failures_are_named_and_tried_again(generator, tmp_path, monkeypatch):
    truly = job_runner.write_media

    def write(out, *rest):
        if out.name == "0002.wav":
            raise ValueError(f"out: {out}: Invalid argument")
        truly(out, *rest)

    monkeypatch.setattr(job_runner, "write_media", write)
    said = share(generator, tmp_path, 0, 2)
    assert "rank 0 made 2 sounds, " in said and said.endswith(", and could not make 1")  # the other one goes on
    with pytest.raises(ValueError, match=r"1 of 5 sounds failed\n.*line 2: out: .*Invalid argument"):
        share(generator, tmp_path, 1, 2)
    assert lines(tmp_path) == ["0001.wav", "0003.wav", "0004.wav", "0005.wav"]
    assert sorted(path.name for path in tmp_path.glob("*.wav")) == ["0001.wav", "0003.wav", "0004.wav", "0005.wav"]
    monkeypatch.setattr(job_runner, "write_media", truly)
    said = share(generator, tmp_path)
    assert "rank 0 made 1 sound, " in said and "all 5 are there" in said
    (tmp_path / "0003.wav").unlink()
    assert "rank 1 made 1 sound, " in share(generator, tmp_path, 1, 2)


def test_asked_to_stop_it_ends_after_a_batch_and_continues(generator, tmp_path, monkeypatch, written):
    class Stop:
        """Asked after the first batch."""

        requested = property(lambda self: len(written) >= 2)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(shared_jobs, "StopSignal", Stop)
        with pytest.raises(StoppedError, match=r"finished sounds stay in .*, and the same command continues"):
            share(generator, tmp_path)
    assert written == ["0001.wav", "0002.wav"]
    assert "rank 0 made 3 sounds" in share(generator, tmp_path) and len(written) == 5


def test_sounds_of_one_length_are_made_together(generator, tmp_path):
    film(tmp_path / "film.mp4", 5.0, rate=10)
    soundfile.write(tmp_path / "long.wav", np.full(8 * 8000, 0.1), 8000)
    prompts = [
        Prompt(text="a bell"),
        Prompt(text="a bell", video=str(tmp_path / "film.mp4"), start=2.0),
        Prompt(vary=str(tmp_path / "long.wav"), text="a bell"),
        Prompt(text="a bell", seconds=7.0),
        Prompt(text="a bell", seconds=1.0),
        Prompt(text="a bell", video=str(tmp_path / "none.mp4")),
    ]
    assert expected_seconds(prompts) == pytest.approx([0, 3, 8, 7, 1, 0], abs=0.1)
    batches = job_batches(generator, assign_files(list(enumerate(prompts, start=1)), tmp_path, 1), 2)
    assert [[job.line for job in batch] for batch in batches] == [[4, 2], [5, 1], [6], [3]]  # the variation has a level


@pytest.mark.slow
def test_two_ranks_and_a_kill_make_every_sound_once(weights, tmp_path):
    """Under the variables of torchrun and of srun; one of two ranks is killed, and the same command goes on."""
    count = 24
    prompts = [json.dumps({"text": "a bell", "seconds": 2.0, "seed": i}) for i in range(count)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    words = ["launch/generate.py", "--weights", str(weights), "--prompts", str(tmp_path / "prompts.jsonl")]
    words += ["--out-dir", str(tmp_path / "sounds"), "--batch", "1", "--device", "cpu", "--steps", "2"]
    names = {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    }

    def start(rank, launcher):
        variables = dict(zip(names[launcher], (str(rank), "2", str(rank)), strict=True))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | variables, **options)

    first = [start(rank, "torchrun") for rank in range(2)]
    while not (tmp_path / "sounds/work/made/00000.jsonl").exists():
        assert first[0].poll() is None, first[0].communicate()[0]
        time.sleep(0.01)
    first[0].kill()
    said = [process.communicate()[0] for process in first]
    assert first[1].returncode == 0, said
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sounds").glob("*.wav")}
    again = [start(rank, "srun") for rank in range(2)]
    said = [process.communicate()[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert any(f"all {count} are there" in text for text in said), said
    made = [int(text.split(" made ")[1].split()[0]) for text in said]
    assert sum(made) == count - len(before) and len(lines(tmp_path / "sounds")) == count
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "sounds").glob("*.wav")}.items()
    for options in (["--force"], ["--text", "a bell", "--out", str(tmp_path / "x.wav")]):
        chosen = words + options if options == ["--force"] else [*words[:3], *options]
        done = subprocess.run(
            [*python(), *chosen], cwd=ROOT, env=os.environ | {"RANK": "1", "WORLD_SIZE": "2"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1 and "rank 1 of 2: several ranks make the sounds of --prompts" in done.stderr
