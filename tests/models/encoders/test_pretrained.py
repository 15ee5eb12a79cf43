"""T5, CLIP and Oobleck against the libraries that they come from, on random weights of the true architectures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiox_trainer.models.config import CodecConfig, TextConfig, VideoConfig
from audiox_trainer.models.encoders import clip
from audiox_trainer.models.encoders.build import build_text_encoder, check_text_encoder
from audiox_trainer.models.encoders.clip import ClipImageEncoder
from audiox_trainer.models.encoders.clip_sync import ClipSyncEncoder
from audiox_trainer.models.encoders.libraries import diffusers, transformers
from audiox_trainer.models.encoders.oobleck import OobleckCodec
from audiox_trainer.models.encoders.runtime import Runtime
from audiox_trainer.models.encoders.t5 import T5TextEncoder
from audiox_trainer.trainer.checkpoint.convert_encoders import convert_clip
from audiox_trainer.trainer.core.config import load_pretrain_config
from tests.helpers.encoder_weights import random_frames, save_clip, save_oobleck, save_synchformer, save_t5

pytestmark = pytest.mark.slow  # importing the libraries takes seconds

CPU = Runtime(torch.device("cpu"), torch.float32)
TEXTS = ["a bell, then two kicks", "", "fast piano music with drums and a dog that barks twice from 0.4 to 1.2 seconds"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Nobody may change them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders")
    save_t5(folder / "t5")
    save_clip(folder / "clip")
    save_oobleck(folder / "stable-audio")
    save_synchformer(folder / "synchformer")
    return folder


@pytest.fixture
def text(weights) -> TextConfig:
    return TextConfig("t5", dim=32, max_tokens=128, pad_to_multiple_of=8, weights=str(weights / "t5"))


@pytest.fixture
def codec(weights) -> CodecConfig:
    return CodecConfig("oobleck", 8000, 2, hop=256, frames=8, latent_channels=8, weights=str(weights / "stable-audio"))


@pytest.fixture
def video(weights) -> VideoConfig:
    places = {"image_weights": str(weights / "clip"), "motion_weights": str(weights / "synchformer")}
    return VideoConfig("clip_sync", dim=32, image_rate=5, motion_rate=25, size=32, steps=16, pool=2, **places)


class TestT5:
    def test_features_are_the_librarys(self, text):
        features, lengths = T5TextEncoder.load(text, CPU)(TEXTS)
        model = transformers().T5EncoderModel.from_pretrained(text.weights).eval()
        tokenizer = transformers().AutoTokenizer.from_pretrained(text.weights)
        for row, length, words in zip(features, lengths.tolist(), TEXTS, strict=True):
            with torch.no_grad():
                alone = model(**tokenizer(words, return_tensors="pt")).last_hidden_state[0]
            assert length == len(alone)
            torch.testing.assert_close(row[:length], alone, rtol=1e-4, atol=1e-5)
            assert not row[length:].any()

    def test_a_batch_is_as_long_as_its_longest_text_rounded_up(self, text):
        encode = T5TextEncoder.load(text, CPU)
        features, lengths = encode(TEXTS)
        assert features.shape[1] == -(-int(lengths.max()) // 8) * 8 < 128
        assert lengths[1] == 1 and features[1, 0].any()  # an empty text is its end
        assert encode([""])[0].shape == (1, 8, 32)

    def test_a_long_text_is_cut_and_still_ends(self, text):
        encode = T5TextEncoder.load(replace(text, max_tokens=12), CPU)
        features, lengths = encode([TEXTS[2] * 20, TEXTS[0]])
        assert features.shape == (2, 12, 32) and lengths.tolist() == [12, 12]
        ids = encode.tokenizer([TEXTS[2] * 20], truncation=True, max_length=12)["input_ids"]
        assert ids[0][-1] == encode.tokenizer.eos_token_id

    def test_features_can_be_trained_on(self, text):
        """Tensors of inference mode could not: a linear layer saves what it multiplies its weights with."""
        linear = torch.nn.Linear(32, 4)
        features, _ = T5TextEncoder.load(text, CPU)(TEXTS)
        assert not features.requires_grad
        linear(features).sum().backward()
        assert linear.weight.grad.abs().sum() > 0

    def test_bfloat16_is_near(self, text):
        exact, _ = T5TextEncoder.load(text, CPU)(TEXTS)
        rough, _ = T5TextEncoder.load(text, replace(CPU, dtype=torch.bfloat16))(TEXTS)
        assert rough.dtype == torch.float32
        assert 0 < (rough - exact).norm() / exact.norm() < 0.03

    def test_another_width_is_refused_with_both_before_weights_are_read(self, text):
        with pytest.raises(ValueError, match=r"model.text: .* says dim 768, the weights in '.*t5' have dim 32"):
            check_text_encoder(replace(text, dim=768))

    def test_a_tokenizer_of_another_model_is_refused(self, text, tmp_path):
        shutil.copytree(text.weights, tmp_path / "t5")
        described = json.loads((tmp_path / "t5" / "tokenizer.json").read_text())
        described["model"]["vocab"] += [[f"word{i}", -20.0] for i in range(100)]
        (tmp_path / "t5" / "tokenizer.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match=r"tokenizer in .* has \d+ tokens, the weights know \d+"):
            T5TextEncoder.load(replace(text, weights=str(tmp_path / "t5")), CPU)

    def test_weights_are_loaded_once_in_a_process(self, text):
        assert build_text_encoder(text, CPU) is build_text_encoder(text, CPU)


class TestClip:
    def test_features_are_the_librarys(self, video):
        images = random_frames(2, 5, 3, 32, 32)
        features = ClipImageEncoder.load(video, CPU)(images)
        assert features.shape == (2, 5, 32)
        whole = transformers().CLIPModel.from_pretrained(video.image_weights).eval()
        processor = transformers().CLIPImageProcessor(do_resize=False, do_center_crop=False)
        pixels = processor(list(images.flatten(0, 1)), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            wanted = whole.vision_model(pixel_values=pixels).pooler_output
        torch.testing.assert_close(features.flatten(0, 1), wanted, rtol=1e-4, atol=1e-5)
        # Before the projection, which is what makes CLIP's 512 wide image embedding.
        assert whole.visual_projection(wanted).shape == (10, 16)

    def test_a_frame_is_the_same_in_every_batch(self, video, monkeypatch):
        images = random_frames(3, 7, 3, 32, 32)
        together = ClipImageEncoder.load(video, CPU)(images)
        monkeypatch.setattr(clip, "FRAMES_AT_ONCE", 4)
        torch.testing.assert_close(ClipImageEncoder.load(video, CPU)(images), together, rtol=1e-4, atol=1e-5)

    def test_other_sizes_are_refused_with_both(self, video):
        with pytest.raises(ValueError, match=r"model.video: .* dim 768, size 224, .*clip' have dim 32, size 32"):
            ClipImageEncoder.load(replace(video, dim=768, size=224), CPU)

    def test_a_pickle_is_converted_once(self, video, tmp_path):
        state = load_file(Path(video.image_weights) / "model.safetensors")
        torch.save({**state, "vision_model.embeddings.position_ids": torch.arange(5)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"config.json is missing"):
            convert_clip(tmp_path / "pytorch_model.bin", tmp_path / "clip")
        shutil.copy(Path(video.image_weights) / "config.json", tmp_path)
        with pytest.raises(ValueError, match=r"model.video.image_weights"):
            ClipImageEncoder.load(replace(video, image_weights=str(tmp_path)), CPU)  # a pickle alone is no weights
        convert_clip(tmp_path / "pytorch_model.bin", tmp_path / "clip")
        converted = ClipImageEncoder.load(replace(video, image_weights=str(tmp_path / "clip")), CPU)
        images = random_frames(1, 2, 3, 32, 32)
        assert torch.equal(converted(images), ClipImageEncoder.load(video, CPU)(images))


class TestClipSync:
    def test_both_kinds_of_features(self, video):
        encode = ClipSyncEncoder.load(video, CPU)
        images, motion = random_frames(2, 5, 3, 32, 32), random_frames(2, 25, 3, 32, 32, seed=1)
        of_images, of_motion = encode(images, motion)
        assert of_images.shape == (2, 5, 32) and of_motion.shape == (2, 16, 32)
        assert torch.equal(of_images, encode.images(images)) and torch.equal(of_motion, encode.motion(motion))

    def test_another_number_of_steps_is_refused_with_both(self, video):
        encode = ClipSyncEncoder.load(replace(video, steps=240), CPU)
        with pytest.raises(ValueError, match=r"steps: 25 motion frames of a clip give 16 .* configuration says 240"):
            encode(random_frames(1, 5, 3, 32, 32), random_frames(1, 25, 3, 32, 32))


class TestOobleck:
    def test_latents_and_sound_are_the_librarys(self, codec):
        ours, wave = OobleckCodec.load(codec, CPU), torch.randn(3, 2, codec.samples) * 0.3
        mean, std = ours.encode(wave)
        library = diffusers().AutoencoderOobleck.from_pretrained(codec.weights, subfolder="vae").eval()
        with torch.no_grad():
            posterior = library.encode(wave).latent_dist
            sound = library.decode(posterior.mean).sample
        assert mean.shape == std.shape == (3, codec.frames, codec.latent_channels)
        torch.testing.assert_close(mean, posterior.mean.transpose(1, 2), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(std, posterior.std.transpose(1, 2), rtol=1e-4, atol=1e-5)
        assert ours.decode(mean).shape == wave.shape
        torch.testing.assert_close(ours.decode(mean), sound.clamp(-1, 1), rtol=1e-4, atol=1e-5)

    def test_latents_are_drawn_as_the_library_draws_them(self, codec):
        wave = torch.randn(1, 2, codec.samples)
        mean, std = OobleckCodec.load(codec, CPU).encode(wave)
        library = diffusers().AutoencoderOobleck.from_pretrained(codec.weights, subfolder="vae").eval()
        noise = torch.randn(1, codec.latent_channels, codec.frames, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            drawn = library.encode(wave).latent_dist.sample(torch.Generator().manual_seed(5))
        torch.testing.assert_close(mean + std * noise.transpose(1, 2), drawn.transpose(1, 2), rtol=1e-4, atol=1e-5)

    def test_bfloat16_rounds_latents_and_not_sound(self, codec):
        wave = torch.randn(1, 2, codec.samples) * 0.3
        exact, rough = (OobleckCodec.load(codec, replace(CPU, dtype=d)) for d in (torch.float32, torch.bfloat16))
        mean, std = exact.encode(wave)
        rough_mean, rough_std = rough.encode(wave)
        assert rough_mean.dtype == rough_std.dtype == torch.float32
        assert 0 < (rough_mean - mean).abs().max() < 0.1 * std.mean()
        assert torch.equal(rough.decode(mean), exact.decode(mean))

    def test_a_folder_of_the_autoencoder_alone(self, codec, tmp_path):
        shutil.copytree(Path(codec.weights) / "vae", tmp_path / "vae-alone")
        alone = OobleckCodec.load(replace(codec, weights=str(tmp_path / "vae-alone")), CPU)
        latents = torch.randn(1, 8, 8)
        assert torch.equal(alone.decode(latents), OobleckCodec.load(codec, CPU).decode(latents))

    def test_other_sizes_are_refused_with_all_of_them(self, codec):
        wrong = replace(codec, sample_rate=44100, audio_channels=1, hop=2048, latent_channels=64)
        ours = "sample_rate 44100, audio_channels 1, hop 2048, latent_channels 64"
        theirs = "sample_rate 8000, audio_channels 2, hop 256, latent_channels 8"
        with pytest.raises(ValueError, match=f"model.codec: .* says {ours}, the weights in .* have {theirs}"):
            OobleckCodec.load(wrong, CPU)


def test_parameter_counts_at_the_true_sizes():
    """T5-base's encoder, CLIP ViT-B/32's image encoder, Stable Audio Open's autoencoder."""
    with torch.device("meta"):
        t5 = transformers().T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
        models = {
            "t5": transformers().T5EncoderModel(t5),
            "clip": transformers().CLIPVisionModel(transformers().CLIPVisionConfig()),
            "oobleck": diffusers().AutoencoderOobleck(),
        }
    counts = {name: round(sum(p.numel() for p in model.parameters()) / 1e6, 1) for name, model in models.items()}
    assert counts == {"t5": 109.6, "clip": 87.5, "oobleck": 156.1}


def test_ten_seconds_give_215_latents_of_64_channels(root):
    """Shapes alone, at the true size: Oobleck's padding gives exactly one latent for 2,048 samples."""
    config = load_pretrain_config(root / "configs/2p7b.json", []).model.codec
    with torch.device("meta"):
        model = OobleckCodec(diffusers().AutoencoderOobleck(), Runtime(torch.device("meta"), torch.float32))
    mean, std = model.encode(torch.empty(1, 2, config.samples, device="meta"))
    assert config.samples == 440_320
    assert mean.shape == std.shape == (1, 215, 64)
    assert model.decode(mean).shape == (1, 2, config.samples)


class TestDamage:
    """One sentence with the key of the configuration, whatever the library raises."""

    @pytest.mark.parametrize("place", ["weights/none", "google-t5/t5-base", "not a name"])
    def test_nothing_there(self, text, codec, video, place):
        for load, key, remedy in (
            (lambda: T5TextEncoder.load(replace(text, weights=place), CPU), "model.text.weights", "t5-base"),
            (
                lambda: ClipImageEncoder.load(replace(video, image_weights=place), CPU),
                "model.video.image_weights",
                "cli",
            ),
            (lambda: OobleckCodec.load(replace(codec, weights=place), CPU), "model.codec.weights", "licence"),
        ):
            with pytest.raises(ValueError, match=f"^{key}: '{place}' is no folder here, and no hub gave it .*{remedy}"):
                load()

    def test_empty(self, text):
        with pytest.raises(ValueError, match=r"^model.text.weights: empty, and this encoder has weights"):
            check_text_encoder(replace(text, weights=""))

    def test_truncated(self, text, tmp_path):
        shutil.copytree(text.weights, tmp_path / "t5")
        file = tmp_path / "t5" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"^model.text.weights: .*t5' cannot be read"):
            T5TextEncoder.load(replace(text, weights=str(tmp_path / "t5")), CPU)

    @pytest.mark.parametrize("kind", ["t5", "clip", "stable-audio/vae"])
    @pytest.mark.parametrize("damage", ["missing", "shape"])
    def test_a_weight_is_missing_or_of_another_shape(self, weights, text, codec, video, kind, damage, tmp_path):
        folder = tmp_path / kind
        shutil.copytree(weights / kind, folder)
        (file,) = folder.glob("*.safetensors")
        state = load_file(file)
        name = {"t5": "encoder.final_layer_norm.weight", "clip": "vision_model.post_layernorm.weight"}.get(
            kind, "encoder.snake1.alpha"
        )
        before = tuple(state[name].shape)
        if damage == "missing":
            del state[name]
            message = rf"lacks 1 weights, the first is .*{name.rpartition('.')[2]}"
        else:
            state[name] = torch.zeros(5)
            message = rf"holds .* of shape \(5,\), its own config.json says \({before[0]},"
        save_file(state, file, metadata={"format": "pt"})
        load = {
            "t5": lambda: T5TextEncoder.load(replace(text, weights=str(folder)), CPU),
            "clip": lambda: ClipImageEncoder.load(replace(video, image_weights=str(folder)), CPU),
            "stable-audio/vae": lambda: OobleckCodec.load(replace(codec, weights=str(folder)), CPU),
        }[kind]
        with pytest.raises(ValueError, match=message):
            load()

    def test_another_models_folder(self, text, video):
        with pytest.raises(ValueError, match=r"weights of 'clip', not of 't5'"):
            check_text_encoder(replace(text, weights=video.image_weights))
        with pytest.raises(ValueError, match=r"weights of 't5', not of 'clip'"):
            ClipImageEncoder.load(replace(video, image_weights=text.weights), CPU)


def test_oobleck_takes_a_clip_at_a_time_on_a_cpu(codec):
    """A clip of 10 s needs 225 MB at the first layers; the result does not depend on the batch."""
    model, waves = OobleckCodec.load(codec, CPU), torch.randn(3, 2, codec.samples)
    assert model.clips == 1
    together = model.encode(waves)[0]
    model.clips = 3
    torch.testing.assert_close(model.encode(waves)[0], together, rtol=1e-4, atol=1e-5)
