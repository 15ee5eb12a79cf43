"""The memory that a pass keeps for its backward pass, and its worst moment: simulated and real."""

from dataclasses import replace

import pytest
import torch

from audiox_trainer.models.audiox import AudioX
from audiox_trainer.models.blocks import SwiGLU, recompute_swiglu
from audiox_trainer.models.embeddings import ConstantTensors
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.cost.simulated_memory import Allocations, SimulatedModel
from audiox_trainer.trainer.losses.flow_matching import flow_matching_loss
from tests.helpers.random_weights import inputs
from tests.helpers.small_config import small_config

pytestmark = pytest.mark.slow

TOKENS = 16


def models():
    small = small_config().model
    wide = replace(small.backbone, width=64, heads=4, depth=3, mlp_hidden=96, linear_path=True)
    plain = replace(small, fusion=replace(small.fusion, enabled=False))
    return {"small": small, "wide": replace(small, backbone=wide), "without fusion": plain}


def tables(model):
    """Fixed positions, which a model has from the start."""
    for module in model.modules():
        if isinstance(module, ConstantTensors):
            yield from module.tensors


def really(config, precision, batch, checkpointing, recompute=False):
    """Bytes that a pass through a real model keeps in saved tensors, keeps in memory, and needs at most."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AudioX(config).to(dtype)
    model.backbone.checkpointing = checkpointing
    recompute_swiglu(model, recompute)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    z, t, *features, length = inputs(config, TOKENS, batch)
    given = [z.to(dtype), t, *(x.to(dtype) for x in features), length]
    besides = {x.untyped_storage()._cdata for x in (*given, *model.parameters(), *tables(model))}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with Allocations() as taken:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = flow_matching_loss(model(*given), given[0].float(), given[0].float()).mean()
        kept = taken.now
        in_saved = sum(x.untyped_storage().nbytes() for key, x in saved.items() if key not in besides)
        saved.clear()
        loss.backward()
    return in_saved, kept, taken.peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", models())
def test_a_pass_keeps_what_it_saves_for_the_backward_pass(name, precision):
    config = models()[name]
    simulated = SimulatedModel(config, precision, None, TOKENS)
    for batch in (1, 3):
        saved, kept, peak = really(config, precision, batch, checkpointing=False)
        found = simulated.training(batch, checkpointing=False)
        assert found.saved == kept == saved + 4  # the loss itself
        assert found.peak == peak


@pytest.mark.parametrize("name", models())
def test_checkpointing_keeps_less(name):
    config = models()[name]
    simulated = SimulatedModel(config, "fp32", None, TOKENS)
    _, kept, peak = really(config, "fp32", 3, checkpointing=True)
    found = simulated.training(3, checkpointing=True)
    assert (found.saved, found.peak) == (kept, peak)
    assert found.saved < simulated.training(3, checkpointing=False).saved


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", models())
def test_without_swiglus_outputs(name, precision):
    """A pass keeps as much less as the inputs of the last products have; none of these are counted elsewhere."""
    config = models()[name]
    simulated = SimulatedModel(config, precision, None, TOKENS, recompute=True)
    saved, kept, peak = really(config, precision, 3, checkpointing=False, recompute=True)
    found = simulated.training(3, checkpointing=False)
    assert found.saved == kept == saved + 4 and found.peak == peak
    stored = SimulatedModel(config, precision, None, TOKENS)
    assert stored.training(3, checkpointing=False).saved - kept == swiglu_outputs(config, precision, 3)
    assert simulated.training(3, checkpointing=True) == stored.training(3, checkpointing=True)


def swiglu_outputs(config, precision, batch):
    """Bytes of what all SwiGLUs give to their last products."""
    sizes = []
    model = AudioX(config)
    for module in model.modules():
        if isinstance(module, SwiGLU):
            module.down.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    model(*inputs(config, TOKENS, batch))
    return sum(sizes) * (2 if precision == "bf16" else 4)


def test_on_a_gpu_fused_operations_keep_less(root):
    """Attention scores are never materialised there, and norms and gates keep their inputs."""
    config = load_pretrain_config(root / "configs" / "single_gpu.json")
    short = replace(config.model, backbone=replace(config.model.backbone, depth=2))
    cpu, gpu = (SimulatedModel(short, "bf16", kernels, 128).training(2, False) for kernels in (None, config.kernels))
    assert gpu.saved < 0.6 * cpu.saved
    recomputed = SimulatedModel(short, "bf16", config.kernels, 128, recompute=True).training(2, False)
    backbone = config.model.backbone
    tokens = [config.model.latent_frames, config.model.video_tokens + config.model.codec.frames + 128]
    mlp_rows = 2 * tokens[0] + tokens[1]  # the last block has none for the conditions
    assert gpu.saved - recomputed.saved >= 2 * 2 * mlp_rows * backbone.mlp_hidden
