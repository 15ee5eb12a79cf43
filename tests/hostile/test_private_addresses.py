"""A manifest's http addresses reach public hosts only: its writer sees nothing of the reader's network."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from audiox_trainer.trainer.core.addresses import is_public
from audiox_trainer.trainer.manifest.manifest import ManifestEntry, read_entries
from audiox_trainer.trainer.media import http_client, source
from audiox_trainer.trainer.prepare.decode import EncoderSettings, EntryTask, Rejection, decode_entry
from tests.helpers.media_files import FRAMES, MONO

PRIVATE = [
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("169.254.169.254", "169.254.170.2", "192.0.2.1", "198.18.0.1", "240.0.0.1", "255.255.255.255", "224.0.0.1"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
    "2001:0:7f00:1:0:0:80ff:fffe",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "169.253.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address(address):
    assert is_public(address)


class Counting(BaseHTTPRequestHandler):
    to = ""  # where it redirects; "" for an answer of its own

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(302 if self.to else 200)
        if self.to:
            self.send_header("Location", self.to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(source, "PAUSE", 0.0)
    servers = []

    def serve(host, to=""):
        server = ThreadingHTTPServer((host, 0), type("Handler", (Counting,), {"to": to}))
        server.asked = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def rejection(address, allow_private=False):
    entry = ManifestEntry(3, "a file", address, None, "audio", 0.0, None, allow_private)
    (rejection,) = decode_entry(EntryTask(EncoderSettings(MONO, FRAMES), entry))
    assert isinstance(rejection, Rejection)
    return rejection


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "0x7f000001", "127.1", "me:secret@127.0.0.1", "rebound"]
)
def test_no_writing_of_this_machine_is_connected_to(host, serve, monkeypatch):
    """`rebound` is a name that leads to a public address when it is asked for first, and here afterwards."""
    server = serve("127.0.0.1")
    answers = ["8.8.8.8"]
    truly = socket.getaddrinfo

    def resolve(name, *rest, **options):
        return truly(answers.pop() if name == "rebound" and answers else "127.0.0.1", *rest, **options)

    if host == "rebound":
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        socket.getaddrinfo("rebound", 80)
    refused = rejection(f"http://{host}:{server.server_port}/a.wav")
    assert not server.asked
    if host not in ("2130706433", "0x7f000001", "127.1"):  # which the client takes for no address at all
        assert refused.reason == "private address"
        assert "which is not public; launch/prepare.py reads it with --private-addresses" in refused.detail
    assert "secret" not in refused.detail


def test_a_redirect_from_a_public_host(serve, monkeypatch):
    inner = serve("127.0.0.1")
    outer = serve("127.0.0.2", f"http://127.0.0.1:{inner.server_port}/latest/meta-data")
    monkeypatch.setattr(http_client, "is_public", lambda address: address == "127.0.0.2")
    refused = rejection(f"http://127.0.0.2:{outer.server_port}/a.wav")
    assert refused.reason == "private address" and "leads to 127.0.0.1" in refused.detail
    assert outer.asked and not inner.asked


def test_a_redirect_to_a_file_or_without_end(serve, tmp_path):
    for to in ((tmp_path / "a.wav").as_uri(), "ftp://127.0.0.1/a.wav", "gopher://127.0.0.1/", "/again"):
        server = serve("127.0.0.1", to)
        refused = rejection(f"http://127.0.0.1:{server.server_port}/a.wav", allow_private=True)
        assert refused.reason == "unreachable" and len(server.asked) < 200


def test_it_is_connected_to_when_asked_for(serve, tmp_path):
    server = serve("127.0.0.1")
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"audio": "http://127.0.0.1:{server.server_port}/a.wav"}}\n')
    for allowed in (False, True):
        (entry,) = read_entries(path, allowed)
        (refused,) = decode_entry(EntryTask(EncoderSettings(MONO, FRAMES), entry))
        assert refused.reason == ("zero length" if allowed else "private address") and bool(server.asked) == allowed
