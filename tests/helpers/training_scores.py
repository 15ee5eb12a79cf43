"""Prompts, references and scorers for runs that judge their sounds while they train."""

import json
from pathlib import Path

import soundfile
import torch

from audiox_trainer.trainer.core.config import ScoresConfig
from tests.helpers.scorer_weights import probe_sound

TEXTS = ("a bell rings", "a dog barks", "two kicks", "rain and wind", "slow drums")


class Level(torch.nn.Module):
    """Two numbers of a sound: its mean power and its largest value."""

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return torch.stack([waves.square().mean(dim=1), waves.abs().amax(dim=1)], dim=1)


class Bands(torch.nn.Module):
    """Mean sizes in eight parts of a sound."""

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return waves[:, : waves.shape[1] // 8 * 8].reshape(waves.shape[0], 8, -1).abs().mean(dim=2)


def write_scores(folder: Path, best: str = "power", every: int = 2, references: bool = True) -> ScoresConfig:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, text in enumerate(TEXTS):
        soundfile.write(folder / f"{i}.wav", probe_sound(8000, 2.048, i), 8000)
        lines.append({"text": text} | ({"reference": f"{i}.wav"} if references else {}))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.jit.script(Level()).save(str(folder / "level.pt"))
    torch.jit.script(Bands()).save(str(folder / "bands.pt"))
    level = {"kind": "network", "name": "level", "file": "level.pt", "rate": 16000, "gives": "scores"}
    level |= {"columns": ["power", "peak"], "better": "lower"}
    bands = {"kind": "network", "name": "bands", "file": "bands.pt", "rate": 8000, "gives": "embedding"}
    (folder / "scorers.json").write_text(json.dumps({"scorers": [level, bands]}))
    return ScoresConfig(every, str(folder / "scorers.json"), str(folder / "prompts.jsonl"), best, 2)
