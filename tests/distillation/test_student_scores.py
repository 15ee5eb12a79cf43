"""A student's sounds for fixed prompts are judged at the ends of rounds, and the best checkpoint is known."""

import json

import pytest

from audiox_trainer.trainer.checkpoint import load


@pytest.mark.slow
def test_a_student_is_judged_at_the_ends_of_rounds(distilled):
    run = distilled.folders["scored"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["scores/power"] for row in rows if "scores/power" in row}
    saved = {load.step_of(folder): load.read_manifest(folder) for folder in load.list_checkpoints(run)}
    assert set(found) == set(saved) and len(saved) > 1
    for step, manifest in saved.items():
        assert manifest[load.SCORE] == {"metric": "power", "value": found[step], "better": "lower"}
    assert load.step_of(load.best_checkpoint(run)) == min(found, key=found.get)
