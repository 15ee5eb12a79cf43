"""Sounds are read once, scored once, whatever is killed in between, and what is wrong with them is said."""

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.trainer.scorers import scoring
from audiox_trainer.trainer.scorers.scorer import Metric, Scorer
from audiox_trainer.trainer.scorers.scoring import SoundScoring
from tests.helpers.media_files import film, sine
from tests.helpers.scorer_weights import probe_sound


class PeakScorer(Scorer):
    """Gives the peak of a sound; fails at its call number `fail`."""

    def __init__(self, rate=8000, fail=-1, name="peak"):
        metric = Metric(name, "mean", "higher", "the peak")
        super().__init__(name, rate, 0.1, [metric], f"{name}-{rate}", {})
        self.lengths, self.fail = [], fail

    def features(self, waves):
        if len(self.lengths) == self.fail:
            raise KeyboardInterrupt
        self.lengths.append([wave.size for wave in waves])
        return [{"scores": torch.tensor([float(np.abs(wave).max())])} for wave in waves]


def write(path, wave, rate=44100, **kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.T if wave.ndim == 2 else wave, rate, **kind)
    return path


def sounds(folder, count):
    return [write(folder / f"{i}.wav", (0.1 + 0.01 * i) * probe_sound(44100, 0.3)) for i in range(count)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 2)


def test_what_is_scored_is_not_scored_again(tmp_path):
    paths = sounds(tmp_path, 7)
    first = PeakScorer(fail=2)
    with pytest.raises(KeyboardInterrupt):
        SoundScoring(paths, [first], tmp_path / "cache").run()
    again = PeakScorer()
    run = SoundScoring(paths, [again], tmp_path / "cache")
    run.run()
    assert len(first.lengths) == 2
    assert sum(map(len, again.lengths)) == 3 and {n for row in again.lengths for n in row} == {2400}
    results = run.results()
    peaks = [float(results[path].features["peak"]["scores"]) for path in paths]
    assert peaks == sorted(peaks) and len(set(peaks)) == 7
    # The same content under another name is known, another scorer makes its own features.
    copy = tmp_path / "copy.wav"
    copy.write_bytes(paths[3].read_bytes())
    third, other = PeakScorer(), PeakScorer(rate=16000, name="other")
    more = SoundScoring([copy, *paths], [third, other], tmp_path / "cache")
    more.run()
    assert third.lengths == [] and sum(map(len, other.lengths)) == 7
    assert float(more.results()[copy].features["peak"]["scores"]) == peaks[3]


def test_a_file_that_changes_is_scored_again(tmp_path):
    (path,) = sounds(tmp_path, 1)
    SoundScoring([path], [PeakScorer()], tmp_path / "cache").run()
    write(path, sine(seconds=0.5))
    scorer = PeakScorer()
    run = SoundScoring([path], [scorer], tmp_path / "cache")
    run.run()
    assert scorer.lengths == [[4000]] and run.results()[path].facts.seconds == pytest.approx(0.5)


def test_ranks_share_the_blocks_and_rank_0_takes_what_a_dead_one_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 2)
    paths, scorers = sounds(tmp_path, 8), [PeakScorer() for _ in range(3)]

    first, last, back = (SoundScoring(paths, [scorer], tmp_path / "cache") for scorer in scorers)
    first.run(rank=1, ranks=3)  # rank 2 has died
    last.run(rank=0, ranks=3)
    assert [sum(map(len, scorer.lengths)) for scorer in scorers] == [2, 6, 0] and len(last.results()) == 8
    back.run(rank=2, ranks=3)  # it comes back, and finds everything done
    assert scorers[2].lengths == []


def test_every_fault_has_a_name(tmp_path):
    good = write(tmp_path / "good.wav", np.stack([sine(seconds=1), sine(660, 1)]))
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    no_sound = write(tmp_path / "no_sound.wav", np.zeros(0, np.float32))
    truncated = tmp_path / "truncated.wav"
    truncated.write_bytes(good.read_bytes()[:30_000])
    text = tmp_path / "text.wav"
    text.write_text("not a sound")
    problems = {
        empty: "zero length",
        no_sound: "zero length",
        truncated: "truncated",
        text: "undecodable",
        write(tmp_path / "silent.wav", np.zeros(44100, np.float32)): "silent",
        write(tmp_path / "short.wav", sine(seconds=0.05)): "too short",
        tmp_path / "missing.wav": "missing",
        film(tmp_path / "mute.mp4", 0.5): "no audio track",
    }
    run = SoundScoring([good, *problems], [PeakScorer()], tmp_path / "cache")
    run.run()
    results = run.results()
    assert results[good].problem is None
    assert {path: results[path].problem[0] for path in problems} == problems
    assert all(path.name in results[path].problem[1] for path in problems)


def test_unusual_sounds_are_remarked(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 44100)).astype(np.float32)
    plain = write(tmp_path / "plain.wav", noise)
    mono = write(tmp_path / "mono.wav", noise[0])
    clipped = write(tmp_path / "clipped.wav", np.clip(40 * np.stack([sine(seconds=1), sine(seconds=1)]), -1, 1))
    spectrum = np.fft.rfft(noise)
    spectrum[:, 8000:] = 0  # at 1 s a bin is 1 Hz: what is left of 16 kHz sound
    narrow = write(tmp_path / "narrow.wav", np.fft.irfft(spectrum).astype(np.float32), subtype="FLOAT")
    with_film = film(tmp_path / "film.mp4", 1.0, sound=noise[0])
    run = SoundScoring([plain, mono, clipped, narrow, with_film], [PeakScorer()], tmp_path / "cache", pad_to=1.0)
    run.run()
    remarks = {path: sound.facts.remarks() for path, sound in run.results().items()}
    assert remarks[plain] == [] and remarks[mono] == ["mono"] and "clipped" in remarks[clipped]
    assert remarks[narrow] == ["narrow band"] and "mono" in remarks[with_film]
    short = write(tmp_path / "short.wav", noise[:, :4410])
    scorer = PeakScorer()
    padded = SoundScoring([short], [scorer], tmp_path / "cache", pad_to=1.0)
    padded.run()
    assert padded.results()[short].facts.remarks() == ["padded"] and scorer.lengths == [[8000]]


def test_a_network_that_gives_no_number_is_refused(tmp_path):
    class Broken(PeakScorer):
        def features(self, waves):
            return [{"scores": torch.tensor([float("nan")])} for _ in waves]

    with pytest.raises(ValueError, match=r"scorer peak: its scores of the sound with hash .* is not finite"):
        SoundScoring(sounds(tmp_path, 1), [Broken()], tmp_path / "cache").run()
