"""Clips of one length from a weights folder: conditions in, waves out (sections IV-B, VI-A).

B batch, L latent frames, C latent channels.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ...kernels.ops import KernelsConfig
from ...models.audiox import SamplingConfig
from ...models.encoders.base import VideoEncoder
from ...models.encoders.build import build_codec, build_text_encoder, build_video_encoder
from ...models.encoders.runtime import Runtime
from ...models.mmdit import Levels, MMDiT
from ...models.sampler import Velocity, guided, noise_levels, sample
from ..checkpoint.export import load_weights
from ..core.hardware import choose_device
from ..data.batches import Conditions
from ..engine import kernel_selection
from ..engine.kernel_cases import BlockShape
from .request import Request

KEPT = 8  # samplings whose modulations are kept for the next call


class ClipGenerator:
    """A set of weights with its encoders and codec: requests for clips of the codec's length to latents and waves."""

    def __init__(
        self,
        weights: Path | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        kernels: KernelsConfig | None = None,
    ) -> None:
        """Raises ValueError when the folder is no weights folder of this project, or the device is not here."""
        wanted = kernels or KernelsConfig()
        table = kernel_selection.read_table(Path(wanted.benchmark_file)) if wanted.benchmark_file else None
        self.device = choose_device(device)
        self.dtype = dtype
        self.model = load_weights(Path(weights)).to(self.device, dtype).eval()
        shape = BlockShape.of(self.model.config, batch=2)  # a clip and its unconditional branch
        self.kernels, _ = kernel_selection.select_for_shape(wanted, shape, self.device, dtype, table)
        self.model.use(self.kernels.ops())
        self.sampling = self.model.sampling
        self._runtime = Runtime.here(self.device)
        self.encode_text = build_text_encoder(self.model.config.text, self._runtime)
        self.codec = build_codec(self.model.config.codec, self._runtime)
        self._levels_at = lru_cache(KEPT)(partial(_levels, self.model.backbone, self.device))

    @property
    def sample_rate(self) -> int:
        return self.model.config.codec.sample_rate

    @cached_property
    def encode_video(self) -> VideoEncoder:
        """Loaded when a video is first given."""
        return build_video_encoder(self.model.config.video, self._runtime)

    def conditions(self, request: Request) -> Conditions:
        """Features of a request, zeros for what is absent (section IV-B)."""
        config, n = self.model.config, len(request.texts)
        text, length = self.encode_text(list(request.texts))
        video = request.video if request.video is not None else torch.zeros(n, config.video.steps, config.video.dim)
        audio = torch.zeros(n, config.codec.frames, config.codec.latent_channels)
        if request.audio is not None and request.given is not None:
            audio = request.audio * request.given.unsqueeze(-1)
        return Conditions(video, audio, text, length)

    @torch.inference_mode()
    def latents(self, request: Request, seed: int | Sequence[int], sampling: SamplingConfig | None = None) -> Tensor:
        """(B, L, C). Sample i of a request draws its noise from seed + i, so that it is the same in every batch; or
        from a seed of its own."""
        sampling = sampling or self.sampling
        return self.sampled(self.velocity(request, sampling), request, seed, sampling)

    @torch.inference_mode()
    def sampled(
        self, velocity: Velocity, request: Request, seed: int | Sequence[int], sampling: SamplingConfig
    ) -> Tensor:
        """The latents (B, L, C), once the request's velocity is at hand: what the transformer and the sampler do."""
        codec, n = self.model.config.codec, len(request.texts)
        seeds = range(seed, seed + n) if isinstance(seed, int) else seed
        generators = [torch.Generator().manual_seed(s) for s in seeds]

        def draw() -> Tensor:
            noise = [torch.randn(codec.frames, codec.latent_channels, generator=g) for g in generators]
            return torch.stack(noise).to(self.device)

        known = mask = None
        if request.audio is not None and request.given is not None:
            known, mask = request.audio.to(self.device), request.given.unsqueeze(-1).to(self.device)
        return sample(velocity, draw, sampling, known, mask).cpu()

    @torch.no_grad()
    def waves(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> (B, audio_channels, samples) in [-1, 1]."""
        return self.codec.decode(latents)

    @torch.inference_mode()
    def velocity(self, request: Request, sampling: SamplingConfig) -> Velocity:
        """What a request's samples follow, for one sampling: the encoders and the conditioner have answered, once."""
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
        return self._levels_at(tuple(noise_levels(sampling)[:-1]))

    def _encode(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        return self.model.encode(*conditions.to(self.device, self.dtype).tensors())


@torch.inference_mode()
def _levels(backbone: MMDiT, device: torch.device, times: tuple[float, ...]) -> list[Levels]:
    return [backbone.levels(t) for t in torch.tensor(times, device=device).split(1)]
