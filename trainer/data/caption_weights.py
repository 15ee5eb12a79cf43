"""Weigh the captions of a clip by their source and kind (Table IV): which of them training draws, and how often."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache

import numpy as np

from .record import Record

CAPTION_ORIGINS = "caption_origins"  # in a record's annotation: source and kind of each of its captions
UNKNOWN = {"source": "manifest", "kind": "caption"}  # of a caption in older shards, which say neither


def weigh_captions(record: Record, weights: Mapping[str, float]) -> Record:
    """The record with the captions whose weight is above 0, and where the share of each ends in [0, 1].

    weights: by patterns of "source/kind", such as "*/count"; the first that matches decides, and without one it is 1.
    A record whose captions all weigh the same is returned as it is, and its draws are those without weights.
    """
    origins = record.annotation.get(CAPTION_ORIGINS) or [UNKNOWN] * len(record.captions)
    patterns = tuple(weights.items())
    found = [_weight(f"{origin['source']}/{origin['kind']}", patterns) for origin in origins]
    if len(set(found)) <= 1 and 0 not in found:
        return record
    left = [(text, weight) for text, weight in zip(record.captions, found, strict=True) if weight]
    ends = np.cumsum([weight for _, weight in left])
    return replace(record, captions=[text for text, _ in left], caption_ends=(ends / ends[-1:]).tolist())


@lru_cache(maxsize=4096)
def _weight(origin: str, patterns: tuple[tuple[str, float], ...]) -> float:
    return next((weight for pattern, weight in patterns if fnmatchcase(origin, pattern)), 1.0)
