"""Proves that two revisions train the same weights, to the bit. For a change that must not touch the numerics.

Each checkout renders scenes, trains the tiny teacher, makes pairs and distils a student through every phase, on one
rank and on two. Then every tensor of every checkpoint is compared: weights, moments, moving averages, random states.

  python tests/same_weights.py ../before . --work /tmp/same-weights

Both checkouts need an environment of their own in .venv, with the same packages. Where the first one has other names
for keys or scripts than this file, give them: --rename training.cpu_threads=training.threads. A run of the script that
was stopped continues with the same command; what is finished in --work is not trained again.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

CLIPS, STEPS, UPDATES = 200, 100, 30
TRAINING = [
    "training.compile=false",
    "training.global_batch=8",
    "training.micro_batch=4",
    "training.cpu_threads=1",
    "logging.preview_every=0",
]


def train(checkout: Path, work: Path, ranks: int, renames: dict[str, str]) -> None:
    """Everything that one revision makes on this number of ranks."""
    if (work / "finished").exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    def launch(count: int, script: str, *arguments: str, settings: list[str] | None = None) -> None:
        words = [script, *arguments, *(word for setting in settings or () for word in ("--set", setting))]
        run_ranks(checkout, count, [renamed(word, renames) for word in words], work / "log.txt")

    scenes, teacher, pairs = work / "scenes", work / "weights", work / "pairs"
    streams = [f"data.streams.{i}.path={scenes / kind}" for i, kind in enumerate(("audio", "music"))]
    launch(1, "launch/prepare.py", "scenes", "--clips", str(CLIPS), "--out", str(scenes), "--workers", "2")
    launch(
        ranks,
        "launch/pretrain.py",
        *("--config", "configs/tiny.json", "--output", str(work / "teacher")),
        settings=[*streams, *TRAINING, f"training.steps={STEPS}"],
    )
    launch(1, "launch/convert.py", str(work / "teacher"), "--out", str(teacher))
    launch(1, "launch/convert.py", str(work / "teacher"), "--out", str(work / "weights-raw"), "--raw")
    common = ["--config", "configs/distill_tiny.json", "--teacher", str(teacher)]
    settings = [*streams, *TRAINING, f"training.steps={UPDATES}", f"warm_start.pairs={pairs}"]
    settings += [f"warm_start.updates={UPDATES}", f"updates.fake_warm_up={UPDATES}"]
    launch(ranks, "launch/pairs.py", *common, "--out", str(pairs), "--count", str(8 * UPDATES), settings=settings)
    launch(ranks, "launch/distill.py", *common, "--output", str(work / "student"), settings=settings)
    launch(1, "launch/convert.py", str(work / "student"), "--out", str(work / "weights-student"))
    (work / "finished").touch()


def renamed(word: str, renames: dict[str, str]) -> str:
    for name, former in renames.items():
        if word == name or word.startswith(f"{name}="):
            return former + word.removeprefix(name)
    return word


def run_ranks(checkout: Path, ranks: int, words: list[str], log: Path) -> None:
    """Raises SystemExit, with the end of the log, where a rank fails."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    print(f"{checkout.name}, {ranks} ranks: {' '.join(words)}", flush=True)
    with log.open("a") as out:
        processes = [
            subprocess.Popen(
                [str(checkout / ".venv/bin/python"), *words],
                cwd=checkout,
                env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            for rank in range(ranks)
        ]
        codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"failed with {codes}; the end of {log}:\n{log.read_text()[-3000:]}")


def compare(before: Path, after: Path) -> list[tuple[str, int, str]]:
    """-> each file of tensors, how many tensors it holds, and which differ ("" for none)."""
    names = {path.relative_to(folder) for folder in (before, after) for path in folder.rglob("*.safetensors")}
    return [(str(name), *differences(before / name, after / name)) for name in sorted(names)]


def differences(before: Path, after: Path) -> tuple[int, str]:
    if not (before.exists() and after.exists()):
        return 0, f"only in {before if before.exists() else after}"
    with safe_open(before, "pt") as a, safe_open(after, "pt") as b:
        if set(a.keys()) != set(b.keys()):
            return len(a.keys()), f"other names: {sorted(set(a.keys()) ^ set(b.keys()))[:4]}"
        names = sorted(a.keys())
        differ = [name for name in names if not same(a.get_tensor(name), b.get_tensor(name))]
    return len(names), f"{len(differ)} differ, the first is {differ[0]}" if differ else ""


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT", help="before, after")
    parser.add_argument("--work", type=Path, default=Path("runs/same-weights"), help="folder to work in")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rename", action="append", default=[], metavar="NAME=FORMER", help="for the first checkout")
    arguments = parser.parse_args()
    renames = dict(rename.split("=", 1) for rename in arguments.rename)
    rows = []
    for ranks in arguments.ranks:
        folders = [arguments.work.absolute() / f"{name}-{ranks}" for name in ("before", "after")]
        for folder, checkout, names in zip(folders, arguments.checkouts, (renames, {}), strict=True):
            train(checkout.resolve(), folder, ranks, names)
        rows += [(ranks, *row) for row in compare(*folders)]
    print(f"\n{'ranks':5}  {'tensors':>7}  {'file':64}  result")
    for ranks, name, count, fault in rows:
        print(f"{ranks:5}  {count:7}  {name:64}  {fault or 'the same'}")
    return int(not rows or any(fault for *_, fault in rows))


if __name__ == "__main__":
    sys.exit(main())
