"""Weights folders: written and read exactly, refused when they do not fit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiox_trainer.models.audiox import AudioX, SamplingConfig, load_strict
from audiox_trainer.models.weights import float32_copy
from audiox_trainer.trainer.checkpoint.weights_folder import load_weights
from tests.helpers.random_weights import inputs, stirred
from tests.helpers.small_config import small_config


def own_memory():
    """Bytes of this process that are no file's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


@pytest.fixture
def config(small):
    return small.model


class TestWeightsFolder:
    SAMPLING = SamplingConfig("renoise", 4, 1.0)

    @pytest.fixture
    def folder(self, config, tmp_path):
        stirred(config, sampling=self.SAMPLING).save_pretrained(tmp_path / "weights")
        return tmp_path / "weights"

    def test_fp32_comes_back_exactly(self, config, tmp_path):
        model, given = stirred(config, sampling=self.SAMPLING), inputs(config)
        model.save_pretrained(tmp_path / "weights")
        for loaded in (AudioX.from_pretrained(tmp_path / "weights"), load_weights(tmp_path / "weights")):
            assert (loaded.config, loaded.sampling) == (config, self.SAMPLING)
            ours, theirs = model.state_dict(), loaded.state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            assert torch.equal(loaded(*given), model(*given))

    def test_bf16_comes_back_exactly(self, config, tmp_path):
        model = stirred(config).to(torch.bfloat16)
        model.save_pretrained(tmp_path / "weights")
        assert {x.dtype for x in load_file(tmp_path / "weights" / "model.safetensors").values()} == {torch.bfloat16}
        loaded = load_weights(tmp_path / "weights").to(torch.bfloat16).state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())

    def test_weights_left_in_the_file_take_no_memory(self, tmp_path):
        config = small_config(None, "model.backbone.width=512", "model.backbone.heads=8").model
        model = stirred(config)
        model.save_pretrained(tmp_path / "weights")
        size = (tmp_path / "weights" / "model.safetensors").stat().st_size
        before = own_memory()
        mapped = load_weights(tmp_path / "weights", mapped=True)
        assert own_memory() - before < size / 4
        copied = float32_copy(mapped, torch.device("cpu"))
        pairs = zip(mapped.parameters(), copied.parameters(), strict=True)
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in pairs)
        assert all(p.requires_grad for p in copied.parameters())
        given = inputs(config)
        assert torch.equal(copied(*given), model(*given))

    def test_a_copy_of_weights_in_bf16_is_fp32(self, config):
        model = stirred(config).to(torch.bfloat16)
        copied = float32_copy(model, torch.device("cpu"))
        assert {p.dtype for p in copied.parameters()} == {torch.float32}
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}

    def test_without_a_word_on_sampling(self, config, tmp_path):
        AudioX(config).save_pretrained(tmp_path / "weights")
        assert load_weights(tmp_path / "weights").sampling == SamplingConfig()

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            ("model.backbone.depht", 3, r"model\.backbone\.depht: unknown key"),
            ("model.backbone.depth", "3", r"model\.backbone\.depth: '3' is not allowed; expected an integer"),
            ("model.backbone.heads", 3, r"model\.backbone: width 32 over 3 heads"),
            ("sampling.steps", 2.5, r"sampling\.steps: 2\.5 is not allowed; expected an integer"),
            ("sampling.shift", 0, r"sampling\.shift: 0\.0 must be above 0"),
            ("sampling.guidence", 2.5, r"sampling\.guidence: unknown key"),
            ("samplnig", {}, r"samplnig: unknown key"),
        ],
    )
    def test_its_configuration_is_parsed_strictly(self, folder, path, value, message):
        data = node = json.loads((folder / "config.json").read_text())
        *parents, last = path.split(".")
        for key in parents:
            node = node[key]
        node[last] = value
        (folder / "config.json").write_text(json.dumps(data))
        for load in (load_weights, AudioX.from_pretrained):
            with pytest.raises(ValueError, match=message):
                load(folder)

    def test_weights_of_another_architecture(self, config, folder):
        other = replace(config, backbone=replace(config.backbone, mlp_hidden=96))
        stirred(other).save_pretrained(folder.parent / "other")
        (folder.parent / "other" / "model.safetensors").replace(folder / "model.safetensors")
        for load in (load_weights, AudioX.from_pretrained):
            with pytest.raises(
                ValueError, match=r"mlp\.\w+\.weight: the weights have \(.*96.*\), the model \(.*64.*\)"
            ):
                load(folder)

    @pytest.mark.parametrize("change", ["missing", "extra"])
    def test_names_that_differ(self, folder, change):
        state = load_file(folder / "model.safetensors")
        if change == "missing":
            del state["backbone.latent_in.bias"]
        else:
            state["backbone.other"] = torch.zeros(1)
        save_file(state, folder / "model.safetensors")
        for load in (load_weights, AudioX.from_pretrained):
            with pytest.raises(ValueError, match=r"backbone\.latent_in\.bias|backbone\.other"):
                load(folder)

    def test_damaged_weights(self, folder):
        os.truncate(folder / "model.safetensors", 5000)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            load_weights(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(ValueError, match=r"weights: Expecting property name"):
            load_weights(folder)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_files_that_are_missing(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} is missing: .* is not a weights folder"):
            load_weights(folder)

    @pytest.mark.slow
    def test_loading_and_converting_need_no_deepspeed(self, folder):
        code = f"""
import sys
sys.modules["deepspeed"] = None  # every import of it raises
import torch
from pathlib import Path
from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.generation.clip_request import ClipRequest
import audiox_trainer.trainer.checkpoint.convert_run
latents = Generator(Path({str(folder)!r})).latents(ClipRequest(["a bell rings", ""]), seed=0)
assert latents.isfinite().all() and len(latents) == 2
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr


def test_a_state_is_loaded_whole_or_refused(config):
    model = AudioX(config)
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"missing \['backbone\.latent_in\.bias'\], not known \[\]"):
        load_strict(model, {k: v for k, v in state.items() if k != "backbone.latent_in.bias"})
    with pytest.raises(ValueError, match=r"missing \[\], not known \['x'\]"):
        load_strict(model, state | {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"latent_in\.bias: the weights have \(3,\), the model \(32,\)"):
        load_strict(model, state | {"backbone.latent_in.bias": torch.zeros(3)})
