"""Addresses with a secret in them: it is opened with the secret, and nothing that is written or said shows it."""

import json
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from audiox_trainer.models.config import CodecConfig, VideoConfig
from audiox_trainer.trainer.captions.annotate import Annotation
from audiox_trainer.trainer.captions.ask_stages import AskOptions, annotate_manifest
from audiox_trainer.trainer.core.credentials import redacted, refuse
from audiox_trainer.trainer.manifest.manifest import read_entries
from audiox_trainer.trainer.media import source
from audiox_trainer.trainer.prepare import prepare_files as prepare_module
from audiox_trainer.trainer.prepare.decode import EncoderSettings, EntryTask, Rejection, decode_entry
from audiox_trainer.trainer.prepare.prepare_files import Workers, prepare_files
from audiox_trainer.trainer.stages.separate import Separation, separate_manifest
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.caption_model import caption_model
from tests.helpers.exported import HalfAndRest, export
from tests.helpers.preparation import MODEL, manifest, sound

SECRET = "s3cr3tValue0123456789"
KEY = "unusual-form-of-a-key"
HOST = "127.0.0.1:9"
PARAMETERS = [
    *("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "x-amz-signature", "AWSAccessKeyId", "Signature"),
    *("X-Goog-Signature", "X-Goog-Credential", "GoogleAccessId", "Key-Pair-Id", "Policy", "sig", "SIG", "sas"),
    *("access_token", "access-token", "accessToken", "token", "auth", "auth_token", "authorization", "jwt", "id_token"),
    *("api_key", "apikey", "api-key", "apiKey", "x-api-key", "key", "subscription-key", "secret", "client_secret"),
    *("password", "passwd", "pwd", "pass", "session", "sessionid", "PHPSESSION", "refresh_token", "hmac", "hdnea"),
    *("code", "md5", "oauth_signature", "oauth_token", "credentials", "private_token", "download_token"),
]
ADDRESSES = [
    *(f"https://{HOST}/a.wav?{name}={SECRET}&part=1" for name in PARAMETERS),
    *(f"https://{HOST}/a.wav?part=1&{name}={SECRET}" for name in ("token", "api_key", "X-Goog-Signature")),
    f"https://{HOST}/a.wav#access_token={SECRET}",
    f"https://{HOST}/a.wav?a=1;token={SECRET}",
    f"https://{HOST}/a.wav?url=https%3A%2F%2Fh%2Fb%3FX-Amz-Signature%3D{SECRET}%26x%3D1",
    f"https://me:{SECRET}@{HOST}/a.wav",
    f"https://{SECRET}@{HOST}/a.wav",
    f"https://{SECRET}:@{HOST}/a.wav",
    f"https://:{SECRET}@{HOST}/a.wav",
    f"https://me:p@{SECRET}@{HOST}/a.wav",
    f"https://me:{SECRET}@x@{HOST}/a.wav",
    f"https://me:{SECRET}:y@{HOST}/a.wav",
]
MESSAGES = [
    f"Authorization: Bearer {SECRET}",
    "Authorization: Basic bWU6czNjcjN0VmFsdWUwMTIz",
    f"login failed: password={SECRET}, host=h",
    f"api_key={SECRET}",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1B2" * 8,
    "glpat-" + "a1B2" * 5,
    "hf_" + "a1B2" * 9,
    "AKIA" + "ABCD1234" * 2,
    "AIza" + "a1B2c" * 7,
    "ya29." + "a1B2" * 8,
    "sk-" + "a1B2" * 8,
    "sk-proj-" + "a1B2" * 8,
    "xoxb-" + "1234567890-abc",
    "npm_" + "a1B2" * 9,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
]
CODEC = CodecConfig("logmel", sample_rate=8000, audio_channels=1, hop=512, frames=32, latent_channels=128)
VIDEO = VideoConfig("frames", dim=64, image_rate=5.0, motion_rate=25.0, size=32, steps=32, pool=2)


@pytest.mark.parametrize("address", ADDRESSES, ids=range(len(ADDRESSES)))
def test_a_secret_is_written_nowhere(address, tmp_path, monkeypatch):
    """The name of an entry goes into shards and reports, a rejection into rejected.jsonl and the records of blocks."""
    monkeypatch.setattr(source, "PAUSE", 0.0)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio": address}) + "\n")
    (entry,) = read_entries(manifest, allow_private=True)
    assert entry.audio == address, "it is what gives access"
    task = EntryTask(EncoderSettings(CODEC, VIDEO), entry)
    (rejection,) = decode_entry(task)
    assert isinstance(rejection, Rejection) and rejection.reason == "unreachable"
    for written in (entry.name, str(task), json.dumps(asdict(rejection)), redacted(f"KeyError: {address!r}")):
        assert SECRET not in written and "[redacted]" in written
    assert HOST in entry.name, "whose address it is may be known"


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_a_message_shows_no_key(message):
    shown = redacted(f"403: {message} (denied)")
    assert "[redacted]" in shown and shown.startswith("403: ")
    assert not any(len(word) > 12 and word in shown for word in message.split() if word != "Authorization:")
    with pytest.raises(ValueError, match="holds a credential"):
        refuse({"a": message}, "run.json")


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a%20b.wav?part=1&version=2",
        "https://host/authors/key.wav",
        "s3://bucket/me@home/a.wav",
        "https://host/a.wav?author=me",
        "mail me@host or see https://host/a",
        "model.text.max_tokens: 3 must be at least 4; pass=ing",
        "basic information, bearer of news",
        "data/tokens/session.wav",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text
    refuse({"a": text}, "run.json")


def test_the_value_of_a_variable_in_any_writing(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k3y/str+oke=more")
    for written in ("k3y/str+oke=more", "k3y%2Fstr%2Boke%3Dmore", "k3y/str%2Boke%3Dmore"):
        assert redacted(f"it was {written} there") == "it was [redacted] there"


def files_with(folder, text):
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and text in path.read_bytes()
    ]


@pytest.mark.slow
def test_no_file_of_a_preparation_shows_one(tmp_path, forkserver, monkeypatch, capfd):
    """A line that is read, one whose sound is refused, one whose host refuses it, and one whose host is private."""
    sound(tmp_path / "a.flac")
    (tmp_path / "text.flac").write_text("no sound")
    monkeypatch.setattr(prepare_module, "decode_entry", decode_at_once)
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        there = f"127.0.0.1:{server.server_port}"
        path = manifest(
            tmp_path,
            {"audio": f"http://{there}/a.flac?X-Goog-Signature={SECRET}", "caption": "a tone"},
            {"audio": f"http://{SECRET}@{there}/text.flac"},
            {"audio": f"http://me:{SECRET}@{there}/gone.flac?access_token={SECRET}"},
            {"audio": f"http://{HOST}/a.flac?api_key={SECRET}"},
        )
        for allowed, reasons in ((True, ["undecodable", "missing", "unreachable"]), (False, 4 * ["private address"])):
            out = tmp_path / f"out-{allowed}"
            workers = Workers(unreachable=0, allow_private=allowed)
            with nullcontext() if allowed else pytest.raises(ValueError, match="no clip could be kept") as caught:
                print(prepare_files(str(out), MODEL, path, 0, workers))
            rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
            assert [row["reason"] for row in rows] == reasons
            assert files_with(out, b"127.0.0.1") and not files_with(out, SECRET.encode())
        server.shutdown()
    assert SECRET not in str(caught.value) and SECRET not in "".join(capfd.readouterr())


def decode_at_once(task):
    source.PAUSE = 0.0
    yield from decode_entry(task)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_no_answer_about_a_clip_shows_one(tmp_path, forkserver, monkeypatch):
    """Addresses and the key give access; only the new manifest shows the former, and nothing the latter."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    folder = tmp_path / "out"
    with served(tmp_path) as there, caption_model() as model:
        address = f"http://me:{SECRET}@{there}/a.flac?X-Goog-Signature={SECRET}"
        path = manifest(
            tmp_path,
            *({"audio": address, "captions": [kind]} for kind in ("good", "large")),
            *({"audio": address} for address in ADDRESSES[-3:]),
        )
        workers = StageWorkers(1, allow_private=True)
        annotation = Annotation(replace(model.endpoint, retries=0))
        summary = annotate_manifest(path, folder / "new.jsonl", annotation, workers, AskOptions())
        assert model.keys == {f"Bearer {KEY}"}
    assert summary.left_out == {"answer refused": 1, "unreachable": 3}
    assert {"new.jsonl.answers", "new.jsonl.html"} < set(files_with(folder, b""))
    assert "new.jsonl.left_out.jsonl" in files_with(folder, b"audio too large")
    assert files_with(folder, SECRET.encode()) == ["new.jsonl"] and files_with(folder, KEY.encode()) == []


@pytest.mark.slow
def test_no_separated_line_shows_one(tmp_path, forkserver):
    """It names the file that it is of."""
    export(HalfAndRest(), tmp_path / "parts.ts", 1, 2, 8000)
    about = {"file": "parts.ts", "rate": 16000, "stems": ["music", "speech"], "seconds": 1.0, "overlap": 0.25}
    (tmp_path / "parts.json").write_text(json.dumps(about))
    out = tmp_path / "out" / "new.jsonl"
    with served(tmp_path) as there:
        path = manifest(tmp_path, {"audio": f"http://me:{SECRET}@{there}/a.flac?token={SECRET}", "domain": "music"})
        separation = Separation(str(tmp_path / "parts.json"), tmp_path, out.parent / "stems")
        separate_manifest(path, out, separation, StageWorkers(1, allow_private=True))
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["separated"]["audio"] == f"http://[redacted]@{there}/a.flac?[redacted]"
    assert files_with(out.parent, SECRET.encode()) == []


@contextmanager
def served(folder):
    """The host and port of a server of a sound."""
    sound(folder / "a.flac")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
