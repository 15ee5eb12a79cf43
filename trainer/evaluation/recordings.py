"""Recordings with one category each: hold some out, train a classifier on the rest, and judge generated sound by it.

For small sets of real recordings, which the judge of the embedded scenes does not know.
L latent frames, C latent channels, K categories.
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
from ...models.config import AnyModelConfig
from ...models.encoders.build import build_codec
from ..generation.clip_request import ClipRequest
from ..generation.generator import Generator
from ..manifest.manifest import ManifestEntry, raw_lines, read_entries
from ..manifest.split import HELD_OUT, TRAIN
from ..media.clips import read_clips


@dataclass(frozen=True)
class Recordings:
    """Latents (N, L, C) of recordings, and for each the index (N,) of its category in `names`."""

    names: tuple[str, ...]
    latents: Tensor
    labels: Tensor


def split_recordings(manifest: Path, out: Path, least: int, share: float, seed: int) -> dict[str, tuple[int, int]]:
    """Write `out/train.jsonl` and `out/held_out.jsonl`. The `share` of each category's recordings is held out; a
    category with fewer than `least` recordings is in neither file. Returns the two counts by category.

    Raises ValueError when no category has as many, or `out` has a split already.
    """
    if (out / TRAIN).exists():
        raise ValueError(f"{out / TRAIN} already exists; remove it or choose another --out")
    groups: dict[str, list[dict[str, Any]]] = {}
    entries = read_entries(manifest)
    for entry, row in zip(entries, raw_lines(manifest, entries, out), strict=True):
        groups.setdefault(category(entry), []).append(row)
    groups = {name: rows for name, rows in sorted(groups.items()) if len(rows) >= least}
    if not groups:
        raise ValueError(f"{manifest}: no category has {least} recordings; lower --least")
    rng, counts = np.random.default_rng(seed), {}
    train: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for name, rows in groups.items():
        rows = [rows[i] for i in rng.permutation(len(rows))]
        count = max(1, round(share * len(rows)))
        held_out += rows[:count]
        train += rows[count:]
        counts[name] = (len(rows) - count, count)
    out.mkdir(parents=True, exist_ok=True)
    for file, rows in ((TRAIN, train), (HELD_OUT, held_out)):
        (out / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return counts


def category(entry: ManifestEntry) -> str:
    """The entry's one category. Raises ValueError when it has none or several."""
    names = list(entry.annotation.get("category") or ())
    if len(names) != 1:
        raise ValueError(f"line {entry.line} ({entry.name}): categories {names}; a recording needs exactly one")
    return str(names[0])


def load_recordings(manifest: Path, model: AnyModelConfig, names: Sequence[str] | None = None) -> Recordings:
    """The recordings of a manifest through the model's codec. Raises ValueError for a category not in `names`."""
    entries = read_entries(manifest)
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
    """Categories are drawn evenly; sounds get a random gain, a shift in time and noise."""
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
    """Counts (K, K): rows are the true (or requested) category, columns the classifier's answer."""
    table = torch.zeros(categories, categories, dtype=torch.long)
    table.index_put_((labels, model(latents).argmax(1)), torch.ones_like(labels), accumulate=True)
    return table.tolist()


def accuracy(table: list[list[int]]) -> float:
    return sum(row[i] for i, row in enumerate(table)) / sum(map(sum, table))


def nearest(latents: Tensor, known: Tensor) -> float:
    """Median over latents (N, L, C) of the root mean squared difference from the nearest of `known` (M, L, C). It is
    far below that of held-out recordings where a model has memorised its training set."""
    distances = torch.cdist(latents.flatten(1), known.flatten(1)) / latents[0].numel() ** 0.5
    return float(distances.amin(1).median())


def evaluate_recordings(
    generator: Generator, train: Path, held_out: Path, per_category: int, seed: int
) -> dict[str, Any]:
    """Train a classifier on the training recordings; report its accuracy on the held-out ones and on `per_category`
    sounds that the weights generate for every category, and the distance of both to the nearest training recording."""
    config = generator.model.config
    known = load_recordings(train, config)
    unseen = load_recordings(held_out, config, known.names)
    model = train_classifier(known, seed)
    labels = torch.arange(len(known.names)).repeat_interleave(per_category)
    latents = []
    for i in range(0, len(labels), 32):
        texts = [known.names[label] for label in labels[i : i + 32].tolist()]
        waves = generator.waves(generator.latents(ClipRequest(texts), seed + i))
        latents.append(generator.codec.encode(waves)[0])  # judged as sound, not as the sampled latents
    report: dict[str, Any] = {"names": list(known.names), "trained_on": len(known.labels)}
    generated = Recordings(known.names, torch.cat(latents), labels)
    for name, recordings in (("held_out", unseen), ("generated", generated)):
        table = confusion(model, recordings.latents, recordings.labels, len(known.names))
        report |= {
            name: len(recordings.labels),
            f"{name}_accuracy": accuracy(table),
            f"{name}_confusion": table,
            f"{name}_nearest": nearest(recordings.latents, known.latents),
        }
    return report | {"sampling": vars(generator.sampling)}
