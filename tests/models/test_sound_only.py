"""A model of sound alone: `video: null`. It has no part for video, makes no tokens of it, and reads none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audiox_trainer.models.audiox import AudioX, SamplingConfig
from audiox_trainer.models.encoders.build import build_text_encoder
from audiox_trainer.models.networks import count_parameters
from audiox_trainer.trainer.checkpoint.weights_folder import load_weights
from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.cost.data_size import data_figures
from audiox_trainer.trainer.cost.workload import workload
from audiox_trainer.trainer.data.batches import BatchAssembler
from audiox_trainer.trainer.data.reader import Reader, check_streams
from audiox_trainer.trainer.data.record import from_columns, to_columns, validate
from audiox_trainer.trainer.generation.generator import Generator
from audiox_trainer.trainer.generation.prompts import Prompt
from audiox_trainer.trainer.media.clips import read_clips
from audiox_trainer.trainer.prepare.encode import EncoderSettings, SceneTask, encode_scenes
from audiox_trainer.trainer.self_test.small_run import small_model
from tests.helpers.films import wandering
from tests.helpers.small_config import small_config

NO_VIDEO = (
    "model.video=null",
    "model.video_temporal=null",
    'data.streams.0.tasks={"T2A": 1, "inpainting": 1}',
    'data.streams.1.tasks={"T2M": 1, "completion": 1}',
)


@pytest.fixture(scope="module")
def sound():
    return small_config(None, *NO_VIDEO)


def arguments(model, batch=2):
    """z, t, and the conditions of a batch without video."""
    latents = batch, model.codec.frames, model.codec.latent_channels
    video = torch.zeros(batch, model.video_rows, model.video_dim)
    return (
        torch.randn(latents), torch.rand(batch), video, torch.randn(latents),
        torch.randn(batch, 8, model.text.dim), torch.tensor([3, 8])[:batch],
    )  # fmt: skip


def test_it_has_no_part_for_video(sound):
    torch.manual_seed(0)
    model, seeing = AudioX(sound.model), AudioX(small_config().model)
    names = {name for name, _ in model.named_parameters()}
    assert names < {name for name, _ in seeing.named_parameters()}
    assert not any(name.startswith(("conditioner.video.", "conditioner.fusion.gates.2.")) for name in names)
    assert model.conditioner.modality.shape[0] == 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    inputs = arguments(sound.model)
    condition, length = model.encode(*inputs[2:])
    assert condition.shape[1] == sound.model.codec.frames + 8  # no tokens of a video, not even of zeros
    assert length.tolist() == [sound.model.codec.frames + n for n in (3, 8)]
    assert model(*inputs).std() > 0
    more = torch.cat((inputs[4], torch.randn(2, 8, sound.model.text.dim)), dim=1)
    torch.testing.assert_close(model(*inputs[:4], more, inputs[5]), model(*inputs))  # padding is not read


def test_at_full_size_it_is_smaller(root):
    with torch.device("meta"):
        sound, seeing = (
            count_parameters(AudioX(load_pretrain_config(root / f"configs/{name}.json").model))
            for name in ("audio_500h", "single_gpu")
        )
    assert sound["blocks"] == seeing["blocks"]
    assert sound["temporal"] < 0.6 * seeing["temporal"] and sound["total"] < seeing["total"] - 9e6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            'model.video_temporal={"width": 32, "depth": 1, "heads": 2}',
            r"model\.video_temporal: video is null; set both",
        ),
        (
            'data.streams.0.tasks={"T2A": 1, "V2A": 1}',
            r"data\.streams\[0\]\.tasks\.V2A: takes a video, and model\.video",
        ),
    ],
)
def test_what_contradicts_it_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        small_config(None, *NO_VIDEO, override)
    with pytest.raises(ValueError, match=r"model\.video: video_temporal is null; set both to null"):
        small_config(None, "model.video_temporal=null")


def test_its_records_hold_no_video(sound):
    encoders = EncoderSettings(sound.model.codec, None)
    record, seen = (
        encode_scenes(SceneTask(each, "audio", 0, 0, 1))[0]
        for each in (encoders, EncoderSettings(sound.model.codec, small_config().model.video))
    )
    assert len(record.motion) == len(record.image) == 0 and len(seen.motion)
    assert np.array_equal(record.latent_mean, seen.latent_mean)
    read = from_columns(to_columns(validate(record, sound.model.codec, None)), 0)
    assert read.motion.shape == (0, 1) and read.captions == record.captions
    with pytest.raises(ValueError, match="has a video, and the configuration none"):
        validate(seen, sound.model.codec, None)
    read = from_columns(to_columns(validate(seen, sound.model.codec, small_config().model.video)), 0)
    assert len(read.motion) == 0
    assemble = BatchAssembler(sound.model, sound.data, build_text_encoder(sound.model.text), seed=0)
    batch = assemble([record, read], [{"T2A": 1.0}, {"T2M": 1.0}], 0, [0, 1])
    assert batch.conditions.video.shape == (2, 0, 0) and batch.tasks == ("T2A", "T2M")


def test_it_trains_on_shards_that_have_video(scenes):
    config = small_config(scenes, *NO_VIDEO)
    assert check_streams(config, hashes=False) > 0
    batch = next(Reader(config, build_text_encoder(config.model.text), 0, 1).batches(0))
    model = AudioX(config.model)
    loss = (model(batch.latents, torch.rand(len(batch)), *batch.to(torch.device("cpu")).conditions.tensors())).square()
    loss.mean().backward()
    assert set(batch.tasks) <= {"T2A", "inpainting", "T2M", "completion"}


def test_pictures_are_not_decoded(sound, tmp_path):
    film = wandering(tmp_path / "film.mp4", 1.0)
    clips = list(read_clips(film, film, sound.model.codec, None))
    assert clips and all(len(clip.images) == len(clip.motion) == 0 for clip in clips)


def test_weights_and_sound(sound, tmp_path):
    AudioX(sound.model, SamplingConfig("euler", 2, 2.0)).save_pretrained(tmp_path / "weights")
    assert load_weights(tmp_path / "weights").config == sound.model
    generator = Generator(tmp_path / "weights")
    assert generator.generate(text="a bell").shape == (1, sound.model.codec.samples)
    film = wandering(tmp_path / "film.mp4", 1.0)
    (refused,) = generator.generate_sounds([Prompt(video=str(film))])
    assert str(refused) == "video: these weights are of sound alone; leave the video out"


def test_the_self_tests_model_has_none_either(sound):
    small = small_model(sound.model)
    assert small.video is None and small.video_temporal is None


def test_clips_epochs_and_disk(root):
    config = load_pretrain_config(root / "configs/audio_500h.json")
    found = data_figures(config, workload(config), 500)
    assert found["clips"] == round(500 * 3600 / (215 * 2048 / 44100))
    assert found["epochs"] == pytest.approx(100_000 * 256 / found["clips"], rel=1e-4)
    assert found["shard_bytes"] == found["clips"] * 2 * 2 * 215 * 64
    seeing = replace(config, model=load_pretrain_config(root / "configs/single_gpu.json").model)
    more = data_figures(seeing, workload(seeing), 500)["shard_bytes"] - found["shard_bytes"]
    assert more == found["clips"] * 2 * (50 + 240) * 768
