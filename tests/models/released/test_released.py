"""The released network against fixtures that the authors' code made: small widths, random weights, every stage.

`golden/outputs.safetensors` holds every 7th number of the tensors that have over 4,096.
"""

import json
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from audiox_trainer.models.released.autoencoder import diffusers_name, to_diffusers
from audiox_trainer.models.released.config import ReleasedConfig
from audiox_trainer.models.released.discriminator import ReleasedDiscriminatorHead
from audiox_trainer.models.released.network import ReleasedAudioX

GOLDEN = Path(__file__).with_name("golden")
SIZES = json.loads((GOLDEN / "config.json").read_text())
SMALL = ReleasedConfig(
    width=SIZES["width"],
    depth=SIZES["depth"],
    heads=SIZES["attention_heads"],
    hidden=SIZES["ffn_hidden"],
    condition_width=SIZES["cond_dim"],
    fusion_heads=SIZES["maf_heads"],
    fusion_depth=SIZES["maf_layers"],
    temporal_depth=SIZES["temporal_depth"],
    temporal_heads=SIZES["temporal_heads"],
    temporal_head_width=SIZES["temporal_head_dim"],
)
CASES = {  # which of the two samples have video, text, an audio prompt
    "all": ((1, 1), (1, 1), (1, 1)),
    "none": ((0, 0), (0, 0), (0, 0)),
    "mixed": ((1, 0), (0, 1), (0, 1)),
}
LEVELS = (1.0, 0.75, 0.5, 0.25)


def swapped(x: torch.Tensor) -> torch.Tensor:
    """(B, channels, L) of the fixtures <-> (B, L, channels) of ours."""
    return x.transpose(1, 2)


@pytest.fixture(scope="module")
def inputs():
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def outputs():
    with safe_open(GOLDEN / "outputs.safetensors", "pt") as file:
        largest = json.loads(file.metadata()["largest"])
        return {name: (file.get_tensor(name), largest[name]) for name in file.keys()}


@pytest.fixture(scope="module")
def network():
    network = ReleasedAudioX(SMALL).eval()
    network.load_state_dict(load_file(GOLDEN / "weights.safetensors"))
    return network


def check(outputs, name: str, found: torch.Tensor, bound: float = 1e-5) -> None:
    expected, largest = outputs[name]
    flat = found.detach().flatten()
    flat = flat[::7] if len(flat) > 4096 else flat
    error = (flat - expected).abs().max().item() / largest
    assert error <= bound, f"{name}: {error:.1e} of the largest value"


def features(inputs, case: str) -> tuple[torch.Tensor, ...]:
    """The arguments of `encode`."""

    def pick(present, given, missing):
        return torch.stack([given[i] if present[i] else missing[i] for i in range(2)])

    video, text, audio = CASES[case]
    sync = pick(video, inputs["video.sync"], torch.zeros_like(inputs["video.sync"]))
    hidden = pick(text, inputs["text.t5_hidden"], inputs["text_empty.t5_hidden"])
    length = pick(text, inputs["text.mask"], inputs["text_empty.mask"]).long().sum(1)
    prompt = pick(audio, inputs["audio.latents"], inputs["audio_silence.latents"])
    return inputs["video.clip_tokens"], sync, torch.tensor(video).bool(), hidden, length, swapped(prompt)


def captured(modules: dict[str, torch.nn.Module], call) -> dict[str, torch.Tensor]:
    """What these modules gave during a call."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out}))
        for name, module in modules.items()
    ]
    call()
    for handle in handles:
        handle.remove()
    return found


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
    found = captured(modules, lambda: network.encode(clip, sync, present, text, length, prompt))
    found["maf.gates"] = found["maf.gates"].sigmoid()
    found["maf.cross_out"] = found["maf.cross_out"][0]
    condition = network.encode(clip, sync, present, text, length, prompt)
    found |= dict(zip(("maf.text", "maf.video", "maf.audio"), condition.split(SMALL.tokens, dim=1), strict=True))
    found["text.cond"] = text * (torch.arange(SMALL.tokens) < length[:, None])[..., None]
    found["fused"] = condition
    if case == "all":
        video = conditioners["video_prompt"]
        found["video.temporal"] = video.temporal(clip)
        found["video.proj"] = video.project(found["video.temporal"], video.proj)
        found["video.sync_proj"] = video.project(sync, video.proj_sync)
    names = [name for name in found if f"{case}.{name}" in outputs]
    assert len(names) >= 7
    for name in names:
        check(outputs, f"{case}.{name}", found[name])


@torch.no_grad()
def test_stages_of_a_block(network, inputs, outputs):
    condition = network.encode(*features(inputs, "all"))
    backbone = network.backbone
    z, t = swapped(inputs["latents"]), inputs["t"]
    first, second = backbone.transformer.layers
    level, modulation = backbone.level(t), backbone.modulation(condition)
    phase = 2 * torch.pi * backbone.timestep_features(t[:, None])
    check(outputs, "all.time.features", torch.cat((phase.cos(), phase.sin()), -1))
    check(outputs, "all.time.embed", level.token)
    check(outputs, "all.block0.modulation_row0", torch.cat(modulation.blocks[0], -1)[0])
    check(outputs, "all.block0.cross_out", level.shifts[0][:, None].expand(-1, SMALL.positions, -1))
    entered: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, name=name: entered.update({name: args[0]}))
        for name, module in {"tokens_in": first, "block0.attn_in": first.attn, "block0.ffn_in": first.ffn}.items()
    ]
    modules = {
        "block0.attn_out": first.attn,
        "block0.attn_conv": first.linear1,
        "block0.ffn_out": first.ffn,
        "block0.x_out": first,
        "block1.x_out": second,
    }
    left = captured(modules, lambda: backbone.velocity(z, level, modulation))
    for handle in handles:
        handle.remove()
    left["block0.attn_conv"] = swapped(left["block0.attn_conv"])
    for name, value in (left | entered).items():
        check(outputs, f"all.{name}", value)


@torch.no_grad()
def test_values_next_to_zero_tell_the_epsilons(network, inputs, outputs):
    backbone = network.backbone
    block = backbone.transformer.layers[0]
    condition = network.encode(*features(inputs, "all"))
    level, modulation = backbone.level(inputs["t"]), backbone.modulation(condition)
    x = torch.cat((level.token[:, None], backbone.transformer.project_in(backbone._mixed(swapped(inputs["latents"]),
        backbone.preprocess_conv))), dim=1)  # fmt: skip
    shift = block.cross_attn(0.001 * level.token)
    from audiox_trainer.models.released.backbone import rotary_table

    rotation = rotary_table(SMALL.positions, SMALL.width // SMALL.heads, x)
    check(outputs, "small.x_out", block(0.003 * x, modulation.blocks[0], shift, rotation))
    check(outputs, "small.cross_out", shift[:, None].expand(-1, SMALL.positions, -1))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_velocity_guidance_and_the_student_s_sampler(network, inputs, outputs, case):
    backbone = network.backbone
    condition, null = network.encode(*features(inputs, case)), network.null_condition(2)
    z, t = swapped(inputs["latents"]), inputs["t"]
    v, v_null = backbone(z, t, condition), backbone(z, t, null)
    check(outputs, f"{case}.v", swapped(v))
    check(outputs, f"{case}.v_cfg6", swapped(v_null + 6 * (v - v_null)))
    z, modulation = swapped(inputs["noise.z1"]), backbone.modulation(condition)
    for k, now in enumerate(LEVELS):
        clean = z - now * backbone.velocity(z, backbone.level(torch.full((2,), now)), modulation)
        if k < 3:
            z = LEVELS[k + 1] * swapped(inputs[f"noise.renoise{k + 1}"]) + (1 - LEVELS[k + 1]) * clean
            if case == "all":
                check(outputs, f"all.turbo.z{k + 1}", swapped(z))
    check(outputs, f"{case}.turbo.final", swapped(clean))


@torch.no_grad()
@pytest.mark.parametrize("start", [1.0, 0.6])
def test_the_base_model_s_sampler(network, inputs, outputs, start):
    backbone = network.backbone
    condition, null = network.encode(*features(inputs, "all")), network.null_condition(2)
    z = swapped(inputs["noise.z1"])
    if start < 1:
        z = (1 - start) * swapped(inputs["init.latents"]) + start * z
    times = torch.linspace(start, 0, 6)
    for now, after in pairwise(times):
        t = now.expand(2)
        v, v_null = backbone(z, t, condition), backbone(z, t, null)
        z = z + (after - now) * (v_null + 6 * (v - v_null))
    check(outputs, "all.base.steps5_cfg6" + ("_init0.6" if start < 1 else ""), swapped(z))


def test_a_step_of_distillation(network, inputs):
    """Losses, and gradients at the student's sample and at weights of every trained role."""
    given = load_file(GOLDEN / "distill.safetensors")

    def role(scale: float) -> ReleasedAudioX:
        copy = ReleasedAudioX(SMALL).eval()
        copy.load_state_dict(network.state_dict())
        copy.backbone.transformer.project_out.weight.data *= scale
        return copy

    def close(name: str, found: torch.Tensor, bound: float = 1e-5) -> None:
        expected = given[f"out.{name}"]
        error = ((found.detach() - expected).abs().max() / expected.abs().max()).item()
        assert error <= bound, f"{name}: {error:.1e}"

    student, fake, teacher = role(0.8), role(0.9), network.requires_grad_(False)
    arguments = features(inputs, "mixed")
    condition = {
        name: of.encode(*arguments) for name, of in (("student", student), ("fake", fake), ("teacher", teacher))
    }
    noise = {name[9:]: swapped(x) for name, x in given.items() if name.startswith("in.noise.")}

    def noised(t: torch.Tensor, z1: torch.Tensor, z0: torch.Tensor) -> torch.Tensor:
        return t[:, None, None] * z1 + (1 - t[:, None, None]) * z0

    z = noise["z1"]
    for k, now in enumerate(LEVELS[:3]):
        with torch.set_grad_enabled(k == 2):
            x0 = z - now * student.backbone(z, torch.full((2,), now), condition["student"])
            if k < 2:
                z = (LEVELS[k + 1] * noise[f"rollout{k + 1}"] + (1 - LEVELS[k + 1]) * x0).detach()
    close("student.x0", swapped(x0))

    heads = [ReleasedDiscriminatorHead(64, 16) for _ in range(2)]
    for i, head in enumerate(heads):
        head.load_state_dict({name[11:]: x for name, x in given.items() if name.startswith(f"in.heads.{i}.")})

    def scores(latents: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        z = noised(t, eps, latents)
        cuts = [head(teacher.backbone(z, t, condition["teacher"], n_blocks=i + 1)) for i, head in enumerate(heads)]
        return torch.stack(cuts).mean(0)

    tau = given["in.t_dmd"]
    z_tau = noised(tau, noise["dmd"], x0)
    with torch.no_grad():
        v, v_null = (teacher.backbone(z_tau, tau, c) for c in (condition["teacher"], teacher.null_condition(2)))
        x_teacher = z_tau - tau[:, None, None] * (v_null + 6 * (v - v_null))
        x_fake = z_tau - tau[:, None, None] * fake.backbone(z_tau, tau, condition["fake"])
        size = (z_tau - x_teacher).abs().mean((1, 2), keepdim=True) + 1e-8
        target = x0 - (x_fake - x_teacher) / size
    loss_dmd = 0.5 * F.mse_loss(x0, target)
    loss_gan = -scores(x0, given["in.t_gan_g"], noise["gan_g"]).mean()
    close("student.loss_dmd", loss_dmd)
    close("student.loss_gan", loss_gan)
    x0.retain_grad()
    (loss_dmd + loss_gan).backward()
    close("student.x0_grad", swapped(x0.grad))
    close("student.grad_project_out", student.backbone.transformer.project_out.weight.grad)
    gates = [getattr(student.maf_block, f"bypass_gate_{name}").grad for name in "vta"]
    close("student.grad_bypass_gates", torch.stack(gates))

    t, clean = given["in.t_fake"], x0.detach()
    velocity = fake.backbone(noised(t, noise["fake"], clean), t, condition["fake"].detach())
    loss_fake = F.mse_loss(velocity, noise["fake"] - clean)
    loss_fake.backward()
    close("fake.loss", loss_fake)
    close("fake.grad_project_out", fake.backbone.transformer.project_out.weight.grad)

    real = scores(swapped(given["in.real_latents"]), given["in.t_gan_real"], noise["gan_real"])
    made = scores(clean, given["in.t_gan_fake"], noise["gan_fake"])
    close("disc.logits_real", real[:, None])
    close("disc.logits_fake", made[:, None])
    for head in heads:
        head.zero_grad()
    loss = F.relu(1 - real).mean() + F.relu(1 + made).mean()
    loss.backward()
    close("disc.loss", loss)
    close("disc.grad_head0_first", heads[0].net[0].weight.grad)
    teacher.requires_grad_(True)


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

    network = ReleasedAudioX(ReleasedConfig(depth=1)).eval()
    network.load_state_dict({name: parameter(name, x.shape) for name, x in network.state_dict().items()})
    expected = load_file(GOLDEN / "realwidth.safetensors")
    clip, text = drawn("in.clip", (1, 50, 50, 768), 0, 1), drawn("in.t5", (1, 128, 768), 0, 1)
    sync, prompt = drawn("in.sync", (1, 240, 768), 0, 3), drawn("in.audio", (1, 64, 215), 0, 1)
    z, t = swapped(drawn("in.latents", (1, 64, 236), 0, 1)), torch.tensor([0.83])
    condition = network.encode(clip, sync, torch.tensor([True]), text, torch.tensor([11]), swapped(prompt))
    v, v_null = network.backbone(z, t, condition), network.backbone(z, t, network.null_condition(1))
    found = {
        "fused_rows": condition[:, [0, 127, 128, 255, 256, 383]],
        "v": swapped(v),
        "v_cfg6": swapped(v_null + 6 * (v - v_null)),
    }
    for name, value in found.items():
        assert (value - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max(), name


def test_the_autoencoder_by_diffusers():
    from audiox_trainer.models.encoders.libraries import diffusers

    given = load_file(GOLDEN / "vae.safetensors")
    model = diffusers().AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4, 8],
        channel_multiples=[1, 2, 4],
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
    )
    state = {name[8:]: x for name, x in given.items() if name.startswith("weights.")}
    model.load_state_dict(to_diffusers(state, stages=3))
    with torch.no_grad():
        moments = model.encoder(given["in.audio"])
        mean, s = moments.chunk(2, dim=1)
        decoded = model.decoder(mean + (F.softplus(s) + 1e-4) * given["in.eps"])
    for name, value in (("out.moments", moments), ("out.decoded", decoded)):
        assert (value - given[name]).abs().max() <= 1e-4 * given[name].abs().max(), name
    with pytest.raises(ValueError, match=r"encoder\.layers\.9\.bias: no tensor of an autoencoder with 3 stages"):
        diffusers_name("encoder.layers.9.bias", 3)


def test_the_full_size_has_the_released_names_and_shapes():
    lines = (GOLDEN.parent / "keys_turbo.txt").read_text().splitlines()
    released = {name: json.loads(shape) for name, shape in (line.split("\t")[:2] for line in lines if line[:1] != "#")}
    with torch.device("meta"):
        network = ReleasedAudioX()
    found = {name: list(x.shape) for name, x in network.state_dict().items()}
    assert found == released
    assert sum(x.numel() for x in network.state_dict().values()) == 2_310_667_508
