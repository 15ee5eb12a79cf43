"""Batches of a block follow from its clips, in whatever order its files come in."""

import numpy as np
import pytest

from audiox_trainer.trainer.manifest.manifest import ManifestEntry
from audiox_trainer.trainer.media.clips import Clip
from audiox_trainer.trainer.prepare.clip_batches import ClipBatches

SIZES = {1: 2, 2: 7, 3: 0, 4: 1, 5: 3, 6: 5, 7: 1}  # clips by line
FILMS = {4, 6}


def entry(line):
    return ManifestEntry(line, f"{line}.wav", f"{line}.wav", None, "audio", 0.0, None)


def clips(line):
    rows = np.zeros((int(line in FILMS), 3, 2, 2), np.uint8)
    return [Clip(float(i), 1.0, np.zeros((1, 4), np.float32), rows, rows) for i in range(SIZES[line])]


def batches(rng, failing=()):
    """The batches if pieces of the files come in a random order; those of failing ones are taken back."""
    work, found = ClipBatches(list(SIZES), size=3), []
    pieces = {line: [*np.array_split(np.arange(SIZES[line]), 1 + rng.integers(3)), None] for line in SIZES}
    while pieces:
        line = int(rng.choice(list(pieces)))
        piece = pieces[line].pop(0)
        if piece is not None:
            found += work.add(entry(line), [clips(line)[i] for i in piece])
            continue
        del pieces[line]
        if line in failing:
            work.discard(line)
        found += work.end(line)
    return sorted([(entry.line, clip.start) for entry, clip in batch] for batch in found)


@pytest.mark.parametrize("seed", range(20))
def test_they_follow_from_the_block(seed):
    expected = [
        [(1, 0.0), (1, 1.0), (2, 6.0)],
        [(2, 0.0), (2, 1.0), (2, 2.0)],
        [(2, 3.0), (2, 4.0), (2, 5.0)],
        [(4, 0.0), (6, 3.0), (6, 4.0)],  # pictures apart from sound alone
        [(5, 0.0), (5, 1.0), (5, 2.0)],
        [(6, 0.0), (6, 1.0), (6, 2.0)],
        [(7, 0.0)],
    ]
    assert batches(np.random.default_rng(seed)) == expected


def test_a_file_that_fails_changes_no_other_batch():
    assert [b for b in batches(np.random.default_rng(0), failing={2}) if 2 not in {line for line, _ in b}] == [
        [(1, 0.0), (1, 1.0), (7, 0.0)],
        [(4, 0.0), (6, 3.0), (6, 4.0)],
        [(5, 0.0), (5, 1.0), (5, 2.0)],
        [(6, 0.0), (6, 1.0), (6, 2.0)],
    ]
