"""Run networks that score and clean clips: TorchScript or ONNX files of the user.

B clips, n samples at the network's rate, N images.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from ..media.audio_decode import Wave
from ..media.clips import Clip
from .filters import ClassifierConfig, Filtered, SeparatorConfig

Network = Callable[[Tensor], Tensor]


@cache
def load_network(file: str, device: torch.device) -> Network:
    """A function from one CPU tensor to another, computed on `device`.

    Raises ValueError if the file is missing, is not in the format of its ending, or refuses its input.
    """
    kind, load = ("ONNX", _onnx) if file.endswith(".onnx") else ("TorchScript", _torch_script)
    if not Path(file).is_file():
        raise ValueError(f"{file}: no such file; give the TorchScript or ONNX file of the network")
    try:
        network = load(file, device)
    except ImportError as error:
        raise ValueError(f"{file}: needs onnxruntime ({error}); pip install 'audiox-trainer[onnx]'") from error
    except Exception as error:  # every library has its own kinds
        raise ValueError(f"{file}: not a network in {kind} ({_brief(error)})") from error

    def run(x: Tensor) -> Tensor:
        try:
            return network(x)
        except Exception as error:
            raise ValueError(f"{file}: does not accept float32 {tuple(x.shape)} ({_brief(error)})") from error

    return run


def _brief(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else repr(error)


def _torch_script(file: str, device: torch.device) -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch recommends torch.export instead
        module = torch.jit.load(file, map_location=device).eval()

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode():
            answer: Tensor = module(x.to(device))
            return answer.float().cpu()

    return run


def _onnx(file: str, device: torch.device) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if device.type == "cpu":  # there is already one process per core
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    wanted = ["CUDAExecutionProvider"] * (device.type == "cuda") + ["CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(file, options, providers=providers)
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0])).float()

    return run


def scores(classifier: ClassifierConfig, network: Network, clips: list[Clip], rate: int) -> list[float | None]:
    """The network's score of each clip, whose sound has `rate` Hz; None for a clip without the input of the network.

    Raises ValueError if the output has another shape than declared.
    """
    if classifier.input == "audio":
        waves = np.stack([_at_rate(clip.wave.mean(axis=0, keepdims=True), rate, classifier.rate)[0] for clip in clips])
        return [float(score) for score in _rows(classifier, network(torch.from_numpy(waves)), len(clips))]
    return [_video_score(classifier, network, clip) for clip in clips]


def _video_score(classifier: ClassifierConfig, network: Network, clip: Clip) -> float | None:
    if not len(clip.images):
        return None
    pictures = torch.from_numpy(clip.images).float() / 255
    size = (classifier.size, classifier.size)
    if pictures.shape[2:] != size:
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
    return float(_rows(classifier, network(pictures), len(pictures)).mean())


def _rows(classifier: ClassifierConfig, answer: Tensor, rows: int) -> Tensor:
    """The scores (rows,) in the chosen column."""
    table = answer[:, None] if answer.ndim == 1 else answer
    if table.ndim != 2 or len(table) != rows or table.shape[1] <= classifier.column:
        raise ValueError(
            f"{classifier.file}: gives {tuple(answer.shape)} for {rows} rows; expected ({rows},) or ({rows}, columns) "
            f"with column {classifier.column}"
        )
    return table[:, classifier.column]


def score_fault(classifier: ClassifierConfig, score: float | None) -> tuple[str, str] | None:
    """Reason and detail if a clip with this score is left out."""
    reason = f"{Filtered.CLASSIFIER} {classifier.name}"
    if score is None:
        return None
    if classifier.min_score is not None and not score >= classifier.min_score:  # NaN is left out as well
        return reason, f"{score:.3f}, less than {classifier.min_score:g}"
    if classifier.max_score is not None and not score <= classifier.max_score:
        return reason, f"{score:.3f}, more than {classifier.max_score:g}"
    return None


def separate(separator: SeparatorConfig, network: Network, clips: list[Clip], rate: int) -> list[Clip]:
    """The clips with the part of their sound that the network extracts; the padding stays silent.

    Raises ValueError if the output has another shape than declared.
    """
    waves = np.stack([_at_rate(_to_channels(clip.wave, separator.channels), rate, separator.rate) for clip in clips])
    answer = network(torch.from_numpy(waves))  # (B, channels, n) or (B, stems, channels, n)
    if answer.ndim == 4 and answer.shape[1] > separator.stem:
        answer = answer[:, separator.stem]
    if answer.shape != waves.shape:
        raise ValueError(
            f"{separator.file}: gives {tuple(answer.shape)} for {waves.shape}; expected the same, or stems before the "
            f"channels, with stem {separator.stem}"
        )
    return [_with_sound(clip, part, separator.rate, rate) for clip, part in zip(clips, answer.numpy(), strict=True)]


def _with_sound(clip: Clip, part: Wave, found: int, rate: int) -> Clip:
    channels, samples = clip.wave.shape
    wave = _at_rate(part, found, rate)[:, :samples]
    wave = np.pad(wave, ((0, 0), (0, samples - wave.shape[1])))  # the rates may not divide each other
    wave[:, round(clip.seconds * rate) :] = 0
    wave = _to_channels(wave, channels) / np.float32(max(1.0, np.abs(wave).max()))
    return replace(clip, wave=np.ascontiguousarray(wave))


def _to_channels(wave: Wave, channels: int) -> Wave:
    """(1 or 2, n) -> (channels, n)"""
    if len(wave) > channels:
        return wave.mean(axis=0, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(wave, (channels, wave.shape[1])))


def _at_rate(wave: Wave, found: int, wanted: int) -> Wave:
    """Resample a wave (c, n)."""
    return wave if found == wanted else np.ascontiguousarray(soxr.resample(wave.T, found, wanted).T)
