"""Writes reference_values.json: what other libraries make of weights, sounds and features that follow from a seed.

    pip install scipy librosa scikit-learn resampy
    pip install --no-deps torchlibrosa panns_inference torchvggish torch-fidelity
    pip install --no-deps hear21passt timm torchaudio audiobox_aesthetics imagebind-packaged ftfy regex iopath
    : > $(python -c "import site; print(site.getsitepackages()[0])")/imagebind/__init__.py
    python -m tests.scorers.reference_values [PART ...]

ImageBind's package reads media when it is imported, which needs more than its network, so its first file is emptied.
The tests hold our networks and statistics to these values; they need none of those libraries.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiox_trainer.models.encoders.libraries import declare_torchvision
from tests.helpers.scorer_weights import probe_sound, random_state, shapes_of

FILE = Path(__file__).with_suffix(".json")


def some(values: torch.Tensor) -> list[float]:
    """The first values and two sums, by which the others are held too."""
    flat = values.detach().double().flatten()
    ramp = torch.linspace(-1, 1, flat.numel(), dtype=torch.float64)
    return [*flat[:6].tolist(), float(flat.sum()), float((flat * ramp).sum())]


def random_features(seed: int, rows: int, width: int) -> torch.Tensor:
    """(rows, width): correlated, of unequal spread."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, width)) @ rng.standard_normal((width, width)) / width**0.5
    return torch.from_numpy(mixed * np.linspace(0.2, 2, width) + 0.1 * seed)


def random_logits(seed: int, rows: int, classes: int) -> torch.Tensor:
    return torch.from_numpy(2 * np.random.default_rng(seed).standard_normal((rows, classes)))


def panns() -> dict[str, Any]:
    from panns_inference.models import Cnn14

    values = {}
    for rate, window, hop, highest in ((32000, 1024, 320, 14000), (16000, 512, 160, 8000)):
        model = Cnn14(rate, window, hop, 64, 50, highest, 527).eval()
        shapes = shapes_of(model.state_dict())
        model.load_state_dict(random_state(shapes))
        waves = torch.from_numpy(np.stack([probe_sound(rate, 0.9, seed) for seed in range(2)]))
        with torch.inference_mode():
            output = model(waves)
        values[str(rate)] = {
            "keys": shapes,
            "embedding": some(output["embedding"]),
            "probabilities": some(output["clipwise_output"]),
        }
    return values


def passt() -> dict[str, Any]:
    from hear21passt.models.passt import PaSST
    from hear21passt.models.preprocess import AugmentMelSTFT

    spectrum = AugmentMelSTFT(fmin_aug_range=10, fmax_aug_range=2000).eval()
    whole = PaSST(img_size=(128, 998), stride=10, distilled=True)
    model = PaSST(img_size=(128, 998), stride=10, embed_dim=128, depth=2, num_heads=2, distilled=True).eval()
    model.load_state_dict(random_state(shapes_of(model.state_dict())))
    waves = torch.from_numpy(np.stack([probe_sound(32000, 2.0, seed) for seed in range(2)]))
    with torch.inference_mode():
        mel = spectrum(waves)
        logits, embedding = model(mel[:, None])
    return {
        "keys": shapes_of(whole.state_dict()),
        "log_mel": some(mel),
        "embedding": some(embedding),
        "logits": some(logits),
    }


def vggish() -> dict[str, Any]:
    from torchvggish.torchvggish import VGG, make_layers
    from torchvggish.vggish_input import waveform_to_examples

    model = VGG(make_layers(), postprocess=False).eval()
    shapes = shapes_of(model.state_dict())
    model.load_state_dict(random_state(shapes))
    model.embeddings = torch.nn.Sequential(*list(model.embeddings.children())[:-1])
    windows = waveform_to_examples(probe_sound(16000, 2.0), 16000)
    with torch.inference_mode():
        return {"keys": shapes, "windows": some(windows), "embedding": some(model(windows.float()))}


def audiobox() -> dict[str, Any]:
    from audiobox_aesthetics.model import aes

    options = {"proj_num_layer": 3, "proj_ln": True, "target_transform": {}}
    keys = shapes_of(aes.AesMultiOutput(**options).state_dict())
    small = {"encoder_layers": 2, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 4}
    sizes = {"conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2", "conv_pos": 16, "num_buckets": 32}
    aes.DEFAULT_AUDIO_CFG.update(small | sizes)
    model = aes.AesMultiOutput(**options, nth_layer=3).eval()
    shapes = shapes_of(model.state_dict())
    model.load_state_dict(random_state(shapes))
    waves = torch.zeros(2, 1, 32000)
    mask = torch.zeros(2, 1, 32000, dtype=torch.bool)
    for i, length in enumerate((32000, 20000)):
        waves[i, 0, :length] = torch.from_numpy(probe_sound(16000, 2.0, i)[:length])
        mask[i, 0, :length] = True
    with torch.inference_mode():
        scores = model({"wav": waves, "mask": mask})
    return {
        "keys": keys,
        "small": shapes,
        "scores": [scores[axis].double().tolist() for axis in ("CE", "CU", "PC", "PQ")],
    }


def imagebind() -> dict[str, Any]:
    import torchaudio
    from imagebind.models.imagebind_model import ImageBindModel

    one = {f"{modality}_num_blocks": 1 for modality in ("vision", "text", "audio", "depth", "thermal", "imu")}
    huge = {"vision_embed_dim": 1280, "vision_num_heads": 16, "out_embed_dim": 1024, "audio_drop_path": 0.1}
    keys: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes_of(ImageBindModel(**one, **huge).state_dict()).items():
        for modality, depth in (("vision", 32), ("audio", 12)):
            if f".{modality}." in name:
                keys |= {name.replace(".blocks.0.", f".blocks.{i}."): shape for i in range(depth)}
    small = one | {"vision_num_blocks": 2, "audio_num_blocks": 2, "out_embed_dim": 24}
    sizes = {"vision_embed_dim": 160, "vision_num_heads": 2, "audio_embed_dim": 128, "audio_num_heads": 2}
    model = ImageBindModel(**small, **sizes, audio_drop_path=0.1).eval()
    shapes = shapes_of(model.state_dict())
    model.load_state_dict(random_state(shapes))
    wave = torch.from_numpy(probe_sound(16000, 2.0))[None]
    options = {"htk_compat": True, "use_energy": False, "window_type": "hanning", "dither": 0.0}
    sizes = {"sample_frequency": 16000, "num_mel_bins": 128, "frame_length": 25, "frame_shift": 10}
    mel = torchaudio.compliance.kaldi.fbank(wave - wave.mean(), **options, **sizes).T
    mel = (torch.nn.functional.pad(mel, (0, 204 - mel.shape[1])) + 4.268) / 9.138
    pictures = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 2, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        output = model({"audio": mel[None, None], "vision": pictures[None]})
    return {
        "keys": keys,
        "small": shapes,
        "log_mel": some(mel),
        "audio": some(torch.nn.functional.normalize(output["audio"], dim=-1)),  # without the release's factor
        "vision": some(output["vision"]),
    }


def avsync() -> dict[str, Any]:
    import torchaudio

    options = {"win_length": 400, "hop_length": 160, "n_fft": 1024, "n_mels": 128}
    spectrum = torchaudio.transforms.MelSpectrogram(16000, **options)
    segments = torch.from_numpy(np.stack([probe_sound(16000, 0.64, seed) for seed in range(2)]))
    mel = torch.log(spectrum(segments) + 1e-6)
    mel = torch.nn.functional.pad(mel, (0, 66 - mel.shape[-1]))
    return {"log_mel": some((mel + 4.2677393) / (2 * 4.5689974))}


def alignacc() -> dict[str, Any]:
    import torchaudio

    sizes = {"n_fft": 1024, "hop_length": 256, "n_mels": 128, "f_min": 125.0, "f_max": 7600.0, "power": 1.0}
    librosa = {"norm": "slaney", "mel_scale": "slaney", "pad_mode": "constant"}
    spectrum = torchaudio.transforms.MelSpectrogram(16000, **sizes, **librosa)
    mel = spectrum(torch.from_numpy(probe_sound(16000, 10.0))[:-1])[:, :512]
    return {"log_mel": some(((20 * mel.clamp_min(1e-5).log10() - 20 + 100) / 100).clamp(0, 1))}


def statistics() -> dict[str, Any]:
    from scipy.linalg import sqrtm
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric

    a, b = random_features(1, 500, 16), random_features(2, 400, 16)
    few_a, few_b = random_features(3, 30, 64), random_features(4, 25, 64)
    fid = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), False)
    cov_a, cov_b = (np.cov(x.numpy(), rowvar=False) for x in (few_a, few_b))
    # In 64 dimensions 30 clips make a singular covariance, and its root is taken with something small added.
    root = sqrtm((cov_a + 1e-12 * np.eye(64)) @ (cov_b + 1e-12 * np.eye(64))).real
    shift = (few_a.mean(0) - few_b.mean(0)).square().sum()
    logits, other = random_logits(5, 103, 9), random_logits(6, 103, 9)
    log_p, log_q = logits.log_softmax(1), other.log_softmax(1)
    return {
        "frechet": fid["frechet_inception_distance"],
        "frechet_few": float(shift) + float(np.trace(cov_a + cov_b - 2 * root)),
        "inception": isc_features_to_metric(logits, splits=10, shuffle=False)["inception_score_mean"],
        "kl": float(torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)),
    }


if __name__ == "__main__":
    declare_torchvision()
    parts = {f.__name__: f for f in (panns, passt, vggish, audiobox, imagebind, avsync, alignacc, statistics)}
    made = json.loads(FILE.read_text()) if FILE.exists() else {}
    made |= {name: parts[name]() for name in sys.argv[1:] or parts}
    lines = [f"{json.dumps(name)}: {json.dumps(part)}" for name, part in made.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
