"""Weights to begin from: every tensor is loaded, or is named as new or left out; what is neither is refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiox_trainer.models.audiox import WEIGHTS, AudioX
from audiox_trainer.trainer.checkpoint.initial_weights import begin_from, init_metadata, read_initial_weights
from audiox_trainer.trainer.core.config import InitConfig
from audiox_trainer.trainer.core.files import hash_file

BIAS = "backbone.latent_in.bias"


@pytest.fixture
def model(small):
    torch.manual_seed(7)
    return AudioX(small.model, small.sampling)


def begin(model, weights, *skip):
    return begin_from(model, read_initial_weights(str(weights)), InitConfig(str(weights), skip))


def changed(folder, target, change):
    """A copy of a weights folder with other tensors."""
    shutil.copytree(folder, target)
    state = load_file(target / WEIGHTS)
    change(state)
    save_file(state, target / WEIGHTS)
    return target


def test_all_tensors_of_a_folder(model, weights, capsys):
    record = begin(model, weights)
    stored = load_file(weights / WEIGHTS)
    assert all(torch.equal(x, stored[name]) for name, x in model.state_dict().items())
    assert (record.loaded, record.new, record.left_out) == (len(stored), (), ())
    assert record.xxh3 == hash_file(weights / WEIGHTS)
    (line,) = record.lines()
    assert line == f"begins from {weights} (xxh3 {record.xxh3}): {len(stored)} tensors loaded"
    metadata = init_metadata(record, None, 0)
    assert metadata["init"]["xxh3"] == record.xxh3 and line in capsys.readouterr().out
    assert init_metadata(None, {"init": metadata["init"]}, 0) == metadata  # a resumed run keeps it
    assert init_metadata(None, None, 0) == {}


def test_a_part_of_them_by_patterns(model, weights, tmp_path):
    def change(state):
        state["backbone.other"] = state.pop(BIAS)

    own = {name: x.clone() for name, x in model.state_dict().items()}
    record = begin(model, changed(weights, tmp_path / "other", change), BIAS, "backbone.other", "conditioner.text.*")
    new = {BIAS, "conditioner.text.weight", "conditioner.text.bias"}
    assert set(record.new) == new and set(record.left_out) == {"backbone.other", *(new - {BIAS})}
    stored = load_file(weights / WEIGHTS)
    for name, x in model.state_dict().items():
        assert torch.equal(x, own[name] if name in new else stored[name]), name
    assert record.loaded == len(own) - len(new)
    assert "  left out, 3 tensors: backbone.other, conditioner.text.bias, conditioner.text.weight" in record.lines()


@pytest.mark.parametrize(
    ("change", "skip", "message"),
    [
        (lambda s: s.pop(BIAS), (), rf"1 tensor of this model not in .*other, first {BIAS}; .* in init\.skip"),
        (
            lambda s: s.update(x=torch.zeros(1)),
            (),
            r"1 tensor of .*other not in this model, first x; give",
        ),
        (
            lambda s: s.update({BIAS: torch.zeros(3)}),
            (),
            rf"{BIAS}: the weights have \(3,\), the model \(32,\); or",
        ),
        (lambda s: s.update({BIAS: s[BIAS] / 0}), (), rf"{BIAS}: the weights are not finite"),
        (lambda s: s.pop(BIAS), ("backbone.latent_on.*",), r"init\.skip: 'backbone\.latent_on\.\*' matches no tensor"),
        (lambda s: s.pop(BIAS), ("conditioner.*",), rf"first {BIAS}"),
    ],
)
def test_what_is_neither_loaded_nor_skipped_is_refused(model, weights, tmp_path, change, skip, message):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        begin(model, changed(weights, tmp_path / "other", change), *skip)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_another_architecture(small, weights):
    heads = replace(small.model, backbone=replace(small.model.backbone, heads=4))  # with the same shapes
    with pytest.raises(ValueError, match=r"model\.backbone\.heads: the weights in .* have 2, this configuration 4"):
        begin(AudioX(heads), weights)
    wide = replace(small.model, backbone=replace(small.model.backbone, mlp_hidden=96))
    record = begin(AudioX(wide), weights, "backbone.blocks.*.mlp.*")
    assert record.new and all(".mlp." in name for name in record.new)


def test_what_is_no_weights_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for location, message in (
        (tmp_path / "empty", r"init\.weights: .*config\.json is missing: .* is not a weights folder"),
        ("/nowhere/at/all", r"init\.weights: /nowhere/at/all is no folder; give one, or a name on the hub"),
        ("nobody/nothing", r"init\.weights: nobody/nothing is no folder here, and no hub gave it \(.+\)"),
    ):
        with pytest.raises(ValueError, match=message):
            read_initial_weights(str(location))
    with pytest.raises(ValueError, match=r"skip: \['a'\] of no weights; give init\.weights too"):
        InitConfig(skip=("a",))


@pytest.mark.parametrize("revision", ["", "@v2"])
def test_a_name_on_the_hub(model, weights, tmp_path, monkeypatch, revision):
    """From the hub's cache; there is no network."""
    commit, cached = "a" * 40, tmp_path / "models--me--small"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / (revision[1:] or "main")).write_text(commit)
    shutil.copytree(weights, cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    record = begin(model, f"me/small{revision}")
    assert record.weights == f"me/small{revision}" and record.xxh3 == hash_file(weights / WEIGHTS)
    assert torch.equal(model.state_dict()[BIAS], load_file(weights / WEIGHTS)[BIAS])
