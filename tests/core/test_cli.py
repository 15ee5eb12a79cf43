"""A command whose output nobody reads any more runs to its end."""

import subprocess
import sys
import textwrap

import pytest

from tests.helpers.small_config import ROOT

SCRIPT = """
    import os, subprocess, sys
    from pathlib import Path
    from tqdm import tqdm
    from audiox_trainer.trainer.core import cli

    def act():
        print("begins", flush=True)
        sys.stdin.readline()
        for _ in tqdm(range(3), mininterval=0):
            print("a step", flush=True)
            print("one more", file=sys.stderr)
            tqdm.write("a line above the bar")
        subprocess.run([sys.executable, "-c", "print(1)"], check=True)
        Path(sys.argv[1]).write_text("saved")

    if __name__ == "__main__":
        sys.exit(cli.run(act))
"""


@pytest.mark.parametrize("joined", [False, True], ids=["only stdout", "stderr too"])
def test_a_reader_that_goes_away_does_not_end_it(tmp_path, joined):
    (tmp_path / "run.py").write_text(textwrap.dedent(SCRIPT))
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "out")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if joined else subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == "begins\n"
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.wait(600) == 0
    assert (tmp_path / "out").read_text() == "saved"
