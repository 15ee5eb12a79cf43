"""A second model writes captions of each kind that a line's fields allow; nonsense is refused, counted and named."""

from dataclasses import replace

import pytest

from audiox_trainer.trainer.captions.ask_stages import AskOptions, rewrite_manifest
from audiox_trainer.trainer.captions.rewrite import KIND_NAMES, Rewriting
from audiox_trainer.trainer.data.caption_weights import CAPTION_ORIGINS
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.prepare.prepare_files import prepare_files
from audiox_trainer.trainer.stages.curate import segment_manifest
from audiox_trainer.trainer.stages.segment import Segmentation
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.caption_model import GOOD, WRITTEN, caption_model, clips, lines_of, sounding_manifest
from tests.helpers.preparation import MODEL, records

SOUNDS = {key: GOOD[key] for key in ("caption", "category", "SED", "time_relation")}
MUSIC = {key: GOOD[key] for key in ("genre", "mood", "instruments", "tempo")}
TEXTS = dict(zip(KIND_NAMES, WRITTEN.values(), strict=True))

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]


@pytest.fixture
def model():
    with caption_model() as handler:
        handler.endpoint = replace(handler.endpoint, model="writer")
        yield handler


def rewrite(path, out, model, workers=1, **changes):
    rewriting = Rewriting(model.endpoint, **changes)
    return rewrite_manifest(path, out, rewriting, StageWorkers(workers), AskOptions(concurrency=4))


def written(kind):
    return [{"text": text, "source": "writer", "kind": kind} for text in TEXTS[kind]]


def test_each_kind_that_the_fields_allow(tmp_path, model):
    path = sounding_manifest(
        tmp_path,
        {"captions": ["good"], **SOUNDS, "annotated": {"caption": "ears"}},
        {"captions": ["good music"], "domain": "music", **MUSIC},
        {"captions": ["good too"], "category": {"dog": 2}},
        {"captions": ["nothing else"]},
    )
    out = tmp_path / "out.jsonl"
    summary = rewrite(path, out, model)
    first, music, third, last = (line["captions"] for line in lines_of(out))
    assert first == ["good", *written("rephrase"), *written("count"), *written("time"), *written("order")]
    assert music == ["good music", *(c for kind in MUSIC for c in written(kind))]
    assert third == ["good too", *written("count")] and last == ["nothing else"]
    assert sum(model.asked.values()) == 9 and summary.amounts["count written"] == 4
    system, user = model.bodies[0][1]["messages"]
    assert "captions" in system["content"] and [part["type"] for part in user["content"]] == ["text", "input_audio"]
    page = (tmp_path / "out.jsonl.html").read_text()
    assert "time (writer)" in page and "caption (ears)" in page and "Length of captions of music" in page
    entry = read_entries(out)[0]
    assert entry.captions[1] == TEXTS["rephrase"][0] and entry.origins[entry.captions[1]] == ("writer", "rephrase")
    again = tmp_path / "again.jsonl"
    assert rewrite(out, again, model).amounts["nothing to write from"] == 4, "it has written these already"
    assert again.read_text() == out.read_text()


def test_two_workers_give_the_bytes_of_one(tmp_path, model):
    path = sounding_manifest(tmp_path, *clips(*(f"good {i}" for i in range(40)), **SOUNDS))
    for workers in (1, 2):
        rewrite(path, tmp_path / f"{workers}.jsonl", model, workers, kinds=("count", "time"))
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_nonsense_is_refused_with_the_reason(tmp_path, model):
    reasons = {
        "sorry": "is no caption",
        "late": "needs times in seconds, from 0 to 1.2",
        "other": "names none of the known sounds",
        "one": "is too short",
        "echo": "is there already",
    }
    path, out = sounding_manifest(tmp_path, *clips(*reasons, "stubborn", **SOUNDS)), tmp_path / "out.jsonl"
    summary = rewrite(path, out, model, kinds=("time",))
    *good, stubborn = lines_of(out)
    for line, (kind, reason) in zip(good, reasons.items(), strict=True):
        assert line["captions"] == [kind, *written("time")]
        again = [body["messages"] for question, body in model.bodies if question.startswith(kind)][1]
        assert reason in again[3]["content"], kind
    assert stubborn["captions"] == ["stubborn"] and summary.left_out == {"answer refused": 1}
    (row,) = lines_of(tmp_path / "out.jsonl.left_out.jsonl")
    assert row["line"] == 6 and row["detail"].startswith("time: 3 answers were refused, the last one because captions")


def test_kinds_that_are_none(model):
    with pytest.raises(ValueError, match="kinds: 'colour'; allowed are rephrase, count, time, order, genre"):
        Rewriting(model.endpoint, kinds=("colour",))


def test_shards_have_source_and_kind(tmp_path, model):
    """A clip that is a part of its line has no caption that is true of the whole line only."""
    path = sounding_manifest(tmp_path, {"captions": ["good"], **SOUNDS})
    out = tmp_path / "out.jsonl"
    rewrite(path, out, model)
    prepare_files(str(tmp_path / "shards"), MODEL, out, 0, 1)
    (record,) = records(tmp_path / "shards/audio")
    origins = record.annotation[CAPTION_ORIGINS]
    assert len(origins) == len(record.captions) and record.captions[0] == "good"
    assert origins[0] == {"source": "manifest", "kind": "caption"}
    found = {(origin["source"], origin["kind"]) for origin in origins}
    assert {("writer", kind) for kind in ("rephrase", "count", "time", "order")} <= found
    assert {("template", "count"), ("template", "time")} <= found
    segment_manifest(out, tmp_path / "cut.jsonl", Segmentation(0.6, 0.1), StageWorkers(1))
    first, second = lines_of(tmp_path / "cut.jsonl")
    assert first["captions"] == second["captions"] == ["good", *written("rephrase")]
