"""Sounds of any length and mixture from a small model with random weights: what they are made from, what is kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from audiox_trainer.models.audiox import SamplingConfig
from audiox_trainer.trainer.core.tasks import TASKS
from audiox_trainer.trainer.generation.clip_request import ClipRequest, concatenate_requests
from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.generation.long_form import sampling_for
from audiox_trainer.trainer.generation.prompts import Prompt
from audiox_trainer.trainer.generation.user_media import encode_video_clips
from audiox_trainer.trainer.media.loudness import integrated_loudness
from audiox_trainer.trainer.media.mux import write_media
from tests.helpers.encoder_weights import save_clip, save_oobleck, save_synchformer, save_t5
from tests.helpers.films import contents, wandering
from tests.helpers.made_sounds import CLIP, prompt, sound
from tests.helpers.random_weights import random_weights

CASES = {
    "T2A": {"text": "a bell"},
    "V2A": {"video": "long.mp4"},
    "TV2A": {"text": "a bell", "video": "short.mp4"},
    "T2M": {"text": "slow piano music"},
    "V2M": {"video": "short.mp4"},
    "TV2M": {"text": "a waltz", "video": "short.mp4"},
    "inpainting": {"audio": "clip.wav", "mask": "0.6-1.0"},
    "completion": {"continue_from": "short.wav"},
}


@pytest.mark.parametrize("task", CASES)
def test_each_task_gives_the_model_what_training_gave(generator, media, task):
    keys = {k: str(media / v) if k in ("video", "audio", "continue_from") else v for k, v in CASES[task].items()}
    begun = generator.start_sound(Prompt(**keys, task=task))
    request = begun.next_request()
    assert list(request.texts) == [keys.get("text", TASKS[task].default_text)]
    assert (request.video is not None and bool(request.video.any())) == ("video" in keys)
    assert (request.given_mask is not None) == (task in ("inpainting", "completion"))
    if request.given_mask is not None:
        assert request.given_mask[0].tolist() == (
            [1, 1, 0, 0, 1, 1, 1, 1] if task == "inpainting" else [1, 1, 1] + 5 * [0]
        )
    finished = sound(generator, **keys, task=task)
    assert torch.isfinite(finished.wave).all() and finished.wave.std() > 0.001


def test_a_prompt_of_one_clip_is_the_generators_own_sound(generator):
    own = generator.waves(generator.latents(ClipRequest(["a bell"]), 3))[0]
    torch.testing.assert_close(generator.generate(text="a bell", seed=3), own, rtol=0, atol=1e-4)  # threads differ


def test_the_length_is_what_is_asked_for_or_the_videos_or_a_clips(generator, media):
    for keys, samples in (
        ({"text": "a bell"}, CLIP),
        ({"text": "a bell", "seconds": 0.5}, 4000),
        ({"text": "a bell", "seconds": 4.0}, 32_000),
        ({"video": media / "short.mp4"}, 9600),
        ({"video": media / "long.mp4"}, 40_000),
        ({"video": media / "long.mp4", "start": 3.5}, 12_000),
        ({"video": media / "long.mp4", "start": 1.0, "seconds": 1.5}, 12_000),
        ({"video": media / "still.mp4"}, CLIP),
        ({"continue_from": media / "short.wav"}, CLIP),
        ({"continue_from": media / "short.wav", "video": media / "long.mp4"}, 40_000),
        ({"continue_from": media / "long.wav"}, (27 - 2 + 8) * 2048),  # one clip, which begins with its last two frames
        ({"audio": media / "long.wav", "mask": "4-4.5"}, 56_000),
    ):
        assert generator.start_sound(prompt(**keys)).samples == samples, keys


def test_a_variation_is_as_long_as_its_sound(generator, tmp_path):
    """Each clip begins from its own part of the sound, with silence after the end."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * CLIP).astype(np.float32)
    soundfile.write(tmp_path / "given.wav", wave, 8000)
    begun = generator.start_sound(prompt(text="a bell", vary=tmp_path / "given.wav", level=0.3))
    assert begun.starts == [0, 6, 12] and begun.samples == 2 * CLIP
    for start in begun.starts:
        request = begun.next_request()
        piece = np.pad(wave, (0, CLIP))[start * 2048 : start * 2048 + CLIP]
        expected, _ = generator.codec.encode(torch.from_numpy(piece)[None, None])
        assert request.level == 0.3
        torch.testing.assert_close(request.initial, expected, atol=0.02, rtol=0.01)  # the file has 16 bits
        begun.add_clip(torch.zeros(8, 16), torch.zeros(1, CLIP))
    made = sound(generator, text="a bell", vary=tmp_path / "given.wav", seconds=1.0)
    assert made.seconds == 1.0 and made.wave.any()
    with pytest.raises(ValueError, match=r"seconds: 5; .*given\.wav lasts 4\.096 s, and a variation is"):
        sound(generator, text="a bell", vary=tmp_path / "given.wav", seconds=5.0)


def test_loudness(generator):
    made = sound(generator, text="a bell", loudness=-30.0)
    assert integrated_loudness(made.wave.numpy(), 8000) == pytest.approx(-30, abs=0.05)
    plain, quiet = sound(generator, text="a bell").wave, made.wave
    torch.testing.assert_close(quiet / quiet.abs().max(), plain / plain.abs().max())
    with pytest.raises(ValueError, match=r"^loudness: at 0 LUFS .* would be clipped; it can"):
        sound(generator, text="a bell", loudness=0.0)


def test_every_clip_continues_from_the_one_before(generator, one_thread):
    """Each clip is given the last two latent frames before it, and the wave has every clip where it belongs."""
    begun = generator.start_sound(Prompt(text="a bell", seconds=5.0, seed=4))
    assert begun.starts == [0, 6, 12]
    latents, waves, seeds = [], [], []
    while not begun.finished:
        request = begun.next_request()
        seeds.append(begun.next_seed)
        if latents:
            assert request.given_mask[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
            assert torch.equal(request.audio[0, :2], latents[-1][-2:])
        z = generator.latents(request, begun.next_seed)[0]
        if latents:
            assert torch.equal(z[:2], latents[-1][-2:])
        latents.append(z)
        waves.append(generator.waves(z[None])[0])
        begun.add_clip(z, waves[-1])
    assert len(set(seeds)) == 3
    seams = [0, 7 * 2048, 13 * 2048, 40_000]  # in the middle of each overlap
    for wave, start, begin, end in zip(waves, begun.starts, seams, seams[1:], strict=False):
        piece = slice(begin, end - 100 if end < 40_000 else end)  # the next one fades in over 80 samples
        assert torch.equal(begun.wave[:, piece], wave[:, piece.start - start * 2048 : piece.stop - start * 2048])
    assert torch.equal(sound(generator, text="a bell", seconds=5.0, seed=4).wave, begun.wave)


def test_a_mended_sound_is_the_given_one_outside_the_hole(generator, media):
    given = soundfile.read(media / "long.wav", dtype="float32")[0]
    mended = sound(generator, audio=media / "long.wav", mask="4.0-4.4")
    assert mended.starts == [12]  # the hole in the middle of its clip: frames 15 to 17
    begin, end = 15 * 2048, 18 * 2048
    assert mended.new_span == pytest.approx((begin / 8000, end / 8000))
    wave = mended.wave[0].numpy()
    assert np.array_equal(wave[: begin - 80], given[: begin - 80])
    assert np.array_equal(wave[end + 80 :], given[end + 80 :])
    assert not np.isclose(wave[begin:end], given[begin:end], atol=1e-4).mean() > 0.5
    at_the_end = sound(generator, audio=media / "short.wav", mask="0.8-1.0")
    assert at_the_end.wave.shape == (1, 8000) and at_the_end.starts == [0]


def test_a_videos_own_sound_stays_where_it_is_beside_the_pictures(generator, tmp_path):
    wandering(tmp_path / "a.mkv", 3.0, late=0.6)
    mended = sound(generator, video=tmp_path / "a.mkv", audio=tmp_path / "a.mkv", mask="2.3-2.4")
    write_media(tmp_path / "b.mkv", mended.wave, 8000, tmp_path / "a.mkv", mended.prompt.start)
    given, made = contents(tmp_path / "a.mkv"), contents(tmp_path / "b.mkv")
    assert given.begins > 0.5 and np.allclose(made.times, given.times, atol=1e-3)
    assert np.abs(made.sound[0, :4000]).max() < 0.01
    heard = soxr.resample(given.sound[0], 44_100, 8000)[: 8000 - 800]  # of what begins at 0.6 s, before the hole
    begin = round(8000 * given.begins)
    assert np.corrcoef(heard, made.sound[0, begin : begin + len(heard)])[0, 1] > 0.95


def test_a_continued_sound_begins_as_it_was_given(generator, media):
    given = soundfile.read(media / "long.wav", dtype="float32")[0]
    for prefix, frames in ((None, 27), (0.6, 2), (3.0, 11)):
        longer = sound(generator, continue_from=media / "long.wav", prefix=prefix, seconds=8.0)
        kept = frames * 2048
        wave = longer.wave[0].numpy()
        assert len(wave) == 64_000 and longer.new_span == pytest.approx((kept / 8000, 8.0))
        assert np.array_equal(wave[: kept - 80], given[: kept - 80])
        rest = given[kept : kept + 2048]
        assert not np.allclose(wave[kept : kept + len(rest)], rest, atol=1e-2)
    resampled = sound(generator, continue_from=media / "other_rate.wav")
    assert resampled.wave.shape == (1, CLIP)  # stereo at another rate


@pytest.mark.parametrize(("prefix", "frames"), [(None, 27), (0.6, 2), (3.0, 11)])
def test_a_clip_that_follows_is_led_by_what_precedes_it(generator, media, prefix, frames):
    given = soundfile.read(media / "long.wav", dtype="float32")[0]
    keys = {"continue_from": str(media / "long.wav"), "prefix": prefix, "follow": True}
    begun = generator.start_sound(Prompt(**keys, task="completion"))
    request = begun.next_request()
    assert request.audio is None and request.given_mask is None
    filled = min(frames, 8)
    piece = torch.zeros(1, 1, CLIP)
    piece[0, 0, : filled * 2048] = torch.from_numpy(given[(frames - filled) * 2048 : frames * 2048])
    expected = generator.codec.encode(piece)[0][0, :filled]
    audio = generator.conditions(request).audio[0]
    assert torch.equal(audio[8 - filled :], expected) and not audio[: 8 - filled].any()
    longer = sound(generator, **keys, seconds=10.0 if prefix is None else 6.0)
    assert np.array_equal(longer.wave[0, : frames * 2048].numpy(), given[: frames * 2048])
    assert longer.new_span[0] == frames * 2048 / 8000 and longer.wave[0, frames * 2048 :].std() > 0.001
    other = sound(generator, **(keys | {"continue_from": str(media / "short.wav"), "prefix": 0.6}), seconds=4.0)
    assert not torch.equal(other.wave[0, 4096:20000], longer.wave[0, frames * 2048 :][: 20000 - 4096])


def test_one_batch_with_and_without_what_precedes(generator, media, one_thread):
    after = generator.start_sound(Prompt(continue_from=str(media / "long.wav"), follow=True)).next_request()
    hole = generator.start_sound(Prompt(audio=str(media / "clip.wav"), mask="0.6-1.0")).next_request()
    both = concatenate_requests([after, hole], generator.model.config)
    for i, request in enumerate((after, hole)):
        assert torch.equal(generator.conditions(both).audio[i], generator.conditions(request).audio[0])


def test_what_cannot_be_made_says_why(generator, media, tmp_path):
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(2000))
    for keys, complaint in (
        ({"audio": media / "clip.wav", "mask": "1.0-3.0"}, r"mask 1-3: .*clip.wav lasts 2\.048 s"),
        ({"audio": media / "long.wav", "mask": "1.0-3.5"}, r"a clip is 2\.048 s, and nothing of the sound"),
        ({"audio": media / "short.mp4", "mask": "5-6"}, "lasts 1.2"),
        ({"audio": media / "still.mp4", "mask": "0-1"}, "audio: .*still.mp4"),
        ({"continue_from": media / "short.wav", "prefix": 1.5}, r"prefix 1\.5: .*lasts 1\.000 s"),
        ({"continue_from": media / "short.wav", "prefix": 0.1}, "shorter than one latent frame, 0.256 s"),
        ({"continue_from": media / "short.wav", "seconds": 0.5}, "leave nothing to generate"),
        ({"video": media / "short.wav"}, "video: .*no pictures"),
        ({"video": tmp_path / "noise.mp4"}, "video: .*noise.mp4"),
        ({"video": media / "short.mp4", "start": 2.0}, r"start: 2; .*lasts 1\.20 s"),
        ({"video": media / "short.mp4", "seconds": 3.0}, r"lasts 1\.20 s, the sound would need 3\.00 s"),
    ):
        with pytest.raises(ValueError, match=complaint):
            sound(generator, **keys)


def test_windows_of_a_video_are_those_of_a_video_that_begins_there(generator, media):
    """Overlapping clips, read in one pass, against each read by itself."""
    config, encode = generator.model.config, generator.encode_video
    begins = [0.0, 1.5, 3.0]
    together = list(encode_video_clips(media / "long.mp4", config, encode, begins))
    for begin, features in zip(begins, together, strict=True):
        assert torch.equal(features, next(iter(encode_video_clips(media / "long.mp4", config, encode, [begin]))))
    assert not torch.equal(together[0], together[1])


MIXED = [
    {"text": "a bell", "seed": 5},
    {"text": "two kicks, then a siren and three dogs, then one hiss from 0.2 to 1.4 seconds", "seconds": 4.0},
    {"video": "long.mp4", "seed": 2},
    {"continue_from": "short.wav", "text": "a bell", "video": "short.mp4", "seconds": 1.2},
    {"text": "a bell", "audio": "long.wav", "mask": "3-3.5"},
]


def mixed(media: Path) -> list[Prompt]:
    paths = ("video", "audio", "continue_from")
    return [Prompt(**{k: str(media / v) if k in paths else v for k, v in keys.items()}) for keys in MIXED]


def test_a_sound_has_the_same_bits_in_every_batch(generator, media):
    prompts = mixed(media)
    alone = [generator.generate_sounds([p])[0].wave for p in prompts]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [1, 3]):
        together = generator.generate_sounds([prompts[i] for i in order])
        for i, result in zip(order, together, strict=True):
            assert torch.equal(result.wave, alone[i]), MIXED[i]


def test_one_forward_for_a_batch_agrees_to_rounding(generator, media):
    """A GPU makes a batch in one forward."""
    begun = [generator.start_sound(p) for p in mixed(media)]
    requests, seeds = [s.next_request() for s in begun], [s.next_seed for s in begun]
    together = generator.latents(concatenate_requests(requests, generator.model.config), seeds)
    for i, (request, seed) in enumerate(zip(requests, seeds, strict=True)):
        torch.testing.assert_close(together[i], generator.latents(request, seed)[0], atol=1e-4, rtol=0)


def test_a_prompt_that_fails_does_not_stop_its_batch(generator, media):
    prompts = [Prompt(text="a bell"), Prompt(video=str(media / "short.wav")), Prompt(text="a kick")]
    first, failed, last = generator.generate_sounds(prompts)
    assert isinstance(failed, ValueError) and "no pictures" in str(failed)
    assert torch.equal(first.wave, generator.generate_sounds(prompts[:1])[0].wave) and last.finished


@pytest.mark.slow
def test_the_encoders_of_the_paper_serve_every_mixture(media, tmp_path):
    """T5, CLIP with Synchformer, and Oobleck in stereo: small and random, but of the true architectures."""
    video = {
        "kind": "clip_sync",
        "dim": 32,
        "image_rate": 5,
        "motion_rate": 25,
        "size": 32,
        "steps": 40,
        "pool": 2,
        "image_weights": str(save_clip(tmp_path / "clip")),
        "motion_weights": str(save_synchformer(tmp_path / "sync")),
    }
    text = {
        "kind": "t5",
        "dim": 32,
        "max_tokens": 24,
        "pad_to_multiple_of": 8,
        "weights": str(save_t5(tmp_path / "t5")),
    }
    codec = {
        "kind": "oobleck",
        "sample_rate": 8000,
        "audio_channels": 2,
        "hop": 256,
        "frames": 64,
        "latent_channels": 8,
    }
    codec["weights"] = str(save_oobleck(tmp_path / "oobleck"))
    sections = [f"model.{name}={json.dumps(section)}" for name, section in (("video", video), ("text", text))]
    sections.append(f"model.codec={json.dumps(codec)}")
    generator = Generator(random_weights(tmp_path / "weights", SamplingConfig("euler", 2, 2.0), *sections))
    prompts = mixed(media)
    together = generator.generate_sounds(prompts)
    for made, asked, samples in zip(together, prompts, (16_384, 32_000, 40_000, 9600, 56_000), strict=True):
        assert made.wave.shape == (2, samples) and made.wave.std() > 1e-4
        assert torch.equal(made.wave, generator.generate_sounds([asked])[0].wave)
    given = torch.from_numpy(soundfile.read(media / "long.wav", dtype="float32")[0])
    assert torch.equal(together[4].wave[:, : 3 * 7900], given[: 3 * 7900].expand(2, -1))


def test_only_a_fill_without_a_text_has_no_guidance(generator):
    own = generator.sampling
    fill = Prompt(audio="a", mask="0-1")
    assert sampling_for(fill, own).guidance == 1
    for other in (replace(fill, text="a bell"), replace(fill, guidance=2.0), Prompt(continue_from="a")):
        assert sampling_for(other, own).guidance == 2
