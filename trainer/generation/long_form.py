"""A sound of any length, clip after clip: each clip continues from the end of the one before.

L latent frames of a clip, C latent channels, c sound channels, n samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.audiox import SamplingConfig
from ...models.config import AnyModelConfig
from ...models.encoders.base import AudioCodec, VideoEncoder
from ...models.interval import parse_interval
from ...models.sampler import override_sampling
from ...models.weights import is_finite
from ..media.loudness import normalize_loudness
from ..media.video_decode import VIDEO_SLACK
from .batching import SEED_STRIDE
from .clip_request import ClipRequest
from .prompts import MAX_SECONDS, Prompt
from .user_media import (
    InputSound,
    encode_video_clips,
    load_beginning,
    load_sound_with_hole,
    read_varied,
    read_video_span,
)

OVERLAP = 0.3  # of a clip: the shortest beginning that training gives
FADE = 0.01  # seconds of crossfade between two clips, or between a clip and the given sound


class LongSound:
    """One sound, assembled from clips.

    The first clip follows from the prompt and the given sound; every further one also from the last OVERLAP of the clip
    before it. Given sound stays as it was in the finished wave.
    """

    def __init__(
        self, prompt: Prompt, config: AnyModelConfig, codec: AudioCodec, video_encoder: Callable[[], VideoEncoder]
    ) -> None:
        """Raises ValueError where a file cannot be read, or is too short for what is asked of it."""
        self.prompt, self.config, self.codec, self._encoder = prompt, config, config.codec, codec
        self.overlap = max(1, round(OVERLAP * self.codec.frames))
        self.input = self._load_input()
        self._varied = read_varied(Path(prompt.vary), config.codec) if prompt.vary else None
        self._span = read_video_span(Path(prompt.video)) if prompt.video else None
        first, self.new_frames = (
            (self.input.first_frame, self.input.new_frames) if self.input else (0, (0, self.codec.frames))
        )
        self.samples = self._count_samples()
        if prompt.loop and self.samples > self.codec.samples:
            raise ValueError(
                f"loop: {self.seconds:.3f} s; a loop is at most one clip of these weights, {self.codec.seconds:.3f} s; "
                f"give fewer seconds"
            )
        self.starts = [first]
        while not prompt.mask and (self.starts[-1] + self.codec.frames) * self.codec.hop < self.samples:
            self.starts.append(self.starts[-1] + self.codec.frames - self.overlap)
        self._video = self._encode_video(video_encoder)
        self.clips_done = 0
        self._previous_end: Tensor | None = None  # the last latents of the clip before
        self._given = self._encode_input()
        self.wave = torch.zeros(self.codec.audio_channels, self.samples)
        if self.input:
            given = self.input.wave[:, : self.samples]
            self.wave[:, : given.shape[1]] = given

    @property
    def finished(self) -> bool:
        return self.clips_done == len(self.starts)

    @property
    def next_seed(self) -> int:
        """Seed of the next clip's noise."""
        return self.prompt.seed + SEED_STRIDE * self.clips_done

    @property
    def seconds(self) -> float:
        return self.samples / self.codec.sample_rate

    @property
    def new_span(self) -> tuple[float, float]:
        """Start and end, in seconds, of the part that is not given."""
        begin, end = self.new_frames[0] / self.codec.rate, self.new_frames[1] / self.codec.rate
        return begin, min(end, self.seconds) if self.prompt.mask else self.seconds

    def next_request(self) -> ClipRequest:
        """The next clip as a batch of one. Raises ValueError where the video is damaged there."""
        video = None if self._video is None else next(self._video)[None]
        request = ClipRequest([self.prompt.full_text], video, negatives=[self.prompt.negative or ""])
        if self._varied is not None:
            request = replace(request, initial=self._varied_latents(), level=self.prompt.first_level)
        if self.prompt.loop:
            return replace(request, loop=self.samples)
        if self._previous_end is None:
            return replace(request, **self._given)
        audio, given_mask = self._silence(), torch.zeros(1, self.codec.frames)
        audio[:, : self.overlap], given_mask[:, : self.overlap] = self._previous_end, 1
        return replace(request, audio=audio, given_mask=given_mask)

    def add_clip(self, latents: Tensor, wave: Tensor) -> None:
        """The clip of the last request: latents (L, C) and wave (c, samples of a clip); of a loop all of it.

        Raises ValueError where they are not finite: a decoder would make a constant full-scale wave of such latents;
        or where the finished sound cannot have the loudness that is asked for.
        """
        if not (is_finite(latents) and is_finite(wave)):
            raise ValueError(
                f"clip {self.clips_done + 1} of {len(self.starts)} is not finite: the model diverged; lower the "
                f"guidance, or compute with --dtype fp32"
            )
        start = self.starts[self.clips_done]
        # The cut between two clips is in the middle of their overlap, far from the edge of either.
        begin = start + self.overlap // 2 if self.clips_done else self.new_frames[0]
        end = self.new_frames[1] * self.codec.hop if self.prompt.mask else self.samples
        self._paste(wave, start * self.codec.hop, begin * self.codec.hop, min(end, self.samples))
        self._previous_end = latents[-self.overlap :].float()
        self.clips_done += 1
        if self.finished and self.prompt.loudness is not None:
            loud = normalize_loudness(self.wave.numpy(), self.codec.sample_rate, self.prompt.loudness)
            self.wave = torch.from_numpy(loud)

    def _paste(self, clip: Tensor, offset: int, begin: int, end: int) -> None:
        """Fill samples [begin, end) from a clip that starts at sample `offset`, with a crossfade on both sides."""
        end = min(end, offset + clip.shape[1])
        fade = round(FADE * self.codec.sample_rate)
        before = min(fade, begin - offset)
        after = min(fade, offset + clip.shape[1] - end, self.samples - end)
        weight = torch.ones(before + end - begin + after)
        weight[:before] = torch.arange(1, before + 1) / (before + 1)
        weight[len(weight) - after :] = torch.arange(after, 0, -1) / (after + 1)
        target = slice(begin - before, end + after)
        self.wave[:, target].lerp_(clip[:, target.start - offset : target.stop - offset].float(), weight)

    def _load_input(self) -> InputSound | None:
        if self.prompt.audio:
            return load_sound_with_hole(Path(self.prompt.audio), self.codec, *self.prompt.hole)
        if self.prompt.continue_from:
            path, follow = Path(self.prompt.continue_from), self.prompt.follow
            return load_beginning(path, self.codec, self.prompt.prefix, self.overlap, follow)
        return None

    def _varied_latents(self) -> Tensor:
        """(1, L, C) of the next clip's part of the sound that is varied, with silence after its end."""
        assert self._varied is not None
        begin = self.starts[self.clips_done] * self.codec.hop
        piece = self._varied[:, begin : begin + self.codec.samples]
        return self._latents(F.pad(piece, (0, self.codec.samples - piece.shape[1])))

    def _encode_input(self) -> dict[str, Any]:
        """What the request of the first clip has of a given sound."""
        if self.input is None:
            return {}
        if not self.prompt.follow:
            return {"audio": self._latents(self.input.clip(self.codec)), "given_mask": self.input.given_mask[None]}
        wave, frames = self.input.preceding(self.codec)
        preceding = self._silence()
        preceding[:, preceding.shape[1] - frames :] = self._latents(wave)[:, :frames]
        return {"preceding": preceding}

    def _latents(self, wave: Tensor) -> Tensor:
        """(c, samples of a clip) -> (1, L, C), the codec's means."""
        with torch.inference_mode():
            mean, _ = self._encoder.encode(wave[None])
        return mean.float().cpu()

    def _silence(self) -> Tensor:
        """(1, L, C) of no sound."""
        return torch.zeros(1, self.codec.frames, self.codec.latent_channels)

    def _count_samples(self) -> int:
        """Samples of the finished sound."""
        if self.input and self.prompt.mask:
            return self.input.wave.shape[1]
        seconds = self.prompt.seconds
        if self._varied is not None:
            longest = self._varied.shape[1]
            samples = longest if seconds is None else round(seconds * self.codec.sample_rate)
            if not 0 < samples <= longest:
                raise ValueError(
                    f"seconds: {seconds or 0:g}; {self.prompt.vary} lasts {longest / self.codec.sample_rate:.3f} s, "
                    f"and a variation is at most as long"
                )
            return samples
        if seconds is None and self._span and self._span.count > 1:  # a still picture serves a sound of any length
            seconds = self._span.seconds - self.prompt.start
            if seconds <= 0:
                raise ValueError(
                    f"start: {self.prompt.start:g}; {self.prompt.video} lasts {seconds + self.prompt.start:.2f} s"
                )
            if seconds > MAX_SECONDS:
                raise ValueError(
                    f"video: {self.prompt.video} lasts {seconds:g} s from there; ask for at most {MAX_SECONDS:g} s"
                )
        samples = self.new_frames[1] * self.codec.hop if seconds is None else round(seconds * self.codec.sample_rate)
        if samples <= self.new_frames[0] * self.codec.hop:
            raise ValueError(
                f"seconds: {samples / self.codec.sample_rate:.3f} s, of which {self.prompt.continue_from} gives "
                f"{self.new_frames[0] / self.codec.rate:.3f} s, leave nothing to generate; ask for more seconds, or "
                f"give a shorter prefix"
            )
        return samples

    def _encode_video(self, encoder: Callable[[], VideoEncoder]) -> Iterator[Tensor] | None:
        """The video's features (S, D) clip by clip."""
        path, span, start = self.prompt.video, self._span, self.prompt.start
        if path is None or span is None:
            return None
        last = start + min(self.seconds, (self.starts[-1] + self.codec.frames) / self.codec.rate)
        if span.count > 1 and last > span.seconds + VIDEO_SLACK:
            raise ValueError(
                f"video: {path} lasts {span.seconds:.2f} s, the sound would need {last:.2f} s of it; ask for a "
                f"shorter one with seconds, or an earlier start"
            )
        starts = [start + first / self.codec.rate for first in self.starts]
        return encode_video_clips(Path(path), self.config, encoder(), starts)


def sampling_for(prompt: Prompt, default: SamplingConfig) -> SamplingConfig:
    """The weights' sampling, overridden by the prompt.

    A hole without a text is filled without guidance: the rest of the sound needs no emphasis, and with guidance the
    fill lies further from the truth.
    """
    guidance = 1.0 if prompt.guidance is None and prompt.mask and prompt.text is None else prompt.guidance
    interval = parse_interval(prompt.guidance_interval) if prompt.guidance_interval else None
    return override_sampling(default, prompt.steps, guidance, rescale=prompt.rescale, interval=interval)
