"""CLAP by transformers: how well a sound fits its text, as the cosine of their embeddings.

Both usual checkpoints work, laion/clap-htsat-unfused and laion/clap-htsat-fused, by name or as folders, and the larger
ones of laion. B sounds or texts, E embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

from ...models.encoders.libraries import transformers
from ...models.encoders.pretrained import PretrainedWeights
from ...models.encoders.runtime import Runtime
from ..core.files import hash_file, hash_json
from ..media.audio_decode import Wave
from .config import ReleasedConfig, name_of
from .scorer import Features, Metric, Scorer, whole_windows

BATCH = 16
REMEDY = (
    "give a folder with config.json, model.safetensors, preprocessor_config.json and the tokenizer, made on a machine "
    "with a network by `hf download laion/clap-htsat-unfused --local-dir weights/clap` (docs/evaluation.md)"
)


class ClapScorer(Scorer):
    """A sound is heard in whole windows of ten seconds, without a remainder; its embedding is the mean of theirs. A
    shorter one is repeated, as the release does. The random crops of the release's front end are never used."""

    def __init__(self, config: ReleasedConfig, runtime: Runtime) -> None:
        name = name_of(config)
        pretrained = PretrainedWeights(f"scorer {name}", config.weights, REMEDY)
        library = transformers()
        with pretrained.reading():
            found = library.AutoConfig.from_pretrained(config.weights, trust_remote_code=False)
            if found.model_type != "clap":
                raise ValueError(f"weights of {found.model_type!r}, not of 'clap'")
            self.front_end = library.ClapFeatureExtractor.from_pretrained(config.weights)
            self.tokenizer = library.AutoTokenizer.from_pretrained(config.weights, trust_remote_code=False)
        self.model: Any = runtime.frozen(pretrained.load(library.ClapModel))
        self.device, self.samples = runtime.device, self.front_end.nb_max_samples
        metric = Metric(name.upper(), "text", "higher", f"cosine of sound and text by {config.weights}")
        digest = _digest(self.model, config.weights)
        about = {"network": "CLAP", "file": config.weights, "hash": digest, "license": "Apache-2.0"}
        settings = {"kind": "clap", "weights": digest, "front end": self.front_end.to_json_string(), "version": 1}
        super().__init__(name, self.front_end.sampling_rate, 0.0, (metric,), hash_json(settings), about)

    @torch.inference_mode()
    def features(self, waves: Sequence[Wave]) -> list[Features]:
        windows = [[wave] if wave.size < self.samples else whole_windows(wave, self.samples) for wave in waves]
        flat = [window for of_sound in windows for window in of_sound]
        rows = torch.cat([self._embeddings(flat[i : i + BATCH]) for i in range(0, len(flat), BATCH)])
        return [
            {"embedding": F.normalize(part.mean(0, keepdim=True))} for part in rows.split([len(w) for w in windows])
        ]

    def _embeddings(self, windows: list[Wave]) -> Tensor:
        """-> (B, E)"""
        rate = self.front_end.sampling_rate
        mel = np.stack([self.front_end(w, sampling_rate=rate)["input_features"][0] for w in windows])
        inputs = torch.from_numpy(mel).float().to(self.device)
        longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.device)  # none is: see the windows
        pooled = self.model.audio_model(input_features=inputs, is_longer=longer).pooler_output
        return F.normalize(self.model.audio_projection(pooled), dim=-1).float().cpu()

    @torch.inference_mode()
    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """texts -> (N, E)"""
        rows = []
        for i in range(0, len(texts), BATCH):
            limit = self.model.config.text_config.max_position_embeddings - 2
            inputs = self.tokenizer(
                list(texts[i : i + BATCH]), padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            ids, mask = inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)
            pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
            rows.append(F.normalize(self.model.text_projection(pooled), dim=-1).float().cpu())
        return torch.cat(rows)


def _digest(model: Any, weights: str) -> str:
    """Of the files in a folder, or, for a name on the hub, of the loaded weights."""
    if files := sorted(Path(weights).glob("*.safetensors")):
        return str(xxhash.xxh3_128("".join(map(hash_file, files))).hexdigest())
    digest = xxhash.xxh3_128()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
