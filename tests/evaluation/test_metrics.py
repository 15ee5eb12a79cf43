import math

import numpy as np
import pytest
import torch

from audiox_trainer.trainer.evaluation.annotation import Annotation
from audiox_trainer.trainer.evaluation.t2a_prompts import (
    TOLERANCE,
    TYPES,
    BenchmarkPrompt,
    chance,
    draw_prompts,
    score_prompts,
)
from audiox_trainer.trainer.scenes.scene import AUDIO_CATEGORIES, Scene, SoundEvent
from audiox_trainer.trainer.scorers.statistics import (
    bootstrap_interval,
    frechet_distance,
    inception_score,
    kl_divergence,
)


def truth(prompt: BenchmarkPrompt) -> Annotation:
    return Annotation(prompt.scene.events, "", 0)


def prompt(kind: str, *events: SoundEvent) -> BenchmarkPrompt:
    return BenchmarkPrompt(kind, "", events, Scene("audio", events, "", 0, "", "", 0))


def heard(*events: SoundEvent) -> Annotation:
    return Annotation(events, "", 0)


A, B, C = (SoundEvent("bell", 0.2, 0.6), SoundEvent("kick", 0.8, 1.0), SoundEvent("siren", 1.2, 1.8))


def test_prompts_are_balanced_and_true() -> None:
    prompts = draw_prompts(20, seed=1)
    assert prompts == draw_prompts(20, seed=1) != draw_prompts(20, seed=2)
    by_kind = {kind: [p for p in prompts if p.kind == kind] for kind in TYPES}
    assert all(len(group) == 20 for group in by_kind.values())
    for p in by_kind["category"] + by_kind["order"]:
        assert len(set(p.order)) == len(p.order)
    for kind in ("category", "count"):
        assert sorted(len(p.events) for p in by_kind[kind]) == sorted([1, 2, 3, 4, 5] * 4)
    assert {len(p.events) for p in by_kind["order"]} == {2, 3}
    assert all(len(set(p.order)) == 1 for p in by_kind["count"])
    assert all(len(p.events) == 1 for p in by_kind["timestamp"])
    for p in prompts:
        assert all(name in p.text for name in p.order)
    for p in by_kind["timestamp"]:
        assert f"{p.events[0].onset:.1f}" in p.text and f"{p.events[0].offset:.1f}" in p.text


def test_order_prompts_say_the_order() -> None:
    for p in draw_prompts(40, seed=3):
        if p.kind == "order":
            places = [p.text.index(name) for name in p.order]
            assert places == sorted(places, reverse="after" in p.text)


def test_true_scenes_score_full_marks() -> None:
    prompts = draw_prompts(25, seed=0)
    assert set(score_prompts(prompts, [truth(p) for p in prompts]).rates().values()) == {1.0}


def test_silence_scores_nothing() -> None:
    prompts = draw_prompts(5, seed=0)
    scores = score_prompts(prompts, [heard()] * len(prompts))
    assert set(scores.rates().values()) == {0.0}
    assert (scores.cat.size, scores.cnt.size, scores.ord.size, scores.ts.size) == (20, 5, 5, 5)


def test_shuffled_sounds_score_little() -> None:
    prompts = draw_prompts(50, seed=0)
    rates = chance(prompts, [truth(p) for p in prompts], seed=0)
    assert all(0 <= rate < 0.3 for rate in rates.values())
    assert rates == chance(prompts, [truth(p) for p in prompts], seed=0)


def test_category_needs_every_name_and_forgives_more() -> None:
    prompts = [prompt("category", A, B)] * 3
    assert score_prompts(prompts, [heard(B, A), heard(A), heard(A, B, C)]).cat.tolist() == [True, False, True]


def test_count_must_be_exact_for_the_named_category() -> None:
    prompts = [prompt("count", B, B)] * 4
    sounds = [heard(B, B), heard(B), heard(B, B, B), heard(A, B, B)]
    assert score_prompts(prompts, sounds).cnt.tolist() == [True, False, False, True]


def test_order_must_be_the_sequence() -> None:
    prompts = [prompt("order", A, B, C)] * 4
    sounds = [heard(A, B, C), heard(B, A, C), heard(A, B), heard(A, B, B, C)]
    assert score_prompts(prompts, sounds).ord.tolist() == [True, False, False, False]


def test_time_stamps_have_a_tolerance_at_both_ends() -> None:
    inside, outside = 0.95 * TOLERANCE, 1.05 * TOLERANCE
    sounds = [
        heard(SoundEvent("siren", 1.2 + inside, 1.8 - inside)),
        heard(SoundEvent("siren", 1.2 + outside, 1.8)),
        heard(SoundEvent("siren", 1.2, 1.8 - outside)),
        heard(SoundEvent("bell", 1.2, 1.8)),
        heard(SoundEvent("siren", 0.1, 0.2), SoundEvent("siren", 1.2, 1.8)),
    ]
    assert score_prompts([prompt("timestamp", C)] * 5, sounds).ts.tolist() == [True, False, False, False, True]


def test_rate_without_prompts_is_nan() -> None:
    assert math.isnan(score_prompts([prompt("category", A)], [heard(A)]).rates()["ts_acc"])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 annotations"):
        score_prompts([prompt("count", A)] * 2, [heard(A)])


def test_bootstrap_interval() -> None:
    values = np.array([True] * 70 + [False] * 30)
    low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 100)
    assert low == pytest.approx(0.7 - half, abs=0.02) and high == pytest.approx(0.7 + half, abs=0.02)
    assert bootstrap_interval(np.ones(5, dtype=bool), seed=0) == (1.0, 1.0)
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval(values[:0], seed=0)


def test_frechet_distance_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    shift = torch.tensor([1.0, -2.0, 0, 0, 0.5, 0])
    assert frechet_distance(x, x + shift) == pytest.approx(5.25, abs=1e-6)
    # Independent axes: sum of (deviation difference)^2.
    scale = torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 0.5])
    expected = float((scale - 1).square().sum())
    assert frechet_distance(x, y * scale) == pytest.approx(expected, rel=0.06)
    assert frechet_distance(x, y * scale) == pytest.approx(frechet_distance(y * scale, x), rel=1e-6)


def test_frechet_distance_with_fewer_clips_than_dimensions() -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="1 and 5"):
        frechet_distance(x[:1], x)


def test_kl_divergence() -> None:
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    assert kl_divergence(p, p) == pytest.approx(0, abs=1e-9)
    assert kl_divergence(p, q) == pytest.approx(math.log(4) / 2, abs=1e-6)


def test_inception_score() -> None:
    classes = len(AUDIO_CATEGORIES)
    assert inception_score(torch.eye(classes)) == pytest.approx(classes, rel=1e-4)
    assert inception_score(torch.full((8, classes), 1 / classes)) == pytest.approx(1.0)
