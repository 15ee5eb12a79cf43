"""Sound from a weights folder: conditions in, waves out (sections IV-B, VI-A).

B batch, L latent frames, C latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.ops import KernelsConfig
from ..models.audiox import AudioX, SamplingConfig
from ..models.encoders.build import build_codec, build_text_encoder
from ..models.encoders.runtime import Runtime
from ..models.mmdit import Levels
from ..models.sampler import Velocity, guided, noise_levels, sample
from . import backends
from .data.tasks import Conditions
from .kernel_cases import Shape


@dataclass(frozen=True)
class Request:
    """What a batch of sounds is made from. Conditions that are None are absent."""

    texts: Sequence[str]  # B
    video: Tensor | None = None  # (B, S, D) features on the motion grid
    audio: Tensor | None = None  # (B, L, C) latents, read where `given` is 1
    given: Tensor | None = None  # (B, L), 1 where the sound is given and kept


class Generator:
    """A set of weights with its text encoder and codec, ready to make sound."""

    def __init__(self, weights: Path, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Raises ValueError when the folder is no weights folder of this project."""
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype
        self.model = load_weights(weights).to(self.device, dtype).eval()
        shape = Shape.of(self.model.config, batch=2)  # a clip and its unconditional branch
        self.model.use(backends.decide(KernelsConfig(), shape, self.device, dtype)[0].ops())
        self.sampling = self.model.sampling
        runtime = Runtime.here(self.device)
        self.encode_text = build_text_encoder(self.model.config.text, runtime)
        self.codec = build_codec(self.model.config.codec, runtime)
        self._levels: tuple[list[float], list[Levels]] = ([], [])  # of the last sampling

    def conditions(self, request: Request) -> Conditions:
        """Features of a request, zeros for what is absent (section IV-B)."""
        config, n = self.model.config, len(request.texts)
        text, length = self.encode_text(list(request.texts))
        video = request.video if request.video is not None else torch.zeros(n, config.video.steps, config.video.dim)
        audio = torch.zeros(n, config.codec.frames, config.codec.channels)
        if request.audio is not None and request.given is not None:
            audio = request.audio * request.given.unsqueeze(-1)
        return Conditions(video, audio, text, length)

    @torch.inference_mode()
    def latents(self, request: Request, seed: int, sampling: SamplingConfig | None = None) -> Tensor:
        """(B, L, C). Sample i of a request draws its noise from seed + i, so that it is the same in every batch."""
        sampling = sampling or self.sampling
        codec, n = self.model.config.codec, len(request.texts)
        generators = [torch.Generator().manual_seed(seed + i) for i in range(n)]

        def draw() -> Tensor:
            noise = [torch.randn(codec.frames, codec.channels, generator=g) for g in generators]
            return torch.stack(noise).to(self.device)

        velocity = self._velocity(request, sampling)
        known = mask = None
        if request.audio is not None and request.given is not None:
            known, mask = request.audio.to(self.device), request.given.unsqueeze(-1).to(self.device)
        return sample(velocity, draw, sampling, known, mask).cpu()

    def waves(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> (B, audio_channels, samples) in [-1, 1]."""
        return self.codec.decode(latents)

    def _velocity(self, request: Request, sampling: SamplingConfig) -> Velocity:
        guidance, steps = sampling.guidance, iter(self.levels(sampling))
        encoded = self._encode(self.conditions(request))
        n = len(request.texts)
        # Without any condition every sample's unconditional branch is the same: encoded once.
        nothing = self._encode(self.conditions(Request([""]))) if guidance != 1 else encoded
        if guidance != 1:
            nothing = (nothing[0].expand(n, -1, -1), nothing[1].expand(n))

        def backbone(z: Tensor, t: Tensor, condition: Tensor, length: Tensor) -> Tensor:
            return self.model.backbone(z.to(self.dtype), next(steps).expand(len(z)), condition, length)

        return guided(backbone, encoded, nothing, guidance)

    def levels(self, sampling: SamplingConfig) -> list[Levels]:
        """What the noise levels of a sampling settle in the backbone, one for each step; kept for the next call."""
        times = noise_levels(sampling)[:-1]
        if self._levels[0] != times:
            steps = torch.tensor(times, device=self.device).split(1)
            self._levels = (times, [self.model.backbone.levels(t) for t in steps])
        return self._levels[1]

    def _encode(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        return self.model.encode(*conditions.to(self.device, self.dtype).tensors())


def load_weights(folder: Path) -> AudioX:
    """A weights folder written by `launch/convert.py`.

    Raises ValueError naming what is missing or does not fit.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing: {folder} is no weights folder; make one with launch/convert.py"
            )
    try:
        return AudioX.from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
