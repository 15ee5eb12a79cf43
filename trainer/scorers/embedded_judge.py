"""The judge of the embedded scenes: its file, its output, and itself as a scorer."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...models.encoders.runtime import Runtime
from ...models.judge import Judge, JudgeConfig, JudgeOutput
from ..core.files import hash_file, hash_json
from ..media.audio_decode import Wave
from .config import ReleasedConfig, name_of
from .scorer import Features, Metric, Scorer, in_batches, row_features

BATCH = 16  # sounds at a time
JUDGE_WEIGHTS, JUDGE_CONFIG = "judge.safetensors", "judge.json"


class JudgeScorer(Scorer):
    """The judge of the embedded scenes, for sounds of their kind."""

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        folder = Path(config.weights)
        if not (folder / JUDGE_CONFIG).is_file():
            raise ValueError(
                f"scorer {name_of(config)}: {folder / JUDGE_CONFIG} is missing; evaluate weights that were trained on "
                f"the scenes with launch/evaluate.py --judge, which trains a judge there"
            )
        self.judge = runtime.frozen(load_judge(folder))
        self.device = runtime.device
        digest = hash_file(folder / JUDGE_WEIGHTS)
        metrics = (
            Metric("FD", "frechet", "lower", "of the judge's embeddings, against the references"),
            Metric("KL", "kl", "lower", "KL(reference ‖ sound) of the judge's classes"),
            Metric("IS", "inception", "higher", f"of these classes, mean of {config.parts} parts", parts=config.parts),
        )
        about = {"network": "the embedded judge", "file": str(folder), "hash": digest, "license": "Apache-2.0"}
        key = hash_json({"kind": "judge", "weights": digest, "version": 1})
        rate = self.judge.config.sample_rate
        super().__init__(name_of(config), rate, self.judge.config.window / rate, metrics, key, about)

    def features(self, waves: Sequence[Wave]) -> list[Features]:
        def run(batch: Tensor) -> list[Features]:
            output = listen(self.judge, batch[:, None].to(self.device))
            return row_features(embedding=output.embedding[:, None], probabilities=output.class_probabilities())

        return in_batches(waves, BATCH, run)


def listen(judge: Judge, waves: Tensor, batch: int = 64) -> JudgeOutput:
    """waves (B, 1, samples) -> the judge's output for all of them, in float32."""
    with torch.no_grad():
        outputs = [judge(chunk) for chunk in waves.split(batch)]
    return JudgeOutput(*(torch.cat([getattr(o, f.name).float() for o in outputs]) for f in fields(JudgeOutput)))


def save_judge(judge: Judge, folder: Path) -> None:
    """Writes judge.safetensors and judge.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), folder / JUDGE_WEIGHTS)
    (folder / JUDGE_CONFIG).write_text(json.dumps(asdict(judge.config), indent=2) + "\n")


def load_judge(folder: Path) -> Judge:
    """Reads what `save_judge` wrote; the judge is in evaluation mode."""
    saved: dict[str, Any] = json.loads((folder / JUDGE_CONFIG).read_text())
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    judge = Judge(JudgeConfig(**saved))
    judge.load_state_dict(load_file(folder / JUDGE_WEIGHTS), strict=True)
    return judge.eval()
