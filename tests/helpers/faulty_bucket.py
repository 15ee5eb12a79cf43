"""A bucket of a folder's files on 127.0.0.1, which fails as a test says: what S3's clients ask for when they read."""

import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Bucket"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.split("?")[0].lstrip("/").partition("/")[2]
        file = self.server.folder / name
        time.sleep(self.server.delay)
        if self.server.fails(name):
            self._say(500, b"<Error><Code>InternalError</Code></Error>", body)
        elif not file.is_file():
            self._say(404, b"<Error><Code>NoSuchKey</Code></Error>", body)
        else:
            self._say(200, file.read_bytes(), body)

    def _say(self, status: int, data: bytes, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.send_header("ETag", '"0"')
        self.end_headers()
        half = len(data) // 2
        for part in (data[:half], data[half:]) if body else ():
            self.wfile.write(part)
            time.sleep(self.server.delay)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Bucket(ThreadingHTTPServer):
    """A context manager. The first `failures` requests for each file whose name holds `failing` are answered with 500;
    every answer takes `delay` seconds, and as long again in its middle and at its end."""

    daemon_threads = True

    def __init__(self, folder: Path, failing: str = ".mds", failures: float = 0, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.failing, self.failures, self.delay = folder, failing, failures, delay
        self.dead_until = 0.0  # by the monotonic clock: until then every answer is 500
        self.asked: dict[str, int] = {}
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fails(self, name: str) -> bool:
        with self.lock:
            self.asked[name] = self.asked.get(name, 0) + 1
            dead = time.monotonic() < self.dead_until
            return dead or (self.failing in name and self.asked[name] <= self.failures)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
