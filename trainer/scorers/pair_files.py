"""Judges of sound with pictures, and of pictures alone, whose networks are files: AlignAcc, for one.

B sounds or videos, M pictures, N pairs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...models.encoders.runtime import Runtime
from ...models.exported_network import Network, load_network
from ..core.files import hash_file, hash_json
from ..media.audio_decode import Wave
from .config import PairConfig, PicturesConfig
from .pictures import PictureFormat
from .scorer import Features, Metric, Scorer

BATCH = 16  # sounds or pairs at a time; videos go one by one
UNHEARD = 16000  # Hz of the sounds that a judge of pictures gets


class PairScorer(Scorer):
    """Two networks, for sounds and for videos, and the cosine of what they give, or a third network's number."""

    def __init__(self, config: PairConfig, runtime: Runtime) -> None:
        self.config = config
        self.hear, self.see = (load_network(file, runtime.device) for file in (config.sound, config.video))
        self.judge: Network | None = load_network(config.pair, runtime.device) if config.pair else None
        files = [file for file in (config.sound, config.video, config.pair) if file]
        digest = hash_json({str(i): hash_file(Path(file)) for i, file in enumerate(files)})
        settings = {"files": digest, "rate": config.rate, "seconds": config.seconds, "frames": config.frames}
        about = {"network": "files", "file": ", ".join(files), "hash": digest, "license": "see where they come from"}
        of = f"{Path(config.pair).name} on sound and video" if config.pair else "cosine of sound and video"
        definition = f"share of sounds above one half, by {of}" if config.round else f"mean of {of}"
        metric = Metric(config.name, "video", config.better, definition)
        key = hash_json(settings | {"size": config.size, "version": 1})
        super().__init__(config.name, config.rate, config.seconds, [metric], key, about)
        self.pictures = PictureFormat(config.frames, config.size, shortest=config.seconds, longest=config.seconds)

    def features(self, waves: Sequence[Wave]) -> list[Features]:
        samples = round(self.config.seconds * self.config.rate)
        padded = [np.pad(wave[:samples], (0, max(0, samples - wave.size))) for wave in waves]  # for a rounded length
        windows = torch.from_numpy(np.stack(padded))
        rows = torch.cat([self._rows(self.hear, self.config.sound, part) for part in windows.split(BATCH)])
        return [{"embedding": row[None].clone()} for row in rows]

    def picture_features(self, videos: Sequence[Tensor]) -> list[Features]:
        rows = [self._rows(self.see, self.config.video, video[None].float() / 255) for video in videos]
        return [{"embedding": row.clone()} for row in rows]

    def compare_with_video(self, sounds: Sequence[Features], videos: Sequence[Features]) -> Tensor:
        """(N,)"""
        if self.judge is None:
            flat = [[{"embedding": row["embedding"].flatten(1)} for row in rows] for rows in (sounds, videos)]
            return super().compare_with_video(flat[0], flat[1])
        found = []
        for i in range(0, len(sounds), BATCH):
            heard, seen = (torch.cat([row["embedding"] for row in rows[i : i + BATCH]]) for rows in (sounds, videos))
            found.append(self._rows(self.judge, self.config.pair, heard, seen).reshape(len(heard), -1)[:, 0])
        numbers = torch.cat(found).double()
        return numbers.round() if self.config.round else numbers

    def _rows(self, network: Network, file: str, *inputs: Tensor) -> Tensor:
        """Raises ValueError where a network gives another number of rows, or what is no number."""
        answer = network(*inputs).float().cpu()
        if not answer.ndim or len(answer) != len(inputs[0]) or not bool(answer.isfinite().all()):
            raise ValueError(
                f"scorer {self.name}: {file} gives {tuple(answer.shape)} for {[tuple(x.shape) for x in inputs]}, not "
                f"finite rows of as many"
            )
        return answer


class PictureScorer(Scorer):
    """A network that judges a video by its pictures, whatever sounds with them: their quality, say."""

    def __init__(self, config: PicturesConfig, runtime: Runtime) -> None:
        self.config, self.see = config, load_network(config.file, runtime.device)
        digest = hash_file(Path(config.file))
        definition = f"mean of column {config.column} of {Path(config.file).name} on the pictures"
        metric = Metric(config.name, "video", config.better, definition)
        about = {"network": "a file", "file": config.file, "hash": digest, "license": "see where it comes from"}
        settings = {"weights": digest, "size": config.size, "frames": config.frames, "column": config.column}
        super().__init__(config.name, UNHEARD, 0.0, [metric], hash_json(settings | {"version": 1}), about)
        self.pictures = PictureFormat(config.frames, config.size)

    def features(self, waves: Sequence[Wave]) -> list[Features]:
        return [{"nothing": torch.zeros(1)} for _ in waves]

    def picture_features(self, videos: Sequence[Tensor]) -> list[Features]:
        """Raises ValueError where the network gives another shape than declared, or what is no number."""
        return [{"score": self._score(video.float() / 255)} for video in videos]

    def _score(self, pictures: Tensor) -> Tensor:
        answer = self.see(pictures)
        table = answer[:, None] if answer.ndim == 1 else answer
        if table.ndim != 2 or table.shape[1] <= self.config.column or not bool(table.isfinite().all()):
            raise ValueError(
                f"scorer {self.name}: {self.config.file} gives {tuple(answer.shape)} for {tuple(pictures.shape)}, not "
                f"finite (rows,) or (rows, columns) with column {self.config.column}"
            )
        return table[:, self.config.column].mean().reshape(1)

    def compare_with_video(self, sounds: Sequence[Features], videos: Sequence[Features]) -> Tensor:
        """(N,), of the videos alone."""
        return torch.cat([video["score"] for video in videos]).double()
