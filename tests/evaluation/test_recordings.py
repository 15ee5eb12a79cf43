"""Real recordings: the split, the classifier's table, and how near sounds come to what was trained on."""

import json

import numpy as np
import pytest
import soundfile
import torch

from audiox_trainer.models.classifier import ClipClassifier
from audiox_trainer.trainer.evaluation.recordings import (
    accuracy,
    confusion,
    load_recordings,
    nearest,
    split_recordings,
    train_classifier,
)
from tests.helpers.small_config import small_config


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Ten low and ten high tones, and one hiss."""
    folder, rng, rows = tmp_path_factory.mktemp("tones"), np.random.default_rng(0), []
    for i in range(21):
        name, pitch = ("low", 200) if i < 10 else ("high", 2000) if i < 20 else ("hiss", 50)
        wave = np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * np.arange(8000) / 8000) * rng.uniform(0.3, 0.9)
        soundfile.write(folder / f"{i}.wav", wave, 8000)
        rows.append({"audio": f"{i}.wav", "captions": [name], "category": name})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def folder(manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("split")
    assert split_recordings(manifest, out, least=10, share=0.2, seed=0) == {"high": (8, 2), "low": (8, 2)}
    return out


def test_a_split_keeps_every_recording_once(folder, manifest):
    parts = {p: [json.loads(line)["audio"] for line in (folder / f"{p}.jsonl").open()] for p in ("train", "held_out")}
    assert (
        len(parts["train"]) == 16 and len(parts["held_out"]) == 4 and not set(parts["train"]) & set(parts["held_out"])
    )
    with pytest.raises(ValueError, match="already exists"):
        split_recordings(manifest, folder, 10, 0.2, 0)
    with pytest.raises(ValueError, match="no category has 11 recordings; lower --least"):
        split_recordings(manifest, folder / "other", 11, 0.2, 0)


def test_a_split_finds_the_line_of_each_recording(tmp_path):
    """A line separator within a caption is no end of a line, and a mark of the encoding no part of one."""
    rows = [{"video": f"{i}.mp4", "captions": ["a\u2028b"], "category": "bell"} for i in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    split_recordings(tmp_path / "manifest.jsonl", tmp_path / "out", least=1, share=0.3, seed=0)
    lines = [json.loads(line) for p in ("train", "held_out") for line in (tmp_path / "out" / f"{p}.jsonl").open()]
    assert sorted(line["video"] for line in lines) == [str(tmp_path / f"{i}.mp4") for i in range(3)]


def test_the_classifier_tells_tones_apart(folder):
    model = small_config().model
    known = load_recordings(folder / "train.jsonl", model)
    held = load_recordings(folder / "held_out.jsonl", model, known.names)
    table = confusion(train_classifier(known, seed=0, steps=60), held.latents, held.labels, 2)
    assert table == [[2, 0], [0, 2]] and accuracy(table) == 1
    with pytest.raises(ValueError, match="is not one of low"):
        load_recordings(folder / "train.jsonl", model, ["low"])


def test_a_table_has_rows_of_what_was_asked_for():
    class First(ClipClassifier):
        def forward(self, latents):
            return torch.tensor([[1.0, 0, 0]]).expand(len(latents), -1)

    table = confusion(First(4, 3), torch.zeros(4, 8, 4), torch.tensor([0, 1, 1, 2]), 3)
    assert table == [[1, 0, 0], [2, 0, 0], [1, 0, 0]] and accuracy(table) == 0.25


def test_copies_are_at_no_distance():
    known = torch.randn(5, 8, 4, generator=torch.Generator().manual_seed(0))
    assert nearest(known[:3], known) == pytest.approx(0, abs=1e-3)
    assert nearest(known[:3] + 0.5, known) == pytest.approx(0.5, abs=1e-3)
