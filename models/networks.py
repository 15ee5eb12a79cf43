"""The two networks behind one interface, and which of them a configuration is of."""

from typing import Any

from .audiox import AudioX, SamplingConfig
from .config import AnyModelConfig, ReleasedModelConfig
from .released.audiox import ReleasedAudioX

Network = AudioX | ReleasedAudioX


def network_class(config: Any) -> type[AudioX] | type[ReleasedAudioX]:
    """Of the JSON of a weights folder's `config.json`."""
    model = config.get("model") if isinstance(config, dict) else None
    return ReleasedAudioX if isinstance(model, dict) and "released" in model else AudioX


def build_network(config: AnyModelConfig, sampling: SamplingConfig | None = None, license: str = "") -> Network:
    """With random weights."""
    if isinstance(config, ReleasedModelConfig):
        return ReleasedAudioX(config, sampling, license)
    return AudioX(config, sampling, license)
