"""What building the roles of a distillation takes, at a twelfth of the full size."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long


def test_roles_are_built_one_at_a_time_and_the_teacher_stays_in_its_file(root, tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "tests.helpers.building_memory", str(tmp_path / "teacher"), *words]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip().splitlines()[-1]

    copy = 4 * int(run("--write"))  # bytes of the model in fp32
    found = json.loads(run())
    # A role is there once in fp32 until it is sharded and cast.
    assert found["peak"] < found["kept"] + 1.4 * copy
