"""The decisions of a batch job, with Slurm's commands replaced by ones that note how they are called."""

import os
import shutil
import signal
import subprocess
import time
from datetime import datetime, timedelta

import pytest

from tests.helpers.slurm import until
from tests.helpers.small_config import ROOT

pytestmark = pytest.mark.slow

SCRIPTS = ROOT / "launch" / "slurm"
STUBS = {
    # Ends with the codes of the file `codes` in turn; with "asked" as soon as somebody has asked it to stop.
    "srun": """
echo "srun $*" >>"$NOTES/calls"
read -r code <"$NOTES/codes"
sed -i 1d "$NOTES/codes"
if [ "$code" = saves ]; then echo '{"step": 5}' >"$OUTPUT/latest.json"; code=78; fi
case $code in *after*) mkdir "$FIRST"; echo "${code#*after}" >"$FIRST/code"; code=${code%after*} ;; esac
case $code in never) exec sleep 30 >/dev/null 2>&1 ;; esac
case $code in asked*) until [ -f "$NOTES/asked" ]; do sleep 0.05; done; code=${code#asked-} ;; esac
exit "$code"
""",
    "scancel": 'echo "scancel $*" >>"$NOTES/calls"; touch "$NOTES/asked"',
    "squeue": 'echo "$RUNNING"',
    "scontrol": """
if [ "$1" = show ]; then printf 'n1\\nn2\\n'; else echo "scontrol $*" >>"$NOTES/calls"; exit "$REFUSED"; fi
""",
}


class Desk:
    """A folder from which scripts are submitted, and what became of them."""

    def __init__(self, folder):
        self.folder, self.output = folder, folder / "run"
        (folder / "bin").mkdir()
        for name, text in STUBS.items():
            (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (folder / "bin" / name).chmod(0o755)
        (folder / "launch").symlink_to(ROOT / "launch")
        (folder / "configs").symlink_to(ROOT / "configs")

    def start(self, codes, *arguments, script="pretrain", **variables):
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "NOTES": str(self.folder),
            "OUTPUT": str(self.output),
            "REFUSED": "0",
            "RUNNING": "",
            "PREFLIGHT": "no",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NTASKS": "2",
        }
        return subprocess.Popen(
            ["bash", str(SCRIPTS / f"{script}.sbatch"), *(arguments or ("configs/tiny.json",))],
            cwd=self.folder,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, codes, *arguments, **variables):
        """Its exit code, and what it has said."""
        process = self.start(codes, *arguments, **variables)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said

    def calls(self, name):
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if line.startswith(name)]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("codes", "code", "requeued", "starts", "words"),
    [
        ([0], 0, False, 1, "done; next: python launch/convert.py"),
        ([75], 75, True, 1, "stopped as requested, and saved; requeues itself"),
        ([1], 1, False, 1, "fix what the sentence after 'error:' says"),
        ([2], 2, False, 1, "the command line is wrong"),
        ([76], 76, False, 1, "submit again without it: sbatch --exclude=NODE"),
        ([77], 77, False, 1, "launch/verify.py lists what"),
        ([79], 79, False, 1, "diverged"),
        ([81], 81, False, 1, "a node failed a check: see the line above, and submit again without it"),
        ([78, 0], 0, False, 2, "a rank was lost (code 78"),
        ([137, 139, 0], 0, False, 3, "a rank was lost (code 139"),
        (["137after77"], 77, False, 1, "launch/verify.py lists what"),
        (["137after81", 81], 81, False, 1, "submit again without it"),
        (["137after1"], 1, False, 1, "fix what the sentence after 'error:' says"),
        (["78after137", "137after78", 0], 0, False, 3, "a rank was lost (code 137"),
        (["137after76", 137], 76, False, 1, "submit again without it"),
        ([80], 80, True, 1, "Slurm could not start the ranks (code 80)"),
        ([137, 233], 233, True, 2, "Slurm could not start the ranks (code 233)"),
        ([78] * 9, 1, False, 5, "gives up: 5 starts in a row saved nothing new"),
        ([78, 78, "saves", 78, 78, 78, 78, 78, 78], 1, False, 8, "gives up: 5 starts in a row saved nothing new"),
    ],
)
def test_what_a_code_leads_to(desk, codes, code, requeued, starts, words):
    ended, said = desk.run(codes)
    assert ended == code and words in said, said
    assert desk.calls("scontrol requeue") == (["scontrol requeue 7"] if requeued else [])
    assert len(desk.calls("srun")) == starts
    assert ("not requeued" in said) == (code not in (0, 75, 80, 233) and "gives up" not in words)


def test_what_slurm_does_not_requeue_is_to_be_submitted_again(desk):
    code, said = desk.run([75], REFUSED="1")
    assert code == 75 and "submit it again by the same command" in said


def test_a_retry_of_the_next_job_counts_from_one(desk):
    assert desk.run([78, 1], MAX_RETRIES="2")[0] == 1
    assert "gives up" in desk.run([78], MAX_RETRIES="2")[1]
    code, said = desk.run([78, 0], MAX_RETRIES="2", SLURM_JOB_ID="8")
    assert code == 0 and "attempt 2 of at most 2 from the same point" in said


def test_what_is_misspelt_is_named_before_anything_starts(desk):
    code, said = desk.run([0], "configs/tinny.json", PREFLIGHT="")
    assert code == 1 and f"error: there is no configuration configs/tinny.json in {desk.folder}" in said
    code, said = desk.run([0], SLURM_SUBMIT_DIR=str(desk.folder / "bin"))
    assert code == 1 and "submit from the root of the repository" in said and "command not found" not in said
    assert not desk.calls("srun")


def test_two_jobs_do_not_share_a_folder(desk):
    assert desk.run([1])[0] == 1
    code, said = desk.run([0], SLURM_JOB_ID="8", RUNNING="7 all pretrain R")
    assert code == 1 and f"job 7 is running in {desk.output}" in said
    assert len(desk.calls("srun")) == 1


def test_a_bad_node_ends_the_job_before_the_training(desk):
    code, said = desk.run([76, 0], PREFLIGHT="--memory 75")
    (call,) = desk.calls("srun")
    assert code == 76 and " --memory 75 --of launch/pretrain.py --config configs/tiny.json" in call
    code, said = desk.run([0, 78, 0, 0], PREFLIGHT="")
    assert code == 0, said
    assert ["preflight" in call for call in desk.calls("srun")[1:]] == [True, False, True, False]


@pytest.mark.parametrize(("how", "code"), [("asked-75", 75), ("asked-137", 137)])
def test_near_the_time_limit_ranks_are_asked_until_they_leave(desk, how, code):
    process = desk.start([how])
    until(lambda: bool(desk.calls("srun")), 10)
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == code, said
    assert desk.calls("scancel")[0] == "scancel --signal=USR2 7"
    assert desk.calls("scontrol requeue") == ["scontrol requeue 7"] and len(desk.calls("srun")) == 1
    assert said.count("asked to stop before the time limit") == 1


def test_a_job_whose_ranks_do_not_leave_goes_back_before_its_limit(desk):
    """Slurm would end it, and not put it back into the queue."""
    end = datetime.now() + timedelta(seconds=49)
    process = desk.start(["never"], RUNNING=end.isoformat(timespec="seconds"))
    until(lambda: bool(desk.calls("srun")), 10)
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 75 and "not all ranks have left in time; requeues itself" in said
    assert desk.calls("scontrol requeue") == ["scontrol requeue 7"] and datetime.now() < end - timedelta(seconds=30)


def test_nothing_starts_near_the_time_limit(desk):
    process = desk.start(["asked-0"], PREFLIGHT="")
    until(lambda: bool(desk.calls("srun")), 10)
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 75 and "the time limit is too near to start" in said
    assert len(desk.calls("srun")) == 1 and desk.calls("scontrol requeue")


def test_a_job_that_is_cancelled_does_not_come_back(desk):
    process = desk.start(["asked-75"])
    until(lambda: bool(desk.calls("srun")), 10)
    process.terminate()
    process.wait(600)
    (desk.folder / "asked").touch()
    time.sleep(0.3)
    assert process.returncode == -signal.SIGTERM and not desk.calls("scontrol requeue")


def test_pairs_come_before_the_distillation_once(desk):
    arguments = ("configs/distill_tiny.json", "weights/tiny", "--set", "training.steps=9")
    code, said = desk.run([0, 78, 0], *arguments, script="distill", PAIRS="64")
    assert code == 0, said
    pairs, first, second = desk.calls("srun")
    assert "launch/pairs.py" in pairs and "--count 64 --set training.steps=9" in pairs
    assert f"--resume --set warm_start.pairs={desk.output}/pairs --set training.steps=9" in first
    assert first == second
    (desk.output / "latest.json").write_text('{"step": 1}')
    assert desk.run([0], *arguments, script="distill", PAIRS="64")[0] == 0
    assert desk.calls("srun")[3:] == [first]


def test_what_keeps_its_parts_is_ended_and_counted_by_them(desk):
    """An evaluation listens to no request, ranks of a preparation end one by one; what they have kept is progress."""
    process = desk.start(["asked-143"], str(desk.output), "--weights", "weights/a", script="evaluate")
    until(lambda: bool(desk.calls("srun")), 10)
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 143 and "stopped before the time limit" in said
    assert desk.calls("scancel")[0] == "scancel --signal=TERM 7" and desk.calls("scontrol requeue")
    assert f"launch/evaluate.py --out {desk.output}/report.json --html" in desk.calls("srun")[0]

    made = desk.folder / "shards"
    arguments = ("clips.jsonl", "configs/tiny.json", str(made))
    assert desk.run([78, 1], *arguments, script="prepare", MAX_RETRIES="2")[0] == 1
    (made / "work/compiled").mkdir(parents=True)
    (made / "work/compiled/a.so").touch()  # which is no progress
    assert "gives up" in desk.run([0], *arguments, script="prepare", MAX_RETRIES="2")[1]
    (made / "part_1").touch()
    code, said = desk.run([0], *arguments, script="prepare", MAX_RETRIES="2")
    assert code == 0 and "gives up" not in said
    last = desk.calls("srun")[-1]
    assert (
        "--wait=0 " in last
        and f"prepare.py files --manifest clips.jsonl --config configs/tiny.json --out {made}" in last
    )


def test_a_task_becomes_a_rank():
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_LOCALID": "1"}
    done = subprocess.run(
        [str(SCRIPTS / "rank.sh"), "bash", "-c", "kill -USR2 $$; env"],
        env=os.environ | slurm,
        capture_output=True,
        text=True,
    )
    got = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert {name: got[name] for name in expected} == expected, "and a request to stop has not killed it"


def test_the_first_rank_that_fails_says_so(tmp_path):
    """One rank ends well, one asks to be stopped, one fails first and one is killed after it."""
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_LOCALID": "0"}
    environment = os.environ | slurm | {"FIRST": str(tmp_path / "ended")}
    found = []
    for command in ("exit 0", "kill -TERM $PPID; sleep 0.2; exit 77", "kill -9 $$"):
        done = subprocess.run([str(SCRIPTS / "rank.sh"), "bash", "-c", command], env=environment, capture_output=True)
        code = tmp_path / "ended" / "code"
        found.append((done.returncode, code.read_text() if code.exists() else ""))
    assert found == [(0, ""), (77, "77\n"), (137, "77\n")]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_shell_finds_nothing_to_complain_of():
    scripts = [*sorted(SCRIPTS.iterdir()), *sorted((ROOT / "launch").glob("*.sh"))]
    done = subprocess.run(
        ["shellcheck", "--external-sources", *map(str, scripts)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
