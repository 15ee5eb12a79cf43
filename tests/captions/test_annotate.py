"""Annotation by a model behind an endpoint that answers well, badly, late, or not at all."""

import base64
import io
import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import soundfile
from PIL import Image

from audiox_trainer.trainer.captions.annotate import Annotation, answer_schema
from audiox_trainer.trainer.captions.ask_stages import AskOptions, annotate_manifest
from audiox_trainer.trainer.core.cli import run
from audiox_trainer.trainer.manifest import endpoint as asking
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.manifest.prices import Price
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.caption_model import GOOD, caption_model, clips, lines_of, sounding_manifest
from tests.helpers.killing import kill, makers
from tests.helpers.media_files import numbered_film, sine
from tests.helpers.preparation import stage_results

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with caption_model() as handler:
        yield handler


def annotate(path, out, model, workers=1, endpoint=None, **options):
    interview = Annotation(endpoint or model.endpoint)
    return annotate_manifest(path, out, interview, StageWorkers(workers), AskOptions(**{"concurrency": 4} | options))


def left_out(out):
    return {row["line"]: row for row in lines_of(out.with_name(f"{out.name}.left_out.jsonl"))}


def test_what_is_missing_is_filled_and_what_is_there_stays(tmp_path, model, capfd):
    given = [
        {"captions": ["good"], "kit": "x"},
        {"captions": ["good too"], "category": {"cat": 1}, "caption": "A cat.", "annotated": {"caption": "cats"}},
        {"captions": ["good music"], "domain": "music", "mood": "sad", "end": 1.2},
        {"captions": ["all"], **{key: GOOD[key] for key in ("caption", "category", "SED", "time_relation")}},
    ]
    out = tmp_path / "out.jsonl"
    summary = annotate(sounding_manifest(tmp_path, *given), out, model, price=Price(2.0, 10.0))
    first, second, music, full = lines_of(out)
    sounds = ("caption", "category", "SED", "time_relation")
    by = dict.fromkeys(sounds, "ears")
    assert first == {"audio": "a.wav", **given[0], **{key: GOOD[key] for key in sounds}, "annotated": by}
    assert second["category"] == {"cat": 1} and second["caption"] == "A cat." and second["SED"] == GOOD["SED"]
    assert second["annotated"] == {"caption": "cats", "SED": "ears", "time_relation": "ears"}
    assert music["mood"] == "sad" and music["genre"] == "jazz" and "category" not in music
    assert full == {"audio": "a.wav", **given[3]}
    assert len(read_entries(out)) == 4 and left_out(out) == {}
    assert "2 SED filled, 2 caption filled, 1 category filled, 1 complete already" in str(summary)
    assert "3 requests, 0.003 M tokens read and 0.000 M written, 0.01 at these prices" in str(summary)
    forecast = "4 lines, about 0.00 h of sound; at most 3 questions: about 0.00"
    assert forecast in capfd.readouterr().err
    page = (tmp_path / "out.jsonl.html").read_text()
    assert forecast in page and str(summary) in page and "caption (ears)" in page and "Words of music" in page
    with pytest.raises(ValueError, match=r"out\.jsonl exists"):
        annotate(tmp_path / "clips.jsonl", out, model)


@pytest.mark.parametrize(
    ("number", "complaint"),
    [({"rate": float("nan")}, "rate: nan must be 0 or more"), ({"timeout": 0.0}, "timeout: 0 must be above 0")],
)
def test_numbers_of_an_endpoint_that_cannot_be_are_refused(number, complaint):
    with pytest.raises(ValueError, match=complaint):
        asking.Endpoint("http://localhost", "ears", **number)


def test_answers_that_cannot_be_used_are_asked_for_again_with_the_reason(tmp_path, model):
    reasons = {
        "prose": "it holds no JSON object: 'I hear a dog.'",
        "count": "category",
        "late": "SED",
        "back": "SED is",
        "lacks": "'category' is a required property",
    }
    path, out = sounding_manifest(tmp_path, *clips("fenced", *reasons, "stubborn", "unsure")), tmp_path / "out.jsonl"
    summary = annotate(path, out, model)
    found = {line["captions"][0]: line for line in lines_of(out)}
    for kind, reason in reasons.items():
        assert found[kind]["category"] == {"dog": 2} and model.asked[kind] == 2
        again = [body["messages"] for clip, body in model.bodies if clip == kind][1]
        assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
        assert again[3]["content"].startswith("That cannot be used: ") and reason in again[3]["content"]
    assert model.asked["fenced"] == 1 and found["fenced"]["caption"] == GOOD["caption"]
    assert model.asked["stubborn"] == 3 and "annotated" not in found["stubborn"]
    assert "category" not in found["unsure"] and list(found["unsure"]["annotated"]) == ["caption", "time_relation"]
    rows = left_out(out)
    assert rows[7]["reason"] == "answer refused" and "the last one because it is not JSON" in rows[7]["detail"]
    assert rows[8]["reason"] == "the model cannot tell" and rows[8]["detail"] == "category, SED"
    assert summary.left_out == {"answer refused": 1, "the model cannot tell": 1} and summary.kept_lines == 8


def test_servers_that_are_busy_broken_or_slow_are_asked_again(tmp_path, model):
    path, out = sounding_manifest(tmp_path, *clips("busy", "broken", "slow", "large")), tmp_path / "out.jsonl"
    annotate(path, out, model, endpoint=replace(model.endpoint, timeout=4.0))
    assert model.asked == {"busy": 3, "broken": 2, "slow": 2, "large": 1}
    assert [("SED" in line) for line in lines_of(out)] == [True, True, True, False]
    (row,) = left_out(out).values()
    assert row["line"] == 4 and "does not take the request" in row["detail"] and "audio too large" in row["detail"]


ODD = ("page", "cut", "uncounted", "unsaid", "parts", "list")


def test_replies_that_are_none_of_the_api_cost_a_line_and_no_run(tmp_path, model):
    path, out = sounding_manifest(tmp_path, *clips(*ODD, "good")), tmp_path / "out.jsonl"
    summary = annotate(path, out, model)
    filled = [line["captions"][0] for line in lines_of(out) if "SED" in line]
    assert filled == ["uncounted", "good"], "who does not count tokens has answered"
    rows = left_out(out)
    assert summary.left_out == {"no answer": 5} and set(rows) == {1, 2, 4, 5, 6}
    assert "not JSON" in rows[2]["detail"]
    assert all("its reply is no chat completion with a text" in rows[n]["detail"] for n in (1, 4, 5, 6))


def test_sound_and_pictures_are_sent(tmp_path, model):
    numbered_film(tmp_path / "b.mp4", [i / 25 for i in range(100)], sound=[(0.0, sine(seconds=4))])
    line = {"audio": "b.mp4", "video": "b.mp4", "start": 1, "end": 3.5, "captions": ["good"]}
    annotate(sounding_manifest(tmp_path, line), tmp_path / "out.jsonl", model)
    ((_, body),) = model.bodies
    text, heard, *seen = body["messages"][1]["content"]
    assert body["model"] == "ears" and text["text"].startswith("A recording of 2.50 s.")
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(heard["input_audio"]["data"])))
    assert (heard["type"], heard["input_audio"]["format"], rate, len(wave)) == ("input_audio", "wav", 16_000, 40_000)
    assert 0.4 < abs(wave).max() < 0.6
    assert [part["type"] for part in seen] == ["image_url"] * 4
    head, data = seen[0]["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (336, 336)


def test_nothing_is_asked_twice(tmp_path, model):
    path, out = sounding_manifest(tmp_path, *clips("good 1", "good 2", "stubborn", "unsure")), tmp_path / "out.jsonl"
    annotate(path, out, model)
    once = dict(model.asked)
    out.unlink()
    summary = annotate(path, out, model)
    assert model.asked == once and summary.amounts["answered before"] == 4 and "requests" not in summary.amounts
    out.unlink()
    annotate(path, out, model, again=True)
    assert model.asked == once | {"stubborn": 6}, "refused answers are asked for again on request"
    soundfile.write(tmp_path / "a.wav", sine(seconds=1.1, rate=8000), 8000)
    out.unlink()
    annotate(path, out, model)
    assert model.asked["good 1"] == 2, "another sound is another question"


def test_an_endpoint_that_is_down_or_refuses_the_key_stops_the_run(tmp_path, model):
    path, out = sounding_manifest(tmp_path, *clips("good", *(f"dead {i}" for i in range(20)))), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=r"no answer to 10 questions in a row, .*the same command continues"):
        annotate(path, out, model, concurrency=1)
    assert not out.exists() and model.asked["good"] == 1
    assert sum(model.asked.values()) <= 1 + 4 * 13
    path = sounding_manifest(tmp_path, *clips("forbidden"))
    with pytest.raises(ValueError, match="refuses the key; set OPENAI_API_KEY"):
        annotate(path, tmp_path / "other.jsonl", model)


def test_the_key_is_sent_and_nowhere_written(tmp_path, model):
    annotate(sounding_manifest(tmp_path, *clips("good", "large")), tmp_path / "out.jsonl", model)
    assert model.keys == {"Bearer sk-very-secret"}
    (row,) = left_out(tmp_path / "out.jsonl").values()
    assert "audio too large, Bearer [redacted]" in row["detail"] or "audio too large, [redacted]" in row["detail"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"out.jsonl", "out.jsonl.answers", "out.jsonl.html"} <= {path.name for path in files}
    assert not [path for path in files if b"sk-very-secret" in path.read_bytes()]


def test_damaged_media_are_left_out_and_long_ones_stay(tmp_path, model):
    path = sounding_manifest(tmp_path, {"audio": "none.wav"}, *clips("good"), {"captions": ["good"], "end": 0.7})
    (tmp_path / "sub").mkdir()
    out = tmp_path / "sub" / "out.jsonl"
    annotate(path, out, model, endpoint=replace(model.endpoint, longest=0.8))
    rows = left_out(out)
    assert rows[1]["reason"] == "missing" and rows[2]["reason"] == "too long to be heard" and set(rows) == {1, 2}
    assert rows[2]["detail"].startswith("longer than 0.8 s: cut it by")
    places = [line["audio"] for line in lines_of(out)]
    assert places == [str(tmp_path / "a.wav")] * 2, "in another folder paths are absolute"
    assert sum(model.asked.values()) == 1


def test_it_does_not_begin_above_its_price(tmp_path, model):
    path = sounding_manifest(tmp_path, *clips("good"))
    with pytest.raises(ValueError, match=r"--at-most 0\.1: the forecast is \d+\.\d\d; nothing was asked"):
        annotate(path, tmp_path / "out.jsonl", model, price=Price(1e6, 1e6), at_most=0.1)
    assert not model.asked
    with pytest.raises(ValueError, match="without a price nothing is above it"):
        annotate(path, tmp_path / "out.jsonl", model, at_most=0.1)
    annotate(path, tmp_path / "out.jsonl", model, price=Price(1e-6, 1e-6), at_most=0.1)


def test_it_does_not_continue_above_its_price(tmp_path, model):
    """By the prices of the command that continues."""
    path, out = sounding_manifest(tmp_path, *clips("good", "forbidden")), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="refuses the key"):
        annotate(path, out, model, price=Price(1e-6, 1e-6), at_most=0.1)
    asked = dict(model.asked)
    with pytest.raises(ValueError, match=r"--at-most 0\.1: the forecast is \d+\.\d\d; nothing more was asked"):
        annotate(path, out, model, price=Price(1e6, 1e6), at_most=0.1)
    assert model.asked == asked


def test_what_the_first_block_promises_is_said_once(tmp_path, model, capfd):
    """Also where it promises nothing: no line of it had to be decoded."""
    full = {key: GOOD[key] for key in ("caption", "category", "SED", "time_relation")}
    annotate(sounding_manifest(tmp_path, *({"captions": ["all"]} | full,) * 64), tmp_path / "out.jsonl", model)
    assert capfd.readouterr().err.count("annotate: 64 lines") == 2


def test_requests_keep_a_pace_of_all_workers_together(tmp_path, model):
    path = sounding_manifest(tmp_path, *clips(*(f"good {i}" for i in range(12))))
    annotate(path, tmp_path / "out.jsonl", model, workers=2, endpoint=replace(model.endpoint, rate=600))
    assert len(model.times) == 12 and max(model.times) - min(model.times) >= (12 / 2 - 1) * 2 * 60 / 600


def test_requests_keep_a_pace():
    pace, begin = asking._rate_limiter(60 * 50), time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: pace(), range(11)))
    assert time.monotonic() - begin >= 10 / 50


def test_the_schema_of_an_answer_knows_the_length():
    assert answer_schema(["SED"], 2.0)["$defs"]["Event"]["properties"]["end"]["maximum"] == 2.5
    assert answer_schema(["caption", "tempo"], 2.0)["required"] == ["caption", "tempo"]


def command(path, out, endpoint, workers):
    workers, options = StageWorkers(workers), AskOptions(concurrency=4)
    sys.exit(run(lambda: print(annotate_manifest(path, out, Annotation(endpoint), workers, options))))


def test_killed_and_started_again_with_other_workers(tmp_path, model):
    """Once the driver, and makers: the bytes of an undisturbed run, and hardly a question twice."""
    path = sounding_manifest(tmp_path, *clips(*(f"{'un' * (i % 5 == 0)}sure {i}" for i in range(60))))
    annotate(path, tmp_path / "expected.jsonl", model)
    model.asked.clear()
    model.delay = 0.1
    out, context = tmp_path / "out.jsonl", multiprocessing.get_context("forkserver")
    for workers, last in ((1, False), (2, True)):
        driver = context.Process(target=command, args=(path, out, model.endpoint, workers))
        driver.start()
        stop_at = sum(model.asked.values()) + 12
        while driver.is_alive() and sum(model.asked.values()) < stop_at:
            time.sleep(0.01)
        if found := makers(driver.pid):
            kill(found[0])
        if not last:
            driver.kill()
        driver.join(600)
    assert driver.exitcode == 0
    assert stage_results(out) == stage_results(tmp_path / "expected.jsonl")
    assert 60 <= sum(model.asked.values()) <= 60 + 3 * 4, "what was in progress at each kill is asked again, no more"
    assert not list(tmp_path.glob("*.work"))
