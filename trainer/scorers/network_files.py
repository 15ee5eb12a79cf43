"""Scorers that need no class here: networks in TorchScript or ONNX."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...models.encoders.runtime import Runtime
from ...models.exported_network import load_network
from ..core.files import hash_file, hash_json
from ..media.audio_decode import Wave
from .config import NetworkConfig
from .scorer import Features, Metric, Scorer, in_batches, row_features, whole_windows

BATCH = 16  # sounds at a time


class NetworkScorer(Scorer):
    """A TorchScript or ONNX file. Of several windows of a sound all embeddings are kept, and everything else is their
    mean."""

    def __init__(self, config: NetworkConfig, runtime: Runtime) -> None:
        self.config, self.run = config, load_network(config.file, runtime.device)
        digest = hash_file(Path(config.file))
        settings = {"weights": digest, "rate": config.rate, "seconds": config.seconds, "gives": config.gives}
        about = {"network": "a file", "file": config.file, "hash": digest, "license": "see where it comes from"}
        super().__init__(config.name, config.rate, 0.0, _metrics(config), hash_json(settings | {"version": 1}), about)

    def features(self, waves: Sequence[Wave]) -> list[Features]:
        samples = round(self.config.seconds * self.config.rate)
        windows = [whole_windows(wave, samples) if samples else [wave] for wave in waves]
        rows = in_batches([w for of_sound in windows for w in of_sound], BATCH, self._batch)
        result, place = [], 0
        for of_sound in windows:
            tables = torch.stack([row["row"] for row in rows[place : place + len(of_sound)]])  # (windows, columns)
            result.append(self._named(tables))
            place += len(of_sound)
        return result

    def _batch(self, waves: Tensor) -> list[Features]:
        answer = self.run(waves)
        answer = answer[:, None] if answer.ndim == 1 else answer
        columns = len(self.config.columns) or answer.shape[-1]
        if answer.shape != (len(waves), columns) or not answer.isfinite().all():
            raise ValueError(
                f"scorer {self.name}: {self.config.file} gives {tuple(answer.shape)} for {tuple(waves.shape)}, not "
                f"finite ({len(waves)}, {len(self.config.columns) or 'columns'})"
            )
        return row_features(row=answer)

    def _named(self, tables: Tensor) -> Features:
        if self.config.gives == "embedding":
            return {"embedding": tables}
        if self.config.gives == "scores":
            return {"scores": tables.mean(dim=0)}
        probabilities = tables.softmax(dim=1) if self.config.gives == "logits" else tables
        return {"probabilities": probabilities.mean(dim=0)}


def _metrics(config: NetworkConfig) -> list[Metric]:
    file = Path(config.file).name
    if config.gives == "embedding":
        return [Metric(f"FD {config.name}", "frechet", "lower", f"of the embeddings of {file}, against the references")]
    if config.gives == "scores":
        return [
            Metric(column, "mean", config.better, f"mean of column {column} of {file}", column=i)
            for i, column in enumerate(config.columns)
        ]
    return [
        Metric(f"KL {config.name}", "kl", "lower", f"KL(reference ‖ sound) of the classes of {file}"),
        Metric(f"IS {config.name}", "inception", "higher", f"of the classes of {file}"),
    ]
