"""A stage during an outage: many addresses in a row without an answer stop it, a few are left out."""

import json
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.media import source
from audiox_trainer.trainer.stages.run_stage import run_stage
from audiox_trainer.trainer.stages.segment import Segmentation, SegmentJudge
from audiox_trainer.trainer.stages.stage import Stage, StageWorkers
from tests.helpers.preparation import manifest, sound

pytestmark = pytest.mark.slow


def judge_without_pause(task):
    source.PAUSE = 0.0
    yield from SegmentJudge(Segmentation())(task)


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def cut(tmp_path, forkserver, port):
    """Lines of a file that is there (t), and of an address (g). A small manifest has one line per block."""

    def cut(kinds, **workers):
        sound(tmp_path / "a.flac")
        lines = [{"audio": "a.flac" if kind == "t" else f"http://127.0.0.1:{port}/a.flac"} for kind in kinds]
        path, stage = manifest(tmp_path, *lines), Stage("segment", {}, judge_without_pause)
        return run_stage(stage, path, tmp_path / "out.jsonl", StageWorkers(1, allow_private=True, **workers))

    return cut


def test_an_outage_stops_a_stage_and_costs_no_line(tmp_path, cut, port):
    message = r"10 addresses in a row gave no answer, the last one: http.*/a\.flac.*; finished work stays"
    with pytest.raises(OSError, match=message):
        cut("t" + 11 * "g")
    assert [p.name for p in (tmp_path / "out.jsonl.work/blocks").glob("*")] == ["000000.json"]
    assert not (tmp_path / "out.jsonl").exists()
    with HTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        summary = cut("t" + 11 * "g")
        server.shutdown()
    assert summary.kept_lines == 12 and not summary.left_out


@pytest.mark.parametrize(("kinds", "most"), [("t" + 9 * "g", 10), ("tggt", 3), ("tggg", 0)])
def test_some_that_are_gone_are_left_out(tmp_path, cut, kinds, most):
    summary = cut(kinds, unreachable=most)
    gone = [i for i, kind in enumerate(kinds, 1) if kind == "g"]
    rows = map(json.loads, (tmp_path / "out.jsonl.left_out.jsonl").read_text().splitlines())
    assert summary.left_out == {"unreachable": len(gone)} and [row["line"] for row in rows] == gone


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass
