"""Trains under faults of every kind, and measures how much of the time counts.

    python -m tests.resilience.goodput --minutes 60 --every 300 --log goodput.jsonl

Two ranks on two simulated nodes train the small model from a bucket, with checkpoints and copies on the nodes; a loop
starts them again at once when they end, as the batch script does. Every `--every` seconds, give or take a half, one of
these happens, all kinds equally often: a rank is killed, is stopped, or hangs in a native call; its disk is full; a
byte of the newest checkpoint or copy is flipped and all are killed; the bucket is dead for some time and its cache is
lost. Some batches are NaN. Then an undisturbed run makes the same steps. Goodput is its time divided by that of the
run with faults; both must end bitwise alike.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audiox_trainer.trainer.checkpoint import load
from audiox_trainer.trainer.core.cli import ExitCode
from tests.helpers.faulty_bucket import Bucket
from tests.helpers.soaked_rank import HANG
from tests.helpers.supervised_runs import PATIENCE, RANKS, Run, prepare, resumed

OUTAGE = 20.0  # seconds without a bucket
TRIAL = 1000  # steps, to know the speed
STEPS_LATER = 500  # a run that has a dead bucket's shards in memory may not notice
NAN = (0.2, 0.5, 0.8)  # of the steps
AGAIN = (ExitCode.HUNG, ExitCode.STOPPED, -signal.SIGKILL)  # codes after which a batch script starts again


class Soak:
    """A run and what may happen to it."""

    def __init__(self, run: Run, bucket: Bucket, rng: np.random.Generator, steps: int) -> None:
        self.run, self.bucket, self.rng = run, bucket, rng
        nan = json.dumps([int(share * steps) for share in NAN])
        self.script = ("-m", "tests.helpers.soaked_rank", "pretrain", nan, "--set", f"training.steps={steps}")
        self.log, self.restarts = 0, 0  # when the last fault came, and since then

    def signal(self, number: signal.Signals | int) -> None:
        self.run.processes[int(self.rng.integers(RANKS))].send_signal(number)

    def fill_disk(self) -> None:
        """No process of a rank can write more than a byte to a file."""
        process = self.run.processes[int(self.rng.integers(RANKS))]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def flip_byte(self) -> None:
        """In the newest checkpoint or copy; then all ranks are killed."""
        for process in self.run.processes:
            process.kill()
        folders = load.list_checkpoints(self.run.folder)[:1]
        folders += [newest for node in self.run.base.glob("nodes/*/*") for newest in load.list_checkpoints(node)[:1]]
        files = sorted(file for folder in folders for file in folder.rglob("*.safetensors"))
        if files:
            file = files[int(self.rng.integers(len(files)))]
            with file.open("r+b") as handle:
                handle.seek(int(self.rng.integers(file.stat().st_size)))
                byte = handle.read(1)
                handle.seek(-1, os.SEEK_CUR)
                handle.write(bytes([byte[0] ^ 1 << int(self.rng.integers(8))]))

    def lose_bucket(self) -> None:
        self.bucket.dead_until = time.monotonic() + OUTAGE
        for shard in self.run.base.glob("cache/**/*.mds"):
            shard.unlink()

    def faults(self) -> dict[str, Callable[[], None]]:
        return {
            "killed": lambda: self.signal(signal.SIGKILL),
            "stopped": lambda: self.signal(signal.SIGSTOP),
            "hangs": lambda: self.signal(HANG),
            "full disk": self.fill_disk,
            "flipped byte": self.flip_byte,
            "dead bucket": self.lose_bucket,
        }

    def train(self, every: float = 0.0) -> tuple[float, list[dict[str, Any]]]:
        """Seconds until the run is done, and a line for each fault, one about every so many seconds."""
        lines: list[dict[str, Any]] = []
        begun = time.monotonic()
        due, kinds = begun + self.pause(every), list[str]()
        self.run.start(self.script)
        while True:
            time.sleep(0.05)
            now = time.monotonic()
            over = not lines or "trains_s" in lines[-1]
            if self.run.ended():
                codes = self.run.wait(PATIENCE)
                if codes == [ExitCode.DONE] * RANKS:
                    return time.monotonic() - begun, lines
                self.start_again(codes, "" if over else lines[-1]["fault"])
            elif not over and self.trains_again(lines[-1]["step"]):
                lines[-1]["trains_s"] = round(now - begun - lines[-1]["at_s"], 1)
                print(json.dumps(lines[-1]), flush=True)
            elif over and now >= due and last_step(self.run):
                kinds = kinds or [str(kind) for kind in self.rng.permutation(list(self.faults()))]
                due = now + self.pause(every)
                self.log, self.restarts = self.run.log(), 0
                lines.append({"fault": kinds.pop(), "at_s": round(now - begun, 1), "step": last_step(self.run)})
                self.faults()[lines[-1]["fault"]]()

    def pause(self, every: float) -> float:
        return every * self.rng.uniform(0.5, 1.5) if every else np.inf

    def start_again(self, codes: list[int | None], fault: str) -> None:
        """As the batch script does; somebody has made room on a full disk."""
        expected = (*AGAIN, ExitCode.FAILED) if fault == "full disk" else AGAIN
        assert fault and all(code in expected for code in codes), (fault, codes, *map(self.run.said, range(RANKS)))
        self.restarts += 1
        self.run.clear()
        self.run.start(self.script)

    def trains_again(self, step: int) -> bool:
        """Whether it was started again since the fault and makes new steps; or makes them although the bucket died."""
        if self.restarts:
            return self.run.log() != self.log and last_step(self.run) > (resumed(self.run.said()) or 0)
        return 0 < self.bucket.dead_until < time.monotonic() and last_step(self.run) > step + STEPS_LATER


def last_step(run: Run) -> int:
    """The step of the last whole line of its log, which may be long; 0 without one."""
    file = run.folder / "metrics.jsonl"
    if not file.exists():
        return 0
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - 20_000))
        lines = [line for line in handle.read().splitlines()[-3:] if line.startswith(b"{") and line.endswith(b"}")]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def soak(base: Path, minutes: float, every: float, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and a line for each fault."""
    prepare(base)
    rng = np.random.default_rng(seed)
    with Bucket(base / "scenes") as bucket:
        os.environ |= {f"AWS_{name}": "nobody" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")}
        os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "2", "S3_ENDPOINT_URL": bucket.address}

        def train(name: str, steps: int, every: float = 0.0) -> tuple[Run, float, list[dict[str, Any]]]:
            run = Run("pretrain", base, name, settings(base))
            shutil.rmtree(run.folder, ignore_errors=True)
            return run, *Soak(run, bucket, rng, steps).train(every)

        start, trial = (train("trial", steps)[1] for steps in (1, TRIAL))
        steps = max(TRIAL, int(60 * minutes * TRIAL / (trial - start)))
        disturbed, seconds, lines = train("disturbed", steps, every)
        undisturbed, ideal, _ = train("undisturbed", steps)
    ends = [run.end() for run in (disturbed, undisturbed)]
    differing = [key for key in ends[0] if ends[0][key] != ends[1][key]]
    summary = {"steps": steps, "seconds": round(seconds), "undisturbed": round(ideal), "faults": len(lines)}
    return summary | {"goodput": round(ideal / seconds, 3), "differing": differing}, lines


def settings(base: Path) -> tuple[str, ...]:
    streams = [f"data.streams.{i}.path=s3://far/{name}" for i, name in enumerate(("audio", "music"))]
    saving = {"every": 400, "keep_last": 3, "async_save": True, "local_every": 100, "local_folder": str(base / "nodes")}
    saving_json = json.dumps(saving)
    return (*streams, f"data.cache={base / 'cache'}", f"checkpoint={saving_json}", "logging.every=10")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="without faults (default: %(default)s)")
    parser.add_argument("--every", type=float, default=300, help="seconds between two faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="where each fault is written as a line of JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="goodput-") as folder:
        summary, lines = soak(Path(folder), options.minutes, options.every, options.seed)
    if options.log:
        options.log.write_text("".join(json.dumps(line) + "\n" for line in (*lines, summary)))
    print(json.dumps(summary))
    return int(bool(summary["differing"]))


if __name__ == "__main__":
    sys.exit(main())
