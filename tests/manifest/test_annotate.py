"""Annotation by a model behind an endpoint that answers well, badly, late, or not at all."""

import base64
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import soundfile
from PIL import Image

from audiox_trainer.trainer.manifest import endpoint as asking
from audiox_trainer.trainer.manifest.annotate import annotate_manifest
from audiox_trainer.trainer.manifest.answer_cache import AnswerCache, CachedAnswer
from audiox_trainer.trainer.manifest.endpoint import Endpoint, answer_schema
from audiox_trainer.trainer.manifest.manifest import read_entries
from tests.helpers.media_files import numbered_film, sine

GOOD = {
    "caption": "A dog barks twice.",
    "category": {"dog": 2},
    "SED": [{"start": 0.0, "end": 0.5, "event": "dog"}, {"start": 0.6, "end": 1.1, "event": "dog"}],
    "time_relation": "dog, dog",
    "genre": "jazz",
    "mood": "calm",
    "instruments": ["piano"],
    "tempo": 120,
}


class Model(BaseHTTPRequestHandler):
    """Answers by the first word of a clip's caption, and by how often it was asked about that clip before."""

    asked: Counter
    bodies: list
    keys: set
    delay = 0.0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][1]["content"][0]["text"]
        known, _, keys = text.partition("Known already: ")[2].rpartition(". Give the keys ")
        clip = json.loads(known)["captions"][0]
        before, self.asked[clip] = self.asked[clip], self.asked[clip] + 1
        self.bodies.append((clip, body))
        self.keys.add(self.headers["Authorization"])
        time.sleep(self.delay)
        good = {key: GOOD[key] for key in keys.removesuffix(".").split(", ")}
        self.give(clip.split()[0], before, good)

    def give(self, kind, before, good):
        if kind == "busy" and before < 2:
            return self.reply(429, {"error": {"message": "too many"}}, {"retry-after-ms": "10"})
        if kind == "broken" and before < 1:
            return self.reply(500, {"error": {"message": "oops"}}, {"retry-after-ms": "10"})
        if kind == "dead":
            return self.reply(500, {"error": {"message": "dead"}}, {"retry-after-ms": "1"})
        if kind == "large":
            return self.reply(400, {"error": {"message": "audio too large"}})
        if kind == "forbidden":
            return self.reply(401, {"error": {"message": "wrong key"}})
        if kind == "slow" and before < 1:
            time.sleep(1.5)
        answers = {
            "fenced": f"Here it is:\n```json\n{json.dumps(good, indent=1)}\n```",
            "prose": "I hear a dog." if before < 1 else json.dumps(good),
            "count": json.dumps(good | ({"category": {"dog": "two"}} if before < 1 else {})),
            "late": json.dumps(good | ({"SED": [{"start": 3, "end": 9, "event": "dog"}]} if before < 1 else {})),
            "back": json.dumps(good | ({"SED": [{"start": 1, "end": 0.5, "event": "dog"}]} if before < 1 else {})),
            "lacks": json.dumps({"caption": "A dog."} if before < 1 else good),
            "stubborn": "{no json}",
            "unsure": json.dumps(good | {"category": None, "SED": None}),
        }
        text = answers.get(kind, json.dumps(good))
        return self.reply(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "ears", "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]})  # fmt: skip

    def reply(self, status, body, headers=()):
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **dict(headers),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # who asked has gone

    def log_message(self, *args):
        pass


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    handler = type("Handler", (Model,), {"asked": Counter(), "bodies": [], "keys": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    handler.endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", "ears", timeout=1.0, retries=3)
    yield handler
    server.shutdown()
    server.server_close()


def manifest(folder, *lines):
    soundfile.write(folder / "a.wav", sine(seconds=1.2, rate=8000), 8000)
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps({"audio": "a.wav", **line}) + "\n" for line in lines))
    return path


def clips(*captions):
    return [{"captions": [caption]} for caption in captions]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_missing_is_filled_and_what_is_there_stays(tmp_path, model):
    given = [
        {"captions": ["good"], "kit": "x"},
        {"captions": ["good too"], "category": {"cat": 1}, "caption": "A cat."},
        {"captions": ["good music"], "domain": "music", "mood": "sad"},
        {"captions": ["all"], **{key: GOOD[key] for key in ("caption", "category", "SED", "time_relation")}},
    ]
    summary = annotate_manifest(manifest(tmp_path, *given), tmp_path / "out.jsonl", model.endpoint, 2, again=False)
    first, second, music, full = lines_of(tmp_path / "out.jsonl")
    sounds = ("caption", "category", "SED", "time_relation")
    by = {"by": "ears", "fields": list(sounds)}
    assert first == {"audio": "a.wav", **given[0], **{key: GOOD[key] for key in sounds}, "annotated": by}
    assert second["category"] == {"cat": 1} and second["caption"] == "A cat." and second["SED"] == GOOD["SED"]
    assert second["annotated"]["fields"] == ["SED", "time_relation"]
    assert music["mood"] == "sad" and music["genre"] == "jazz" and "category" not in music
    assert full == {"audio": "a.wav", **given[3]}
    assert len(read_entries(tmp_path / "out.jsonl")) == 4
    assert str(summary).startswith(
        "4 lines, 1 complete already, 0 answered before; filled 2 SED, 2 caption, 1 category"
    )
    assert not (tmp_path / "out.jsonl.unfilled.jsonl").exists()
    with pytest.raises(ValueError, match=r"out\.jsonl exists"):
        annotate_manifest(tmp_path / "clips.jsonl", tmp_path / "out.jsonl", model.endpoint, 2, again=False)


def test_answers_that_cannot_be_used_are_asked_for_again_with_the_reason(tmp_path, model):
    reasons = {
        "prose": "it holds no JSON object: 'I hear a dog.'",
        "count": "category",
        "late": "SED",
        "back": "SED is",
        "lacks": "'category' is a required property",
    }
    path = manifest(tmp_path, *clips("fenced", *reasons, "stubborn", "unsure"))
    summary = annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 4, again=False)
    out = {line["captions"][0]: line for line in lines_of(tmp_path / "out.jsonl")}
    for kind, reason in reasons.items():
        assert out[kind]["category"] == {"dog": 2} and model.asked[kind] == 2
        again = [body["messages"] for clip, body in model.bodies if clip == kind][1]
        assert [message["role"] for message in again] == ["system", "user", "assistant", "user"]
        assert again[3]["content"].startswith("That cannot be used: ") and reason in again[3]["content"]
    assert model.asked["fenced"] == 1 and out["fenced"]["caption"] == GOOD["caption"]
    assert model.asked["stubborn"] == 3 and "annotated" not in out["stubborn"]
    assert "category" not in out["unsure"] and out["unsure"]["annotated"]["fields"] == ["caption", "time_relation"]
    unfilled = {row["line"]: row for row in lines_of(tmp_path / "out.jsonl.unfilled.jsonl")}
    assert unfilled[7]["reason"].startswith("3 answers were refused, the last one because it is not JSON")
    assert unfilled[8] == {
        "line": 8,
        "audio": "a.wav",
        "fields": ["category", "SED"],
        "reason": "the model cannot tell",
    }
    assert len(summary.unfilled) == 2


def test_servers_that_are_busy_broken_or_slow_are_asked_again(tmp_path, model):
    path = manifest(tmp_path, *clips("busy", "broken", "slow", "large"))
    annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 4, again=False)
    assert model.asked == {"busy": 3, "broken": 2, "slow": 2, "large": 1}
    assert [("SED" in line) for line in lines_of(tmp_path / "out.jsonl")] == [True, True, True, False]
    (row,) = lines_of(tmp_path / "out.jsonl.unfilled.jsonl")
    assert row["line"] == 4 and "does not take the request" in row["reason"] and "audio too large" in row["reason"]


def test_sound_and_pictures_are_sent(tmp_path, model):
    numbered_film(tmp_path / "b.mp4", [i / 25 for i in range(100)], sound=[(0.0, sine(seconds=4))])
    path = manifest(tmp_path, {"audio": "b.mp4", "video": "b.mp4", "start": 1, "end": 3.5, "captions": ["good"]})
    annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 1, again=False)
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
    path = manifest(tmp_path, *clips("good 1", "good 2", "stubborn", "unsure"))
    annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 2, again=False)
    once = dict(model.asked)
    (tmp_path / "out.jsonl").unlink()
    summary = annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 2, again=False)
    assert model.asked == once and summary.cached == 4
    (tmp_path / "out.jsonl").unlink()
    annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 2, again=True)
    assert model.asked == once | {"stubborn": 6}, "refused answers are asked for again on request"
    soundfile.write(tmp_path / "a.wav", sine(seconds=1.1, rate=8000), 8000)
    (tmp_path / "out.jsonl").unlink()
    annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 2, again=False)
    assert model.asked["good 1"] == 2, "another sound is another question"


def test_an_endpoint_that_is_down_or_refuses_the_key_stops_the_run(tmp_path, model):
    path = manifest(tmp_path, *clips("good", *(f"dead {i}" for i in range(20))))
    with pytest.raises(
        ValueError, match=r"no answer to 10 clips in a row, the last time: .*the same command continues"
    ):
        annotate_manifest(path, tmp_path / "out.jsonl", model.endpoint, 1, again=False)
    assert not (tmp_path / "out.jsonl").exists() and model.asked["good"] == 1
    assert sum(model.asked.values()) <= 1 + 4 * 13
    with pytest.raises(ValueError, match="refuses the key; set OPENAI_API_KEY"):
        annotate_manifest(
            manifest(tmp_path, *clips("forbidden")), tmp_path / "out.jsonl", model.endpoint, 1, again=False
        )


def test_the_key_is_sent_and_nowhere_written(tmp_path, model):
    annotate_manifest(
        manifest(tmp_path, *clips("good", "large")), tmp_path / "out.jsonl", model.endpoint, 1, again=False
    )
    assert model.keys == {"Bearer sk-very-secret"}
    for path in tmp_path.iterdir():
        assert b"sk-very-secret" not in path.read_bytes()


def test_what_cannot_be_sent_is_named(tmp_path, model):
    path = manifest(tmp_path, {"audio": "none.wav"}, *clips("good"))
    (tmp_path / "sub").mkdir()
    endpoint = Endpoint(model.endpoint.url, "ears", longest=0.5)
    annotate_manifest(path, tmp_path / "sub" / "out.jsonl", endpoint, 1, again=False)
    missing, long = lines_of(tmp_path / "sub" / "out.jsonl.unfilled.jsonl")
    assert missing["reason"].startswith("missing: ") and long["reason"].startswith("longer than 0.5 s: give it as seg")
    assert not model.asked
    places = [line["audio"] for line in lines_of(tmp_path / "sub" / "out.jsonl")]
    assert places == [str(tmp_path / "none.wav"), str(tmp_path / "a.wav")], "in another folder paths are absolute"


def test_requests_keep_a_pace():
    pace, begin = asking._rate_limiter(60 * 50), time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: pace(), range(11)))
    assert time.monotonic() - begin >= 10 / 50


def test_the_schema_of_an_answer_knows_the_length():
    assert answer_schema(["SED"], 2.0)["$defs"]["Event"]["properties"]["end"]["maximum"] == 2.5
    assert answer_schema(["caption", "tempo"], 2.0)["required"] == ["caption", "tempo"]


def test_answers_are_kept(tmp_path):
    answers = AnswerCache(tmp_path / "a")
    answers.put("k", CachedAnswer("{}"))
    answers.put("r", CachedAnswer("", "because"))
    other = AnswerCache(tmp_path / "a")  # the first one is as if it had been killed
    assert (other.get("k"), other.get("r"), other.get("x")) == (CachedAnswer("{}"), CachedAnswer("", "because"), None)
    (tmp_path / "b").write_text("not a file of answers at all, and longer than the header of one" * 20)
    with pytest.raises(ValueError, match="not a file of answers"):
        AnswerCache(tmp_path / "b")


def test_answers_that_another_process_holds(tmp_path):
    answers = AnswerCache(tmp_path / "a")
    other = sqlite3.connect(tmp_path / "a", isolation_level=None)
    other.execute("begin exclusive")
    answers._file.execute("pragma busy_timeout = 10")
    for act in (lambda: answers.put("k", CachedAnswer("{}")), lambda: answers.get("k")):
        with pytest.raises(OSError, match="/a: database is locked; earlier answers are kept, and the same command"):
            act()
    with pytest.raises(OSError, match="none/a: unable to open"):
        AnswerCache(tmp_path / "none/a")


def test_no_empty_manifest_is_left_by_a_kill(tmp_path, model, monkeypatch):
    """While it is written, it is not there."""
    seen = []

    def write(path, text):
        seen.append((path.name, (tmp_path / "out.jsonl").exists()))
        raise OSError("killed")

    monkeypatch.setattr("audiox_trainer.trainer.core.files.write_text", write)
    with pytest.raises(OSError, match="killed"):
        annotate_manifest(manifest(tmp_path, *clips("good")), tmp_path / "out.jsonl", model.endpoint, 1, False)
    assert seen == [("out.jsonl", False)] and not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_asks_on(tmp_path, model, root):
    model.delay = 0.1
    path = manifest(tmp_path, *clips(*(f"good {i}" for i in range(40))))
    command = [sys.executable, "launch/prepare.py", "annotate", "--manifest", str(path), "--model", "ears"]
    command += ["--endpoint", model.endpoint.url, "--out", str(tmp_path / "out.jsonl"), "--concurrency", "2"]
    first = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while sum(model.asked.values()) < 12 and first.poll() is None:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "out.jsonl").exists() and sum(model.asked.values()) < 30
    model.delay = 0.0
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "filled 40 SED, 40 caption, 40 category, 40 time_relation; not filled: 0" in done.stdout
    assert sum(model.asked.values()) <= 40 + 2, "what was under way when it was killed is asked again, and no more"
    assert "sk-very-secret" not in done.stdout + done.stderr
