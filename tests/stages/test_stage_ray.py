"""A stage on Ray writes the bytes of one without it. Its driver and actors are those of a preparation, of which the
quick tests have a run on Ray: starting a cluster takes most of a minute of two cores."""

import json
import subprocess
import sys
import time

import pytest

from audiox_trainer.trainer.captions.annotate import Annotation
from audiox_trainer.trainer.captions.ask_stages import AskOptions, annotate_manifest
from audiox_trainer.trainer.stages.curate import segment_manifest
from audiox_trainer.trainer.stages.segment import Segmentation
from audiox_trainer.trainer.stages.stage import StageWorkers
from tests.helpers.caption_model import caption_model, clips, sounding_manifest
from tests.helpers.preparation import manifest, sound, stage_results
from tests.helpers.ray_nodes import ray_nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]

ON_RAY = """
import sys
from pathlib import Path
from audiox_trainer.trainer.stages.curate import segment_manifest
from audiox_trainer.trainer.stages.segment import Segmentation
from audiox_trainer.trainer.stages.stage import StageWorkers

if __name__ == "__main__":
    segment_manifest(Path(sys.argv[1]), Path(sys.argv[2]), Segmentation(2.0), StageWorkers(2, sys.argv[3]))
"""

ASKING = """
import sys
from pathlib import Path
from audiox_trainer.trainer.captions.annotate import Annotation
from audiox_trainer.trainer.captions.ask_stages import AskOptions, annotate_manifest
from audiox_trainer.trainer.manifest.endpoint import Endpoint
from audiox_trainer.trainer.stages.stage import StageWorkers

if __name__ == "__main__":
    manifest, out, model, address = sys.argv[1:]
    annotation = Annotation(Endpoint(model, "ears", timeout=60.0, retries=3))
    annotate_manifest(Path(manifest), Path(out), annotation, StageWorkers(3, address), AskOptions(4))
"""


@pytest.fixture
def nodes(root, monkeypatch):
    with ray_nodes(root, monkeypatch) as made:
        yield made


@pytest.mark.long
def test_a_cluster_of_this_machine(tmp_path):
    sound(tmp_path / "long.flac", 7.0)
    sound(tmp_path / "short.flac", 1.5)
    (tmp_path / "text.wav").write_text("no sound")
    names = ("long.flac", "text.wav", "none.flac", "short.flac")
    path = manifest(tmp_path, *({"audio": name, "note": name} for name in names))
    expected, out = tmp_path / "expected.jsonl", tmp_path / "out.jsonl"
    segment_manifest(path, expected, Segmentation(2.0), StageWorkers(1))
    subprocess.run([sys.executable, "-c", ON_RAY, str(path), str(out), "local"], check=True, timeout=600)
    assert len(out.read_text().splitlines()) == 5
    assert stage_results(out) == stage_results(tmp_path / "expected.jsonl")


@pytest.mark.long
def test_a_node_is_lost(tmp_path, nodes):
    for i in range(40):
        sound(tmp_path / f"{i}.flac", 3.0 + i % 5)
    path = manifest(tmp_path, *({"audio": f"{i}.flac"} for i in range(40)))
    expected, out = tmp_path / "expected.jsonl", tmp_path / "out.jsonl"
    segment_manifest(path, expected, Segmentation(2.0), StageWorkers(2))
    nodes.start()
    nodes.wait()
    second = nodes.start()
    with subprocess.Popen([sys.executable, "-c", ON_RAY, str(path), str(out), nodes.address]) as driver:
        while len(list(tmp_path.glob("out.jsonl.work/blocks/*"))) < 20 and driver.poll() is None:
            time.sleep(0.05)
        nodes.kill(second)
        assert driver.wait(600) == 0
    assert stage_results(out) == stage_results(expected)


@pytest.mark.long
def test_two_nodes_ask_a_model(tmp_path, nodes):
    """Every question once, though each actor keeps answers in the same file."""
    path = sounding_manifest(tmp_path, *clips(*(f"good {i}" for i in range(40))))
    expected, out = tmp_path / "expected.jsonl", tmp_path / "out.jsonl"
    nodes.start()
    nodes.wait()
    nodes.start()
    with caption_model() as model:
        annotation = Annotation(model.endpoint)
        annotate_manifest(path, expected, annotation, StageWorkers(1), AskOptions(4))
        alone = sum(model.asked.values())
        command = [sys.executable, "-c", ASKING, path, out, model.endpoint.url, nodes.address]
        subprocess.run(command, check=True, timeout=600)
        assert sum(model.asked.values()) == 2 * alone
    assert stage_results(out) == stage_results(expected)


@pytest.mark.long
def test_networks_judge_where_the_gpus_are(tmp_path, nodes):
    """A resource plays the GPU of the first node, for the two cores there. What needs none runs on both nodes."""
    for i in range(20):
        sound(tmp_path / f"{i}.flac", 1.0)
    path = manifest(tmp_path, *({"audio": f"{i}.flac"} for i in range(20)))
    nodes.start("--num-gpus=1", cores=2)
    nodes.wait()
    nodes.start()

    def lines(gpus):
        out = tmp_path / f"{gpus}.jsonl"
        code = "from tests.helpers.visible_gpus import main; main()"
        command = [sys.executable, "-c", code, path, out, nodes.address, gpus]
        subprocess.run(command, check=True, timeout=600)
        return [json.loads(line) for line in out.read_text().splitlines()]

    with_gpus, without = lines("gpus"), lines("none")
    assert {line["gpus"] for line in with_gpus} == {"0"}
    assert len({line["maker"] for line in with_gpus}) == 2
    assert {line["gpus"] for line in without} == {""}
    assert len({line["maker"] for line in without}) == 3
