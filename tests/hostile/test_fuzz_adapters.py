"""Folders of adapters that are nearly right: each is refused, or adds finite numbers to the weights that it names."""

import json
import struct

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

from audiox_trainer.models.adapter_files import ADAPTER, ADAPTER_CONFIG, apply_adapters, save_adapter
from audiox_trainer.models.lora import LoraConfig, add_adapters
from tests.helpers.fuzzing import SCALARS, both, changed_bytes, changed_json, refusal
from tests.helpers.random_weights import stirred
from tests.helpers.small_config import small_config

REASONS = (
    *("or damaged", "which is not computed here", "or not finite", "is no weight of this model", "is missing"),
    *("in the model", "A and B of", "too large", "a weight of its own"),
)
LORA = LoraConfig(2, ("backbone.blocks.0.latent.*",), train=("backbone.latent_out.*",))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    network = stirred(small_config().model)
    add_adapters(network, LORA)
    trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    save_adapter(folder, {name: torch.full_like(x, 0.01) for name, x in trained.items()}, LORA, "weights/base")
    return {name: (folder / name).read_bytes() for name in (ADAPTER, ADAPTER_CONFIG)}


@pytest.fixture(scope="module")
def network():
    return stirred(small_config().model)


def attempt(folder, network, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    try:
        apply_adapters(network, [(folder, 1.0)])
    except ValueError as error:
        return refusal(error, REASONS, str(folder))
    finally:
        after = {name: x.clone() for name, x in network.state_dict().items()}
        network.load_state_dict(before)
    named = {n.removeprefix("base_model.model.").split(".lora_")[0] for n in load(files[ADAPTER])}
    for name, x in after.items():
        assert x.isfinite().all()
        assert name in named or name.removesuffix(".weight") in named or torch.equal(x, before[name])
    return ""


@both
def test_files(fuzzer, share, tmp_path, network, good):
    """The header of the tensors, where a reader can be misled, and bytes behind it."""
    size = 8 + struct.unpack("<Q", good[ADAPTER][:8])[0]
    inputs = st.one_of(changed_bytes(good[ADAPTER], 3, size), changed_bytes(good[ADAPTER], 2))
    run = lambda data: attempt(tmp_path, network, good | {ADAPTER: data})  # noqa: E731
    assert all(fuzzer.run("adapters, bytes", inputs, 40 * share, run))


@both
def test_tensors(fuzzer, share, tmp_path, network, good):
    """Shapes, dtypes and numbers that do not belong together, some of which would make a matrix of terabytes."""
    tensors = load(good[ADAPTER])
    sizes = st.lists(st.sampled_from([0, 1, 2, 16, 32, 64, 1 << 20]), max_size=3)
    kinds = st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
    numbers = st.sampled_from([0.01, 1e38, -1e38, float("nan"), float("inf")])
    names = st.sampled_from([*tensors, "x", "base_model.model.backbone.blocks.0.latent.lora_A.weight"])

    def run(drawn):
        changed = dict(tensors)
        for name, size, kind, number in drawn:
            shape = tensors[name].shape if size is None and name in tensors else size or [1]
            if torch.Size(shape).numel() <= 1 << 21:
                changed[name] = torch.full(tuple(shape), number).to(kind)
        return attempt(tmp_path, network, good | {ADAPTER: save(changed)})

    inputs = st.lists(st.tuples(names, st.one_of(st.none(), st.none(), sizes), kinds, numbers), max_size=3)
    assert all(fuzzer.run("adapters, tensors", inputs, 60 * share, run))


@both
def test_config(fuzzer, share, tmp_path, network, good):
    config = json.loads(good[ADAPTER_CONFIG])
    keys = st.sampled_from(["r", "lora_alpha", "peft_type", "use_dora", "rank_pattern"])
    near = st.tuples(keys, SCALARS).map(lambda pair: json.dumps(config | dict([pair])).encode())
    values = changed_json(config).map(lambda value: json.dumps(value).encode())
    inputs = st.one_of(near, values, changed_bytes(good[ADAPTER_CONFIG], 2))
    run = lambda data: attempt(tmp_path, network, good | {ADAPTER_CONFIG: data})  # noqa: E731
    assert all(fuzzer.run("adapters, adapter_config.json", inputs, 60 * share, run))
