"""Kills and damage at random points: every run ends bitwise like an undisturbed one."""

import json

import pytest

from tests.resilience import soak

pytestmark = pytest.mark.slow


def soaked(folder, *arguments):
    """The lines of a soak's log, after the checks that hold for every line."""
    log = folder / "soak.jsonl"
    assert soak.main([*arguments, "--folder", str(folder / "runs"), "--log", str(log)]) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert not any(line.get("hang") for line in lines)
    return lines


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.long)])
def test_kills_of_one_run(tmp_path, kills):
    lines = soaked(tmp_path, "--kills", str(kills), "--per-run", str(kills), "--only", "pretrain", "--seed", "2")
    assert [line.get("kill", "end") for line in lines] == [*range(kills), "end"]


def test_a_log_is_gone_on_with_after_its_last_whole_run(tmp_path):
    log, of = tmp_path / "soak.jsonl", {"seed": 3, "per_run": 2}
    whole = [{"kill": 0} | of, {"kill": 1} | of, {"run": 0} | of]
    text = "".join(json.dumps(line) + "\n" for line in whole)
    for torn in ("", '{"kill": 2, "seed": 3, "per_run": 2}\n{"kill": 3, "se', '{"ki'):
        log.write_text(text + torn)
        assert soak.begun(log, 3, 2) == whole and log.read_text() == text
    for seed, per_run, said in ((4, 2, "is of --seed 3, not 4"), (3, 5, "is of --per-run 2, not 5")):
        with pytest.raises(ValueError, match=said):
            soak.begun(log, seed, per_run)
    assert soak.begun(tmp_path / "none", 3, 2) == []


@pytest.mark.long
def test_twenty_kills(tmp_path):
    lines = soaked(tmp_path, "--kills", "20", "--seed", "1")
    assert sum("kill" in line for line in lines) == 20
    assert {line["kind"] for line in lines} == {"pretrain", "distill"}
