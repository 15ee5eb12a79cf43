"""Values that may change between two starts of a run; others are refused, with both values, before anything is
written."""

import errno
import fcntl
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from audiox_trainer.models import strict
from audiox_trainer.trainer.checkpoint import load, rollback
from audiox_trainer.trainer.checkpoint.load import NoUsableCheckpointError
from audiox_trainer.trainer.core import cli, integrity
from audiox_trainer.trainer.core.cli import ExitCode, exit_code_of
from audiox_trainer.trainer.training import run_folder, save_and_resume
from tests.helpers.small_config import small_config, small_distill_config


def saved(folder, config, step=5, **more):
    """A checkpoint with nothing but its manifest."""
    made = folder / load.FOLDER / f"step_{step:08d}"
    made.mkdir(parents=True)
    integrity.write_manifest(made, {"step": step, "files": {}, "config": strict.to_dict(config), **more})


REFUSED = {
    "data.dropout.text": "0.2",
    "data.inpainting_hole": "[0.1, 0.2]",
    "data.completion_prefix": "[0.1, 0.2]",
    "training.timestep_sampling": "logit_normal",
    "training.timestep_logit_mean": "1.5",
    "training.timestep_uniform_share": "0.5",
}
REFUSED_OF_A_STUDENT = {
    "distillation.adversarial_weight": "0",
    "distillation.matching_weight": "0",
    "distillation.step_probabilities": "[0.1, 0.2, 0.3, 0.4]",
    "distillation.fake_step_probabilities": "[0.1, 0.2, 0.3, 0.4]",
    "distillation.noise_levels.range": "[0.1, 0.9]",
    "distillation.discriminator_noise_levels.range": "[0.1, 0.2]",
    "distillation.guidance_noise_levels": '{"shift": 3.0}',
    "updates.fake_warm_up": "7",
}
SAID = ("optimizer.lr=0.5", "schedule.warmup=0.1", "ema.decay=0.5", "training.precision=bf16")
SAID_OF_A_STUDENT = (
    "distillation.loss=eq10",
    "distillation.teacher_guidance=9",
    "distillation.adversarial_weight=2",
    "student.optimizer.lr=0.5",
)


def test_two_runs_in_one_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT", 0.1)
    with run_folder.lock(tmp_path / "new", False, 0):
        with pytest.raises(
            run_folder.RunFolderLockedError, match=r"another run uses .*new .*: stop it, or give"
        ) as caught:
            run_folder.lock(tmp_path / "new", False, 0).__enter__()
        assert exit_code_of(caught.value) is ExitCode.HUNG, "a node that died may still hold it"
        assert "waiting up to 0.1 s for it to end" in capsys.readouterr().out
        with run_folder.lock(tmp_path / "new", False, 1):  # the run's own other ranks do not ask
            pass
    with run_folder.lock(tmp_path / "new", False, 0):  # the first has ended
        (tmp_path / "new" / "config.json").touch()
    with pytest.raises(ValueError, match="holds a run already: give --resume"):  # one that waited meanwhile
        run_folder.lock(tmp_path / "new", False, 0).__enter__()
    with run_folder.lock(tmp_path / "new", True, 0):
        pass


def test_compiled_code_of_another_user_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "compiled").mkdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ValueError, match=rf"compiled belongs to user {owner}, .*remove it, or set TORCHINDUCTOR_CACHE"):
        cli.set_compile_cache(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    cli.set_compile_cache(tmp_path)


def test_a_file_system_without_locks_is_said_and_does(tmp_path, monkeypatch, capsys):
    def refuse(fd, how):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_folder.lock(tmp_path / "new", False, 0):
        assert "its file system has no locks, so nothing prevents a second run in it" in capsys.readouterr().out
    (tmp_path / "new" / "config.json").touch()
    with run_folder.lock(tmp_path / "new", True, 0):
        pass


@pytest.mark.parametrize("place", REFUSED)
def test_what_moves_samples_or_noise_is_refused(tmp_path, place):
    saved(tmp_path, small_config())
    with pytest.raises(ValueError, match=rf"^{place}.*: the run in .* has .*, this configuration "):
        run_folder.check_unchanged(tmp_path, small_config(None, f"{place}={REFUSED[place]}"))


@pytest.mark.parametrize("place", REFUSED_OF_A_STUDENT)
def test_what_moves_noise_or_phase_of_a_distillation_is_refused(tmp_path, place):
    saved(tmp_path, small_distill_config())
    with pytest.raises(ValueError, match=rf"^{place}.*: the run in .* has .*, this configuration "):
        run_folder.check_unchanged(tmp_path, small_distill_config(None, f"{place}={REFUSED_OF_A_STUDENT[place]}"))


def test_every_other_difference_is_said_with_both_values(tmp_path):
    for make, overrides in ((small_config, SAID), (small_distill_config, SAID_OF_A_STUDENT)):
        folder = tmp_path / make.__name__
        saved(folder, make())
        assert run_folder.check_unchanged(folder, make()) == []
        found = run_folder.check_unchanged(folder, make(None, *overrides))
        assert {line.split(": ")[0].strip() for line in found} == {text.split("=")[0] for text in overrides}
    assert "  distillation.loss: 'dmd' before, 'eq10' now" in found


def test_a_key_that_is_newer_than_the_run(tmp_path):
    """Without a value the run resumes; with one it would train on something else."""
    saved(tmp_path, config := small_config())
    older = strict.to_dict(config)
    del older["lora"], older["data"]["streams"][0]["captions"]
    (folder,) = (tmp_path / load.FOLDER).iterdir()
    integrity.write_manifest(folder, {"step": 5, "files": {}, "config": older})
    run_folder.check_unchanged(tmp_path, config)
    with pytest.raises(ValueError, match=r"^data\.streams\.0\.captions.*: the run in .* has None, this configuration"):
        weighed = 'data.streams.0.captions={"*/count": 2.0}'
        run_folder.check_unchanged(tmp_path, small_config(None, weighed))


def test_what_is_sealed_counts_and_not_the_file_beside_it(tmp_path):
    saved(tmp_path, small_config())
    changed = small_config(None, "training.seed=5")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"training\.seed: the run in .* has 0, this configuration 5"):
            run_folder.check_unchanged(tmp_path, changed)
        run_folder.write_config(tmp_path, changed)


def test_a_change_of_the_data_passes_where_it_is_accepted(tmp_path):
    saved(tmp_path, small_config())
    found = run_folder.check_unchanged(
        tmp_path, small_config(None, "data.dropout.text=0.2", "data.accept_changed_data=true")
    )
    assert "  data.dropout.text: 0.02 before, 0.2 now" in found


def test_shards_are_compared_with_what_the_checkpoint_knows(scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "data")
    config, folder = small_config(data), tmp_path / "run"
    saved(folder, config, shards=run_folder.indexes(config))
    run_folder.check_same_shards(folder, config)
    (data / "music" / "index.json").write_bytes((data / "audio" / "index.json").read_bytes())
    with pytest.raises(ValueError, match=r"music: its shards are not those that the run in .* was trained on"):
        run_folder.check_same_shards(folder, config)
    run_folder.check_same_shards(folder, replace(config, data=replace(config.data, accept_changed_data=True)))


def test_pairs_that_were_made_again_are_refused_while_they_are_trained_on(tmp_path):
    index = tmp_path / "pairs" / "part_00000_of_00001_rank_00000" / "index.json"
    index.parent.mkdir(parents=True)
    index.write_text("{}")
    euler = ("sampling.sampler=euler", "warm_start.updates=9")
    config = small_distill_config(None, f"warm_start.pairs={tmp_path}/pairs", *euler)
    for step, refused in ((5, True), (9, False)):
        folder = tmp_path / f"run {step}"
        saved(folder, config, step, shards=run_folder.indexes(config))
        before = index.read_text()
        index.write_text(before + " ")
        if refused:
            with pytest.raises(ValueError, match=r"pairs: its shards are not those that the run in"):
                run_folder.check_same_shards(folder, config)
        else:
            run_folder.check_same_shards(folder, config)
        index.write_text(before)
        run_folder.check_same_shards(folder, config)


class TestASilentBeginning:
    def test_steps_after_the_first_save_say_that_there_was_one(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"step": 5}\n{"ste')
        with pytest.raises(
            NoUsableCheckpointError,
            match=r"metrics reach step 5, and before step 5 there was a checkpoint, which is gone; restore",
        ):
            run_folder.check_no_checkpoint_lost(tmp_path, 4)
        run_folder.check_no_checkpoint_lost(tmp_path, 5)  # killed in its first save
        run_folder.check_no_checkpoint_lost(tmp_path / "nowhere", 4)
        assert exit_code_of(NoUsableCheckpointError("")) == ExitCode.CORRUPT

    @pytest.mark.parametrize(("async_save", "sure"), [(False, 14), (True, 21)])
    def test_a_run_does_not_start_again(self, tmp_path, capsys, async_save, sure):
        """With rounds of 7 steps the first that ends after ten is saved, the second that ends after twenty. With
        async_save the last one may have been cut short until the next begins."""
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        task, first = SimpleNamespace(can_checkpoint_after=lambda step: (step + 1) % 7 == 0), SimpleNamespace(rank=0)
        try:
            (tmp_path / "metrics.jsonl").write_text(f'{{"step": {sure}}}\n')
            assert save_and_resume.restore(task, tmp_path, True, first, 10, async_save).step == 0
            assert "no checkpoint yet: starting at step 0" in capsys.readouterr().out
            (tmp_path / "metrics.jsonl").write_text(f'{{"step": {sure + 1}}}\n')
            with pytest.raises(NoUsableCheckpointError, match=f"before step {sure + 1} there was a checkpoint"):
                save_and_resume.restore(task, tmp_path, True, first, 10, async_save)
        finally:
            dist.destroy_process_group()

    def test_the_run_s_own_rhythm_counts(self, tmp_path):
        asked = small_config(None, "checkpoint.every=2")
        assert run_folder.save_settings(tmp_path, asked) == (2, False)
        run_folder.write_config(tmp_path, small_config(None, "checkpoint.async_save=true"))
        assert run_folder.save_settings(tmp_path, asked) == (4, True)


class TestGoingBack:
    def test_a_step_without_a_checkpoint_is_refused(self, tmp_path):
        saved(tmp_path, small_config(), 4)
        saved(tmp_path, small_config(), 8)
        with pytest.raises(ValueError, match=r"--from 5: .* has no checkpoint of this step; it has: 4, 8$"):
            run_folder.check_start(small_config(), tmp_path, True, 5)
        with pytest.raises(ValueError, match="--from 4 continues a run: give --resume too"):
            run_folder.check_start(small_config(), tmp_path / "new", False, 4)

    def test_the_configuration_is_compared_with_that_checkpoint(self, tmp_path):
        saved(tmp_path, small_config(), 4)
        saved(tmp_path, small_config(None, "optimizer.lr=0.5"), 8)
        assert run_folder.check_unchanged(tmp_path, small_config(), 4) == []
        assert len(run_folder.check_unchanged(tmp_path, small_config())) == 1

    def test_later_checkpoints_are_moved_and_a_batch_job_goes_back_once(self, tmp_path, monkeypatch, capsys):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            for _ in range(2):
                for step in (4, 8, 12):
                    if not load.step_folder(tmp_path, step).exists():
                        saved(tmp_path, small_config(), step)
                said = rollback.set_aside_later(tmp_path, 4, 0, asked=True)
                assert "later checkpoints (step 8, 12) are now in" in said and "nothing is deleted" in said
                assert [f.name for f in load.list_checkpoints(tmp_path)] == ["step_00000004"]
                assert load.newest_intact(tmp_path, pytest.fail) == load.step_folder(tmp_path, 4)
            names = sorted(path.name for path in (tmp_path / rollback.ROLLED_BACK).iterdir())
            assert names == ["from.json", *(f"step_{n:08d}{more}" for n in (8, 12) for more in ("", ".2"))]
            assert rollback.asked_step(tmp_path, 4) == 4, "outside of a batch job every start counts"
            monkeypatch.setenv(rollback.BATCH_JOB, "17")
            assert rollback.asked_step(tmp_path, 4) == 4
            rollback.set_aside_later(tmp_path, 4, 0, asked=True)
            capsys.readouterr()
            assert rollback.asked_step(tmp_path, 4) is None and rollback.asked_step(tmp_path, 3) == 3
            said = "--from 4: this batch job has gone back to that step already; resuming from the newest\n"
            assert capsys.readouterr().out == said
        finally:
            dist.destroy_process_group()
