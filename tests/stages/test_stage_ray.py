"""A stage on Ray writes the bytes of one without it."""

import subprocess
import sys

import pytest

from audiox_trainer.trainer.stages.curate import segment_manifest
from audiox_trainer.trainer.stages.segment import Segmentation
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.preparation import manifest, sound, stage_results

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]

ON_RAY = """
import sys
from pathlib import Path
from audiox_trainer.trainer.stages.curate import segment_manifest
from audiox_trainer.trainer.stages.segment import Segmentation
from audiox_trainer.trainer.stages.stage import StageWorkers

if __name__ == "__main__":
    segment_manifest(Path(sys.argv[1]), Path(sys.argv[2]), Segmentation(2.0), StageWorkers(2, "local"))
"""


def test_a_cluster_of_this_machine(tmp_path):
    sound(tmp_path / "long.flac", 7.0)
    sound(tmp_path / "short.flac", 1.5)
    (tmp_path / "text.wav").write_text("no sound")
    names = ("long.flac", "text.wav", "none.flac", "short.flac")
    path = manifest(tmp_path, *({"audio": name, "note": name} for name in names))
    expected, out = tmp_path / "expected.jsonl", tmp_path / "out.jsonl"
    segment_manifest(path, expected, Segmentation(2.0), StageWorkers(1))
    subprocess.run([sys.executable, "-c", ON_RAY, str(path), str(out)], check=True, timeout=600)
    assert len(out.read_text().splitlines()) == 5
    assert stage_results(out) == stage_results(tmp_path / "expected.jsonl")
