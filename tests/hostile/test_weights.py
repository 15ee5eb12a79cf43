"""Weights folders and sampling settings that would make noise at full scale: refused, or nothing is written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiox_trainer.models.audiox import WEIGHTS, AudioX
from audiox_trainer.models.config import TextConfig
from audiox_trainer.models.encoders.t5 import check_t5
from audiox_trainer.models.released.config import ReleasedConfig
from audiox_trainer.models.released.network import ReleasedNetwork
from audiox_trainer.trainer.checkpoint.weights_folder import FILES, load_weights
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.integrity import MANIFEST, ChangedError, file_entry, write_manifest
from audiox_trainer.trainer.generation.job_runner import run_jobs
from audiox_trainer.trainer.generation.output_files import assign_files
from audiox_trainer.trainer.generation.prompts import Prompt
from audiox_trainer.trainer.media.mux import write_media
from tests.helpers.fuzzing import limits

NAME = "backbone.latent_in.weight"


@pytest.fixture
def folder(weights, tmp_path):
    """A copy of the weights, with a manifest."""
    shutil.copytree(weights, tmp_path / "weights")
    return with_manifest(tmp_path / "weights")


def with_manifest(folder):
    write_manifest(folder, {"step": 1, "files": {name: file_entry(folder / name) for name in FILES}})
    return folder


def change_weight(folder, change):
    state = load_file(folder / WEIGHTS)
    state[NAME] = change(state[NAME])
    save_file(state, folder / WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float64, torch.uint8])
def test_weights_of_another_dtype(folder, dtype):
    change_weight(folder, lambda weight: weight.to(dtype))
    with pytest.raises(ValueError, match=rf"{NAME}: the weights are {dtype}; expected torch\.float32"):
        load_weights(with_manifest(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(folder, dtype, value):
    change_weight(folder, lambda weight: weight.to(dtype).index_fill_(0, torch.tensor([1]), value))
    with pytest.raises(ValueError, match=f"{NAME}: the weights are not finite"):
        load_weights(with_manifest(folder))


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_flipped_bit_is_found_on_load(folder, name):
    load_weights(folder)
    data = bytearray((folder / name).read_bytes())
    data[-100] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}( has changed| is damaged)") as caught:
        load_weights(folder)
    assert name == MANIFEST or isinstance(caught.value, ChangedError)


@pytest.mark.parametrize("files", [None, [], {}, {"config.json": {}}, {"config.json": 3}, {WEIGHTS: {"bytes": 3}}])
def test_a_manifest_that_lists_something_else(folder, files):
    write_manifest(folder, {"files": files})
    with pytest.raises(ValueError, match=r"manifest\.json"):
        load_weights(folder)


DEEP = pytest.param("[" * 100_000, id="deep")


@pytest.mark.parametrize("config", ["[]", "3", '"a"', "null", "{}", DEEP, '{"model": []}', '{"model": {}}'])
def test_a_configuration_that_is_none(folder, config):
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match="weights: "):
        load_weights(with_manifest(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": {"width": 1 << 20, "heads": 1 << 10}},
        {"backbone": {"mlp_hidden": 1 << 20, "depth": 1000}},
        {"backbone": {"width": 2, "heads": 1, "depth": 1000, "mlp_hidden": 1}},
        {"fusion": {"queries": 1 << 20, "width": 1 << 16, "depth": 1000}},
        {"video_temporal": {"width": 1 << 20}, "audio_temporal": {"depth": 1000}},
        {"text": {"dim": 1 << 20}, "fusion": {"width": 1 << 20}},
        {"codec": {"latent_channels": 1 << 20}},
    ],
    ids=range(7),
)
def test_a_model_of_terabytes(folder, changes):
    """A few lines can describe one; it is refused before it takes memory or time."""
    config = json.loads((folder / "config.json").read_text())
    for section, values in changes.items():
        config["model"][section] |= values
    (folder / "config.json").write_text(json.dumps(config))
    with limits(), pytest.raises(ValueError, match=r"its model has at least \d+ weights|do not fit the model"):
        load_weights(with_manifest(folder))


@pytest.mark.parametrize("name", ["tiny", "2p7b"])
def test_the_least_number_of_weights(name):
    config = load_pretrain_config(name).model
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in AudioX(config).parameters())
    assert config.least_weights < weights < 20 * config.least_weights


def test_the_least_number_of_released_weights():
    config = ReleasedConfig()
    with torch.device("meta"):
        weights = sum(tensor.numel() for tensor in ReleasedNetwork(config).state_dict().values())
    assert config.least_weights < weights < 20 * config.least_weights


def test_a_model_that_diverges_writes_nothing(generator, tmp_path, monkeypatch):
    """One sound of a batch: it fails, and the other one is written."""
    truly = generator.latents

    @torch.inference_mode()
    def latents(request, seed, sampling, on_step=None):
        z = truly(request, seed, sampling, on_step).clone()
        z[[text == "a bell" for text in request.texts]] = float("inf")
        return z

    monkeypatch.setattr(generator, "latents", latents)
    jobs = assign_files([(1, Prompt(text="a bell")), (2, Prompt(text="a kick"))], tmp_path, 1)
    done = run_jobs(generator, jobs, 2)
    ((failed, error),) = done.failures
    assert failed.line == 1 and "clip 1 of 1 is not finite: the model diverged; lower the guidance" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["0002.wav"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_a_wave_that_is_not_finite_is_not_written(tmp_path, value, ending):
    wave = torch.zeros(1, 8000)
    wave[0, 17] = value
    with pytest.raises(ValueError, match="1 of 8000 samples are not finite; nothing was written"):
        write_media(tmp_path / f"a.{ending}", wave, 8000)
    assert not any(tmp_path.iterdir())


def test_an_encoder_brings_no_code(tmp_path, monkeypatch):
    """Nobody is asked whether to run it, either."""
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"model\.text\.weights"):
        check_t5(TextConfig("t5", dim=64, max_tokens=24, weights=str(tmp_path)))
    assert not (tmp_path / "ran").exists()
