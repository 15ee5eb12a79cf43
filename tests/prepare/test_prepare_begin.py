"""The start of a preparation: commands that start at once, errors that can be repaired, networks known by bytes."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from audiox_trainer.models.config import CodecConfig, VideoConfig
from audiox_trainer.trainer.data.storage import FolderStore
from audiox_trainer.trainer.manifest.manifest_index import index_manifest
from audiox_trainer.trainer.prepare.filters import FiltersConfig
from audiox_trainer.trainer.prepare.manifest_blocks import PLAN_FILE, is_started, make_plan, start_preparation
from audiox_trainer.trainer.prepare.prepare_files import Workers, prepare_files
from tests.helpers.encoder_weights import save_clip, save_oobleck, save_synchformer
from tests.helpers.preparation import MODEL, contents, manifest, sound


@pytest.fixture
def path(tmp_path):
    sound(tmp_path / "a.flac")
    return manifest(tmp_path, {"audio": "a.flac"})


def plan_of(path, model=MODEL):
    return make_plan(index_manifest(path, 64, 256), model, FiltersConfig(), 0)


class Late(FolderStore):
    """A store in which another command begins just after this one has looked for a plan."""

    plan = None

    def read(self, name):
        data = super().read(name)
        if name == PLAN_FILE and data is None and self.plan:
            plan, self.plan = self.plan, None
            start_preparation(FolderStore(self.path), plan)
            FolderStore(self.path).write("work/blocks/000001.json", b"{}")
        return data


def test_another_command_begins_between_two_looks(tmp_path, path):
    store = Late(tmp_path / "out")
    store.plan = plan_of(path)
    start_preparation(store, plan_of(path))
    other = Late(tmp_path / "other")
    other.plan = plan_of(path)
    with pytest.raises(ValueError, match="other was started with seed 0, this command has 1"):
        start_preparation(other, replace(plan_of(path), seed=1))


def test_many_commands_begin_at_once(tmp_path, path):
    plan, gate = plan_of(path), threading.Barrier(8)

    def command(number, out):
        store = FolderStore(out)
        gate.wait()
        start_preparation(store, plan)
        store.write(f"work/blocks/{number:06d}.json", b"{}")

    with ThreadPoolExecutor(8) as pool:
        for i in range(20):
            for done in [pool.submit(command, number, tmp_path / f"out{i}") for number in range(8)]:
                done.result()
            assert is_started(FolderStore(tmp_path / f"out{i}"), plan), "what all of them began is one preparation"


def test_folders_that_vanish_while_they_are_looked_through(tmp_path):
    store, over = FolderStore(tmp_path / "out"), threading.Event()
    store.write("audio/000001/shard", b"x")

    def churn(place):
        while not over.is_set():
            (place / "a/b").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)

    places = [tmp_path / "out" / name for name in ("work/temporary/00001/x", "work/other", "music")]
    with ThreadPoolExecutor(3) as pool:
        churning = [pool.submit(churn, place) for place in places]
        end = time.monotonic() + 0.7
        try:
            while time.monotonic() < end:
                assert store.names("") == {"audio/000001/shard"}
        finally:
            over.set()
        for done in churning:
            done.result()
    assert store.names("audio/0") == {"audio/000001/shard"} and store.names("audio/1") == set()


@pytest.mark.slow
@pytest.mark.usefixtures("forkserver")
@pytest.mark.parametrize("devices", [(), ("cpu",)])
def test_a_slip_in_the_configuration_can_be_mended(tmp_path, path, devices):
    """Nothing is started with it, so the folder is free for the right one."""

    def prepare(model=MODEL):
        return prepare_files(str(tmp_path / "out"), model, path, 0, Workers(devices=devices))

    wrong = [
        ({"model": replace(MODEL, video=replace(MODEL.video, steps=34))}, "32 motion frames.* says 34 steps"),
        ({"model": replace(MODEL, codec=replace(MODEL.codec, kind="oobleck"))}, r"model\.codec\.weights: empty"),
    ]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            prepare(**changes)
        assert not (tmp_path / "out" / PLAN_FILE).exists()
    prepare()
    assert "audio/index.json" in contents(tmp_path / "out")


class TestNetworks:
    """Their paths may change, their contents may not."""

    @pytest.fixture
    def model(self, tmp_path):
        torch.manual_seed(0)
        weights = {
            "image_weights": str(save_clip(tmp_path / "clip")),
            "motion_weights": str(save_synchformer(tmp_path / "synchformer")),
        }
        codec = CodecConfig("oobleck", 8000, 2, 256, 32, 8, str(save_oobleck(tmp_path / "stable-audio")))
        return replace(MODEL, codec=codec, video=VideoConfig("clip_sync", 32, 5, 25, 32, 16, 2, **weights))

    def test_moved(self, tmp_path, path, model):
        start_preparation(FolderStore(tmp_path / "out"), plan := plan_of(path, model))
        for name in ("clip", "synchformer"):
            (tmp_path / name).rename(tmp_path / f"moved-{name}")
        (tmp_path / "stable-audio/vae").rename(tmp_path / "vae")
        places = {"image_weights": str(tmp_path / "moved-clip"), "motion_weights": str(tmp_path / "moved-synchformer")}
        codec = replace(model.codec, weights=str(tmp_path / "vae"))
        moved = plan_of(path, replace(model, codec=codec, video=replace(model.video, **places)))
        start_preparation(FolderStore(tmp_path / "out"), moved)
        assert moved.hash == plan.hash and moved != plan

    @pytest.mark.parametrize("name", ["clip", "stable-audio", "synchformer"])
    def test_others_in_their_place(self, tmp_path, path, model, name):
        start_preparation(FolderStore(tmp_path / "out"), plan_of(path, model))
        shutil.rmtree(tmp_path / name)
        {"clip": save_clip, "stable-audio": save_oobleck, "synchformer": save_synchformer}[name](tmp_path / name)
        with pytest.raises(ValueError, match=r"out was started with networks\.model\.(codec|video\.\w+) '\w+', this"):
            start_preparation(FolderStore(tmp_path / "out"), plan_of(path, model))

    @pytest.mark.parametrize("key", ["image_weights", "motion_weights"])
    def test_none(self, tmp_path, path, model, key):
        (tmp_path / "nothing").mkdir()
        video = replace(model.video, **{key: str(tmp_path / "nothing")})
        with pytest.raises(ValueError, match=rf"model\.video\.{key}: .*cannot be read \(no \*\.safetensors in it\)"):
            plan_of(path, replace(model, video=video))
