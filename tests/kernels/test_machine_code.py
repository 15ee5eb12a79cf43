"""The Triton kernels, compiled for GPUs without one: what the 2p7b shape runs fits into registers, multiplies on the
tensor cores, and needs what the table of docs/lab/performance.md says."""

import functools
import json
import os
import subprocess
import sys

import pytest

from tests.kernels.machine_code import ABSENT, GPUS, recorded

REWRITE = "python -m tests.kernels.machine_code --write"


@pytest.fixture(scope="module")
def codes(root):
    """A call of the script: kernels by name, and the release of Triton that compiled them, once for all runs."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(root / ".pytest_cache" / "triton")}

    @functools.cache
    def call(sm, head):
        command = [sys.executable, "-m", "tests.kernels.machine_code", str(sm), "--head", str(head)]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        answer = json.loads(done.stdout)
        return {code["kernel"]: code for code in answer["codes"]}, answer["triton"]

    return call


def on_tensor_cores(kernels):
    return {name for name, code in kernels.items() if code["multiplies"] and code["products"]}


def multiplying(kernels):
    found = {name for name, code in kernels.items() if code["multiplies"]}
    assert len(found) == 3
    return found


def recorded_table(triton, sm):
    """Cells and warps by kernel."""
    release, rows = recorded()
    if triton != release:
        pytest.skip(f"the table is of Triton {release}, this is {triton}; to rewrite it: {REWRITE}")
    return {name: (row[GPUS[sm]], row["warps"]) for name, row in rows.items() if row[GPUS[sm]] != ABSENT}


def compiled_table(kernels):
    return {name: (code["cell"], str(code["warps"])) for name, code in kernels.items()}


@pytest.mark.slow
def test_on_an_h100_nothing_is_spilled(codes):
    kernels, triton = codes(90, 64)
    assert len(kernels) == 15
    assert {name for name, code in kernels.items() if code["stack"]} == set()
    assert on_tensor_cores(kernels) == multiplying(kernels)
    assert compiled_table(kernels) == recorded_table(triton, 90), f"if the change is meant: {REWRITE}"


@pytest.mark.long
@pytest.mark.parametrize("sm", [80, 100])
def test_on_other_gpus_the_table_says_what_is_spilled(codes, sm):
    kernels, triton = codes(sm, 64)
    assert on_tensor_cores(kernels) == multiplying(kernels)
    assert compiled_table(kernels) == recorded_table(triton, sm), f"if the change is meant: {REWRITE}"


@pytest.mark.long
@pytest.mark.parametrize("sm", list(GPUS))
def test_the_narrowest_heads_compile(codes, sm):
    kernels, _ = codes(sm, 32)
    assert {name for name, code in kernels.items() if code["stack"]} == set()
    assert on_tensor_cores(kernels) == multiplying(kernels)
