"""A small model as after some training, inputs for it, and a judge for what it makes."""

from dataclasses import replace
from pathlib import Path

import torch

from audiox_trainer.models.audiox import AudioX, SamplingConfig
from audiox_trainer.models.judge import Judge
from audiox_trainer.trainer.core.files import write_json
from audiox_trainer.trainer.evaluation.judge_training import JUDGE
from audiox_trainer.trainer.scorers.embedded_judge import save_judge
from tests.helpers.small_config import small_config

BATCH, TOKENS = 3, 16


def stirred(config, **arguments):
    """A model in which nothing is zero any more, as after some training."""
    model = AudioX(config, **arguments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def untrained_judge(folder, codec, *extra):
    """A judge that knows nothing, with scores as if it had been examined: for what only needs one. `extra` are further
    categories of its."""
    save_judge(Judge(replace(JUDGE, categories=(*JUDGE.categories, *extra))), folder)
    zeros = dict.fromkeys(("cat_acc", "cnt_acc", "ord_acc", "ts_acc", "music"), 0.0)
    write_json(folder / "scores.json", {"codec_config": vars(codec), "raw": zeros, "codec": zeros})


def inputs(config, tokens=TOKENS, batch=BATCH):
    """z, t, video, audio, text, text_length; texts of different lengths, zero past their ends."""
    codec, video = config.codec, config.video
    length = torch.arange(batch) * 5 % tokens + 1
    text = torch.randn(batch, tokens, config.text.dim) * (torch.arange(tokens) < length[:, None])[..., None]
    return [
        torch.randn(batch, codec.frames, codec.latent_channels),
        torch.rand(batch),
        torch.randn(batch, video.steps, video.dim),
        torch.randn(batch, codec.frames, codec.latent_channels),
        text,
        length,
    ]


def random_weights(folder: Path, sampling: SamplingConfig, *overrides: str) -> Path:
    """A weights folder of the small model; those that start at zero, and would make it deaf, are random too."""
    torch.manual_seed(0)
    model = AudioX(small_config(None, *overrides).model, sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    return folder
