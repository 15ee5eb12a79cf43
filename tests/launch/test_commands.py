"""The console commands of an installation: each is a script of launch/, and works from any folder."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.helpers.small_config import ROOT

COMMANDS = {point.name: point for point in entry_points(group="console_scripts") if point.name.startswith("audiox-")}
# Parts of scripts, and one that writes into this checkout.
WITHOUT = {
    "bench_options", "bench_page", "bench_prepare", "bench_scorers", "bench_throughput", "bench_tiles",
    "caption_commands", "config_schema", "demo_steps", "manifest_commands", "sbom", "separate_command", "set_command",
    "stage_commands",
}  # fmt: skip


def test_every_script_is_a_command():
    scripts = {path.stem for path in (ROOT / "launch").glob("*.py")} - WITHOUT
    assert set(COMMANDS) == {f"audiox-{name.replace('_', '-')}" for name in scripts}, "make setup installs them"


@pytest.mark.parametrize("name", COMMANDS)
def test_it_calls_the_main_function_of_its_script(name):
    script, function = COMMANDS[name].value.removeprefix("audiox_trainer.launch.").split(":")
    tree = ast.parse((ROOT / "launch" / f"{script}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.slow
def test_it_finds_a_configuration_by_name_from_any_folder(tmp_path):
    command = [Path(sys.executable).with_name("audiox-plan"), "--config", "2p7b", "--gpus", "64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "GPU-hours" in done.stdout, done.stderr
