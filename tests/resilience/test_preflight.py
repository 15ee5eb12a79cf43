"""The preflight names a node that lacks something, sets every rank's exit code, and never hangs."""

import json
import re
import subprocess
import sys

import pytest
import torch

from audiox_trainer.trainer.core.cli import ExitCode
from audiox_trainer.trainer.core.distill_config import load_training_config
from audiox_trainer.trainer.cost.planned_memory import configured_layout, planned_memory
from audiox_trainer.trainer.cost.workload import workload
from audiox_trainer.trainer.resilience.preflight import NodeRequirements
from audiox_trainer.trainer.training.node_requirements import from_config
from tests.helpers.small_config import ROOT
from tests.helpers.warm_python import python

pytestmark = pytest.mark.slow
BAD = ExitCode.BAD_NODE
WIDE = ("launch/pretrain.py", "--config", "configs/2p7b.json", "--set", "training.micro_batch=120")
# Name: ranks, each a node n1, n2, ...; options; faults of ranks; what is said.
SCENARIOS = {
    "sound": (3, ["--disk", "0.001"], {}, r"^preflight: 3 nodes, 3 ranks; all-reduce of 4 MB: [\d.]+ GB/s$"),
    "absent": (
        3,
        ["--patience", "4"],
        {2: "absent"},
        r"n3 \(rank 2\) did not report its name within 4 s; is the node up",
    ),
    "first absent": (
        3,
        ["--patience", "4"],
        {0: "absent"},
        r"n1 \(rank 0\) does not answer at 127\.0\.0\.1:\d+ within",
    ),
    "clock": (3, [], {1: "clock"}, r"n2: its clock is -(59|60)\.\d s from the others'$"),
    "two clocks": (
        2,
        [],
        {1: "clock, a little"},
        r"n1 and n2: their clocks are (8\.9|9\.\d) s apart, one of them is wr",
    ),
    "a lost driver": (
        3,
        [],
        {0: "has a GPU", 1: "lost its driver", 2: "has a GPU"},
        r"^error: n2: 0 GPUs for 1 ranks$",
    ),
    "one without a GPU": (3, [], {0: "has a GPU", 1: "has a GPU"}, r"^error: n3: no GPU, others have 1$"),
    "disk": (3, ["--disk", "500"], {0: "disk", 1: "disk"}, r"n1: 3\.0 GB are free in /.*, 500 are needed; n2: 3\.0 GB"),
    "disk for a configuration": (
        2,
        ["--of", "launch/pretrain.py", "--config", "configs/2p7b.json", "--output", "runs/a", "--resume"],
        {0: "disk", 1: "disk"},
        r"error: n1: 3\.0 GB are free in /.*, 1\d\d are needed; n2: ",
    ),
    "memory for a configuration": (
        2,
        ["--disk", "0", "--of", *WIDE],
        {0: "has a GPU", 1: "has a GPU"},
        r"n1: GPU 0 has 80\.0 GB free, [1-9]\d\d are needed; .*n2: GPU 0",
    ),
    "much too large": (2, ["--disk", "1e9"], {}, r"n1: [\d.]+ GB are free in /.*, 1e\+09 are needed; n2: "),
    "no GPU": (
        2,
        ["--memory", "70"],
        {1: "memory"},
        r"n1: 0 GPUs for 1 ranks; n2: GPU 0 has 5\.0 GB free, 70 are needed",
    ),
    "slow": (4, ["--bandwidth", "1000"], {2: "link"}, r"an all-reduce of 4 MB .* 1000 are needed; slow: n3 \(n1-n2"),
    "slow, three": (3, ["--bandwidth", "1000"], {0: "link"}, r"needed; slow: n1 \(n1-n2 1\d\d ms, n2-n3"),
    "stuck": (3, ["--patience", "8"], {1: "driver"}, r"n2 \(rank 1\) did not report its state within 8 s"),
}


@pytest.fixture(scope="module")
def said():
    """The exit code and the output of each rank of each scenario."""
    plan = {
        name: {"ranks": ranks, "options": ["--output", "/", "--megabytes", "4", *options], "faults": faults}
        for name, (ranks, options, faults, _) in SCENARIOS.items()
    }
    command = [sys.executable, "-m", "tests.helpers.preflight_scenarios"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(plan), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_node_is_named(said, name):
    ranks, _, faults, words = SCENARIOS[name]
    found = said[name]
    assert len(found) == ranks - list(faults.values()).count("absent")
    expected = 0 if name == "sound" else BAD
    assert [code for code, _ in found.values()] == [expected] * len(found), found
    first = next(iter(sorted(found)))
    assert re.search(words, found[first][1].strip(), re.MULTILINE), found
    if "absent" not in name and name != "stuck":
        assert not any(text for rank, (_, text) in found.items() if rank != "0"), "one rank says it"


def test_a_rank_that_does_not_come_back_ends_itself(said):
    assert "error: n2 (rank 1): looking at its GPU and disk takes longer than 8 s" in said["stuck"]["1"][1]


@pytest.mark.parametrize(("ranks", "expected"), [(8, 0.25 * 450), (16, 0.25 * 400)])  # NVLink; eight ports of a node
def test_what_a_configuration_wants_of_gpus(root, monkeypatch, tmp_path, ranks, expected):
    """Nine tenths of the planner's memory, a quarter of its speed, room for the checkpoints that are missing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("WORLD_SIZE", f"{ranks}")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    config = load_training_config(root / "configs" / "2p7b.json")
    found = from_config(NodeRequirements(output=tmp_path), config, ())
    work = workload(config)
    planned = planned_memory(work, configured_layout(work, ranks))
    assert found.memory == pytest.approx(0.9 * planned.total / 1e9, rel=0.01)
    assert found.bandwidth == pytest.approx(expected, rel=0.01)
    saved = sum(role.checkpoint_bytes() for role in work.roles) / 1e9
    assert found.disk == pytest.approx(saved * (1 + config.checkpoint.keep_last), rel=0.01)
    (tmp_path / "checkpoints" / "step_00000005").mkdir(parents=True)
    again = from_config(NodeRequirements(output=tmp_path, memory=7), config, ["memory"])
    assert again.disk == pytest.approx(saved * config.checkpoint.keep_last, rel=0.01) and again.memory == 7


def test_offloaded_states_are_not_reckoned(root, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    config = load_training_config(root / "configs" / "2p7b.json", ["zero.offload_optimizer=true"])
    assert from_config(NodeRequirements(), config, ()) == NodeRequirements()


def test_without_a_launcher_it_says_so(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    command = [*python(), "launch/preflight.py", "--output", "/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == ExitCode.USAGE and re.search(r"RANK, .*not set; start it with a launcher", done.stderr)
