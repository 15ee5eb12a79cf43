"""Clips of a request from the networks: conditions to latents to waves, on one device, for batches of any size.

B batch, L latent frames, C latent channels, c sound channels.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.ops import KernelsConfig
from ...models.audiox import SamplingConfig
from ...models.circular import circular_velocity
from ...models.encoders.base import AudioCodec, TextEncoder
from ...models.encoders.runtime import Runtime
from ...models.mmdit import TimestepFeatures
from ...models.networks import Network
from ...models.released.audiox import ReleasedAudioX
from ...models.released.backbone import ReleasedTimestepFeatures
from ...models.sampler import Velocity, guidance_scales, sample, sampling_timesteps, with_guidance
from ..core.hardware import to_device
from ..data.batches import Conditions
from ..engine import kernel_selection
from ..engine.kernel_cases import BlockShape
from .batching import parallel_map
from .clip_request import ClipRequest, concatenate_requests
from .loops import decode_loop, loop_frames
from .sampling_graphs import SamplingConstants, SamplingGraphs

Done = Callable[[int, int], object]  # is told how many are done, of how many
AnyTimestepFeatures = TimestepFeatures | ReleasedTimestepFeatures
CONDITIONS = ("video", "audio", "text", "text_length")  # as the network's `encode` takes them
CACHED_SAMPLINGS = 8  # whose modulations are kept for the next call
SMALL = 50_000_000  # parameters below which one thread makes a clip, and above which all do, one clip after the other


class ClipSampler:
    """A network with its text encoder and codec: `latents` and `waves` are the two steps of a batch of clips of the
    codec's length (sections IV-B, VI-A), `clips_and_loops` both of requests by themselves."""

    def __init__(
        self,
        model: Network,
        encode_text: TextEncoder,
        codec: AudioCodec,
        runtime: Runtime,
        dtype: torch.dtype,
        kernels: KernelsConfig,
    ) -> None:
        """`runtime` has the device of the encoders, and takes the network there."""
        table = kernel_selection.read_table(Path(kernels.benchmark_file)) if kernels.benchmark_file else None
        self.device, self.dtype, self._runtime = runtime.device, dtype, runtime
        self.model = model.to(self.device, dtype).eval()
        if isinstance(self.model, ReleasedAudioX):
            self.kernels = kernel_selection.RELEASED
        else:
            shape = BlockShape.from_model(self.model.config, batch=2)  # a clip and its unconditional branch
            self.kernels, _ = kernel_selection.select_for_shape(kernels, shape, self.device, dtype, table)
        self.model.use(self.kernels.ops())
        self.sampling = self.model.sampling
        self.encode_text, self.codec = encode_text, codec
        self._cached_timestep_features = lru_cache(CACHED_SAMPLINGS)(
            partial(_timestep_features, self.model, self.device)
        )
        self._graphs = SamplingGraphs(self._constants, self._compute, enabled=self.device.type == "cuda")

    @property
    def sample_rate(self) -> int:
        return self.model.config.codec.sample_rate

    def conditions(self, request: ClipRequest) -> Conditions:
        """Features of a request, zeros for what is absent (section IV-B)."""
        config, n = self.model.config, len(request.texts)
        text, length = self.encode_text(list(request.texts))
        video = request.video if request.video is not None else torch.zeros(n, config.video_rows, config.video_dim)
        audio = torch.zeros(n, config.codec.frames, config.codec.latent_channels)
        if request.audio is not None and request.given_mask is not None:
            audio = request.audio * request.given_mask.unsqueeze(-1)
        if request.preceding is not None:
            audio = audio + request.preceding
        return Conditions(video, audio, text, length)

    @torch.inference_mode()
    def latents(
        self,
        request: ClipRequest,
        seed: int | Sequence[int],
        sampling: SamplingConfig | None = None,
        on_step: Done | None = None,
    ) -> Tensor:
        """(B, L, C), of the network's length. Sample i of a request draws its noise from seed + i, so that it is the
        same in every batch; a list has the seed of each sample."""
        sampling = sampling or self.sampling
        velocity = _counted(self.velocity(request, sampling), sampling.steps, on_step)
        return self.integrate(velocity, request, seed, sampling)

    @torch.inference_mode()
    def velocity(self, request: ClipRequest, sampling: SamplingConfig) -> Velocity:
        """The guided velocity under a request's conditions, for one sampling. The encoders and the conditioner run
        once, here; every evaluation is the transformer alone."""
        return self.velocity_under(self.conditions(request), request, sampling)

    @torch.inference_mode()
    def velocity_under(self, conditions: Conditions, request: ClipRequest, sampling: SamplingConfig) -> Velocity:
        """The same from features of the request that are there already: runs the conditioner, and for guidance the
        encoders of the null condition."""
        constants = self._constants(sampling, request.level, request.negatives)
        scales = guidance_scales(sampling, request.level)
        return self._velocity(sampling, constants, self._encode(conditions), scales)

    def _velocity(
        self,
        sampling: SamplingConfig,
        constants: SamplingConstants,
        encoded: tuple[Tensor, Tensor],
        scales: Sequence[float],
    ) -> Velocity:
        """`constants` and `scales` have an entry for each evaluation."""
        steps, n = iter(constants.steps), len(encoded[1])
        unconditional = encoded
        if constants.null is not None:
            condition, length = constants.null
            unconditional = condition.expand(n, -1, -1), length.expand(n)

        def conditioned(condition: Tensor, length: Tensor) -> Velocity:
            velocity = self.model.conditioned(condition, length)
            return lambda z, t: velocity(z.to(self.dtype), next(steps).expand(len(z)))

        return with_guidance(conditioned, encoded, unconditional, scales, sampling.rescale)

    @torch.inference_mode()
    def integrate(
        self, velocity: Velocity, request: ClipRequest, seed: int | Sequence[int], sampling: SamplingConfig
    ) -> Tensor:
        """Latents (B, L, C) from the velocity of a request: the transformer and the sampler."""
        seeds = range(seed, seed + len(request.texts)) if isinstance(seed, int) else seed
        draw = self._noise_source(seeds)
        return sample(velocity, draw, sampling, **self._given(request), level=request.level).cpu()

    def _noise_source(self, seeds: Iterable[int]) -> Callable[[], Tensor]:
        """Draws noise (B, L, C), each sample's from its own seed."""
        shape = self.model.config.latent_frames, self.model.config.codec.latent_channels
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return lambda: to_device(torch.stack([torch.randn(shape, generator=g) for g in generators]), self.device)

    def _given(self, request: ClipRequest) -> dict[str, Tensor]:
        """The latents that a request gives, and where, and those that it varies; zeros beyond the clip, where a network
        may generate more."""
        tensors = {}
        if request.audio is not None and request.given_mask is not None:
            tensors = {"known": request.audio, "mask": request.given_mask.unsqueeze(-1)}
        if request.initial is not None:
            tensors["initial"] = request.initial
        frames = self.model.config.latent_frames
        return {name: F.pad(x, (0, 0, 0, frames - x.shape[1])).to(self.device) for name, x in tensors.items()}

    def _compute(
        self, sampling: SamplingConfig, constants: SamplingConstants, tensors: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Latents, and waves if the codec decodes on this device, from what is there already."""
        encoded, noise = self.model.encode(*(tensors[name] for name in CONDITIONS)), iter(tensors["noise"])
        velocity = self._velocity(sampling, constants, encoded, guidance_scales(sampling))
        latents = sample(velocity, lambda: next(noise), sampling, tensors.get("known"), tensors.get("mask"))
        if self.model.config.codec.kind == "logmel":  # which decodes on the CPU
            return (latents,)
        return latents, self.waves(latents)

    @torch.inference_mode()
    def _batch(self, request: ClipRequest, seeds: Sequence[int], sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
        """Latents (B, L, C) and waves (B, c, samples) of a batch that is computed as a whole."""
        conditions = self.conditions(request).to(self.device, self.dtype).tensors()
        draw = self._noise_source(seeds)
        noise = torch.stack([draw() for _ in range(sampling.steps if sampling.sampler == "renoise" else 1)])
        tensors = dict(zip(CONDITIONS, conditions, strict=True)) | {"noise": noise} | self._given(request)
        latents, *waves = (x.cpu() for x in self._graphs(sampling, tensors))
        return latents, waves[0] if waves else self.waves(latents)

    @torch.no_grad()
    def waves(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> waves (B, c, samples) in [-1, 1], one clip long."""
        return self.codec.decode(latents)[..., : self.model.config.codec.samples]

    def timestep_features(self, sampling: SamplingConfig, level: float = 1.0) -> Sequence[AnyTimestepFeatures]:
        """The network's features of each noise level of a sampling that begins at `level`; the last few samplings are
        cached."""
        return self._cached_timestep_features(tuple(sampling_timesteps(sampling, level)[:-1]))

    def _encode(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        return self.model.encode(*conditions.to(self.device, self.dtype).tensors())

    def _constants(
        self, sampling: SamplingConfig, level: float = 1.0, negatives: Sequence[str] = ()
    ) -> SamplingConstants:
        null = self._null(negatives) if sampling.guidance != 1 else None
        return SamplingConstants(self.timestep_features(sampling, level), null)

    def _null(self, negatives: Sequence[str]) -> tuple[Tensor, Tensor]:
        """H_c and lengths of samples with no condition but their negative texts; of one sample where there are none."""
        if any(negatives):
            null = self.conditions(ClipRequest(negatives))
            if isinstance(self.model, ReleasedAudioX):  # a text of no length stands for its null condition
                null = replace(null, text_length=null.text_length * torch.tensor([bool(text) for text in negatives]))
            return self._encode(null)
        if isinstance(self.model, ReleasedAudioX):
            return self.model.null_condition(1), torch.zeros(1, device=self.device)
        return self._encode(self.conditions(ClipRequest([""])))

    def clips_and_loops(
        self, requests: list[ClipRequest], seeds: list[int], sampling: SamplingConfig, on_step: Done | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Latents (L, C) and wave (c, samples) of each request. Loops have lengths of their own, so each is a batch."""
        made = {
            i: self._loop(requests[i], seeds[i], sampling, on_step) for i in range(len(requests)) if requests[i].loop
        }
        rest = [i for i in range(len(requests)) if i not in made]
        if rest:
            clips = self._clips([requests[i] for i in rest], [seeds[i] for i in rest], sampling, on_step)
            made |= dict(zip(rest, zip(*clips, strict=True), strict=True))
        return [made[i] for i in range(len(requests))]

    @torch.inference_mode()
    def _loop(
        self, request: ClipRequest, seed: int, sampling: SamplingConfig, on_step: Done | None
    ) -> tuple[Tensor, Tensor]:
        """Latents (F, C) and wave (c, samples) of one sound that loops."""
        config = self.model.config
        frames = loop_frames(request.loop, config.codec)
        constants = self._constants(sampling, request.level, request.negatives)
        scales = guidance_scales(sampling, request.level)
        constants = replace(constants, steps=[*constants.steps, constants.steps[-1]])  # the last step takes two
        encoded = self._encode(self.conditions(request))
        velocity = self._velocity(sampling, constants, encoded, [*scales, scales[-1]])
        velocity = _counted(velocity, sampling.steps + 1, on_step)
        velocity = circular_velocity(velocity, frames, config.latent_frames, sampling.steps)
        draw = self._noise_source([seed])
        given = {name: x[:, :frames] for name, x in self._given(request).items()}
        latents = sample(velocity, lambda: draw()[:, :frames], sampling, **given, level=request.level).cpu()
        return latents[0], decode_loop(self.codec, config.codec, latents, request.loop)[0].float().cpu()

    def _clips(
        self, requests: list[ClipRequest], seeds: list[int], sampling: SamplingConfig, on_step: Done | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, L, C) and waves (B, c, samples) of requests for one clip each, both of a clip's length."""
        frames = self.model.config.codec.frames
        if self.device.type != "cpu":
            request = concatenate_requests(requests, self.model.config)
            if request.initial is None and not any(request.negatives):
                latents, waves = self._batch(request, seeds, sampling)
                return latents[:, :frames], waves.float()
            latents = self.latents(request, seeds, sampling)  # wishes that are too rare for a graph of their own
            return latents[:, :frames], self.waves(latents).float().cpu()
        self.timestep_features(sampling, requests[0].level)  # computed once, before the threads ask for them
        # The same threads per clip whatever the batch: another split of a sum is another last bit.
        small = sum(p.numel() for p in self.model.parameters()) < SMALL
        split: dict[str, int] = {"threads_each": 1} if small else {"workers": 1}
        pairs = list(zip(requests, seeds, strict=True))
        clips = list(parallel_map(lambda pair: self.latents(*pair, sampling, on_step), pairs, **split))
        return torch.cat(clips)[:, :frames], torch.cat(list(parallel_map(self.waves, clips, **split)))


def _counted(velocity: Velocity, evaluations: int, on_step: Done | None) -> Velocity:
    """The same velocity, which tells `on_step` after each of its evaluations."""
    if on_step is None:
        return velocity
    done = itertools.count(1)

    def counted(z: Tensor, t: Tensor) -> Tensor:
        v = velocity(z, t)
        on_step(next(done), evaluations)
        return v

    return counted


@torch.inference_mode()
def _timestep_features(
    network: Network, device: torch.device, times: tuple[float, ...]
) -> Sequence[AnyTimestepFeatures]:
    return [network.timestep_features(t) for t in torch.tensor(times, device=device).split(1)]
