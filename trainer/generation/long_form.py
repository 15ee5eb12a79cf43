"""Sounds of any length from prompts: clip after clip, each continuing from the end of the one before.

B batch, L latent frames of a clip, C latent channels, c sound channels, n samples.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...models.audiox import SamplingConfig
from ...models.sampler import changed
from ..media.video_decode import VIDEO_SLACK
from .clip_generator import ClipGenerator
from .prompts import Prompt
from .request import Request, joined
from .sampling import SEED_STRIDE, side_by_side
from .user_media import Given, sound_to_continue, sound_with_hole, span_of, video_windows

OVERLAP = 0.3  # of a clip: the shortest beginning that training gives
SMALL = 50_000_000  # parameters below which one thread makes a clip, and above which all do, one clip after the other
FADE = 0.01  # seconds in which one clip, or the given sound, becomes the next


class Sound:
    """One sound in the making.

    Its first clip is made from the prompt, with the given sound in its place; every further one also from the last
    OVERLAP of the clip before it. Where sound was given, the finished wave has it as it was.
    """

    def __init__(self, prompt: Prompt, generator: ClipGenerator) -> None:
        """Raises ValueError where a file cannot be read, or is too short for what is asked of it."""
        self.prompt = prompt
        self.config = generator.model.config
        self.codec = codec = self.config.codec
        self.overlap = max(1, round(OVERLAP * codec.frames))
        self.given = self._read()
        self._span = span_of(Path(prompt.video)) if prompt.video else None
        first, self.made = (self.given.first, self.given.made) if self.given else (0, (0, codec.frames))
        self.samples = self._length()
        self.starts = [first]
        while not prompt.mask and (self.starts[-1] + codec.frames) * codec.hop < self.samples:
            self.starts.append(self.starts[-1] + codec.frames - self.overlap)
        self._video = self._pictures(generator)
        self.done = 0  # clips
        self._end: Tensor | None = None  # the last latents of the clip before
        self._kept = self._encoded(generator)
        self.wave = torch.zeros(codec.audio_channels, self.samples)
        if self.given:
            own = self.given.wave[:, : self.samples]
            self.wave[:, : own.shape[1]] = own

    @property
    def finished(self) -> bool:
        return self.done == len(self.starts)

    @property
    def seed(self) -> int:
        """Of the next clip's noise."""
        return self.prompt.seed + SEED_STRIDE * self.done

    @property
    def seconds(self) -> float:
        return self.samples / self.codec.sample_rate

    @property
    def new(self) -> tuple[float, float]:
        """From when to when, in seconds, the sound is not given."""
        begin, end = self.made[0] / self.codec.rate, self.made[1] / self.codec.rate
        return begin, min(end, self.seconds) if self.prompt.mask else self.seconds

    def request(self) -> Request:
        """For the next clip, a batch of one. Raises ValueError where the video is damaged there."""
        video = None if self._video is None else next(self._video)[None]
        audio, given = self._kept or (None, None)
        if self._end is not None:
            audio, given = torch.zeros(self.codec.frames, self.codec.latent_channels), torch.zeros(self.codec.frames)
            audio[: self.overlap], given[: self.overlap] = self._end, 1
        return Request(
            [self.prompt.words],
            video,
            None if audio is None else audio[None],
            None if given is None else given[None],
        )

    def take(self, latents: Tensor, wave: Tensor) -> None:
        """The clip that the last request asked for: latents (L, C) and wave (c, samples of a clip)."""
        start = self.starts[self.done]
        # Both clips are heard in the overlap: in its middle neither feels its edge.
        begin = start + self.overlap // 2 if self.done else self.made[0]
        end = self.made[1] * self.codec.hop if self.prompt.mask else self.samples
        self._lay(wave, start * self.codec.hop, begin * self.codec.hop, min(end, self.samples))
        self._end = latents[-self.overlap :].float()
        self.done += 1

    def _lay(self, clip: Tensor, at: int, begin: int, end: int) -> None:
        """Puts samples [begin, end) of the sound from a clip that stands `at`, and fades on both sides of them."""
        end = min(end, at + clip.shape[1])
        fade = round(FADE * self.codec.sample_rate)
        before = min(fade, begin - at)
        after = min(fade, at + clip.shape[1] - end, self.samples - end)
        weight = torch.ones(before + end - begin + after)
        weight[:before] = torch.arange(1, before + 1) / (before + 1)
        weight[len(weight) - after :] = torch.arange(after, 0, -1) / (after + 1)
        place = slice(begin - before, end + after)
        self.wave[:, place].lerp_(clip[:, place.start - at : place.stop - at].float(), weight)

    def _read(self) -> Given | None:
        if self.prompt.audio:
            return sound_with_hole(Path(self.prompt.audio), self.codec, *self.prompt.hole)
        if self.prompt.continue_from:
            return sound_to_continue(Path(self.prompt.continue_from), self.codec, self.prompt.prefix, self.overlap)
        return None

    def _encoded(self, generator: ClipGenerator) -> tuple[Tensor, Tensor] | None:
        """Latents (L, C) of the first clip and which of them are kept (L,)."""
        if self.given is None:
            return None
        with torch.inference_mode():
            mean, _ = generator.codec.encode(self.given.clip(self.codec)[None])
        return mean[0].float().cpu(), self.given.frames

    def _length(self) -> int:
        """Samples of the finished sound."""
        if self.given and self.prompt.mask:
            return self.given.wave.shape[1]
        seconds = self.prompt.seconds
        if seconds is None and self._span and self._span.count > 1:  # a still picture serves a sound of any length
            seconds = self._span.seconds - self.prompt.start
            if seconds <= 0:
                raise ValueError(
                    f"start: {self.prompt.start:g}; {self.prompt.video} lasts {seconds + self.prompt.start:.2f} s"
                )
        samples = self.made[1] * self.codec.hop if seconds is None else round(seconds * self.codec.sample_rate)
        if samples <= self.made[0] * self.codec.hop:
            raise ValueError(
                f"seconds: {samples / self.codec.sample_rate:.3f} s with the {self.made[0] / self.codec.rate:.3f} s of "
                f"{self.prompt.continue_from} that are kept leave nothing to make; ask for more, or keep less"
            )
        return samples

    def _pictures(self, generator: ClipGenerator) -> Iterator[Tensor] | None:
        path, span, start = self.prompt.video, self._span, self.prompt.start
        if path is None or span is None:
            return None
        last = start + min(self.seconds, (self.starts[-1] + self.codec.frames) / self.codec.rate)
        if span.count > 1 and last > span.seconds + VIDEO_SLACK:
            raise ValueError(
                f"video: {path} lasts {span.seconds:.2f} s, the sound would go on to {last:.2f} s of it; ask "
                f"for a shorter one with seconds, or an earlier start"
            )
        begins = [start + first / self.codec.rate for first in self.starts]
        return video_windows(Path(path), self.config, generator.encode_video, begins)


def sampling_of(prompt: Prompt, own: SamplingConfig) -> SamplingConfig:
    """What the weights want, changed as the prompt says; what the rest of a sound suggests needs no emphasis: with
    guidance a fill without a text lies further from the truth."""
    guidance = 1.0 if prompt.guidance is None and prompt.mask and prompt.text is None else prompt.guidance
    return changed(own, prompt.steps, guidance)


def make(
    generator: ClipGenerator, prompts: Sequence[Prompt], after: Callable[[int, int], None] | None = None
) -> list[Sound | ValueError]:
    """Finished sounds of prompts that are sampled alike, as one batch; in the place of one that cannot be made, why.

    On a CPU every clip is made by itself, and by as many threads: so a sound has the same bits in any batch. On a GPU
    they are made together, and a sound is the same to rounding. `after` is told how many clips are done, and of how
    many, of the longest sound.
    """
    results: list[Sound | ValueError] = [_begun(prompt, generator) for prompt in prompts]
    while True:
        active, requests = [], []
        for i, sound in enumerate(results):
            if isinstance(sound, Sound) and not sound.finished:
                try:
                    requests.append(sound.request())
                    active.append(sound)
                except ValueError as error:
                    results[i] = error
        if not active:
            return results
        sampling = sampling_of(active[0].prompt, generator.sampling)
        assert all(sampling_of(sound.prompt, generator.sampling) == sampling for sound in active)
        latents, waves = _rendered(generator, requests, [sound.seed for sound in active], sampling)
        for sound, z, wave in zip(active, latents, waves, strict=True):
            sound.take(z, wave)
        if after:
            longest = max((s for s in results if isinstance(s, Sound)), key=lambda s: len(s.starts))
            after(longest.done, len(longest.starts))


def _begun(prompt: Prompt, generator: ClipGenerator) -> Sound | ValueError:
    try:
        return Sound(prompt, generator)
    except ValueError as error:
        return error


def _rendered(
    generator: ClipGenerator, requests: list[Request], seeds: list[int], sampling: SamplingConfig
) -> tuple[Tensor, Tensor]:
    """Latents (B, L, C) and waves (B, c, samples of a clip)."""
    if generator.device.type != "cpu":
        latents = generator.latents(joined(requests, generator.model.config), seeds, sampling)
        return latents, generator.waves(latents).float().cpu()
    generator.levels(sampling)  # made once, before the threads ask for them
    # As many threads a clip whatever the batch: another split of a sum is another last bit.
    small = sum(p.numel() for p in generator.model.parameters()) < SMALL
    apart: dict[str, int] = {"each": 1} if small else {"workers": 1}
    pairs = list(zip(requests, seeds, strict=True))
    parts = list(side_by_side(lambda pair: generator.latents(pair[0], pair[1], sampling), pairs, **apart))
    return torch.cat(parts), torch.cat(list(side_by_side(generator.waves, parts, **apart)))
