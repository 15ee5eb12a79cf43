"""Scorers whose networks are classes of this project, with the key names of their released weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...models.encoders.runtime import Runtime
from ...models.scorers import panns, passt, vggish
from ...models.scorers.build import network_of
from ...models.weights import load_strict
from ..core.files import hash_file, hash_json
from ..media.audio_decode import Wave
from .config import ReleasedConfig, name_of
from .scorer import Features, Metric, Scorer, in_batches, row_features

WEIGHTS = "model.safetensors"
BATCH = 16  # sounds at a time
WINDOWS_AT_ONCE = 256
REMEDIES = {
    "panns": (
        "download Cnn14_mAP=0.431.pth from zenodo.org/records/3987831 and run `python launch/convert.py "
        "Cnn14_mAP=0.431.pth --encoder panns --out weights/panns` (docs/evaluation.md)"
    ),
    "passt": (
        "download passt-s-f128-p16-s10-ap.476-swa.pt from github.com/kkoutini/PaSST/releases and run `python "
        "launch/convert.py passt-s-f128-p16-s10-ap.476-swa.pt --encoder passt --out weights/passt` (docs/evaluation.md)"
    ),
    "vggish": (
        "download vggish-10086976.pth from github.com/harritaylor/torchvggish/releases and run `python "
        "launch/convert.py vggish-10086976.pth --encoder vggish --out weights/vggish` (docs/evaluation.md)"
    ),
    "imagebind": (
        "download imagebind_huge.pth from dl.fbaipublicfiles.com/imagebind, whose licence forbids commercial use, and "
        "run `python launch/convert.py imagebind_huge.pth --encoder imagebind --out weights/imagebind` "
        "(docs/evaluation.md)"
    ),
    "avsync": (
        "download synchformer_state_dict.pth from github.com/hkchengrex/MMAudio/releases and run `python "
        "launch/convert.py synchformer_state_dict.pth --encoder avsync --out weights/avsync` (docs/evaluation.md)"
    ),
    "alignacc": (
        "download eval_classifier.ckpt of github.com/luosiallen/Diff-Foley and run `python launch/convert.py "
        "eval_classifier.ckpt --encoder alignacc --out weights/alignacc` (docs/evaluation.md)"
    ),
    "cavp": (
        "download cavp_epoch66.ckpt of github.com/luosiallen/Diff-Foley and run `python launch/convert.py "
        "cavp_epoch66.ckpt --encoder cavp --out weights/cavp` (docs/evaluation.md)"
    ),
}


def weights_file(name: str, kind: str, weights: str) -> Path:
    """Raises ValueError, with how to get them, where the scorer `name` has no weights of this kind there."""
    path = Path(weights)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        what = f"{file} is no safetensors file" if file.is_file() else f"{file} is missing"
        raise ValueError(f"scorer {name}: {what}; {REMEDIES[kind]}")
    return file


def load_network(name: str, kind: str, weights: str, runtime: Runtime) -> tuple[nn.Module, str]:
    """A network of the scorer `name` with its weights, and the hash of their file."""
    file = weights_file(name, kind, weights)
    state = load_file(file)
    try:
        with torch.device("meta"):
            network = network_of(kind, state)
        load_strict(network, state, assign=True)
    except ValueError as error:
        raise ValueError(f"scorer {name}: {file}: {error}; {REMEDIES[kind]}") from None
    return runtime.frozen(network), hash_file(file)


class ReleasedScorer(Scorer):
    """A network with its released weights."""

    def __init__(
        self,
        config: ReleasedConfig,
        runtime: Runtime,
        facts: tuple[str, str],
        rate: int,
        shortest: float,
        metrics: Sequence[Metric],
    ) -> None:
        """`facts`: the network's name, and the licence of its weights."""
        name = name_of(config)
        self.network, digest = load_network(name, config.kind, config.weights, runtime)
        self.device = runtime.device
        file = weights_file(name, config.kind, config.weights)
        about = {"network": facts[0], "file": str(file), "hash": digest, "license": facts[1]}
        key = hash_json({"kind": config.kind, "weights": digest, "version": 1})
        super().__init__(name, rate, shortest, metrics, key, about)

    def classified(self, waves: Sequence[Wave]) -> list[Features]:
        """An embedding and a softmax over the logits of each sound."""

        def run(batch: Tensor) -> list[Features]:
            embeddings, logits = self.network(batch.to(self.device))
            return row_features(embedding=embeddings[:, None], probabilities=logits.softmax(dim=1))

        return in_batches(waves, BATCH, run)


class PannsScorer(ReleasedScorer):
    """Cnn14: the 2048 values before the last layer, and a softmax over the logits of 527 classes."""

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        metrics = (
            Metric("FD", "frechet", "lower", "of Cnn14's embeddings after the last ReLU, against the references"),
            Metric("KL", "kl", "lower", "KL(reference ‖ sound) of the softmax over Cnn14's logits", epsilon=1e-6),
            Metric("IS", "inception", "higher", f"of that softmax, {_parts(config)}", parts=config.parts),
        )
        super().__init__(config, runtime, ("PANNs Cnn14", "CC BY 4.0"), 0, panns.SHORTEST, metrics)
        assert isinstance(self.network, panns.Cnn14)
        self.rate = self.network.front_end.rate  # by the weights

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        return self.classified(waves)

    @torch.inference_mode()
    def class_probabilities(self, waves: Sequence[Wave]) -> list[Tensor]:
        """(527,) each, as the network was trained: of every class for itself, because several sound at once."""

        def run(batch: Tensor) -> list[Features]:
            return row_features(probabilities=self.network(batch.to(self.device))[1].sigmoid())

        return [row["probabilities"] for row in in_batches(waves, BATCH, run)]


class VggishScorer(ReleasedScorer):
    """VGGish: 128 values of every 0.96 s, before the last activation, without principal components."""

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        metrics = (Metric("FAD", "frechet", "lower", "of VGGish's embeddings of all windows, against the references"),)
        super().__init__(config, runtime, ("VGGish", "Apache-2.0"), vggish.RATE, vggish.SHORTEST, metrics)

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        windows = [vggish.log_mel_windows(torch.from_numpy(wave).to(self.device)) for wave in waves]
        rows = torch.cat([self.network(part) for part in torch.cat(windows).split(WINDOWS_AT_ONCE)])
        return [{"embedding": part.float().cpu().clone()} for part in rows.split([len(w) for w in windows])]


class PasstScorer(ReleasedScorer):
    """PaSST on the first ten seconds of a sound; silence follows a shorter one."""

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        metrics = (
            Metric("FD PaSST", "frechet", "lower", "of PaSST's embeddings of ten seconds, against the references"),
            Metric("KL PaSST", "kl", "lower", "KL(reference ‖ sound) of the softmax over PaSST's logits", epsilon=1e-6),
            Metric("IS PaSST", "inception", "higher", f"of that softmax, {_parts(config)}", parts=config.parts),
        )
        super().__init__(config, runtime, ("PaSST", "Apache-2.0"), passt.RATE, 0.0, metrics)

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        samples = round(passt.SECONDS * passt.RATE)
        return self.classified([np.pad(wave[:samples], (0, max(0, samples - wave.size))) for wave in waves])


def _parts(config: ReleasedConfig) -> str:
    return f"mean of {config.parts} parts"
