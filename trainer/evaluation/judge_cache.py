"""A judge that is trained once and kept, together with what it is worth on scenes that it has not seen.

FOLDER/judge.safetensors   FOLDER/judge.json   FOLDER/scores.json
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...models.config import CodecConfig
from ...models.encoders.base import AudioCodec
from ...models.encoders.build import build_codec
from ...models.judge import Judge
from ..core.files import published, write_json
from ..scenes.scene import draw_scene
from .held_out import SEED
from .judge import annotate, load_judge, render, save_judge, through, train_judge
from .metrics import draw_prompts, score
from .task_benchmark import same_music

PROMPTS_EACH, MUSIC_CLIPS = 25, 100  # scenes that a judge is examined with
EXAM_SEED = 1


def load_or_train_judge(
    folder: Path, codec: CodecConfig, seed: int = 0, steps: int = 200
) -> tuple[Judge, dict[str, Any]]:
    """The judge in `folder` and its scores; where there is none, one is trained on scenes through `codec` and kept.

    The folder appears only when it is complete. A judge without scores is examined again.

    Raises:
        ValueError: the judge in the folder learned to hear through another codec.
    """
    if (folder / "judge.json").is_file():
        judge = load_judge(folder)
        if (folder / "scores.json").is_file():
            scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
            if scores["hears"] != asdict(codec):
                raise ValueError(
                    f"{folder}: this judge listens to sound of the codec {scores['hears']}, the weights have "
                    f"{asdict(codec)}; give another --judge folder, and one is trained there"
                )
            return judge, scores
        scores = _examine(judge, codec)
        write_json(folder / "scores.json", scores)
        return judge, scores
    coding = build_codec(codec)
    judge = train_judge(seed, lambda waves: coding.decode(coding.encode(waves)[0]), steps=steps)
    scores = _examine(judge, codec)
    with published(folder) as partial:
        save_judge(judge, partial)
        write_json(partial / "scores.json", scores)
    return judge, scores


def judge_scores(judge: Judge, codec: AudioCodec) -> dict[str, dict[str, float]]:
    """The judge on unseen true scenes, "raw" and through the "codec": the four accuracies of T2A-bench, and the share
    of music whose instrument and tempo are both right."""
    prompts = draw_prompts(PROMPTS_EACH, EXAM_SEED)
    music = [draw_scene(SEED, i, "music") for i in range(MUSIC_CLIPS)]
    scenes = [prompt.scene for prompt in prompts] + music
    raw = render(scenes)
    chunks = tqdm(raw.split(50), desc="examining the judge")
    coded = torch.cat([through(lambda w: codec.decode(codec.encode(w)[0]), chunk) for chunk in chunks])
    result = {}
    for name, waves in (("raw", raw), ("codec", coded)):
        heard = annotate(judge, waves)
        right = [same_music(a, scene) for a, scene in zip(heard[len(prompts) :], music, strict=True)]
        result[name] = score(prompts, heard[: len(prompts)]).rates() | {"music": sum(right) / len(right)}
    return result


def _examine(judge: Judge, codec: CodecConfig) -> dict[str, Any]:
    return {"hears": asdict(codec), **judge_scores(judge, build_codec(codec))}
