"""ImageBind, Synchformer and Diff-Foley's alignment classifier as scorers: does a sound fit its video, and is it in
time with it?"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...models.encoders.runtime import Runtime
from ...models.scorers import alignment, avsync, cavp, imagebind
from ..core.files import hash_json
from ..media.audio_decode import Wave
from .config import ReleasedConfig
from .pictures import PictureFormat
from .released_networks import BATCH, ReleasedScorer, load_network
from .scorer import Features, Metric

PAIRS = 16  # that are compared together
SEGMENTS = "segments"  # (S, features of a segment, W)


class ImageBindScorer(ReleasedScorer):
    """The cosine of a sound's embedding and its video's: three windows of two seconds of the sound, and neighbours of
    one picture every two seconds in three crops."""

    pictures = PictureFormat(imagebind.FRAMES, imagebind.SIZE, imagebind.CROPS)

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        metrics = (Metric("AV", "video", "higher", "cosine of ImageBind's embeddings of the sound and of the video"),)
        super().__init__(config, runtime, ("ImageBind", "CC BY-NC-SA 4.0"), imagebind.RATE, 0.0, metrics)

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        assert isinstance(self.network, imagebind.ImageBind)
        rows = [self.network.sound_embeddings(torch.from_numpy(wave).to(self.device)) for wave in waves]
        return [{"embedding": row[None].float().cpu()} for row in rows]

    @torch.inference_mode()
    def picture_features(self, videos: Sequence[Tensor]) -> list[Features]:
        assert isinstance(self.network, imagebind.ImageBind)
        rows = [self.network.picture_embeddings(video.to(self.device)) for video in videos]
        return [{"embedding": row[None].float().cpu()} for row in rows]


class AvSyncScorer(ReleasedScorer):
    """The mean size of the offset that Synchformer finds, in seconds, in the first 4.8 s and in the last that sound and
    pictures share, as av-benchmark's DeSync."""

    pictures: PictureFormat

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        definition = "mean size of the offset between sound and video by Synchformer, in seconds"
        metrics = (Metric("AVSync", "video", "lower", definition),)
        super().__init__(config, runtime, ("Synchformer", "MIT"), avsync.RATE, avsync.SHORTEST, metrics)
        assert isinstance(self.network, avsync.AvSync)
        size = self.network.visual.config.size
        self.pictures = PictureFormat(avsync.FRAMES, size, shortest=avsync.SHORTEST)

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        assert isinstance(self.network, avsync.AvSync)
        least, most = (round(x * avsync.RATE) for x in (avsync.SHORTEST, self.pictures.longest))
        padded = [np.pad(wave[:most], (0, max(0, least - wave.size))) for wave in waves]  # for a rounded length
        rows = [self.network.sound_features(torch.from_numpy(wave).to(self.device)) for wave in padded]
        return [{SEGMENTS: row.float().cpu()} for row in rows]

    @torch.inference_mode()
    def picture_features(self, videos: Sequence[Tensor]) -> list[Features]:
        assert isinstance(self.network, avsync.AvSync)
        return [{SEGMENTS: self.network.picture_features(video.to(self.device)).float().cpu()} for video in videos]

    @torch.inference_mode()
    def compare_with_video(self, sounds: Sequence[Features], videos: Sequence[Features]) -> Tensor:
        """(N,) seconds."""
        assert isinstance(self.network, avsync.AvSync)
        found = []
        for i in range(0, len(sounds), PAIRS):
            pairs = [
                (heard[SEGMENTS][:count], seen[SEGMENTS][:count])
                for heard, seen in zip(sounds[i : i + PAIRS], videos[i : i + PAIRS], strict=True)
                for count in [min(len(heard[SEGMENTS]), len(seen[SEGMENTS]))]
            ]
            ends = (slice(None, avsync.WINDOW), slice(-avsync.WINDOW, None))
            heard, seen = (torch.stack([pair[j][end] for end in ends for pair in pairs]) for j in range(2))
            logits = self.network.offset_logits(seen.to(self.device), heard.to(self.device)).float().cpu()
            sizes = avsync.OFFSETS[logits.argmax(dim=1)].abs()
            found.append(sizes.view(len(ends), len(pairs)).mean(dim=0))
        return torch.cat(found)


class AlignAccScorer(ReleasedScorer):
    """The share of sounds that the alignment classifier takes for the true ones of their videos: the first 8.192 s, and
    32 of the pictures of the first ten seconds, of which all are encoded together."""

    pictures = PictureFormat(
        cavp.FRAMES, cavp.SIZE, squeeze=True, shortest=alignment.FRAMES / cavp.FRAMES, longest=10.0
    )

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        definition = "share of sounds that Diff-Foley's alignment classifier takes for true"
        metrics = (Metric("AlignAcc", "video", "higher", definition),)
        facts = "Diff-Foley's alignment classifier", "not stated; ask its authors"
        super().__init__(config, runtime, facts, alignment.RATE, alignment.SECONDS, metrics)
        self.video, digest = load_network(self.name, "cavp", config.video, runtime)
        self.digest = hash_json({"sound": self.digest, "video": digest})
        self.about |= {"video": config.video, "video hash": digest}

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        assert isinstance(self.network, alignment.AlignmentClassifier)
        size = alignment.SAMPLES
        padded = np.stack([np.pad(wave[:size], (0, max(0, size - wave.size))) for wave in waves])
        parts = torch.from_numpy(padded).split(BATCH)
        rows = torch.cat([self.network.latents(part.to(self.device)).float().cpu() for part in parts])
        return [{"latents": row.clone()} for row in rows]

    @torch.inference_mode()
    def picture_features(self, videos: Sequence[Tensor]) -> list[Features]:
        rows = [self.video(video.to(self.device))[: alignment.FRAMES] for video in videos]
        return [{"pictures": row.float().cpu()} for row in rows]

    @torch.inference_mode()
    def compare_with_video(self, sounds: Sequence[Features], videos: Sequence[Features]) -> Tensor:
        """(N,), 1 where a pair is taken for a true one, or else 0."""
        assert isinstance(self.network, alignment.AlignmentClassifier)
        found = []
        for i in range(0, len(sounds), PAIRS):
            latents = torch.stack([row["latents"] for row in sounds[i : i + PAIRS]]).to(self.device)
            pictures = torch.stack([row["pictures"] for row in videos[i : i + PAIRS]]).to(self.device)
            found.append(self.network.probabilities(latents, pictures).float().cpu())
        return torch.cat(found).round().double()
