"""From scorers.json to scorers."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...models.encoders.runtime import Runtime
from .audiobox import AudioboxScorer
from .clap import ClapScorer
from .config import NetworkConfig, PairConfig, PicturesConfig, ReleasedConfig, ScorerConfig, ScorerSet, read_scorers
from .embedded_judge import JudgeScorer
from .network_files import NetworkScorer
from .pair_files import PairScorer, PictureScorer
from .picture_networks import AlignAccScorer, AvSyncScorer, ImageBindScorer
from .released_networks import PannsScorer, PasstScorer, VggishScorer
from .scorer import Scorer

RELEASED: dict[str, Callable[[ReleasedConfig, Runtime], Scorer]] = {
    "panns": PannsScorer,
    "passt": PasstScorer,
    "vggish": VggishScorer,
    "clap": ClapScorer,
    "audiobox": AudioboxScorer,
    "imagebind": ImageBindScorer,
    "avsync": AvSyncScorer,
    "alignacc": AlignAccScorer,
    "judge": JudgeScorer,
}


def build_scorers(path: Path, device: torch.device | None = None) -> tuple[list[Scorer], ScorerSet]:
    """The scorers of a file, ready, and what the file says.

    Raises ValueError where a key is wrong, or a scorer lacks its weights: with how to get them.
    """
    settings, runtime = read_scorers(path), Runtime.for_device(device)
    scorers = [build_scorer(config, runtime) for config in settings.scorers]
    count = Counter(metric.name for scorer in scorers for metric in scorer.metrics)
    for scorer in scorers:  # a metric that several give has the scorer's name before its own
        scorer.metrics = tuple(
            replace(m, name=f"{scorer.name} {m.name}") if count[m.name] > 1 else m for m in scorer.metrics
        )
    return scorers, settings


def build_scorer(config: ScorerConfig, runtime: Runtime) -> Scorer:
    """Raises ValueError where it lacks its weights, with how to get them."""
    if isinstance(config, NetworkConfig):
        return NetworkScorer(config, runtime)
    if isinstance(config, PicturesConfig):
        return PictureScorer(config, runtime)
    return PairScorer(config, runtime) if isinstance(config, PairConfig) else RELEASED[config.kind](config, runtime)
