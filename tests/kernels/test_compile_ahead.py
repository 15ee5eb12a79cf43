"""Kernels that are compiled ahead for another machine: what was compiled once is found there, whatever its folder."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.kernels.compile_ahead import PARTS, parse


@pytest.fixture
def compile_ahead(root):
    """A call of the script in a folder: its exit code, how many kernels were there, and how many it compiled."""

    def call(folder, *arguments):
        command = [sys.executable, "-m", "tests.kernels.compile_ahead", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(root)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)
        said = re.search(r"(\d+) kernels were there, (\d+) were compiled", done.stdout)
        assert said, done.stdout + done.stderr[-2000:]
        return done.returncode, int(said[1]), int(said[2])

    return call


def travels(compile_ahead, folder, *parts):
    here, there = folder / "here", folder / "there"
    here.mkdir()
    code, found, compiled = compile_ahead(here, ".triton", *parts)
    assert (code, found) == (0, 0) and compiled > 0
    here.rename(there)
    assert compile_ahead(there, there / ".triton", "--check", *parts) == (0, compiled, 0)
    return there, compiled


@pytest.mark.slow
def test_a_cache_travels(compile_ahead, tmp_path):
    there, compiled = travels(compile_ahead, tmp_path, "resume")
    shutil.rmtree(next(there.glob(".triton/*/_forward.cubin")).parent)
    assert compile_ahead(there, there / ".triton", "--check", "resume") == (1, compiled - 1, 1)


@pytest.mark.long
def test_a_cache_of_all_parts_travels(compile_ahead, tmp_path):
    _, compiled = travels(compile_ahead, tmp_path)
    assert compiled > 100


def test_its_parts_are_those_of_the_script(root):
    script = (root / "launch" / "measure.sh").read_text()
    for name in PARTS:
        assert re.search(rf"\b(part|bench|train) {name}", script), name
    assert "TRITON_CACHE_DIR=$PWD/.triton" in script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/tmp/cache"], "/tmp/cache: give a folder in the checkout, by its path from here"),
        (["../cache"], "../cache: give a folder in the checkout"),
        ([".triton", "kernel"], "kernel: no part; there are tests, kernels, tiles"),
    ],
)
def test_what_it_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err
