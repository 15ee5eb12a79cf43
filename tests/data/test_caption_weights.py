"""Captions are drawn by the weights of their source and kind; without weights as ever."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from audiox_trainer.models import strict
from audiox_trainer.trainer.core.config import StreamConfig
from audiox_trainer.trainer.data.caption_weights import CAPTION_ORIGINS, weigh_captions
from audiox_trainer.trainer.data.condition_draws import can_serve, choose_text
from audiox_trainer.trainer.data.record import to_columns
from tests.data.test_batches import record

ORIGINS = {
    "a label": ("labels", "caption"),
    "A dog barks.": ("org/ears", "caption"),
    "Two dogs.": ("org/ears", "count"),
    "A dog at 1 s.": ("template", "time"),
}


def clip(origins=ORIGINS):
    found = [{"source": source, "kind": kind} for source, kind in origins.values()]
    return replace(record(captions=tuple(origins)), annotation={CAPTION_ORIGINS: found})


def drawn(weighed, task="T2A", count=4000):
    return Counter(choose_text(weighed, task, np.random.default_rng(i)) for i in range(count))


def test_draws_follow_the_weights():
    found = drawn(weigh_captions(clip(), {"*/count": 6.0, "org/*": 2.0, "labels/*": 0.0}))
    shares = {text: found[text] / 4000 for text in ORIGINS}
    assert shares == pytest.approx({"a label": 0, "A dog barks.": 2 / 9, "Two dogs.": 6 / 9, "A dog at 1 s.": 1 / 9},
                                   abs=0.03)  # fmt: skip


def test_only_one_source():
    """As in Table IV."""
    weighed = weigh_captions(clip(), {"labels/*": 1.0, "*/*": 0.0})
    assert set(drawn(weighed, count=50)) == {"a label"}
    nothing = weigh_captions(clip(), {"*/*": 0.0})
    assert nothing.captions == [] and not can_serve(nothing, "T2A") and can_serve(nothing, "inpainting")


@pytest.mark.parametrize("task", ["T2A", "inpainting"])
@pytest.mark.parametrize("weights", [{}, {"*/*": 3.0}, {"other/*": 0.0}])
def test_equal_weights_draw_as_ever(task, weights):
    plain = clip()
    weighed = weigh_captions(plain, weights)
    for i in range(50):
        expected = choose_text(plain, task, np.random.default_rng(i))
        assert choose_text(weighed, task, np.random.default_rng(i)) == expected


def test_older_shards_have_neither_source_nor_kind():
    plain = record()
    assert weigh_captions(plain, {"*/count": 0.0}) is plain
    assert weigh_captions(plain, {"manifest/caption": 0.0}).captions == []


def test_weights_are_not_stored():
    weighed = weigh_captions(clip(), {"*/count": 2.0})
    assert weighed.caption_ends is not None and "caption_ends" not in to_columns(weighed)


@pytest.mark.parametrize("captions", [{"count": 1.0}, {"*/count": -1.0}])
def test_weights_that_cannot_be(captions):
    with pytest.raises(ValueError, match=r"captions\..*expected a pattern of source/kind"):
        strict.parse(StreamConfig, {"path": "a", "tasks": {"T2A": 1.0}, "captions": captions})
