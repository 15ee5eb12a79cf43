"""Benchmark results and their goals: which are met, and a chart of each kind."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from audiox_trainer.trainer.benchmarks.goals import Finding, draw_charts, findings, read_results
from audiox_trainer.trainer.core.config import PretrainConfig, load_pretrain_config
from audiox_trainer.trainer.core.distill_config import load_distill_config, load_training_config
from tests.helpers.small_config import ROOT

MEASURE = ROOT / "launch" / "measure.sh"
HOST = {"cpu": "a processor, 2 cores", "gpu": "a GPU"}


def attention(backend, forward, backward):
    return {"op": "joint_attention", "backend": backend, "forward_ms": forward, "backward_ms": backward}


@pytest.fixture
def results():
    row = {"op": "gated_residual", "forward_ms": 2.0, "backward_ms": 4.0}
    limits = {"forward_of_limit": 0.9, "backward_of_limit": 0.5}
    rows = [attention("triton", 1.0, 3.0), attention("sdpa", 1.5, 2.4), attention("reference", 9.0, 9.0)]
    rows += [row | limits | {"backend": "triton"}, row | limits | {"backend": "reference", "forward_ms": 1.0}]
    train = {"variant": "deepspeed", "samples": 8, "mfu": 0.5, "samples_per_s": 100.0, "peak_bytes": 60e9}
    half = train | {"variant": "deepspeed, batch 4", "samples": 4, "samples_per_s": 80.0}
    sample = [{"steps": steps, "way": "ours, compiled", "ms": ms} for steps, ms in ((4, 25.0), (50, 400.0))]
    return {
        "kernels": {"host": HOST, "rows": rows, "alternatives": [attention("flex", 1.2, 5.0)]},
        "train_full": {"host": HOST, "rows": [train, half]},
        "train_fp8": {"host": HOST, "rows": [train | {"samples_per_s": 110.0}]},
        "sample": {"host": HOST, "rows": sample},
    }


def test_which_goals_are_met(results):
    found = {f.name: (round(f.value, 3), f.met) for f in findings(results)}
    assert "gpu" in results["kernels"]["host"]
    assert found["joint_attention, forward, times the fastest alternative"] == (1.2, True)
    assert found["joint_attention, backward, times the fastest alternative"] == (0.8, False)
    assert found["gated_residual, forward, of the limit"] == (0.9, True)
    assert found["gated_residual, backward, of the limit"] == (0.5, False)
    assert found["MFU of a training step, 2p7b"] == (0.5, True)
    assert found["  with FP8, times its speed"] == (1.1, False)
    assert found["  times the speed of the next smaller batch (flat: 0.98)"] == (1.25, True)
    assert found["  GB allocated at most"] == (60.0, None)
    assert found["ms of the student's 4 steps, batch 1, ours, compiled"] == (25.0, False)
    assert found["  the teacher's 50 guided steps, times that"] == (16.0, True)
    assert not any("distillation" in what for what in found)  # was not measured


def test_a_finding_says_its_goal_and_whether_it_is_met():
    assert re.fullmatch(r"a +0\.5 +at least 1 +MISSED", Finding("a", 0.5, 1.0).line())
    assert re.fullmatch(r"a +0\.5 +at most 1 +met", Finding("a", 0.5, 1.0, at_most=True).line())
    assert Finding("a", 0.5).line().split() == ["a", "0.5"]
    assert Finding("a", 1.2, 1.0, stretch=1.3).line().endswith("met; 1.3 missed")


def test_charts_of_what_is_there(results, tmp_path):
    drawn = draw_charts(results, tmp_path)
    assert [path.name for path in drawn] == ["kernels.svg", "train.svg", "sample.svg"]
    assert all("<svg" in path.read_text() for path in drawn)
    (alone,) = draw_charts({"train": results["train_full"]}, tmp_path / "alone")
    assert alone.name == "train.svg"


def test_a_kernel_of_ours_that_did_not_run_on_a_gpu_is_not_replaced_by_the_reference(results):
    kernels = results["kernels"]
    kernels["rows"] = [row for row in kernels["rows"] if (row["op"], row["backend"]) != ("gated_residual", "triton")]
    kernels["failed"] = ["gated_residual by triton: out of resources"]
    found = {f.name: f for f in findings(results)}
    assert found["gated_residual, our kernel"].met is False
    assert "DID NOT RUN" in found["gated_residual, our kernel"].line()
    assert "gated_residual by triton: out of resources" in found
    assert not any(what.startswith("gated_residual, forward") for what in found)
    kernels["host"] = {"cpu": "a processor"}  # where the compiled reference is ours
    found = {f.name: f.value for f in findings(results)}
    assert found["joint_attention, forward, times the fastest alternative"] == pytest.approx(1 / 9)


def test_a_round_without_its_parts_has_its_memory(results):
    results = {"distill": {"host": HOST, "round_s": 2.0, "mfu": 0.4, "peak_bytes": 100e9}}
    found = {f.name: f.value for f in findings(results)}
    assert found["a round of distillation: GB allocated at most"] == 100 and found["  its seconds"] == 2
    assert not any("parts" in what for what in found)


def test_peaks_are_compared_with_their_plans():
    found = {
        "memory": {"host": HOST, "planned_peak": 10e9, "measured_peak": 10.5e9},
        "memory_distill": {"host": HOST, "planned_peak": 10e9, "measured_peak": 8e9},
    }
    rows = {f.name: (round(f.value, 3), f.met) for f in findings(found)}
    assert rows == {
        "peak of allocated memory, off its plan by": (0.05, True),
        "peak of allocated memory of distillation, off its plan by": (0.2, False),
    }


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results"):
        read_results(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps({"rows": []}))
    assert read_results(tmp_path) == {"train": {"rows": []}}


def measure(folder, memory="", *parts, missing="", **environment):
    """Runs launch/measure.sh on a machine whose nvidia-smi reports this GPU memory, with a Python that only records its
    command lines, and that lacks a library -> how it ended, and the command lines."""
    programs, log = folder / "programs", folder / "asked.jsonl"
    programs.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\necho '{memory}'\n")
    noting = (
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"if 'read_config' in sys.argv[-1]:\n    os.execv('{sys.executable}', ['{sys.executable}', *sys.argv[1:]])\n"
        f"if 'find_spec' in sys.argv[-1]:\n    sys.exit('{missing}' in sys.argv[-1] if '{missing}' else 0)\n"
        f"if sys.argv[1] != '-c':\n    open('{log}', 'a').write(json.dumps(sys.argv[1:]) + chr(10))\n"
    )
    (programs / "python").write_text(noting)
    for program in programs.iterdir():
        program.chmod(0o755)
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": str(programs / "python")}
    done = subprocess.run(
        ["bash", MEASURE, folder / "out", folder / "all.tgz", *parts],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_measuring_without_a_gpu_is_refused_before_anything_is_made(tmp_path):
    done, asked = measure(tmp_path)
    assert done.returncode == 1 and "no GPU here" in done.stderr
    assert asked == [] and not (tmp_path / "out").exists()


def part_of(command):
    """The part that a command line belongs to: by its result, or its tests."""
    if "--out" in command or "--json" in command:
        return Path(command[-1] if "--json" in command else command[command.index("--out") + 1]).stem
    return {"tests/kernels/test_triton.py": "tests", "tests/gpu/test_resumed_run.py": "resume"}.get(command[3], "")


def parts_of(commands):
    return [name for command in commands if (name := part_of(command))]


FIRST = ["tests", "kernels", "tiles", "train_full", "train_eager", "memory", "resume", "sample", "distill"]
REST = ["train_fp8", "train_fp8_rows", "train_plain", "train_zero2", "memory_distill"]


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["81559", "143771", "small"])
def test_every_command_of_measuring_is_accepted(tmp_path, machine, monkeypatch):
    """Every command line parses, and its configuration loads; results of an earlier run are gone."""
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    import bench
    import plan

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "memory.json").write_text("old")
    (tmp_path / "out" / "mine.json").write_text("kept")
    small = {"SMALL": "1"} if machine == "small" else {}
    done, asked = measure(tmp_path, machine, LIMIT="900", **small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["mine.json"]
    with tarfile.open(tmp_path / "all.tgz") as packed:
        assert set(packed.getnames()) == {".", *(f"./{path.name}" for path in (tmp_path / "out").iterdir())}
    plans: dict = {}
    for program, *arguments in asked:
        if program == "launch/plan.py":
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            given = plan.parse()
            plans[given.json.stem] = load_training_config(ROOT / given.config, given.set)
            assert given.measure
        if program == "launch/bench.py":
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            given = bench.parse()
            load = load_distill_config if given.command == "distill" else load_pretrain_config
            config = load(ROOT / given.config, given.set)
            if given.command == "distill":
                assert given.no_parts == (machine == "143771")
                assert config.model.backbone.depth == {"81559": 12, "143771": 24, "small": 3}[machine]
                distilled = config
    assert isinstance(plans["memory"], PretrainConfig) and plans["memory_distill"] == distilled
    assert parts_of(asked) == [name for name in FIRST + REST if machine != "small" or name != "tiles"]


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_measuring_runs_whole_in_small(tmp_path):
    """Every part of it ends well, and leaves its result; a slow machine runs the commands that it names, too."""
    left: list[str] = []
    for _ in range(4):
        done = subprocess.run(
            ["bash", MEASURE, tmp_path / "out", tmp_path / "all.tgz", *left],
            env=os.environ | {"SMALL": "1", "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=2900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "left out" not in done.stdout
        named = [line.split("all.tgz' ")[1] for line in done.stdout.splitlines() if "no time was left" in line]
        left = named[0].split() if named else []
        if not left:
            break
    assert not left
    names = [name for name in FIRST + REST if name != "tiles"]  # which are a GPU's
    assert [name for name in names if not (tmp_path / "out" / f"{name}.txt").read_text()] == []
    results = read_results(tmp_path / "out")
    assert set(names) - results.keys() == {"tests", "resume"} and findings(results)
    assert (tmp_path / "out" / "goals.txt").read_text() and tarfile.is_tarfile(tmp_path / "all.tgz")


def test_one_command_fits_into_ten_minutes_and_names_what_is_left(tmp_path):
    """A borrowed GPU runs no command for longer; the parts that did not fit are those of a second one."""
    done, asked = measure(tmp_path, "143771")
    begun = parts_of(asked)
    assert begun[: len(FIRST)] == FIRST
    rest = [name for name in REST if name not in begun]
    command = f"bash launch/measure.sh {tmp_path / 'out'} '{tmp_path / 'all.tgz'}' {' '.join(rest)}"
    assert rest and command in done.stdout
    done, asked = measure(tmp_path, "143771", *rest)
    assert parts_of(asked) == rest
    assert "no time was left" not in done.stdout


@pytest.mark.parametrize(
    ("missing", "run"), [("deepspeed", ["tests", "kernels", "tiles", "sample"]), ("streaming", None)]
)
def test_parts_without_their_library_are_left_out(tmp_path, missing, run):
    done, asked = measure(tmp_path, "143771", missing=missing)
    begun = parts_of(asked)
    assert begun == run or (run is None and set(FIRST) - set(begun) == {"resume"})
    assert f"-- resume: left out, it needs {missing}" in done.stdout


def test_an_unknown_part_is_refused(tmp_path):
    done, asked = measure(tmp_path, "143771", "trian_full")
    assert done.returncode == 1 and asked == [] and "trian_full: no part; there are tests kernels" in done.stderr


def test_the_parts_of_measuring_fit_their_time():
    rows = re.findall(r"(?:^|\|\| )(?:part|bench|train) (\w+) (\d+) ", MEASURE.read_text(), re.MULTILINE)
    seconds = {name: int(number) for name, number in rows}
    assert list(seconds) == FIRST + REST
    assert sum(seconds[name] for name in FIRST) <= 570  # one command of a borrowed GPU
    assert sum(seconds.values()) <= 740  # all of its 15 minutes, less two starts
