"""Adapters: nothing at first, nothing but themselves in training, and the merged model in the end."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from audiox_trainer.models.adapter_files import ADAPTER, ADAPTER_CONFIG, apply_adapters, save_adapter
from audiox_trainer.models.encoders.libraries import declare_torchvision
from audiox_trainer.models.lora import LoraConfig, LoraLinear, add_adapters, merge_adapters
from audiox_trainer.models.networks import build_network
from audiox_trainer.trainer.engine.compilation import compile_blocks
from tests.helpers.random_weights import inputs, stirred
from tests.helpers.released_weights import SIZES, random_tensor

OURS = LoraConfig(4, ("backbone.blocks.*.qkv", "backbone.blocks.*.mlp.*", "conditioner.text"), 8.0)
RELEASED = LoraConfig(
    4, ("model.model.transformer.layers.*.qkv", "model.model.transformer.layers.*.ffn.*", "*.linear1"), 2.0
)


def released():
    torch.manual_seed(0)
    network = build_network(SIZES.model)
    network.load_state_dict({name: random_tensor(name, tuple(x.shape)) for name, x in network.state_dict().items()})
    return network


def released_inputs():
    config = SIZES.model
    video = torch.randn(2, config.video_rows, 32)
    return [
        torch.randn(2, 36, 8),
        torch.rand(2),
        video,
        torch.randn(2, 32, 8),
        torch.randn(2, 16, 32),
        torch.tensor([3, 9]),
    ]


@pytest.fixture(params=["ours", "released"])
def case(request, small):
    """A network, inputs, and a configuration of adapters."""
    torch.manual_seed(1)
    if request.param == "ours":
        return stirred(small.model), inputs(small.model), OURS
    return released(), released_inputs(), RELEASED


def trained(network):
    """As after some training of the adapters."""
    for name, parameter in network.named_parameters():
        if name.endswith((".lora_A", ".lora_B")):
            nn.init.normal_(parameter, std=0.1)
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


def test_at_first_nothing_changes(case):
    network, given, config = case
    before = network(*given)
    names = add_adapters(network, config)
    assert len(names) > 4 and torch.equal(network(*given), before)
    assert all(f"{name}.lora_A" in dict(network.named_parameters()) for name in names)


def test_only_adapters_are_trained(case):
    network, given, config = case
    before = {name: x.clone() for name, x in network.state_dict().items()}
    add_adapters(network, config)
    trained(network)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(*given).square().mean().backward()
    optimizer.step()
    after = network.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert all(p.grad is not None for n, p in network.named_parameters() if ".lora_" in n)
    assert {n for n, p in network.named_parameters() if p.grad is not None} == after.keys() - before.keys()


def test_every_layer_can_have_one(case):
    """None is passed over by code that reads its layer's weight."""
    network, given, _ = case
    names = tuple(n for n, m in network.named_modules() if type(m) in (nn.Linear, nn.Conv1d))
    add_adapters(network, LoraConfig(1, names))
    trained(network)
    network(*given).square().mean().backward()
    unused = {n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert unused == set() and len(names) > 30


def plain_and_compiled(case):
    """Output and gradients of the adapters, before the blocks are compiled and after."""
    network, given, config = case
    add_adapters(network, config)
    trained(network)
    results = []
    for compiled in (False, True):
        if compiled:
            compile_blocks(network)
        network.zero_grad()
        out = network(*given)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in network.parameters() if p.requires_grad)])
    return results


@pytest.mark.long
def test_compiled_blocks_compute_the_same(case):
    torch.testing.assert_close(*plain_and_compiled(case), rtol=1e-4, atol=1e-5)


def test_the_merged_model_is_the_same(case, tmp_path):
    """In the process, and from a file on top of the weights that it was trained for."""
    network, given, config = case
    plain = {name: x.clone() for name, x in network.state_dict().items()}
    add_adapters(network, config)
    tensors = trained(network)
    expected = network(*given).detach()
    save_adapter(tmp_path, tensors, config, "weights/base")
    merge_adapters(network)
    assert network.state_dict().keys() == plain.keys()
    assert not any(isinstance(module, LoraLinear) for module in network.modules())
    bound = 1e-6 * expected.abs().max()
    assert (network(*given) - expected).abs().max() <= bound
    network.load_state_dict(plain)
    assert (network(*given) - expected).abs().max() > 1e-3 * expected.abs().max()
    apply_adapters(network, [(tmp_path, 0.25), (tmp_path, 0.75)])
    assert (network(*given) - expected).abs().max() <= 3 * bound


def test_other_tensors_are_trained_as_a_whole(small, tmp_path):
    network = stirred(small.model)
    config = LoraConfig(2, ("backbone.blocks.*.qkv",), train=("conditioner.modality", "backbone.latent_out.*"))
    add_adapters(network, config)
    tensors = trained(network)
    assert {"conditioner.modality", "backbone.latent_out.weight", "backbone.latent_out.bias"} <= tensors.keys()
    assert len(tensors) == 3 + 2 * 2 * 2
    save_adapter(tmp_path, tensors, config, "weights/base")
    about = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert about["modules_to_save"] == ["backbone.latent_out", "conditioner"]
    for factors in ((1.0,), (0.5, 0.5)):
        other = stirred(small.model)
        apply_adapters(other, [(tmp_path, factor) for factor in factors])
        torch.testing.assert_close(other.conditioner.modality, tensors["conditioner.modality"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(2, ("backbone.blocks.*.qkw",)), r"lora\.targets: 'backbone\.blocks\.\*\.qkw' matches no linear"),
        (LoraConfig(2, ("conditioner.modality",)), r"lora\.targets: 'conditioner\.modality' matches no linear"),
        (LoraConfig(2, ("conditioner.text",), train=("nothing.*",)), r"lora\.train: 'nothing\.\*' matches no tensor"),
        (LoraConfig(2, ("*.text",), train=("conditioner.*",)), r"matches conditioner\.text\.weight, whose layer has"),
    ],
)
def test_patterns_that_match_nothing(small, config, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(stirred(small.model), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about, tensors: about.update(r="x"), r"no adapter of the kind LoRA, or damaged"),
        (lambda about, tensors: about.update(peft_type="IA3"), r"it is 'IA3' of rank 4"),
        (lambda about, tensors: about.update(lora_alpha=float("inf")), r"lora_alpha is inf"),
        (lambda about, tensors: about.update(use_dora=True), r"use_dora is True, which is not computed here"),
        (lambda about, tensors: tensors.update(x=torch.zeros(2)), r"'x' is no weight of this model"),
        (lambda about, tensors: tensors.pop(next(n for n in tensors if "lora_B" in n)), r"lora_B is missing"),
        (
            lambda about, tensors: tensors.update({n: x[:, :5] for n, x in tensors.items() if "lora_A" in n}),
            r"has \(\d+, 5\) there, \(\d+, \d+\) in the model",
        ),
        (
            lambda about, tensors: tensors.update({n: x / 0 for n, x in tensors.items()}),
            r"is torch\.float32 or not finite",
        ),
    ],
)
def test_adapters_that_do_not_fit(small, tmp_path, change, message):
    network = stirred(small.model)
    add_adapters(network, OURS)
    save_adapter(tmp_path, trained(network), OURS, "weights/base")
    about, tensors = json.loads((tmp_path / ADAPTER_CONFIG).read_text()), load_file(tmp_path / ADAPTER)
    change(about, tensors)
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(about))
    save_file({name: x.contiguous() for name, x in tensors.items()}, tmp_path / ADAPTER)
    with pytest.raises(ValueError, match=message):
        apply_adapters(stirred(small.model), [(tmp_path, 1.0)])
    (tmp_path / ADAPTER).unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is missing: .* is no adapter"):
        apply_adapters(stirred(small.model), [(tmp_path, 1.0)])


def test_peft_reads_the_files(small, tmp_path):
    """And computes the same with them."""
    declare_torchvision()
    peft = pytest.importorskip("peft", exc_type=ImportError)
    network, given = stirred(small.model), inputs(small.model)
    plain = {name: x.clone() for name, x in network.state_dict().items()}
    add_adapters(network, OURS)
    save_adapter(tmp_path, trained(network), OURS, "weights/base")
    expected, other = network(*given).detach(), stirred(small.model)
    other.load_state_dict(plain)
    theirs = peft.PeftModel.from_pretrained(other, tmp_path)
    torch.testing.assert_close(theirs(*given), expected)
