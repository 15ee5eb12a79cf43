"""Commands of the repository, run as a user runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.small_config import ROOT
from tests.helpers.warm_python import python


def run_script(*arguments: object, timeout: float = 2400, **environment: str) -> str:
    """What a script prints, which has to succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "2"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_failing(*arguments: object, timeout: float = 600) -> str:
    """What a script that has to fail with a sentence says on standard error."""
    done = subprocess.run([*python(), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr


def measured_plan(config: str, settings: Sequence[str], folder: Path) -> tuple[dict[str, Any], str]:
    """The result of `launch/plan.py --measure` as JSON, and what it printed. Memory that is given back goes back to the
    system."""
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["launch/plan.py", "--config", f"configs/{config}.json", "--measure", *options]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    said = run_script(*command, "--json", folder / "found.json", **given_back)
    return json.loads((folder / "found.json").read_text()), said
