"""audiobox-aesthetics as a scorer: PC and PQ of the paper's tables, and CE and CU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ...models.encoders.runtime import Runtime
from ...models.scorers.audiobox import AXES, RATE, SECONDS, Audiobox, renamed
from ...models.weights import load_strict
from ..core.config_reader import read_json
from ..core.files import hash_file, hash_json
from ..media.audio_decode import Wave
from .config import ReleasedConfig, name_of
from .scorer import Features, Metric, Scorer

BATCH = 8  # windows of ten seconds
NAMES = {
    "CE": "content enjoyment",
    "CU": "content usefulness",
    "PC": "production complexity",
    "PQ": "production quality",
}
REMEDY = (
    "give a folder with config.json and model.safetensors, made on a machine with a network by `hf download "
    "facebook/audiobox-aesthetics --local-dir weights/audiobox` (docs/evaluation.md)"
)


class AudioboxScorer(Scorer):
    """A sound is heard in windows of ten seconds, the last one shorter; their judgements are weighted by their
    lengths."""

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        name, folder = name_of(config), Path(config.weights)
        file = folder / "model.safetensors"
        if not file.is_file() or not (folder / "config.json").is_file():
            raise ValueError(f"scorer {name}: {folder} lacks model.safetensors or config.json; {REMEDY}")
        about = read_json(folder / "config.json")
        try:
            state = load_file(file)
            self.network = Audiobox({key: tuple(tensor.shape) for key, tensor in state.items()})
            load_strict(self.network, renamed(state))
            self.shift, self.scale = (_transform(about, key) for key in ("mean", "std"))
        except (KeyError, ValueError) as error:
            raise ValueError(f"scorer {name}: {file}: no weights of audiobox-aesthetics ({error}); {REMEDY}") from None
        runtime.frozen(self.network)
        self.device, digest = runtime.device, hash_file(file)
        metrics = [
            Metric(axis, "mean", "higher", f"mean {NAMES[axis]} by audiobox-aesthetics, 1 to 10", column=i)
            for i, axis in enumerate(AXES)
        ]
        facts = {"network": "audiobox-aesthetics", "file": str(file), "hash": digest, "license": "CC BY 4.0"}
        settings = {"kind": "audiobox", "weights": digest, "config": about, "version": 1}
        super().__init__(name, RATE, 0.1, metrics, hash_json(settings), facts)

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        samples = RATE * SECONDS
        windows = [wave[i : i + samples] for wave in waves for i in range(0, wave.size, samples)]
        lengths = torch.tensor([window.size for window in windows])
        padded = torch.from_numpy(np.stack([np.pad(w, (0, samples - w.size)) for w in windows]))
        parts = zip(padded.split(BATCH), lengths.split(BATCH), strict=True)
        answers = torch.cat([self.network(x.to(self.device), n.to(self.device)).cpu() for x, n in parts])
        scores = answers * self.scale + self.shift  # (windows, 4)
        counts = [-(-wave.size // samples) for wave in waves]
        weights = lengths.float()[:, None]
        pairs = zip((scores * weights).split(counts), weights.split(counts), strict=True)
        return [{"scores": rows.sum(dim=0) / weight.sum()} for rows, weight in pairs]


def _transform(config: dict[str, Any], key: str) -> Tensor:
    """(4,): the release's shift ("mean") or scale ("std") of the axes."""
    try:
        return torch.tensor([float(config["target_transform"][axis][key]) for axis in AXES])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config.json: target_transform lacks {key} of the axes ({error})") from None
