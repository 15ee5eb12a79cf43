"""A judge that is trained once and kept, with its scores on scenes that it has not seen.

FOLDER/judge.safetensors   FOLDER/judge.json   FOLDER/scores.json
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...models.config import CodecConfig
from ...models.encoders.base import AudioCodec
from ...models.encoders.build import build_codec
from ...models.judge import Judge
from ..core.files import atomic_output, write_json
from ..scenes.scene import draw_scene
from ..scorers.embedded_judge import load_judge, save_judge
from .annotation import annotate_waves
from .held_out import SEED
from .judge_training import render_scenes, round_trip, train_judge
from .t2a_prompts import draw_prompts, score_prompts
from .task_benchmark import same_music

PROMPTS_PER_TYPE, MUSIC_CLIPS = 25, 100  # scenes of a judge's exam
EXAM_SEED = 1


def load_or_train_judge(
    folder: Path, codec: CodecConfig, seed: int = 0, steps: int = 200, extra: str = ""
) -> tuple[Judge, dict[str, Any]]:
    """The judge in `folder` and its scores. Where there is none, one is trained on scenes through `codec` and kept; it
    also learns `extra`, if that is one of `EXTRA_CATEGORIES`.

    The folder appears only when it is complete. A judge without scores is examined again.

    Raises:
        ValueError: the judge in the folder was trained with another codec, or does not know `extra`.
    """
    if not (folder / "judge.json").is_file():
        judge = train_judge(seed, partial(round_trip, build_codec(codec)), steps=steps, extra=extra)
        with atomic_output(folder) as unfinished:
            save_judge(judge, unfinished)
            scores = _examine(judge, codec, unfinished)
        return judge, scores
    judge = load_judge(folder)
    if extra and extra not in judge.config.categories:
        raise ValueError(
            f"{folder}: this judge knows {', '.join(judge.config.categories)}, not {extra!r}; give another --judge "
            f"folder, and a judge is trained there"
        )
    if not (folder / "scores.json").is_file():
        return judge, _examine(judge, codec, folder)
    scores = json.loads((folder / "scores.json").read_text())
    if scores["codec_config"] != asdict(codec):
        raise ValueError(
            f"{folder}: this judge was trained with the codec {scores['codec_config']}, the weights have "
            f"{asdict(codec)}; give another --judge folder, and a judge is trained there"
        )
    return judge, scores


def judge_scores(judge: Judge, codec: AudioCodec) -> dict[str, dict[str, float]]:
    """The judge on unseen true scenes, "raw" and through the "codec": the four accuracies of T2A-bench, and the share
    of music whose instrument and tempo are both right."""
    prompts = draw_prompts(PROMPTS_PER_TYPE, EXAM_SEED)
    music = [draw_scene(SEED, i, "music") for i in range(MUSIC_CLIPS)]
    raw = render_scenes([prompt.scene for prompt in prompts] + music)
    chunks = tqdm(raw.split(50), desc="examining the judge")
    coded = torch.cat([round_trip(codec, chunk) for chunk in chunks])
    result = {}
    for name, waves in (("raw", raw), ("codec", coded)):
        annotations = annotate_waves(judge, waves)
        correct = [same_music(a, scene) for a, scene in zip(annotations[len(prompts) :], music, strict=True)]
        rates = score_prompts(prompts, annotations[: len(prompts)]).rates()
        result[name] = rates | {"music": sum(correct) / len(correct)}
    return result


def _examine(judge: Judge, codec: CodecConfig, folder: Path) -> dict[str, Any]:
    scores = {"codec_config": asdict(codec), **judge_scores(judge, build_codec(codec))}
    write_json(folder / "scores.json", scores)
    return scores
