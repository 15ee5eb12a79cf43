"""Folders of encoder weights as they are released, random and small, but of the true architectures; frames, a film."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from audiox_trainer.models.encoders.libraries import diffusers, transformers
from audiox_trainer.models.encoders.synchformer import CONFIG, WEIGHTS, Synchformer, SynchformerConfig

WORDS = ["a bell, then two kicks", "a dog barks twice from 0.4 to 1.2 seconds", "fast piano music with drums", "Zürich"]
SYNCHFORMER = SynchformerConfig(width=32, depth=2, heads=2, size=32)


def save_t5(folder: Path, dim: int = 32) -> Path:
    """All that T5's encoder needs, with a tokenizer of T5's make trained on a few words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[end])
    config = transformers().T5Config(
        vocab_size=tokenizer.get_vocab_size() + 5, d_model=dim, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    transformers().T5EncoderModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about | {"extra_ids": 0, "model_max_length": 512}))
    return folder


def save_clip(folder: Path, dim: int = 32, size: int = 32) -> Path:
    """A whole CLIP, as the released folders have it: pictures and texts."""
    sizes = {"hidden_size": dim, "intermediate_size": 2 * dim, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": size, "patch_size": 16, "projection_dim": 16}
    text = {**sizes, "vocab_size": 99, "projection_dim": 16}
    config = transformers().CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    transformers().CLIPModel(config).save_pretrained(folder)
    return folder


def save_oobleck(folder: Path, channels: int = 8, rate: int = 8000, ratios: tuple[int, ...] = (2, 4, 4, 8)) -> Path:
    """A Stable Audio pipeline's folder, of which only the autoencoder is there. With fewer than 16 channels
    inside, oneDNN 3.12 computes nonsense in bf16 on CPUs with AMX (as in pytorch/pytorch#169688)."""
    model = diffusers().AutoencoderOobleck(
        encoder_hidden_size=2 * channels,
        downsampling_ratios=list(ratios),
        channel_multiples=[1, 1, 2, 2][: len(ratios)],
        decoder_channels=8,
        decoder_input_channels=channels,
        audio_channels=2,
        sampling_rate=rate,
    )
    model.save_pretrained(folder / "vae")
    return folder


def save_synchformer(folder: Path, config: SynchformerConfig = SYNCHFORMER) -> Path:
    """Writes a folder like that of `launch/convert.py --encoder synchformer`."""
    folder.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in Synchformer(config).state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(asdict(config)))
    return folder


def random_frames(*shape: int, seed: int = 0) -> torch.Tensor:
    """Pixels (…, 3, size, size) uint8."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def save_all(folder: Path) -> list[str]:
    """Weights of all four, and what sets a configuration of `small_config.py` to them: clips of 1.024 s."""
    torch.manual_seed(0)
    places = {
        "t5": save_t5(folder / "t5"),
        "clip": save_clip(folder / "clip"),
        "oobleck": save_oobleck(folder / "stable-audio"),
        "synchformer": save_synchformer(folder / "synchformer"),
    }
    codec = {"sample_rate": 8000, "audio_channels": 2, "hop": 256, "frames": 32, "latent_channels": 8}
    rates = {"image_rate": 5, "motion_rate": 25, "size": 32, "steps": 16, "pool": 2}
    weights = {"image_weights": str(places["clip"]), "motion_weights": str(places["synchformer"])}
    sections = {
        "codec": {"kind": "oobleck", **codec, "weights": str(places["oobleck"])},
        "text": {"kind": "t5", "dim": 32, "max_tokens": 64, "pad_to_multiple_of": 32, "weights": str(places["t5"])},
        "video": {"kind": "clip_sync", "dim": 32, **rates, **weights},
    }
    return [f"model.{name}={json.dumps(section)}" for name, section in sections.items()]


def film(path, seconds, rate=16000, size=48):
    """A video with sound: a square that wanders at 25 frames a second, over a rising tone."""
    import av  # of the media's libraries, which not every machine with a GPU has

    times = np.arange(round(seconds * rate)) / rate
    tone = (0.3 * np.sin(2 * np.pi * (300 + 100 * times) * times)).astype(np.float32)
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=rate)
        pictures.width = pictures.height = size
        pictures.pix_fmt, sound.layout = "yuv420p", "mono"
        for i in range(round(seconds * 25)):
            picture = np.full((size, size, 3), 40, np.uint8)
            picture[i % 30 : i % 30 + 12, 10:30] = (200, 120, 7 * i % 250)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        frame.sample_rate = rate
        container.mux(sound.encode(frame))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))
