"""A server with the API of OpenAI that hears with the embedded judge, and decides and writes as the embedded benchmark
does: what comes through HTTP has known figures."""

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import soundfile
import torch

from audiox_trainer.models.judge import Judge
from audiox_trainer.trainer.evaluation.annotation import Annotation, annotate_waves
from audiox_trainer.trainer.evaluation.t2a_prompts import TYPES, BenchmarkPrompt, score_prompts
from audiox_trainer.trainer.scenes.scene import SoundEvent


class HearingServer:
    """`asked` counts requests by kind: "annotate", "decide", "write"."""

    def __init__(self, judge: Judge | None = None, prompts: list[BenchmarkPrompt] | None = None) -> None:
        self.judge, self.asked, self.sent_rates, self.lock = judge, Counter[str](), set[int](), threading.Lock()
        self.by_text = {(p.kind, p.text): p for p in prompts or []}
        self.refuse = Counter[str]()  # how many more requests of a kind get an answer that cannot be used
        self.down = False

    def answer(self, body: dict[str, Any]) -> str:
        content = body["messages"][1]["content"]
        sound = [part for part in content if part["type"] == "input_audio"] if isinstance(content, list) else []
        kind = "annotate" if sound else "write" if content.startswith("Write ") else "decide"
        with self.lock:
            self.asked[kind] += 1
            if self.refuse[kind] > 0:
                self.refuse[kind] -= 1
                return "I would rather not."
        if kind == "annotate":
            return json.dumps(self.annotate(base64.b64decode(sound[0]["input_audio"]["data"])))
        return json.dumps(self.write(content) if kind == "write" else self.decide(json.loads(content)))

    def annotate(self, data: bytes) -> dict[str, Any]:
        """What the judge hears, without any prompt."""
        wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        self.sent_rates.add(rate)
        assert self.judge and self.judge.config.sample_rate == rate
        with self.lock:  # one thread computes at a time
            (heard,) = annotate_waves(self.judge, torch.from_numpy(np.asarray(wave))[None, None])
        events = [{"event": e.category, "start": e.onset, "end": e.offset} for e in heard.events]
        return {"counts": heard.counts, "order": list(heard.order), "events": events}

    def decide(self, known: dict[str, Any]) -> dict[str, Any]:
        """By the embedded benchmark's rules, from what the request has; of sounds that these do not know, none is
        there."""
        assert set(known) == {"type", "prompt", "annotation"}
        prompt = self.by_text.get((known["type"], known["prompt"]))
        if prompt is None:
            return dict.fromkeys(("category", known["type"]), 0) | {"analysis": "unknown sounds"}
        events = tuple(SoundEvent(e["event"], e["start"], e["end"]) for e in known["annotation"]["events"])
        scores = score_prompts([prompt], [Annotation(events, "", 0)]).by_metric()
        found = {"category": int(scores["cat_acc"][0])}
        if prompt.kind != "category":
            found[prompt.kind] = int(scores[TYPES[prompt.kind]][0])
        return found | {"analysis": f"heard {[e.category for e in events]}"}

    def write(self, asked: str) -> dict[str, Any]:
        """Ten prompts, of which one is always the same."""
        number = asked.partition("batch ")[2].partition(".")[0]
        wanted = asked.partition(". ")[2]
        size = next((int(word) for word in wanted.split() if word.isdecimal()), 1)
        several = "different sounds" in wanted
        items = []
        for i in range(10):
            name = f"sound {number}-{i}" if i else "sound zero"
            events = [f"{name} {chr(97 + k)}" for k in range(size if several else 1)]
            item: dict[str, Any] = {"text": f"{' and '.join(events)} ({wanted})", "events": events}
            items.append(item | ({"start": 1.0, "end": 2.5} if "`start`" in wanted else {}))
        return {"prompts": items}


class _Handler(BaseHTTPRequestHandler):
    server_of: HearingServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server_of.down:
            self._reply(500, {"error": {"message": "down"}})
            return
        message = {"role": "assistant", "content": self.server_of.answer(body)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self._reply(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "ears", "choices": [choice]})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(found: HearingServer) -> Iterator[str]:
    """The address of the server while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of": found}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
