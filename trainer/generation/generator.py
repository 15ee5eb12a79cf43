"""Sound from a weights folder: what `launch/generate.py`, evaluations and Python users call.

c sound channels.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from ...kernels.ops import KernelsConfig
from ...models.encoders.base import AudioCodec, TextEncoder, VideoEncoder
from ...models.encoders.build import build_codec, build_text_encoder, build_video_encoder
from ...models.encoders.runtime import Runtime
from ...models.networks import Network
from ..checkpoint.hub import find_folder, origin
from ..checkpoint.weights_folder import load_adapters, load_weights
from ..core.hardware import choose_device
from .clip_sampler import ClipSampler, Done
from .long_form import LongSound, sampling_for
from .prompts import Prompt, parse_prompt

T = TypeVar("T")


class Generator(ClipSampler):
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
        adapters: Sequence[tuple[Path | str, float]] = (),
    ) -> None:
        """`weights` is a folder or a name on the hub, as owner/name or owner/name@revision. So is each of `adapters`,
        which are for these weights, with a factor: 1 for what was trained.

        Raises ValueError when the folder is no weights folder of this project, an adapter does not fit, or the device
        is not here.
        """
        runtime = Runtime.for_device(choose_device(device))
        self.folder = find_folder(weights)
        found = [(adapter, find_folder(adapter), factor) for adapter, factor in adapters]
        self.origin = origin(weights, self.folder)
        self.adapters = [f"{origin(adapter, there)}:{factor:g}" for adapter, there, factor in found]
        model = load_weights(self.folder)
        licenses = load_adapters(model, [(there, factor) for _, there, factor in found])
        self.license = ", ".join(dict.fromkeys(filter(None, (model.license, *licenses))))
        encoders = build_text_encoder(model.config.text, runtime), build_codec(model.config.codec, runtime)
        super().__init__(model, *encoders, runtime, dtype, kernels or KernelsConfig())

    @classmethod
    def from_networks(
        cls,
        model: Network,
        encode_text: TextEncoder,
        codec: AudioCodec,
        runtime: Runtime,
        dtype: torch.dtype = torch.float32,
        kernels: KernelsConfig | None = None,
    ) -> Self:
        """A generator of networks that are in memory already, on the device of `runtime`; `folder` is that of no
        weights."""
        self = cls.__new__(cls)
        self.folder, self.origin, self.adapters, self.license = Path(), "", [], model.license
        ClipSampler.__init__(self, model, encode_text, codec, runtime, dtype, kernels or KernelsConfig())
        return self

    @cached_property
    def encode_video(self) -> VideoEncoder:
        """Loaded when a video is first given. Raises ValueError where the weights are of sound alone."""
        if self.model.config.video is None:
            raise ValueError("video: these weights are of sound alone; leave the video out")
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
        self, prompts: Sequence[Prompt], on_clip: Done | None = None, on_step: Done | None = None
    ) -> list[LongSound | ValueError]:
        """Finished sounds of prompts with one sampling, as one batch. A sound that cannot be generated is replaced by
        the reason.

        On a CPU every clip is computed by itself, by a fixed number of threads, so a sound has the same bits in any
        batch. On a GPU clips are computed together, and a sound is the same up to rounding. `on_clip` receives how many
        clips of the longest sound are done, and how many it has; `on_step` the same of a clip's evaluations of the
        network, where they are computed one by one.
        """
        return self.finish_sounds([_try(self.start_sound, prompt) for prompt in prompts], on_clip, on_step)

    def finish_sounds(
        self, started: Sequence[LongSound | ValueError], on_clip: Done | None = None, on_step: Done | None = None
    ) -> list[LongSound | ValueError]:
        """As `generate_sounds`, of sounds that `start_sound` gave, or its errors."""
        results = list(started)
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
            (sampling,) = {sampling_for(sound.prompt, self.sampling) for sound in sounds}  # and one level
            clips = self.clips_and_loops(requests, [sound.next_seed for sound in sounds], sampling, on_step)
            for sound, (z, wave) in zip(sounds, clips, strict=True):
                if isinstance(error := _try(sound.add_clip, z, wave), ValueError):
                    results[next(i for i, each in enumerate(results) if each is sound)] = error
            longest = max((s for s in results if isinstance(s, LongSound)), key=lambda s: len(s.starts), default=None)
            if on_clip and longest:
                on_clip(longest.clips_done, len(longest.starts))

    def start_sound(self, prompt: Prompt) -> LongSound:
        """Raises ValueError where a file cannot be read or is too short for what is asked of it, or a negative text has
        no guidance that leads away from it."""
        if prompt.negative and sampling_for(prompt, self.sampling).guidance == 1:
            raise ValueError("negative: acts through guidance, and this sound has none; give a guidance above 1")
        return LongSound(prompt, self.model.config, self.codec, lambda: self.encode_video)


def _try(function: Callable[..., T], *arguments: Any) -> T | ValueError:
    try:
        return function(*arguments)
    except ValueError as error:
        return error
