"""The submissions that the documents show: ranks that divide the batch, shards that the configurations read."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from audiox_trainer.trainer.core.config import check_ranks, load_config
from audiox_trainer.trainer.core.config_reader import read_config
from audiox_trainer.trainer.core.distill_config import load_distill_config
from tests.helpers.small_config import ROOT

SUBMISSION = re.compile(r"sbatch ((?:--\S+ )*)launch/slurm/(\w+)\.sbatch((?: (?!#)[\w./=-]+)+)")
TEXTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "launch/slurm").glob("*.sbatch")))
FOUND = [
    (options, script, arguments.split())
    for file in TEXTS
    for options, script, arguments in SUBMISSION.findall(re.sub(r"\\\n\s*", "", file.read_text()))
]
TRAINING = [found for found in FOUND if found[1] in ("pretrain", "distill")]


def ranks(options: str, script: str) -> int:
    """Of a submission, whose own options come before what the script asks for."""
    asked = {}
    for text in ((ROOT / "launch/slurm" / f"{script}.sbatch").read_text(), options):
        asked |= dict(re.findall(r"--(nodes|ntasks-per-node)=(\d+)", text))
    return int(asked["nodes"]) * int(asked["ntasks-per-node"])


def accumulated(options: str, script: str, config: str, *arguments: str) -> int:
    """Micro-batches a rank and step; raises ValueError where the ranks do not divide the batch."""
    load = load_distill_config if script == "distill" else load_config
    settings = [value for name, value in pairwise(arguments) if name == "--set"]
    return check_ranks(load(ROOT / config, settings).training, ranks(options, script))


@pytest.mark.parametrize("submission", TRAINING, ids=lambda s: f"{s[0]}{s[1]}")
def test_its_ranks_divide_the_batch(submission):
    options, script, arguments = submission
    assert accumulated(options, script, *arguments) >= 1


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*2p7b*.json")), ids=lambda f: f.stem)
def test_every_configuration_of_full_size_runs_as_the_scripts_ask(config):
    assert accumulated("", "distill" if "student" in read_config(config) else "pretrain", str(config)) >= 1


def test_what_is_prepared_is_what_is_read():
    prepared = [arguments for _, script, arguments in FOUND if script == "prepare"]
    assert prepared and any("--nodes=6 " in options for options, _, _ in TRAINING), "the documents show both"
    for _, config, folder, *_ in prepared:
        read = {Path(stream.path).parent for stream in load_config(ROOT / config).data.streams}
        assert read == {Path(folder)}
