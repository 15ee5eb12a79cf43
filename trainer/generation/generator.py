"""Sound from a weights folder: what `launch/generate.py`, evaluations and Python users call.

B batch, L latent frames, C latent channels, c sound channels.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.ops import KernelsConfig
from ...models.audiox import SamplingConfig
from ...models.encoders.base import VideoEncoder
from ...models.encoders.build import build_codec, build_text_encoder, build_video_encoder
from ...models.encoders.runtime import Runtime
from ...models.mmdit import TimestepFeatures
from ...models.networks import Network
from ...models.released.audiox import ReleasedAudioX
from ...models.released.backbone import ReleasedTimestepFeatures
from ...models.sampler import Velocity, sample, sampling_timesteps, with_guidance
from ..checkpoint.convert_run import load_weights
from ..core.hardware import choose_device, to_device
from ..data.batches import Conditions
from ..engine import kernel_selection
from ..engine.kernel_cases import BlockShape
from .batching import parallel_map
from .clip_request import ClipRequest, concatenate_requests
from .long_form import LongSound, sampling_for
from .prompts import Prompt, parse_prompt

T = TypeVar("T")
AnyTimestepFeatures = TimestepFeatures | ReleasedTimestepFeatures
CACHED_SAMPLINGS = 8  # whose modulations are kept for the next call
SMALL = 50_000_000  # parameters below which one thread makes a clip, and above which all do, one clip after the other


class Generator:
    """A set of weights with its encoders and codec, ready to generate sound.

    >>> generator = Generator("weights/tiny")
    >>> wave = generator.generate(text="a bell, then two kicks", seed=0)  # (channels, samples) float32
    >>> wave = generator.generate(video="clip.mp4", steps=25)
    >>> write("clip_with_sound.mp4", wave, generator.sample_rate, video="clip.mp4")  # of trainer/media/mux.py

    `generate` and `generate_sounds` take prompts for sounds of any length; `latents` and `waves` are the two steps for
    a batch of clips of the codec's length (sections IV-B, VI-A).
    """

    def __init__(
        self,
        weights: Path | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        kernels: KernelsConfig | None = None,
    ) -> None:
        """Raises ValueError when the folder is no weights folder of this project, or the device is not here."""
        requested = kernels or KernelsConfig()
        table = kernel_selection.read_table(Path(requested.benchmark_file)) if requested.benchmark_file else None
        self.device = choose_device(device)
        self.dtype = dtype
        self.model = load_weights(Path(weights)).to(self.device, dtype).eval()
        if isinstance(self.model, ReleasedAudioX):
            self.kernels = kernel_selection.reference("the released network has other blocks")
        else:
            shape = BlockShape.from_model(self.model.config, batch=2)  # a clip and its unconditional branch
            self.kernels, _ = kernel_selection.select_for_shape(requested, shape, self.device, dtype, table)
        self.model.use(self.kernels.ops())
        self.sampling, self.license = self.model.sampling, self.model.license
        self._runtime = Runtime.for_device(self.device)
        self.encode_text = build_text_encoder(self.model.config.text, self._runtime)
        self.codec = build_codec(self.model.config.codec, self._runtime)
        self._cached_timestep_features = lru_cache(CACHED_SAMPLINGS)(
            partial(_timestep_features, self.model, self.device)
        )

    @property
    def sample_rate(self) -> int:
        return self.model.config.codec.sample_rate

    @cached_property
    def encode_video(self) -> VideoEncoder:
        """Loaded when a video is first given."""
        return build_video_encoder(self.model.config.video, self._runtime)

    def generate(self, **prompt: Any) -> Tensor:
        """One sound (c, samples) float32 in [-1, 1], on the CPU; the keys are those of `Prompt`.

        Raises ValueError where the prompt cannot be met: a file is missing or damaged, or the fields contradict.
        """
        keys = {name: str(value) if isinstance(value, Path) else value for name, value in prompt.items()}
        (sound,) = self.generate_sounds([parse_prompt(keys, Path())])
        if isinstance(sound, ValueError):
            raise sound
        return sound.wave

    def generate_sounds(
        self, prompts: Sequence[Prompt], on_clip: Callable[[int, int], None] | None = None
    ) -> list[LongSound | ValueError]:
        """Finished sounds of prompts with one sampling, as one batch. A sound that cannot be generated is replaced by
        the reason.

        On a CPU every clip is computed by itself, by a fixed number of threads, so a sound has the same bits in any
        batch. On a GPU clips are computed together, and a sound is the same up to rounding. `on_clip` receives how many
        clips of the longest sound are done, and how many it has.
        """
        results = [_try(self.start_sound, prompt) for prompt in prompts]
        while True:
            sounds, requests = [], []
            for i, sound in enumerate(results):
                if isinstance(sound, LongSound) and not sound.finished:
                    request = _try(sound.next_request)
                    if isinstance(request, ValueError):
                        results[i] = request
                    else:
                        sounds.append(sound)
                        requests.append(request)
            if not sounds:
                return results
            (sampling,) = {sampling_for(sound.prompt, self.sampling) for sound in sounds}
            latents, waves = self._clips(requests, [sound.next_seed for sound in sounds], sampling)
            for sound, z, wave in zip(sounds, latents, waves, strict=True):
                if isinstance(error := _try(sound.add_clip, z, wave), ValueError):
                    results[next(i for i, each in enumerate(results) if each is sound)] = error
            longest = max((s for s in results if isinstance(s, LongSound)), key=lambda s: len(s.starts), default=None)
            if on_clip and longest:
                on_clip(longest.clips_done, len(longest.starts))

    def start_sound(self, prompt: Prompt) -> LongSound:
        """Raises ValueError where a file cannot be read, or is too short for what is asked of it."""
        return LongSound(prompt, self.model.config, self.codec, lambda: self.encode_video)

    def conditions(self, request: ClipRequest) -> Conditions:
        """Features of a request, zeros for what is absent (section IV-B)."""
        config, n = self.model.config, len(request.texts)
        text, length = self.encode_text(list(request.texts))
        video = request.video if request.video is not None else torch.zeros(n, config.video_rows, config.video.dim)
        audio = torch.zeros(n, config.codec.frames, config.codec.latent_channels)
        if request.audio is not None and request.given_mask is not None:
            audio = request.audio * request.given_mask.unsqueeze(-1)
        return Conditions(video, audio, text, length)

    @torch.inference_mode()
    def latents(
        self, request: ClipRequest, seed: int | Sequence[int], sampling: SamplingConfig | None = None
    ) -> Tensor:
        """(B, L, C), of the network's length. Sample i of a request draws its noise from seed + i, so that it is the
        same in every batch; a list has the seed of each sample."""
        sampling = sampling or self.sampling
        return self.integrate(self.velocity(request, sampling), request, seed, sampling)

    @torch.inference_mode()
    def velocity(self, request: ClipRequest, sampling: SamplingConfig) -> Velocity:
        """The guided velocity under a request's conditions, for one sampling. The encoders and the conditioner run
        once, here; every evaluation is the transformer alone."""
        steps, n = iter(self.timestep_features(sampling)), len(request.texts)
        encoded = self._encode(self.conditions(request))
        unconditional = self._unconditional(n) if sampling.guidance != 1 else encoded

        def conditioned(condition: Tensor, length: Tensor) -> Velocity:
            velocity = self.model.conditioned(condition, length)
            return lambda z, t: velocity(z.to(self.dtype), next(steps).expand(len(z)))

        return with_guidance(conditioned, encoded, unconditional, sampling.guidance, sampling.rescale)

    @torch.inference_mode()
    def integrate(
        self, velocity: Velocity, request: ClipRequest, seed: int | Sequence[int], sampling: SamplingConfig
    ) -> Tensor:
        """Latents (B, L, C) from the velocity of a request: the transformer and the sampler."""
        n, shape = len(request.texts), (self.model.latent_frames, self.model.config.codec.latent_channels)
        seeds = range(seed, seed + n) if isinstance(seed, int) else seed
        generators = [torch.Generator().manual_seed(s) for s in seeds]

        def draw() -> Tensor:
            noise = [torch.randn(shape, generator=g) for g in generators]
            return to_device(torch.stack(noise), self.device)

        known = mask = None
        if request.audio is not None and request.given_mask is not None:
            after = (0, 0, 0, shape[0] - request.audio.shape[1])  # what a network generates beyond the clip
            known = F.pad(request.audio, after).to(self.device)
            mask = F.pad(request.given_mask.unsqueeze(-1), after).to(self.device)
        return sample(velocity, draw, sampling, known, mask).cpu()

    @torch.no_grad()
    def waves(self, latents: Tensor) -> Tensor:
        """latents (B, L, C) -> waves (B, c, samples) in [-1, 1], one clip long."""
        return self.codec.decode(latents)[..., : self.model.config.codec.samples]

    def timestep_features(self, sampling: SamplingConfig) -> Sequence[AnyTimestepFeatures]:
        """The network's features of each noise level of a sampling; the last few samplings are cached."""
        return self._cached_timestep_features(tuple(sampling_timesteps(sampling)[:-1]))

    def _encode(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        return self.model.encode(*conditions.to(self.device, self.dtype).tensors())

    def _unconditional(self, n: int) -> tuple[Tensor, Tensor]:
        """H_c and lengths of n samples without any condition: all the same, so encoded once."""
        if isinstance(self.model, ReleasedAudioX):
            return self.model.null_condition(n), torch.zeros(n, device=self.device)
        condition, length = self._encode(self.conditions(ClipRequest([""])))
        return condition.expand(n, -1, -1), length.expand(n)

    def _clips(self, requests: list[ClipRequest], seeds: list[int], sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
        """Latents (B, L, C) and waves (B, c, samples) of requests for one clip each, both of a clip's length."""
        frames = self.model.config.codec.frames
        if self.device.type != "cpu":
            latents = self.latents(concatenate_requests(requests, self.model.config), seeds, sampling)
            return latents[:, :frames], self.waves(latents).float().cpu()
        self.timestep_features(sampling)  # computed once, before the threads ask for them
        # The same threads per clip whatever the batch: another split of a sum is another last bit.
        small = sum(p.numel() for p in self.model.parameters()) < SMALL
        split: dict[str, int] = {"threads_each": 1} if small else {"workers": 1}
        pairs = list(zip(requests, seeds, strict=True))
        clips = list(parallel_map(lambda pair: self.latents(*pair, sampling), pairs, **split))
        return torch.cat(clips)[:, :frames], torch.cat(list(parallel_map(self.waves, clips, **split)))


def _try(function: Callable[..., T], *arguments: Any) -> T | ValueError:
    try:
        return function(*arguments)
    except ValueError as error:
        return error


@torch.inference_mode()
def _timestep_features(
    network: Network, device: torch.device, times: tuple[float, ...]
) -> Sequence[AnyTimestepFeatures]:
    return [network.timestep_features(t) for t in torch.tensor(times, device=device).split(1)]
