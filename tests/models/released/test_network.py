"""The released network against fixtures of the authors' code: conditions, fusion, blocks, guidance, both samplers."""

import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiox_trainer.models.released.backbone import rotary_table
from audiox_trainer.models.released.config import ReleasedConfig
from audiox_trainer.models.released.network import ReleasedNetwork
from tests.helpers.released_fixtures import (
    CASES,
    GOLDEN,
    LEVELS,
    SMALL,
    captured,
    features,
    golden_network,
    load_outputs,
    relative_errors,
    swap_axes,
    too_far,
)


@pytest.fixture(scope="module")
def inputs():
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def outputs():
    return load_outputs()


@pytest.fixture(scope="module")
def network():
    return golden_network()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_conditions(network, inputs, outputs, case):
    conditioners, fusion = network.conditioner["conditioners"], network.maf_block
    clip, sync, present, text, length, prompt = features(inputs, case)
    modules = {
        "video.cond": conditioners["video_prompt"],
        "audio.cond": conditioners["audio_prompt"],
        "maf.gates": fusion.gating_network,
        "maf.cross_out": fusion.cross_attn,
        "maf.experts_updated": fusion.norm1,
        "maf.experts_fused": fusion.fusion_transformer,
    }
    found = captured(modules, lambda: network.fuse(clip, sync, present, text, length, prompt))
    found["maf.gates"] = found["maf.gates"].sigmoid()
    condition = network.fuse(clip, sync, present, text, length, prompt)
    found |= dict(zip(("maf.text", "maf.video", "maf.audio"), condition.split(SMALL.tokens, dim=1), strict=True))
    found["text.cond"] = text * (torch.arange(SMALL.tokens) < length[:, None])[..., None]
    found["fused"] = condition
    if case == "all":
        video = conditioners["video_prompt"]
        found["video.temporal"] = video.temporal(clip)
        found["video.proj"] = video.project(found["video.temporal"], video.proj)
        found["video.sync_proj"] = video.project(sync, video.proj_sync)
    recorded = {f"{case}.{name}": value for name, value in found.items() if f"{case}.{name}" in outputs}
    assert len(recorded) >= 7
    assert too_far(relative_errors(outputs, recorded)) == {}


@torch.no_grad()
def test_stages_of_a_block(network, inputs, outputs):
    backbone = network.backbone
    first, second = backbone.blocks
    level, modulation = backbone.level(inputs["t"]), backbone.modulation(network.fuse(*features(inputs, "all")))
    found = {
        "time.features": backbone.timestep_features(inputs["t"]),
        "time.embed": level.token,
        "block0.modulation_row0": torch.cat(modulation.blocks[0], -1)[0],
        "block0.cross_out": level.shifts[0][:, None].expand(-1, SMALL.positions, -1),
    }
    entries = {"tokens_in": first, "block0.attn_in": first.attn, "block0.ffn_in": first.ffn}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: found.update({name: args[0]}))
        for name, module in entries.items()
    ]
    exits = {
        "block0.attn_out": first.attn,
        "block0.attn_conv": first.linear1,
        "block0.ffn_out": first.ffn,
        "block0.x_out": first,
        "block1.x_out": second,
    }
    found |= captured(exits, lambda: backbone(swap_axes(inputs["latents"]), level, modulation))
    for handle in handles:
        handle.remove()
    found["block0.attn_conv"] = swap_axes(found["block0.attn_conv"])
    assert len(found) == 12
    assert too_far(relative_errors(outputs, {f"all.{name}": value for name, value in found.items()})) == {}


@torch.no_grad()
def test_values_next_to_zero_tell_the_epsilons(network, inputs, outputs):
    backbone = network.backbone
    level, modulation = backbone.level(inputs["t"]), backbone.modulation(network.fuse(*features(inputs, "all")))
    latents = backbone._mixed(swap_axes(inputs["latents"]), backbone.preprocess_conv)
    x = torch.cat((level.token[:, None], backbone.transformer.project_in(latents)), dim=1)
    block = backbone.blocks[0]
    shift = block.cross_attn(0.001 * level.token)
    rotation = rotary_table(SMALL.positions, SMALL.width // SMALL.heads, x)
    found = {
        "small.x_out": block(0.003 * x, modulation.blocks[0], shift, rotation),
        "small.cross_out": shift[:, None].expand(-1, SMALL.positions, -1),
    }
    assert too_far(relative_errors(outputs, found)) == {}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_velocity_guidance_and_the_sampler_of_the_student(network, inputs, outputs, case):
    backbone = network.backbone
    condition, null = network.fuse(*features(inputs, case)), network.null_condition(2)
    z, t = swap_axes(inputs["latents"]), inputs["t"]
    v, v_null = backbone(z, t, condition), backbone(z, t, null)
    found = {f"{case}.v": swap_axes(v), f"{case}.v_cfg6": swap_axes(v_null + 6 * (v - v_null))}
    z, modulation = swap_axes(inputs["noise.z1"]), backbone.modulation(condition)
    for k, now in enumerate(LEVELS):
        clean = z - now * backbone(z, backbone.level(torch.full((2,), now)), modulation)
        if k < 3:
            z = LEVELS[k + 1] * swap_axes(inputs[f"noise.renoise{k + 1}"]) + (1 - LEVELS[k + 1]) * clean
            if case == "all":
                found[f"all.turbo.z{k + 1}"] = swap_axes(z)
    found[f"{case}.turbo.final"] = swap_axes(clean)
    assert too_far(relative_errors(outputs, found)) == {}


@torch.no_grad()
@pytest.mark.parametrize("start", [1.0, 0.6])
def test_the_sampler_of_the_base_model(network, inputs, outputs, start):
    backbone = network.backbone
    condition, null = network.fuse(*features(inputs, "all")), network.null_condition(2)
    z = swap_axes(inputs["noise.z1"])
    if start < 1:
        z = (1 - start) * swap_axes(inputs["init.latents"]) + start * z
    for now, after in pairwise(torch.linspace(start, 0, 6)):
        t = now.expand(2)
        v, v_null = backbone(z, t, condition), backbone(z, t, null)
        z = z + (after - now) * (v_null + 6 * (v - v_null))
    name = "all.base.steps5_cfg6" + ("_init0.6" if start < 1 else "")
    assert too_far(relative_errors(outputs, {name: swap_axes(z)})) == {}


@pytest.mark.slow
@torch.no_grad()
def test_true_widths():
    """One block of the released sizes; weights and inputs follow from their names."""

    def drawn(name: str, shape, mean: float, deviation: float) -> torch.Tensor:
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        return (
            torch.from_numpy(rng.standard_normal(int(np.prod(shape))).astype(np.float32)).reshape(shape) * (deviation)
            + mean
        )

    def parameter(name: str, shape) -> torch.Tensor:
        last = name.rsplit(".", 1)[-1]
        fan = int(np.prod(shape[1:]))
        if last == "sync_weight":
            rule = (0.4, 0.0)
        elif last.startswith("bypass_gate"):
            rule = (0.0, 0.7)
        elif last in ("bias", "in_proj_bias"):
            rule = (0.0, 0.2)
        elif last == "weight" and len(shape) == 1:
            rule = (1.0, 0.2)
        elif "timestep_features" in name or last in ("empty_visual_feat", "Temp_pos_embedding", "unified_experts"):
            rule = (0.0, 0.5)
        else:
            rule = (0.0, (0.6 if "adaLN_modulation" in name else 1.0) / fan**0.5)
        return drawn(name, shape, *rule)

    network = ReleasedNetwork(ReleasedConfig(depth=1)).eval()
    network.load_state_dict({name: parameter(name, x.shape) for name, x in network.state_dict().items()})
    expected = load_file(GOLDEN / "realwidth.safetensors")
    clip, text = drawn("in.clip", (1, 50, 50, 768), 0, 1), drawn("in.t5", (1, 128, 768), 0, 1)
    sync, prompt = drawn("in.sync", (1, 240, 768), 0, 3), drawn("in.audio", (1, 64, 215), 0, 1)
    z, t = swap_axes(drawn("in.latents", (1, 64, 236), 0, 1)), torch.tensor([0.83])
    condition = network.fuse(clip, sync, torch.tensor([True]), text, torch.tensor([11]), swap_axes(prompt))
    v, v_null = network.backbone(z, t, condition), network.backbone(z, t, network.null_condition(1))
    found = {
        "fused_rows": condition[:, [0, 127, 128, 255, 256, 383]],
        "v": swap_axes(v),
        "v_cfg6": swap_axes(v_null + 6 * (v - v_null)),
    }
    for name, value in found.items():
        assert (value - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name
