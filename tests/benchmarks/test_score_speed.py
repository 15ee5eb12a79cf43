"""Sounds are scored in one pass next to the networks alone. The measurements mean nothing here."""

import json

import pytest

from audiox_trainer.launch import bench_scorers
from tests.helpers.run_script import run_failing
from tests.helpers.scorer_weights import small_panns, small_vggish

pytestmark = pytest.mark.slow


def scorers_file(folder):
    small_panns(folder / "panns")
    small_vggish(folder / "vggish")
    scorers = [{"kind": "panns", "weights": "panns"}, {"kind": "vggish", "weights": "vggish", "name": "VGG"}]
    (folder / "scorers.json").write_text(json.dumps({"scorers": scorers}))
    return folder / "scorers.json"


def test_a_pass_is_compared_with_the_sum_of_its_networks(tmp_path):
    result = bench_scorers.measure(scorers_file(tmp_path), [], clips=5, seconds=1.2, rounds=2)
    per_clip = result["seconds_per_clip"]
    assert list(per_clip) == ["pass", "reading", "panns", "VGG", "networks"]
    for clock in ("wall", "cpu"):
        rows = {name: row[clock] for name, row in per_clip.items()}
        assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows.values())
        assert rows["networks"]["low"] >= rows["panns"]["low"] + rows["VGG"]["low"]
        assert result["of_networks_speed"][clock]["high"] <= rows["networks"]["high"] / rows["pass"]["low"]
    lines = bench_scorers.summary_lines(result)
    assert "of the networks' own speed" in lines[-2] and lines[-1].startswith("10,000 clips: ")
    json.dumps(result)


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--rounds 3: more than the 2 clips that they share"):
        bench_scorers.measure(scorers_file(tmp_path), [], clips=2, seconds=1.2, rounds=3)
    with pytest.raises(ValueError, match=r"--seconds 0\.1: too short, the scorers need 0\.9"):
        bench_scorers.measure(tmp_path / "scorers.json", [], clips=2, seconds=0.1, rounds=1)
    said = run_failing("launch/bench.py", "scorers", "--scorers", tmp_path / "none.json")
    assert said.count("\n") == 1 and "none.json" in said
