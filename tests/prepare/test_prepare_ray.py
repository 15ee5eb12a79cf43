"""A preparation on Ray: the bytes of one without it, whatever is lost; two nodes on this machine, and a bucket."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.hardware import free_port
from audiox_trainer.trainer.prepare.prepare_files import Workers, prepare_files
from tests.helpers.killing import prepare_under_fire
from tests.helpers.preparation import MODEL, contents, manifest, sound, start_driver
from tests.helpers.ray_nodes import HOST, TOKEN, ray_nodes
from tests.prepare.test_prepare_kills import damaged_manifest

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forkserver")]


@pytest.fixture
def nodes(root, monkeypatch):
    with ray_nodes(root, monkeypatch) as made:
        yield made


def small(folder, count):
    for i in range(count):
        sound(folder / f"{i}.flac", 1.0 + 3 * (i % 4))
    return manifest(folder, *({"audio": f"{i}.flac", "category": {"bell": 2}} for i in range(count)))


def test_one_of_this_machine(tmp_path):
    """Started and ended by the command itself; only this machine reaches it."""
    path = small(tmp_path, 6)
    prepare_files(str(tmp_path / "expected"), MODEL, path, 0, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 1))  # sends nothing
        own = probe.getsockname()[0]
    command = [sys.executable, "-c", LOCAL, str(tmp_path / "out"), str(path), str(tmp_path / "listening"), own]
    subprocess.run(command, check=True, timeout=600)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    seen, *open_to_all = (tmp_path / "listening").read_text().split()
    assert int(seen) > 0 and open_to_all == [], "ports that other machines reach"


LOCAL = """
import socket, sys, threading, time
from pathlib import Path
import psutil
from audiox_trainer.trainer.prepare.prepare_files import Workers, prepare_files
from tests.helpers.preparation import MODEL

def listen():
    seen, found = set(), set()
    while True:
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                for c in process.net_connections():
                    if c.status == psutil.CONN_LISTEN:
                        seen.add(c.laddr.port)
                        socket.create_connection((sys.argv[4], c.laddr.port), 1).close()
                        found.add(f"{process.name()}:{c.laddr.port}".replace(" ", "_"))
            except (psutil.Error, OSError):
                pass
        written = Path(sys.argv[3] + ".part")
        written.write_text(f"{len(seen)} " + " ".join(sorted(found)))
        written.replace(sys.argv[3])  # this thread ends anywhere, with the process
        time.sleep(0.5)

if __name__ == "__main__":
    threading.Thread(target=listen, daemon=True).start()
    prepare_files(sys.argv[1], MODEL, Path(sys.argv[2]), 0, Workers(1, (), "local"))
"""


JOINED = """
import sys, time, ray
ray.init(sys.argv[1])
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.5)
"""


@pytest.mark.long
def test_a_gpu_is_fed_by_another_node(tmp_path, nodes):
    """The first node has the GPU, played by a resource, and cores for its own; a node without one decodes as well."""
    path = damaged_manifest(tmp_path, 10)
    prepare_files(str(tmp_path / "expected"), MODEL, path, 0, 1)
    nodes.start("--num-gpus=1")
    nodes.wait()
    nodes.start()
    subprocess.run([sys.executable, "-c", JOINED, nodes.address], check=True, timeout=300)
    run(nodes, tmp_path / "out", path, ("cpu",))
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def run(nodes, out, path, devices=()):
    driver = start_driver(out, path, Workers(1, devices, nodes.address))
    driver.join(900)
    assert driver.exitcode == 0


@pytest.mark.parametrize(("count", "drivers", "shots"), [(20, 1, 4), pytest.param(1000, 3, 20, marks=pytest.mark.long)])
def test_actors_drivers_and_a_node_are_killed(tmp_path, nodes, count, drivers, shots):
    path = damaged_manifest(tmp_path, count)
    prepare_files(str(tmp_path / "expected"), MODEL, path, 0, 2)
    nodes.start()
    nodes.wait()
    second, killed = nodes.start(), []

    def targets(driver):
        """The actors; the second node is lost when half of the blocks are there."""
        if not killed and len(list(Path(tmp_path / "out").glob("work/blocks/*"))) > count // 2:
            nodes.kill(second)
            killed.append(second)
        return nodes.actors()

    prepare_under_fire(tmp_path / "out", path, Workers(1, (), nodes.address), 0, drivers, shots, targets)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.long
def test_nodes_of_a_launcher_make_a_cluster(tmp_path, root):
    """As srun or torchrun start them, one per node: the first drives, the second works for it and ends after it."""
    path, port = small(tmp_path, 12), str(free_port())
    prepare_files(str(tmp_path / "expected"), load_pretrain_config(root / "configs/tiny.json").model, path, 0, 1)
    files = ["files", "--manifest", path, "--config", "configs/tiny.json", "--out", tmp_path / "out", "--workers", "1"]
    command = [sys.executable, "launch/prepare.py", *map(str, files), "--device", "cpu"]
    ranks = []
    for rank in ("1", "0"):
        where = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": HOST, "MASTER_PORT": port}
        environment = os.environ | where | {"RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert outputs[0] == "" and outputs[1].startswith(f"{tmp_path}/out: kept ")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
