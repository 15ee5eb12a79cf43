"""Hash the weights of the networks that decide the result of a preparation. Their paths do not matter."""

from pathlib import Path

import xxhash

from ...models.config import AnyModelConfig
from ...models.encoders.pretrained import PretrainedWeights
from ..core.files import hash_file

WEIGHTS = "*.safetensors"


def network_hashes(model: AnyModelConfig) -> dict[str, str]:
    """The xxh3 of each network's weights, by what uses it. The text encoder is not included: shards hold texts.

    Raises ValueError if weights are missing.
    """
    found = {}
    if model.codec.kind == "oobleck":
        from ...models.encoders.oobleck import FOLDER, REMEDY

        found["model.codec"] = _weights(PretrainedWeights("model.codec.weights", model.codec.weights, REMEDY), FOLDER)
    if model.video and model.video.kind != "frames":
        from ...models.encoders import clip, synchformer

        images, motion = model.video.image_weights, model.video.motion_weights
        found["model.video.image"] = _weights(PretrainedWeights("model.video.image_weights", images, clip.REMEDY))
        found["model.video.motion"] = _weights(
            PretrainedWeights("model.video.motion_weights", motion, synchformer.REMEDY)
        )
    return found


def _weights(pretrained: PretrainedWeights, part: str = "") -> str:
    """The hash of the safetensors in a folder, or in its subfolder `part` if there is one."""
    with pretrained.reading():
        folder = Path(pretrained.location) if pretrained.local else _fetched(pretrained.location, part)
        files = sorted((folder / part if (folder / part).is_dir() else folder).glob(WEIGHTS))
        if not files:
            raise ValueError(f"no {WEIGHTS} in it")
        return str(xxhash.xxh3_128("".join(f"{file.name} {hash_file(file)}\n" for file in files)).hexdigest())


def _fetched(name: str, part: str) -> Path:
    from huggingface_hub import snapshot_download  # later transformers loads the weights from the same cache

    return Path(snapshot_download(name, allow_patterns=f"{part}/{WEIGHTS}" if part else WEIGHTS))
