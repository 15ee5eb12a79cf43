"""What failures cost a run, by arithmetic."""

import pytest

from audiox_trainer.trainer.core.config import load_pretrain_config
from audiox_trainer.trainer.core.gpu_specs import GPUS
from audiox_trainer.trainer.cost.goodput import goodput_figures
from audiox_trainer.trainer.cost.planned_time import Cluster
from audiox_trainer.trainer.cost.scaling_report import scaling_figures
from audiox_trainer.trainer.cost.workload import workload
from tests.helpers.small_config import ROOT


def test_what_a_failure_costs():
    """1,024 GPUs, a failure in 48.8 hours: 120 s to notice, 300 s to start, half of 1000 steps."""
    config = load_pretrain_config(ROOT / "configs" / "2p7b.json", ["checkpoint.every=1000"])
    work, cluster = workload(config), Cluster(GPUS["h100"], 1024)
    (row,) = goodput_figures(config, work, [cluster], restart=300.0)["rows"]
    (scaled,) = scaling_figures(work, [cluster])["rows"]
    step, saving = scaled["update"]["seconds"], scaled["save_seconds"]
    lost = 120 + 300 + 2 * saving + 500 * step
    expected = 1000 * step / (1000 * step + saving) / (1 + lost / (3600 * 50_000 / 1024))
    assert row["goodput"] == pytest.approx(expected, rel=1e-9)


def test_copies_on_the_nodes_lose_fewer_steps():
    clusters = [Cluster(GPUS["h100"], 512)]
    copies = ["checkpoint.local_every=100", "checkpoint.local_folder=/local"]
    lost = []
    for settings in ([], copies):
        config = load_pretrain_config(ROOT / "configs" / "2p7b.json", settings)
        lost.append(goodput_figures(config, workload(config), clusters, 300.0)["rows"][0]["again"])
    assert lost[1] == pytest.approx(lost[0] / 50)
