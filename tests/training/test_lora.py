"""Adapters are trained with the numbers of plain PyTorch at every ZeRO stage, alone, and become files and weights."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from audiox_trainer.models.adapter_files import ADAPTER, ADAPTER_CONFIG
from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.models.int8 import int8_tensors
from audiox_trainer.models.lora import LoraConfig, add_adapters
from audiox_trainer.models.networks import build_network
from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.checkpoint.convert_run import convert_run
from audiox_trainer.trainer.checkpoint.initial_weights import read_initial_weights, read_recorded_weights
from audiox_trainer.trainer.checkpoint.weights_folder import load_adapters, load_weights
from audiox_trainer.trainer.cost.workload import workload
from audiox_trainer.trainer.generation.generator import Generator
from tests.helpers.plain_training import plain_training
from tests.helpers.random_weights import random_weights
from tests.helpers.released_scenarios import configure
from tests.helpers.released_weights import save_released
from tests.helpers.scenario_results import Item, Launch, differing
from tests.helpers.scenarios import digest
from tests.helpers.small_config import small_config, small_distill_config, small_json

pytestmark = pytest.mark.slow
RELEASED = {"rank": 3, "alpha": 6, "targets": ["model.model.*.qkv", "model.model.*.ffn.w?"]}
OURS = {"rank": 2, "targets": ["backbone.blocks.*.qkv", "backbone.blocks.*.mlp.down"], "train": ["*.latent_out.*"]}
CURVE = ("training.steps=3", "optimizer.weight_decay=0.1", "optimizer.max_grad_norm=0.5", "optimizer.eps=1e-6")
RUN = ("training.steps=4", "checkpoint.every=2", "zero.stage=2", "training.precision=bf16")
CASES = {
    "stage 0": ("released", "zero.stage=0"),
    "stage 1": ("released", "zero.stage=1"),
    "stage 2": ("released", "zero.stage=2"),
    "stage 3": ("released", "zero.stage=3"),
    "recomputed": ("released", "zero.stage=3", "training.activation_checkpointing=true"),
    "ours 2": ("ours", "zero.stage=2"),
    "ours 3": ("ours", "zero.stage=3", "training.activation_checkpointing=true"),
    "int8 1": ("int8", "zero.stage=1"),
    "int8 2": ("int8", "zero.stage=2", "training.activation_checkpointing=true"),
    "ours int8": ("ours int8", "zero.stage=1"),
}
BF16 = {f"bf16 {n}": ("released", f"zero.stage={n}", "training.precision=bf16") for n in range(4)}
BF16 |= {f"bf16 int8 {n}": ("int8", f"zero.stage={n}", "training.precision=bf16") for n in (1, 2)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    ours = random_weights(folder / "ours", SamplingConfig())
    theirs = save_released(folder / "released")
    return {"released": theirs, "ours": ours, "int8": theirs, "ours int8": ours}


def overrides(bases, kind, *more):
    """On those of `configure`, which have the released network."""
    eight = {"int8": "int8" in kind}
    if "ours" not in kind:
        return (f"lora={json.dumps(RELEASED | eight)}", *more)
    model = json.dumps(small_json()["model"])
    return (f"model={model}", f"init.weights={bases['ours']}", f"lora={json.dumps(OURS | eight)}", *more)


@pytest.fixture(scope="module")
def two(bases, tmp_path_factory):
    run, run8 = overrides(bases, "released", *RUN), overrides(bases, "int8", *RUN)
    items = [
        *(Item(n, "losses", overrides(bases, kind, *CURVE, *more)) for n, (kind, *more) in (CASES | BF16).items()),
        Item("through", "whole", run),
        Item("broken", "whole", run, arguments={"stop": 3}),
        Item("resumed", "whole", run, folder="broken", arguments={"resume": True}),
        Item("through int8", "whole", run8),
        Item("broken int8", "whole", run8, arguments={"stop": 3}),
        Item("resumed int8", "whole", run8, folder="broken int8", arguments={"resume": True}),
    ]
    folder = tmp_path_factory.mktemp("two")
    return Launch(2, bases["released"], folder, items, "tests.helpers.released_scenarios")


@pytest.fixture(scope="module")
def plain(bases):
    """Curve and network of a loop that knows nothing of ranks, by the kind of network."""
    found = {}
    for kind in bases:
        config = configure(bases["released"], *overrides(bases, kind, *CURVE))
        state = load_weights(bases[kind]).state_dict()
        torch.manual_seed(0)  # so that the adapters begin as those of a run
        network = build_network(config.model, config.sampling)
        network.load_state_dict(state)
        add_adapters(network, config.lora)
        found[kind] = plain_training(network, config), network
    return found


@pytest.mark.parametrize("name", CASES)
def test_training_is_that_of_plain_pytorch(two, plain, bases, name):
    curve, network = plain[CASES[name][0]]
    trained = {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}
    rest = digest([*(p for p in network.parameters() if not p.requires_grad), *int8_tensors(network)])
    for result in two.results(name):
        np.testing.assert_allclose(np.array(result["curve"]), curve, rtol=2e-4)
        assert result["frozen"] == rest  # to the bit
    checkpoint = two.checkpoint(name, 3)
    assert load.read_manifest(checkpoint)["roles"]["model"]["shapes"].keys() == trained.keys()
    stored = {key for file in checkpoint.glob("model/*.safetensors") for key in safe_open(file, "pt").keys()}
    assert {key.partition("/")[2] for key in stored if key.partition("/")[0] in ("weights", "ema")} == trained.keys()
    for kind in ("weights", "ema"):
        found = load.full_tensors(checkpoint, "model", kind)
        for key, x in trained.items():
            torch.testing.assert_close(found[key], x, rtol=1e-3, atol=1e-4 if kind == "weights" else 1e-2)


@pytest.mark.parametrize("name", [*CASES, *BF16])
def test_bytes_are_those_of_the_plan(two, bases, name):
    kind, *more = (CASES | BF16)[name]
    (role,) = workload(configure(bases["released"], *overrides(bases, kind, *CURVE, *more)), on_gpu=False).roles
    for rank, result in enumerate(two.results(name)):
        assert result["held"] == asdict(role.bytes(rank, 2))


@pytest.mark.parametrize("end", ["", " int8"])
def test_a_resumed_run_has_the_same_bits(two, end):
    assert differing(two.checkpoint(f"through{end}", 4), two.checkpoint(f"broken{end}", 4)) == []


@pytest.mark.parametrize("end", ["", " int8"])
def test_files_and_merged_weights(two, bases, tmp_path, end):
    """Merged are the weights as they were before they had 8 bits."""
    run = two.folders[f"through{end}"]
    convert_run(run, tmp_path / "adapter")
    convert_run(run, tmp_path / "merged", merge=True)
    stored, manifest = load_file(tmp_path / "adapter" / ADAPTER), load.read_manifest(tmp_path / "adapter")
    assert all(".lora_A." in name or ".lora_B." in name for name in stored) and stored
    assert json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())["r"] == 3
    assert manifest["base"] == str(bases["released"]) and manifest["license"] == "CC-BY-NC-4.0"
    assert (tmp_path / "adapter" / "LICENSE").exists()
    base, merged = load_weights(bases["released"]), load_weights(tmp_path / "merged")
    assert load_adapters(base, [(tmp_path / "adapter", 1.0)]) == ["CC-BY-NC-4.0"]
    before, changed = load_weights(bases["released"]).state_dict(), set()
    for name, x in merged.state_dict().items():
        torch.testing.assert_close(base.state_dict()[name], x, rtol=0, atol=1e-6 * float(x.abs().max()))
        if not torch.equal(before[name], x):
            changed.add(name)
    assert changed == {f"{name.removesuffix('.lora_A')}.weight" for name in manifest_names(two) if ".lora_A" in name}
    assert merged.license == "CC-BY-NC-4.0"
    generator = Generator(bases["released"], adapters=[(tmp_path / "adapter", 1.0)])
    for name, x in generator.model.state_dict().items():
        assert torch.equal(x.cpu(), base.state_dict()[name])


def manifest_names(two):
    return load.read_manifest(two.checkpoint("through", 4))["roles"]["model"]["shapes"]


def test_what_is_refused(two, bases, small, tmp_path):
    with pytest.raises(ValueError, match=r"has trained adapters; make weights of it by launch/convert\.py --merge"):
        read_initial_weights(str(two.folders["through"]))
    record = load.read_manifest(two.checkpoint("through", 4))["init"]
    assert read_recorded_weights(record).digest == record["xxh3"]
    with pytest.raises(ValueError, match=r"has changed .* since the run began"):
        read_recorded_weights(record | {"xxh3": "0"})
    convert_run(two.folders["through"], tmp_path / "adapter")
    changed = load_file(tmp_path / "adapter" / ADAPTER)
    save_file({name: 2 * x for name, x in changed.items()}, tmp_path / "adapter" / ADAPTER)
    with pytest.raises(ValueError, match=rf"{ADAPTER} .*convert the run again"):
        load_adapters(load_weights(bases["released"]), [(tmp_path / "adapter", 1.0)])
    with pytest.raises(ValueError, match=r"init\.weights: missing; lora trains adapters of weights that exist"):
        small_config(None, f"lora={json.dumps(OURS)}")
    with pytest.raises(ValueError, match=r"training\.fp8: true with lora"):
        small_config(None, f"lora={json.dumps(OURS)}", "init.weights=x", "training.fp8=true")
    with pytest.raises(ValueError, match=r"lora\.rank"):
        small_config(None, "init.weights=x", 'lora={"rank": 0, "targets": ["*"]}')
    assert small_config(None, "init.weights=x", 'lora={"rank": 1, "targets": ["*"]}').lora == LoraConfig(1, ("*",))
    eight = f"lora={json.dumps(OURS | {'int8': True})}"
    for stage in (0, 3):
        with pytest.raises(ValueError, match=rf"zero\.stage: {stage} with lora\.int8, .*; set 1 or 2"):
            small_config(None, "init.weights=x", eight, f"zero.stage={stage}")
    with pytest.raises(ValueError, match=r"student\.lora\.int8: true, but its weights are the teacher's"):
        small_distill_config(None, f"student.{eight}", "student.zero.stage=1")
