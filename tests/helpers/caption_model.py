"""A server that answers as a model that hears behind an OpenAI-compatible endpoint: well, badly, late or not at all."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import soundfile

from audiox_trainer.trainer.manifest.endpoint import Endpoint
from tests.helpers.media_files import sine

GOOD: dict[str, Any] = {
    "caption": "A dog barks twice.",
    "category": {"dog": 2},
    "SED": [{"start": 0.0, "end": 0.5, "event": "dog"}, {"start": 0.6, "end": 1.1, "event": "dog"}],
    "time_relation": "dog, dog",
    "genre": "jazz",
    "mood": "calm",
    "instruments": ["piano"],
    "tempo": 120,
}
USED = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}
# By the words of their prompts: what a second model writes of each kind.
WRITTEN = {
    "other words": ("Barking, two times.", "Twice a dog is heard."),
    "how often": ("Two dogs can be heard.", "A dog, twice."),
    "start and its end": ("A dog from 0.0 to 0.5 seconds.", "At 0.6 seconds a dog barks."),
    "in which order": ("A dog, then a dog again.", "First one bark of a dog, then another."),
    "which genre": ("This is jazz.", "A jazz tune."),
    "which mood": ("Soothing music.", "It sounds calm."),
    "which instruments": ("A piano plays.", "Piano music."),
    "how fast": ("At 120 beats per minute.", "A fast pace."),
}


class CaptionModel(BaseHTTPRequestHandler):
    """Answers by the first word of a clip's first caption, and by how often it was asked the same before."""

    asked: Counter[str]
    bodies: list[tuple[str, dict[str, Any]]]
    keys: set[str | None]
    times: list[float]
    delay = 0.0
    endpoint: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.times.append(time.monotonic())
        system, user = body["messages"][0]["content"], body["messages"][1]["content"]
        text = user[0]["text"]
        begin = text.index("{")
        known, end = json.JSONDecoder().raw_decode(text[begin:])
        clip = known["captions"][0]
        common, _, kind = system.partition("\n\n")
        writes = next((words for words in WRITTEN if '{"captions"' in common and words in kind), "")
        question = f"{clip} {writes}".strip()
        before, self.asked[question] = self.asked[question], self.asked[question] + 1
        self.bodies.append((question, body))
        self.keys.add(self.headers["Authorization"])
        time.sleep(self.delay)
        if writes:
            self.give(clip.split()[0], before, {"captions": list(WRITTEN[writes])}, WRITING)
        else:
            keys = text[begin + end :].partition("Give the keys ")[2].removesuffix(".").split(", ")
            self.give(clip.split()[0], before, {key: GOOD[key] for key in keys}, ANNOTATING)

    def give(self, kind: str, before: int, good: dict[str, Any], odd: Mapping[str, Any]) -> None:
        if kind == "busy" and before < 2:
            return self.reply(429, {"error": {"message": "too many"}}, {"retry-after-ms": "10"})
        if kind == "broken" and before < 1:
            return self.reply(500, {"error": {"message": "oops"}}, {"retry-after-ms": "10"})
        if kind == "dead":
            return self.reply(500, {"error": {"message": "dead"}}, {"retry-after-ms": "1"})
        if kind == "large":
            return self.reply(400, {"error": {"message": f"audio too large, {self.headers['Authorization']}"}})
        if kind == "forbidden":
            return self.reply(401, {"error": {"message": "wrong key"}})
        if kind == "slow" and before < 1:
            time.sleep(5)
        make = odd.get(kind)
        text = json.dumps(good) if make is None else make(good, before)
        message = {"role": "assistant", "content": text if isinstance(text, str) else json.dumps(text)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "ears", "choices": [choice]}
        answer |= {"usage": USED}
        match kind:
            case "page":
                return self.reply(200, "<html>Sign in</html>", {"Content-Type": "text/html"})
            case "cut":
                return self.reply(200, json.dumps(answer)[:-9])
            case "uncounted":
                answer["usage"] = {}
            case "unsaid":
                answer["choices"] = [{}]
            case "parts":
                answer["choices"] = [{**choice, "message": {"role": "assistant", "content": [{"type": "text"}]}}]
            case "list":
                return self.reply(200, "[]")
        return self.reply(200, answer)

    def reply(self, status: int, body: dict[str, Any] | str, headers: Mapping[str, str] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        sent = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        try:
            self.send_response(status)
            for name, value in sent.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # who asked has gone

    def log_message(self, *args: object) -> None:
        pass


def once(changes: dict[str, Any]) -> Any:
    """Answers with a wrong value the first time."""
    return lambda good, before: good | (changes if before < 1 else {})


ANNOTATING = {
    "fenced": lambda good, before: f"Here it is:\n```json\n{json.dumps(good, indent=1)}\n```",
    "prose": lambda good, before: "I hear a dog." if before < 1 else good,
    "count": once({"category": {"dog": "two"}}),
    "late": once({"SED": [{"start": 3, "end": 9, "event": "dog"}]}),
    "back": once({"SED": [{"start": 1, "end": 0.5, "event": "dog"}]}),
    "lacks": lambda good, before: {"caption": "A dog."} if before < 1 else good,
    "stubborn": lambda good, before: "{no json}",
    "unsure": lambda good, before: good | {"category": None, "SED": None},
}
WRITING = {
    "sorry": lambda good, before: {"captions": ["I'm sorry, I hear no dog.", "A dog?"]} if before < 1 else good,
    "late": lambda good, before: {"captions": ["A dog at 50 seconds.", "A dog at 60 s."]} if before < 1 else good,
    "other": lambda good, before: {"captions": ["A violin.", "Two trains."]} if before < 1 else good,
    "one": lambda good, before: {"captions": good["captions"][:1]} if before < 1 else good,
    "echo": lambda good, before: {"captions": ["echo", "A dog."]} if before < 1 else good,
    "stubborn": lambda good, before: {"captions": 3},
}


@contextmanager
def caption_model() -> Iterator[type[CaptionModel]]:
    """The class of a running server's handlers; its `endpoint` is how it is asked."""
    fresh: dict[str, Any] = {"asked": Counter(), "bodies": [], "keys": set(), "times": []}
    handler: type[CaptionModel] = type("Handler", (CaptionModel,), fresh)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    handler.endpoint = Endpoint(address, "ears", timeout=60.0, retries=3)
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()


def clips(*captions: str, **fields: Any) -> list[dict[str, Any]]:
    """Lines of these captions."""
    return [{"captions": [caption], **fields} for caption in captions]


def sounding_manifest(folder: Any, *lines: dict[str, Any]) -> Any:
    """A manifest of a tone of 1.2 s, each line with its own keys."""
    soundfile.write(folder / "a.wav", sine(seconds=1.2, rate=8000), 8000)
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps({"audio": "a.wav", **line}) + "\n" for line in lines))
    return path


def lines_of(path: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
