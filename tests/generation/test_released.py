"""Sound from the released network: by the same commands as from ours, and with the numbers of a plain reading."""

from dataclasses import replace
from itertools import pairwise

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from audiox_trainer.launch import generate
from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.models.sampler import apply_guidance
from audiox_trainer.trainer.generation.clip_request import ClipRequest
from audiox_trainer.trainer.generation.generator import Generator
from tests.helpers.encoder_weights import film
from tests.helpers.released_fixtures import (
    BOUND,
    CASES,
    GOLDEN,
    features,
    golden_network,
    load_outputs,
    relative_errors,
    swap_axes,
)
from tests.helpers.released_weights import SIZES, save_released


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def generator(folder):
    return Generator(folder)


def plain_latents(generator, request, sampling, seed):
    """As SPEC reads: everything computed at every step, and the two branches of guidance apart."""
    network, sizes = generator.model, SIZES.model.released
    text, length = generator.encode_text(list(request.texts))
    n = len(request.texts)
    clip, sync = torch.zeros(n, sizes.frames, sizes.frame_tokens, 32), torch.zeros(n, sizes.sync_steps, 32)
    if request.video is not None:
        rows = request.video.float()
        clip, sync = rows[:, :30].reshape(clip.shape), rows[:, 30:]
    present = torch.full((n,), request.video is not None)
    prompt = network.silence.expand(n, -1, -1)
    if request.audio is not None:
        prompt = torch.where(request.given_mask[..., None] > 0, request.audio, prompt)
    condition = network.fuse(clip, sync, present, text, length, prompt)
    noise = [torch.Generator().manual_seed(seed + i) for i in range(n)]

    def draw():
        return torch.stack([torch.randn(sizes.latents, sizes.channels, generator=g) for g in noise])

    z = draw()
    times = torch.linspace(1, 0, sampling.steps + 1)
    for t, after in pairwise(times):
        v = network.backbone(z, t.expand(n), condition)
        if sampling.guidance != 1:
            v_null = network.backbone(z, t.expand(n), torch.zeros_like(condition))
            v = apply_guidance(torch.cat((v, v_null)), sampling.guidance, sampling.rescale)
        clean = z - t * v
        if request.audio is not None:
            pad = (0, 0, 0, sizes.latents - request.audio.shape[1])
            known, given = (torch.nn.functional.pad(x, pad) for x in (request.audio, request.given_mask[..., None]))
            clean = torch.where(given > 0, known, clean)
        if sampling.sampler == "renoise":
            z = after * draw() + (1 - after) * clean if after else clean
        else:
            z = z + (after - t) * v
    return z


@pytest.mark.parametrize("sampling", [SamplingConfig("renoise", 4, 1.0), SamplingConfig("euler", 5, 6.0, rescale=0.7)])
@pytest.mark.parametrize("given", ["text", "video", "sound"])
@torch.inference_mode()
def test_latents_are_those_of_a_plain_reading(generator, sampling, given):
    if (given, sampling.sampler) == ("sound", "euler"):
        sampling = replace(sampling, sampler="renoise")
    texts = ["a bell, then two kicks", "a dog barks twice"]
    request = ClipRequest(texts)
    if given == "video":
        request = ClipRequest(texts, torch.randn(2, 46, 32).half())
    if given == "sound":
        request = ClipRequest(texts, None, torch.randn(2, 32, 8), (torch.arange(32) < 11).float().expand(2, -1))
    counts = {"modulations": 0, "shifts": 0}
    block = generator.model.backbone.blocks[0]
    handles = [
        block.adaLN_modulation.register_forward_hook(lambda *_: counts.update(modulations=counts["modulations"] + 1)),
        block.cross_attn.register_forward_hook(lambda *_: counts.update(shifts=counts["shifts"] + 1)),
    ]
    latents = generator.latents(request, 3, sampling)
    again = generator.latents(request, 3, sampling)
    for handle in handles:
        handle.remove()
    assert counts["modulations"] == 2  # once for each call, whatever the steps
    assert counts["shifts"] in (0, sampling.steps)  # once for each level, for both calls
    assert latents.shape == (2, 36, 8) and torch.equal(latents, again)
    expected = plain_latents(generator, request, sampling, 3)
    assert (latents - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_video_gets_sound_and_the_licence_is_shown(folder, tmp_path, capsys):
    film(tmp_path / "clip.mp4", 2.1)
    arguments = ["--weights", folder, "--video", tmp_path / "clip.mp4", "--text", "a bell", "--out", tmp_path / "a.wav"]
    generate.run(generate.parse([*map(str, arguments)]))
    printed = capsys.readouterr().out
    assert f"{folder}: licence CC-BY-NC-4.0" in printed and "renoise, 4 steps, guidance 1" in printed
    wave, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 8000 and wave.shape == (pytest.approx(2.1 * 8000, abs=400), 2)  # as long as the video
    assert wave.std() > 0


def test_a_clip_is_cut_from_what_the_network_generates(generator):
    wave = generator.generate(text="a bell", seed=1, steps=2, guidance=3.0, rescale=0.5)
    assert wave.shape == (2, 32 * 256)
    latents = generator.latents(ClipRequest(["a bell"]), 1, SamplingConfig("renoise", 2, 3.0, rescale=0.5))
    assert latents.shape == (1, 36, 8)
    assert torch.allclose(generator.codec.decode(latents)[0, :, : 32 * 256], wave, atol=1e-4)


def test_a_sound_is_continued(generator, tmp_path):
    soundfile.write(tmp_path / "start.wav", 0.2 * torch.randn(8000, 2).numpy(), 8000)
    wave = generator.generate(continue_from=str(tmp_path / "start.wav"), seconds=2.5, prefix=0.5)
    given, _ = soundfile.read(tmp_path / "start.wav", dtype="float32")
    assert wave.shape == (2, 20_000)
    kept = int(0.5 * 8000) // 256 * 256 - 80  # whole latent frames, without the fade
    assert torch.equal(wave[:, :kept], torch.from_numpy(given.T[:, :kept]))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_guidance_is_rescaled_as_in_the_release(case):
    inputs, outputs = load_file(GOLDEN / "inputs.safetensors"), load_outputs()
    network = golden_network()
    z, t = swap_axes(inputs["latents"]).repeat(2, 1, 1), inputs["t"].repeat(2)
    both = network.backbone(z, t, torch.cat((network.fuse(*features(inputs, case)), network.null_condition(2))))
    found = {
        f"{case}.v_cfg6": swap_axes(apply_guidance(both, 6.0)),
        f"{case}.v_cfg6_phi0.7": swap_axes(apply_guidance(both, 6.0, 0.7)),
    }
    errors = relative_errors(outputs, found)
    assert all(error <= BOUND for error in errors.values()), errors
