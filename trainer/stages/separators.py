"""Networks that take a sound apart into stems: a file in TorchScript or ONNX with a few lines of JSON, or Demucs by its
package (https://github.com/adefossez/demucs). Nothing is fetched.

    {"file": "music.ts", "rate": 44100, "channels": 2, "stems": ["music", "speech"], "seconds": 10, "overlap": 1}

c channels, n samples, S stems, W samples of a window.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ...models.encoders.runtime import Runtime
from ...models.exported_network import load_network
from ...models.strict import NonNegativeFloat, Positive, PositiveFloat
from ..core.config_reader import parse_file
from ..core.files import hash_file, hash_json
from ..media.audio_decode import Wave

StemName = Annotated[str, Field(pattern=r"^\w[\w-]*$")]
REPOSITORIES = {"htdemucs": "HTDemucs", "htdemucs_ft": "HTDemucs-ft", "htdemucs_6s": "HTDemucs-6s"}
DEMUCS_CLASSES = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs")
DEMUCS_SECONDS = 10.0  # of a window, or less where a network was trained on less
DEMUCS_OVERLAP = 0.25  # of a window, as the package has it


@dataclass(frozen=True)
class SeparatorConfig:
    """A network of the user's: (1, channels, n) float32 at `rate` Hz to (1, stems, channels, n)."""

    file: str  # TorchScript, or ONNX if it ends in .onnx
    rate: Positive  # Hz
    stems: Annotated[tuple[StemName, ...], Field(min_length=1)]  # names, in the order of its output
    channels: Literal[1, 2] = 2
    seconds: PositiveFloat = 10.0  # of a window; the last one of a sound is padded with silence
    overlap: NonNegativeFloat = 1.0  # seconds in which a window fades into the next one

    def __post_init__(self) -> None:
        if self.overlap > self.seconds / 2:
            raise ValueError(f"overlap: {self.overlap:g}; at most half of seconds, {self.seconds:g}")
        if len(set(self.stems)) < len(self.stems):
            raise ValueError(f"stems: {list(self.stems)}; each needs its own name")


@dataclass(frozen=True)
class Separator:
    """A network and how it is run. `digest` follows from all that decides its stems."""

    name: str
    digest: str
    rate: int  # Hz
    channels: int
    stems: tuple[str, ...]
    seconds: float  # of a window
    overlap: float  # seconds
    network: Callable[[Tensor], Tensor]  # (1, c, W) -> (1, S, c, W)
    levelled: bool = False  # it wants sounds whose standard deviation is 1

    def separate(self, wave: Wave, sums: Sequence[Sequence[int]]) -> Generator[None, None, NDArray[np.float32]]:
        """(c, n) -> (len(sums), c, n): each a sum of some stems. Yields after each window, because it takes long.

        Raises ValueError where the network gives another shape than declared, or what is no number.
        """
        window, overlap = round(self.seconds * self.rate), round(self.overlap * self.rate)
        samples, hop = wave.shape[1], window - overlap
        level = max(float(wave.std()), 1e-8) if self.levelled else 1.0
        rise = (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)
        starts = range(0, max(1, samples - overlap), hop)
        found = np.zeros((len(sums), len(wave), starts[-1] + window), np.float32)
        for start in starts:
            piece = wave[:, start : start + window] / np.float32(level)
            answer = self._stems(np.pad(piece, ((0, 0), (0, window - piece.shape[1]))))
            fade = np.ones(window, np.float32)
            if start:
                fade[:overlap] = rise
            if start != starts[-1]:
                fade[hop:] = 1 - rise
            for row, stems in zip(found, sums, strict=True):
                row[:, start : start + window] += answer[list(stems)].sum(axis=0) * fade * np.float32(level)
            yield
        return found[:, :, :samples]

    def _stems(self, piece: Wave) -> NDArray[np.float32]:
        """(c, W) -> (S, c, W)"""
        answer = self.network(torch.from_numpy(np.ascontiguousarray(piece))[None])
        expected = (1, len(self.stems), *piece.shape)
        if tuple(answer.shape) != expected or not bool(answer.isfinite().all()):
            raise ValueError(
                f"{self.name}: gives {tuple(answer.shape)} for {(1, *piece.shape)}; expected finite {expected}, of the "
                f"stems {', '.join(self.stems)}"
            )
        stems: NDArray[np.float32] = answer[0].numpy()
        return stems


def load_separator(model: str, weights: Path, device: torch.device) -> Separator:
    """`model`: a JSON file, as of `SeparatorConfig`, or the name of one of Demucs's models, whose files are in the
    folder `weights`. Raises ValueError where something is missing, with how to get it."""
    if model.endswith(".json"):
        return _from_file(Path(model), device)
    return _demucs(model, weights, Runtime.for_device(device))


def _from_file(path: Path, device: torch.device) -> Separator:
    try:
        config = parse_file(SeparatorConfig, path)
    except OSError as error:
        raise ValueError(f"{error}; give a JSON file that describes a separator, or the name of a model") from None
    if (path.parent / config.file).is_file():
        config = replace(config, file=str(path.parent / config.file))
    network = load_network(config.file, device)
    settings = {"network": hash_file(Path(config.file)), "rate": config.rate, "stems": list(config.stems)}
    settings |= {"channels": config.channels, "seconds": config.seconds, "overlap": config.overlap, "version": 1}
    return Separator(
        Path(config.file).stem, hash_json(settings), config.rate, config.channels, config.stems, config.seconds,
        config.overlap, network,
    )  # fmt: skip


def _demucs(name: str, folder: Path, runtime: Runtime) -> Separator:
    try:
        import yaml
        from demucs.apply import BagOfModels, apply_model
        from demucs.hf import load_safetensors_model
    except ImportError as error:
        remedy = "pip install 'audiox-trainer[separate]', or give a JSON file that describes a separator (docs/data.md)"
        raise ValueError(f"--model {name}: needs the package demucs, 4.1 or newer ({error}); {remedy}") from error
    about = folder / f"{name}.yaml"
    try:
        bag: dict[str, Any] = yaml.safe_load(about.read_text())
        files = [folder / f"{signature}.safetensors" for signature in bag["models"]]
        for file in files:
            _check_class(file)
        model = runtime.frozen(BagOfModels(list(map(load_safetensors_model, files)), bag.get("weights")))
    except Exception as error:  # the package has no kinds of its own
        repository = f"adefossez/{REPOSITORIES.get(name, f'Demucs-{name}')}"
        get = f"`hf download {repository} --local-dir {folder}` on a machine with a network"
        detail = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValueError(f"--model {name}: {about}: {detail}; it and its .safetensors come by {get}") from error
    digest = hash_json({"files": [hash_file(file) for file in files], "weights": bag.get("weights"), "version": 1})
    seconds = min(DEMUCS_SECONDS, float(model.max_allowed_segment))

    @torch.inference_mode()
    def network(mix: Tensor) -> Tensor:
        stems: Tensor = apply_model(model, mix, shifts=0, split=False, device=runtime.device).cpu()
        return stems

    return Separator(
        name, digest, model.samplerate, model.audio_channels, tuple(model.sources), seconds, DEMUCS_OVERLAP * seconds,
        network, levelled=True,
    )  # fmt: skip


def _check_class(file: Path) -> None:
    """The package makes whatever class a file names. Raises ValueError where it is none of its networks."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        found = opened.metadata() or {}
    if found.get("klass") not in DEMUCS_CLASSES or "structure" in found:
        raise ValueError(f"{file.name} holds {found.get('klass')!r}, not one of {', '.join(DEMUCS_CLASSES)}")
