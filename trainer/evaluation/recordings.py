"""Recordings with one category each: hold some out, train a classifier on the rest, let it judge generated sound.

For small sets of real recordings, where no judge of embedded scenes applies. L latent frames, C latent channels,
K categories.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from ...models.classifier import ClipClassifier
from ...models.config import ModelConfig
from ...models.encoders.build import build_codec
from ..generation.generator import Generator
from ..generation.request import Request
from ..manifest.manifest import ManifestEntry, read_manifest
from ..media.clips import read_clips


@dataclass(frozen=True)
class Recordings:
    """Latents (N, L, C) of recordings and the index (N,) of each one's category in `names`."""

    names: tuple[str, ...]
    latents: Tensor
    labels: Tensor


def split(manifest: Path, out: Path, least: int, held: float, seed: int) -> dict[str, tuple[int, int]]:
    """Write `out/train.jsonl` and `out/held.jsonl`: of every category with at least `least` recordings the share
    `held` is held out, the others are left out of both. Returns the two counts by category.

    Raises ValueError when no category has as many, or `out` holds a split already.
    """
    if (out / "train.jsonl").exists():
        raise ValueError(f"{out / 'train.jsonl'} exists already; remove it or choose another --out")
    groups: dict[str, list[dict[str, Any]]] = {}
    lines = manifest.read_text().splitlines()
    for entry in read_manifest(manifest):
        row = json.loads(lines[entry.line - 1])
        row["audio"] = entry.audio
        groups.setdefault(category(entry), []).append(row)
    groups = {name: rows for name, rows in sorted(groups.items()) if len(rows) >= least}
    if not groups:
        raise ValueError(f"{manifest}: no category has {least} recordings; lower --least")
    rng, counts = np.random.default_rng(seed), {}
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "held": []}
    for name, rows in groups.items():
        rows = [rows[i] for i in rng.permutation(len(rows))]
        away = max(1, round(held * len(rows)))
        parts["held"] += rows[:away]
        parts["train"] += rows[away:]
        counts[name] = (len(rows) - away, away)
    out.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        (out / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return counts


def category(entry: ManifestEntry) -> str:
    """The entry's one category. Raises ValueError when it has none or several."""
    names = list(entry.annotation.get("category") or ())
    if len(names) != 1:
        raise ValueError(f"line {entry.line} ({entry.name}): categories {names}; each recording needs exactly one")
    return str(names[0])


def load_recordings(manifest: Path, model: ModelConfig, names: Sequence[str] | None = None) -> Recordings:
    """The recordings of a manifest through the model's codec. Raises ValueError for a category not in `names`."""
    entries = read_manifest(manifest)
    known = tuple(names) if names else tuple(sorted({category(e) for e in entries}))
    codec = build_codec(model.codec)
    latents, labels = [], []
    for entry in entries:
        if category(entry) not in known:
            raise ValueError(f"{manifest}:{entry.line}: category {category(entry)!r} is not one of {', '.join(known)}")
        clip = next(iter(read_clips(entry.audio, None, model.codec, model.video, entry.start, entry.end)))
        latents.append(codec.encode(torch.as_tensor(clip.wave)[None])[0][0])
        labels.append(known.index(category(entry)))
    return Recordings(known, torch.stack(latents), torch.tensor(labels))


def train_classifier(recordings: Recordings, seed: int, steps: int = 600, batch: int = 32) -> ClipClassifier:
    """Categories drawn evenly; sounds are made louder and softer, shifted in time and blurred by noise."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ClipClassifier(recordings.latents.shape[2], len(recordings.names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    shares = 1 / torch.bincount(recordings.labels, minlength=len(recordings.names)).float()
    model.train()
    for _ in trange(steps, desc="classifier"):
        chosen = torch.multinomial(shares[recordings.labels], batch, replacement=True, generator=generator)
        x = recordings.latents[chosen]
        x = x + 0.3 * torch.randn(batch, 1, 1, generator=generator)  # a gain, in units of the log spectrum
        x = x + 0.2 * torch.randn(x.shape, generator=generator)
        shift = int(torch.randint(0, 3, (), generator=generator))
        x = F.pad(x, (0, 0, shift, 0), value=float(recordings.latents.min()))[:, : recordings.latents.shape[1]]
        loss = F.cross_entropy(model(x), recordings.labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def confusion(model: ClipClassifier, latents: Tensor, labels: Tensor, categories: int) -> list[list[int]]:
    """Counts (K, K): rows are what a clip is (or was asked to be), columns what the classifier calls it."""
    table = torch.zeros(categories, categories, dtype=torch.long)
    table.index_put_((labels, model(latents).argmax(1)), torch.ones_like(labels), accumulate=True)
    return table.tolist()


def accuracy(table: list[list[int]]) -> float:
    return sum(row[i] for i, row in enumerate(table)) / sum(map(sum, table))


def nearest(latents: Tensor, known: Tensor) -> float:
    """Median over latents (N, L, C) of the root mean squared difference from the nearest of `known` (M, L, C): far
    below that of held-out recordings where a model has learnt its recordings by heart."""
    distances = torch.cdist(latents.flatten(1), known.flatten(1)) / latents[0].numel() ** 0.5
    return float(distances.amin(1).median())


def judge(generator: Generator, train: Path, held: Path, each: int, seed: int) -> dict[str, Any]:
    """Classifier on the training recordings, its accuracy on those held out, and what it calls `each` sounds that the
    weights make from every category's name; and how near both come to what was trained on."""
    config = generator.model.config
    known = load_recordings(train, config)
    unseen = load_recordings(held, config, known.names)
    model = train_classifier(known, seed)
    count = len(known.names)
    held_table = confusion(model, unseen.latents, unseen.labels, count)
    labels = torch.arange(count).repeat_interleave(each)
    codec, coded = generator.codec, []
    for i in range(0, len(labels), 32):
        texts = [known.names[label] for label in labels[i : i + 32].tolist()]
        waves = generator.waves(generator.latents(Request(texts), seed + i))
        coded.append(codec.encode(waves)[0])  # judged as sound, not as the latents they were
    made = torch.cat(coded)
    made_table = confusion(model, made, labels, count)
    return {
        "names": list(known.names),
        "trained_on": len(known.labels),
        "held_out": len(unseen.labels),
        "held_out_accuracy": accuracy(held_table),
        "held_out_confusion": held_table,
        "generated": len(labels),
        "generated_accuracy": accuracy(made_table),
        "generated_confusion": made_table,
        "held_out_nearest": nearest(unseen.latents, known.latents),
        "generated_nearest": nearest(made, known.latents),
        "sampling": vars(generator.sampling),
    }
