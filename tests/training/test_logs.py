"""metrics.jsonl is for people: whatever is wrong with it, a run resumes and says so."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from audiox_trainer.trainer.training import logs
from audiox_trainer.trainer.training.logs import Logs

LINES = [{"step": step, "seconds": 1.5 * step, "loss": 1 / step, "lr": 1e-4, "skipped": None} for step in range(1, 9)]
TEXT = "".join(json.dumps(line) + "\n" for line in LINES)


def resumed(folder, step, capsys):
    """The output of a run that resumes at this step, and the steps in its metrics."""
    with Logs(folder, True, step, 20, "run"):
        pass
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return capsys.readouterr().out, [row["step"] for row in rows]


@pytest.mark.parametrize("damage", ['{"step": 3, "lo', "[1]", "{}", "\udc80\udcff", '{"step": "3"}', "[" * 100000])
def test_a_damaged_line_is_left_out_and_named(tmp_path, capsys, damage):
    lines = TEXT.splitlines()
    damaged = "\n".join([*lines[:2], damage, *lines[3:]]).encode(errors="surrogateescape") + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(damaged)
    assert logs.last_step(tmp_path) == 8 and len(logs.read_losses(tmp_path)["loss"]) == 7
    said, steps = resumed(tmp_path, 6, capsys)
    assert f"{tmp_path}/metrics.jsonl is damaged: 1 of its 8 lines is left out" in said
    assert steps == [1, 2, 4, 5, 6]
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == damaged, "the file as it was"


def test_half_a_line_at_the_end_is_no_damage(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(TEXT + '{"step": 9, "lo')
    assert resumed(tmp_path, 8, capsys) == ("", list(range(1, 9)))


def test_no_flipped_bit_keeps_a_run_from_resuming(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(TEXT.encode())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "metrics.jsonl").write_bytes(data)
        _, steps = resumed(tmp_path, 8, capsys)
        assert len(steps) >= 6


def test_curves_have_the_same_steps_as_the_metrics(tmp_path):
    for start, end in ((0, 6), (4, 8)):
        with Logs(tmp_path, True, start, 20, "run") as log:
            for step in range(start + 1, end + 1):
                log.metrics(step, {"loss": 1 / step}, ())
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("loss")] == list(range(1, 9))
    assert [line["step"] for line in map(json.loads, (tmp_path / "metrics.jsonl").open())] == list(range(1, 9))


def test_metrics_of_steps_that_a_run_went_back_from_twice_are_both_there(tmp_path):
    for _ in range(2):
        (tmp_path / "metrics.jsonl").write_text(TEXT)
        with Logs(tmp_path, True, 4, 20, "run", keep=True):
            pass
    names = sorted(path.name for path in (tmp_path / "rolled_back").iterdir())
    assert names == ["metrics_5_to_8.jsonl", "metrics_5_to_8.jsonl.2"]
